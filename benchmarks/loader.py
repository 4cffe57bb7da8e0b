"""Our stream against open_clip's own loader, on the same shards, one worker each, in turn.

    python -m benchmarks.loader                                # 2,048 pictures of 500×375, 224 px, three rounds
    python -m benchmarks.loader --pictures FOLDER              # photographs instead of generated pictures
    python -m benchmarks.loader --memory                       # memory of our processes over 50,000 samples

Ours delivers whole batches (pictures, captions, boxes, phrases) to the training process; open_clip's
``get_wds_dataset`` with its own training transform delivers pictures and captions. Bare decoding is torchvision's JPEG
decoder at full size, in one process. Prints medians; the last line is one JSON object.
"""

from __future__ import annotations

import io
import json
import os
import platform
import statistics
import tarfile
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transform import image_transform
from open_clip_train import data as open_clip_data
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table
from torchvision.io import ImageReadMode, decode_jpeg
from webdataset.tariterators import tar_file_expander

from cloc.console import counted, print_table, progress, progress_console
from cloc.data.shards.index import index_folder, load_manifest, write_manifest
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.stream.batches import Stream, make_loader
from cloc.data.stream.region_sampling import Chooser
from cloc.data.tokenizer import Tokenizer
from cloc.data.transforms import View
from cloc.usage import Parser, one_line

WIDTH, HEIGHT = 500, 375
QUALITY = 75  # Pillow's default: 55 KB a picture
DISTINCT = 256  # generated pictures; more samples repeat them under other keys, with other texts
PER_SHARD = 256
REGIONS = 7  # a picture, as in Flickr30k Entities
CAPTIONS = 5
NOUNS = """man woman dog child boy girl ball bike street water horse shirt snow grass beach car wall hat player tree
bench camera crowd rock field river boat table guitar jacket""".split()
ADJECTIVES = "red blue young small brown white large black yellow old wooden green wet tall striped".split()
VERBS = "runs jumps sits stands plays rides holds looks walks waits climbs sleeps".split()


def natural_picture(rng: np.random.Generator) -> Image.Image:
    """Noise with the 1/f spectrum of natural pictures; as JPEGs of quality 75 they have 2.4 bits a pixel, of 90 4."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None] * HEIGHT, np.fft.rfftfreq(WIDTH)[None] * WIDTH)
    frequency[0, 0] = 1

    def noise(power: float) -> np.ndarray:
        spectrum = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
        field = np.fft.irfft2(spectrum / frequency**power, s=(HEIGHT, WIDTH))
        return field / field.std()

    light = 40 * noise(1.1)
    channels = [light + 18 * noise(1.6) + rng.uniform(80, 160) for _ in range(3)]
    return Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))


def pictures(folder: Path | None, count: int, rng: np.random.Generator, quality: int) -> list[bytes]:
    """JPEG files of one size and quality: generated, or made of the photographs below a folder."""
    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:count]
        if not paths:
            raise FileNotFoundError(f"--pictures {folder}: no .jpg below it")
        source: Iterable[Image.Image] = (ImageOps.fit(Image.open(p).convert("RGB"), (WIDTH, HEIGHT)) for p in paths)
    else:
        source = (natural_picture(rng) for _ in range(count))
    files = []
    for picture in source:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        files.append(buffer.getvalue())
    return files


def texts(rng: np.random.Generator) -> tuple[list[str], list[dict[str, Any]]]:
    """Captions of about eleven words, and regions with one or two phrases each."""

    def phrase() -> str:
        return " ".join(["a", *rng.choice(ADJECTIVES, rng.integers(0, 3)), rng.choice(NOUNS)])

    captions = [
        f"{phrase()} {rng.choice(VERBS)} next to {phrase()} in front of {phrase()}".capitalize() + "."
        for _ in range(CAPTIONS)
    ]
    regions = []
    for _ in range(REGIONS):
        x, y, w, h = *rng.uniform(0, 0.6, 2), *rng.uniform(0.05, 0.4, 2)
        phrases = [phrase() for _ in range(rng.integers(1, 3))]
        regions.append({"box": [x, y, x + w, y + h], "phrases": phrases})
    return captions, regions


def write_data(out: Path, samples: int, folder: Path | None, quality: int = QUALITY) -> None:
    """Shards with jpg, txt and json members, which both loaders read."""
    rng = np.random.default_rng(0)
    files = pictures(folder, min(samples, DISTINCT), rng, quality)
    out.mkdir(parents=True, exist_ok=True)
    with progress(progress_console(), "writing shards", samples) as bar:
        for start in range(0, samples, PER_SHARD):
            with tarfile.open(out / f"{start // PER_SHARD:05d}.tar", "w") as tar:
                for number in bar.each(range(start, min(samples, start + PER_SHARD))):
                    captions, regions = texts(rng)
                    record = {"captions": captions, "regions": regions, "width": WIDTH, "height": HEIGHT}
                    members = {"jpg": files[number % len(files)], "json": json.dumps(record), "txt": captions[0]}
                    for extension, content in members.items():
                        data = content if isinstance(content, bytes) else content.encode()
                        member = tarfile.TarInfo(f"{number:08d}.{extension}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
    write_manifest(index_folder(out))


def our_loader(folder: Path, options: Namespace) -> Iterator[Any]:
    """Whole batches, read by one worker."""
    chooser = Chooser(View(options.image_size), regions=4)
    stream = Stream(load_manifest(folder), Tokenizer("open_clip", 77), chooser, options.batch)
    return iter(make_loader(stream, workers=1))


def open_clip_loader(folder: Path, options: Namespace) -> Iterator[Any]:
    """open_clip's training loader as ``open_clip_train.main`` builds it, endless over its passes."""
    shards = sorted(folder.glob("*.tar"))
    arguments = Namespace(
        train_data=f"{folder}/{{{shards[0].stem}..{shards[-1].stem}}}.tar",
        train_num_samples=options.samples,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=options.batch,
        workers=1,
        world_size=1,
    )
    # Newer webdataset than open_clip's own marks the end of a shard, which open_clip's grouping does not know.
    open_clip_data.tar_file_expander = partial(tar_file_expander, eof_value=None)
    transform = image_transform(options.image_size, is_train=True)
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    loader = open_clip_data.get_wds_dataset(arguments, transform, is_train=True, tokenizer=tokenizer).dataloader
    while True:
        yield from loader


def encoded_pictures(manifest: Manifest) -> list[bytes]:
    """The JPEG bytes of one shard."""
    reader = ShardReader(manifest)
    return [reader.read_sample((0, index), "bench")[0].image for index in range(manifest.shards[0].samples)]


def decode_rate(files: list[bytes], count: int) -> float:
    """Pictures a second that torchvision decodes at full size, on one thread, and nothing else."""
    buffers = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    start = time.perf_counter()
    for number in range(count):
        decode_jpeg(buffers[number % len(buffers)], ImageReadMode.RGB)
    return count / (time.perf_counter() - start)


def loader_rate(batches: Iterator[Any], size: Callable[[Any], int], count: int) -> float:
    """Samples a second that arrive here, once whatever was prefetched between rounds is used up."""
    for _ in range(6):
        next(batches)
    seen, start = 0, time.perf_counter()
    while seen < count:
        seen += size(next(batches))
    return seen / (time.perf_counter() - start)


def compare(folder: Path, options: Namespace, console: Console) -> dict[str, Any]:
    """All three in turn."""
    torch.set_num_threads(1)
    manifest = load_manifest(folder)
    files = encoded_pictures(manifest)
    ours, theirs = our_loader(folder, options), open_clip_loader(folder, options)
    rates: dict[str, list[float]] = {"ours": [], "open_clip": [], "decode": []}
    for _ in counted(range(options.rounds), "measuring"):
        rates["decode"].append(decode_rate(files, options.samples // 2))
        rates["ours"].append(loader_rate(ours, lambda batch: len(batch.images), options.samples))
        rates["open_clip"].append(loader_rate(theirs, lambda batch: len(batch[0]), options.samples))
    median = {name: statistics.median(values) for name, values in rates.items()}
    table = Table(
        title=f"{options.samples:,} samples a round, {options.image_size} px, batch {options.batch}, one worker"
    )
    for column in ("", "samples/s", "lowest", "highest"):
        table.add_column(column, justify="right" if column else "left")
    names = {
        "decode": "torchvision, bare JPEG decoding",
        "ours": "ours: pictures, captions, boxes, phrases",
        "open_clip": "open_clip: pictures, captions",
    }
    for name, label in names.items():
        table.add_row(label, *(f"{value:,.0f}" for value in (median[name], min(rates[name]), max(rates[name]))))
    print_table(table, console)
    return {
        "ours_over_open_clip": round(median["ours"] / median["open_clip"], 3),
        "share_of_decode": round(median["ours"] / median["decode"], 3),
        **{f"{name}_samples_per_second": round(value, 1) for name, value in median.items()},
        "bytes_per_picture": round(statistics.mean(map(len, files))),
    }


def memory(folder: Path, options: Namespace, console: Console) -> dict[str, Any]:
    """Resident memory of this process and the worker while ``--memory-samples`` go by.

    The first fifth is left out: queues and the cache of tokens fill.
    """
    loader = our_loader(folder, options)
    steps = max(10, options.memory_samples // options.batch)
    curve = []
    with progress(progress_console(), "reading", steps, "batches") as bar:
        for step in bar.each(range(steps)):
            next(loader)
            if step >= steps // 5 and step % max(1, steps // 100) == 0:
                curve.append(_resident_bytes() / 2**20)
    half = len(curve) // 2
    first, second = statistics.median(curve[:half]), statistics.median(curve[half:])
    console.print(
        f"memory: {first:.0f} MiB in the first half, {second:.0f} MiB in the second, at most {max(curve):.0f}"
    )
    return {
        "memory_samples": steps * options.batch,
        "memory_first_half_mib": round(first, 1),
        "memory_second_half_mib": round(second, 1),
        "memory_growth": round(second / first - 1, 4),
    }


def _resident_bytes() -> int:
    """Of this process and all below it (Linux)."""
    pages, page = 0, os.sysconf("SC_PAGE_SIZE")
    waiting = [os.getpid()]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        pages += int((process / "statm").read_text().split()[1])
        for thread in (process / "task").iterdir():
            waiting += map(int, (thread / "children").read_text().split())
    return pages * page


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m benchmarks.loader")
    parser.add_argument("--samples", type=int, default=2048, help="in the shards, and measured in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--pictures", type=Path, help="folder of JPEG photographs to use instead of generated pictures")
    parser.add_argument("--quality", type=int, default=QUALITY, help="of the JPEG files")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed (Linux)")
    parser.add_argument("--memory-samples", type=int, default=50_000)
    return parser


def main() -> None:
    """Parse the command line and run."""
    parser = make_parser()
    options = parser.parse_args()
    if options.samples % options.batch:
        parser.error(f"--samples {options.samples} must be a multiple of --batch {options.batch}")
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder, options.samples, options.pictures, options.quality)
        result = (memory if options.memory else compare)(folder, options, console)
    environment = {"torch": torch.__version__, "open_clip": open_clip.__version__, "machine": platform.machine()}
    print(json.dumps(result | environment))


if __name__ == "__main__":
    one_line(main)
