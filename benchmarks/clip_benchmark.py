"""CLIP_benchmark on an exported open_clip folder, beside our own evaluation of the same pictures and captions.

    python -m benchmarks.clip_benchmark RUN --data data/flickr8k/val          # needs the extra `clip_benchmark`

RUN is an export to open_clip, or what ``export open_clip`` takes. The shards are written again in CLIP_benchmark's
webdataset layout, and its own command line measures image-text retrieval. Beside it stand our numbers: from the
export's view of the pictures (Pillow's bicubic resize) or from ours (torchvision's). CLIP_benchmark counts a caption
that two pictures share as two captions, each with one right answer; "its counting" does the same, ``eval.py`` takes
either picture for right. The last line is one JSON object.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import open_clip
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize

from cloc.config import DatasetConfig
from cloc.console import print_table
from cloc.contracts import Sample
from cloc.encoder import Encoder
from cloc.evaluation.metrics.retrieval import owners, recall
from cloc.evaluation.sets.kinds import load_eval_set
from cloc.export.pipeline import export
from cloc.loading import load
from cloc.models.trust.values import OPEN_CLIP_CONFIG
from cloc.usage import Parser, one_line

KS = (1, 5, 10)
BATCH = 64


def read_samples(folder: Path, limit: int) -> list[Sample]:
    """Samples of an evaluation set that have captions, pictures included."""
    data = load_eval_set("data", DatasetConfig(shards=str(folder)), limit)
    samples = enumerate(data.samples)
    return [replace(sample, image=data.encoded(index)) for index, sample in samples if sample.captions]


def write_webdataset(samples: Sequence[Sample], folder: Path) -> None:
    """Write CLIP_benchmark's layout: ``test/0.tar`` with a picture and a text of captions for each sample."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("1")
    (folder / "dataset_type.txt").write_text("retrieval")
    with tarfile.open(folder / "test" / "0.tar", "w") as archive:
        for i, sample in enumerate(samples):
            for suffix, data in ((sample.extension, sample.image), ("txt", "\n".join(sample.captions).encode())):
                member = tarfile.TarInfo(f"{i:08d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def theirs(exported: Path, data: Path, work: Path) -> dict[str, float]:
    """What CLIP_benchmark's command line measures, in float32."""
    command = ["clip_benchmark", "eval", "--model", f"local-dir:{exported}", "--pretrained", "none", "--no_amp"]
    command += ["--dataset", "wds/retrieval", "--dataset_root", str(data), "--task", "zeroshot_retrieval"]
    command += ["--recall_k", *map(str, KS), "--num_workers", "0", "--batch_size", str(BATCH)]
    command += ["--output", str(work / "result.json")]
    start = "import sys; from clip_benchmark.cli import main; sys.argv = sys.argv[1:]; main()"
    done = subprocess.run(
        [sys.executable, "-c", start, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"clip_benchmark failed:\n{done.stderr[-2000:]}")
    found = json.loads((work / "result.json").read_text())["metrics"]
    names = {"text_retrieval_recall": "image_to_text", "image_retrieval_recall": "text_to_image"}
    return {f"{ours}_R@{k}": found[f"{name}@{k}"] for name, ours in names.items() for k in KS}


@torch.inference_mode()
def exported_images(exported: Path, samples: Sequence[Sample]) -> Tensor:
    """``[B,D]`` by open_clip alone, from the export's own preprocessing."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{exported}")
    model.eval()
    parts = []
    for start in range(0, len(samples), BATCH):
        pictures = [Image.open(io.BytesIO(sample.image)) for sample in samples[start : start + BATCH]]
        parts.append(model.encode_image(torch.stack([preprocess(picture.convert("RGB")) for picture in pictures])))
    return normalize(torch.cat(parts), dim=-1)


def our_images(encoder: Encoder, samples: Sequence[Sample]) -> Tensor:
    """``[B,D]`` by us."""
    starts = range(0, len(samples), BATCH)
    pictures = ([Image.open(io.BytesIO(s.image)) for s in samples[start : start + BATCH]] for start in starts)
    return torch.cat([encoder.encode_image(batch) for batch in pictures])


def ours(images: Tensor, encoder: Encoder, samples: Sequence[Sample], distinct: bool) -> dict[str, float]:
    """Recall in both directions: of distinct captions as ``eval.py`` has it, or of all as CLIP_benchmark counts."""
    if distinct:
        texts, by_text, by_item = owners([sample.captions for sample in samples])
    else:
        texts = [text for sample in samples for text in sample.captions]
        by_text = [{i} for i, sample in enumerate(samples) for _ in sample.captions]
        ends = torch.tensor([len(sample.captions) for sample in samples]).cumsum(0).tolist()
        by_item = [set(range(end - len(s.captions), end)) for s, end in zip(samples, ends, strict=True)]
    embedded = encoder.encode_text(texts)
    found = {f"image_to_text_R@{k}": value for k, value in recall(images, embedded, by_item, KS).items()}
    return found | {f"text_to_image_R@{k}": value for k, value in recall(embedded, images, by_text, KS).items()}


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m benchmarks.clip_benchmark")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of shards with captions")
    parser.add_argument("--limit", type=int, default=0, help="at most so many pictures")
    return parser


def main() -> None:
    """Measure, print, and end with exit code 1 where the numbers differ."""
    options = make_parser().parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        exported = options.run.resolve()
        if not (exported / OPEN_CLIP_CONFIG).is_file():
            exported = export("open_clip", options.run, work / "open_clip")
        samples = read_samples(options.data, options.limit)
        write_webdataset(samples, work / "wds")
        encoder = load(exported)
        images, view = exported_images(exported, samples), our_images(encoder, samples)
        columns = {
            "CLIP_benchmark": theirs(exported, work / "wds", work),
            "its view and counting": ours(images, encoder, samples, distinct=False),
            "its counting": ours(view, encoder, samples, distinct=False),
            "eval.py": ours(view, encoder, samples, distinct=True),
        }
    captions = sum(len(sample.captions) for sample in samples)
    table = Table(title=f"{options.run}, {len(samples)} pictures, {captions} captions", title_justify="left")
    for header in ("", *columns):
        table.add_column(header, justify="right" if header else "left", no_wrap=True)
    for metric in columns["CLIP_benchmark"]:
        table.add_row(metric, *(f"{100 * column[metric]:.2f}" for column in columns.values()))
    print_table(table)
    largest = {
        name: max(abs(column[metric] - value) for metric, value in columns["CLIP_benchmark"].items())
        for name, column in columns.items()
        if name != "CLIP_benchmark"
    }
    print(json.dumps({"pictures": len(samples), "captions": captions, "largest_difference": largest, **columns}))
    if largest["its view and counting"] > 1e-6:
        sys.exit("the numbers differ")


if __name__ == "__main__":
    one_line(main)
