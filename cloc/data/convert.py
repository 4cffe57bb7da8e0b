"""Other people's data sets → shards.

The way in to ``data → models → losses → evaluation → engine``: each format is a generator of ``Sample``, and
``convert`` writes what it yields. A record that cannot be used is counted by reason; too many of them stop the run.
Another format touches this file alone: a generator, and its line in ``FORMATS``.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cloc.contracts import BadSample, Sample
from cloc.data.openmoji import SPLITS, Scenes, attribution, things
from cloc.data.schema import IMAGE_EXTENSIONS, MAX_MEMBER_BYTES, image_size, parse_sample
from cloc.data.shards import Manifest, write_shards

ATTRIBUTION_NAME = "ATTRIBUTION.txt"

_CHUNK = 250  # scenes drawn per task: a quarter of a second
_SHOWN = 5


@dataclass(slots=True)
class Report:
    """What a conversion read and left out.

    Attributes:
        counts: samples, regions, phrases and captions written.
        skipped: whole records left out, by reason.
        mended: captions and regions dropped or mended within kept records, by reason.
        examples: where the first records of each reason were, with what was wrong.
        seconds: wall-clock time.
        manifests: what was written.
    """

    counts: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0
    manifests: list[Manifest] = field(default_factory=list)

    def skip(self, error: BadSample, where: str) -> None:
        """Count a record that cannot be used."""
        self.skipped[error.reason] += 1
        if self.skipped[error.reason] <= _SHOWN:
            self.examples.append(f"{where}: {error}")

    def tally(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Pass samples on, counting what they hold."""
        for sample in samples:
            self.counts["samples"] += 1
            self.counts["captions"] += len(sample.captions)
            self.counts["regions"] += len(sample.regions)
            self.counts["phrases"] += sum(len(region.phrases) for region in sample.regions)
            yield sample


def convert(
    format: str,
    source: Path | str | None,
    out: Path | str,
    *,
    samples_per_shard: int = 1000,
    overwrite: bool = False,
    max_skip_share: float = 0.01,
    console: Console | None = None,
    **options: Any,
) -> Report:
    """Write a data set as shards and print a table of what was read.

    Args:
        format: a key of ``FORMATS``, or ``openmoji``.
        source: file or folder that the format reads; None for ``openmoji``.
        out: folder to write.
        samples_per_shard: samples of every shard but the last.
        overwrite: replace the shards that ``out`` already holds.
        max_skip_share: share of the records that may be left out, 0..1.
        console: where progress and the table go; standard error where None.
        **options: what else the format takes: see ``convert_openmoji``, ``read_jsonl`` and ``read_coco``.

    Raises:
        ValueError: unknown format, or more records were left out than ``max_skip_share`` allows.
        FileNotFoundError: the source is missing.
        ShardError: ``out`` is not empty.
    """
    console = console or Console(stderr=True)
    started = time.perf_counter()
    report = Report()
    write = partial(write_shards, samples_per_shard=samples_per_shard, overwrite=overwrite)
    if format == "openmoji":
        convert_openmoji(Path(out), report, write, console, **options)
    elif format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown; the formats are {', '.join(['openmoji', *FORMATS])}")
    elif source is None or not Path(source).exists():
        raise FileNotFoundError(f"{source}: no such source; format {format!r} reads {FORMATS[format].reads}")
    else:
        read = _guard(FORMATS[format].read(Path(source), report, **options), report, max_skip_share)
        report.manifests.append(write(_progress(report.tally(read), format, None, console), Path(out)))
    report.seconds = time.perf_counter() - started
    print_report(report, console)
    return report


def convert_openmoji(
    out: Path,
    report: Report,
    write: Callable[..., Manifest],
    console: Console,
    *,
    train: int = 12_000,
    val: int = 1_000,
    test: int = 1_000,
    relation_sets: int = 100,
    image_size: int = 64,
    sprite: tuple[int, int] = (10, 20),
    seed: int = 0,
    workers: int = 1,
) -> None:
    """Draw OpenMoji scenes into ``out/train``, ``out/val``, ``out/test`` and ``out/relations``.

    Args:
        out: folder to write.
        report: receives the counts.
        write: ``write_shards`` with its settings.
        console: where progress goes.
        train: scenes of that split; none of it is written where 0. So are ``val`` and ``test``.
        val: see ``train``.
        test: see ``train``.
        relation_sets: sets of four pictures of the relation benchmark.
        image_size: side of a picture in pixels.
        sprite: smallest and largest long side of a thing in pixels.
        seed: number of the data set.
        workers: processes that draw; the result is the same for any number.
    """
    scenes = Scenes(seed, image_size, sprite=sprite)
    categories = [thing.phrase for thing in things()]
    for name, count in {"train": train, "val": val, "test": test, "relations": relation_sets}.items():
        if count <= 0:
            continue
        total = count * 4 if name == "relations" else count
        drawn = _progress(report.tally(_draw(scenes, name, count, workers)), f"openmoji {name}", total, console)
        report.manifests.append(write(drawn, out / name, categories=categories))
        (out / name / ATTRIBUTION_NAME).write_text(attribution(), encoding="utf-8")
    (out / ATTRIBUTION_NAME).write_text(attribution(), encoding="utf-8")


def read_jsonl(source: Path, report: Report) -> Iterator[Sample]:
    """Read one JSON object a line; ``image`` is a path relative to the file, the rest is a shard's JSON member.

    Args:
        source: the ``.jsonl`` file.
        report: receives what is left out, with line numbers.
    """
    taken: Counter[str] = Counter()
    with source.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = _json_object(line)
                image = record.pop("image", None)
                if not isinstance(image, str):
                    raise BadSample("no_image", f"image is {image!r}, a path relative to {source.parent} is needed")
                yield _sample(record, source.parent / image, source.stem, report, taken)
            except BadSample as error:
                report.skip(error, f"{source.name} line {number}")


def read_coco(source: Path, report: Report, *, split: str = "val2017") -> Iterator[Sample]:
    """Read COCO's standard layout: ``annotations/instances_SPLIT.json``, ``annotations/captions_SPLIT.json``, ``SPLIT/``.

    Boxes become normalized xyxy of the size that the annotations state, crowd flags are kept, and category names are
    phrases. Captions are optional.

    Args:
        source: folder that holds ``annotations`` and the pictures.
        report: receives what is left out, with image ids.
        split: name of the picture folder.

    Raises:
        FileNotFoundError: there is no ``instances_SPLIT.json`` or no picture folder.
    """
    instances = _load_coco(source / "annotations" / f"instances_{split}.json")
    captions_path = source / "annotations" / f"captions_{split}.json"
    captions = _load_coco(captions_path) if captions_path.is_file() else None
    if not (source / split).is_dir():
        raise FileNotFoundError(f"{source / split}: no such folder of pictures; name one with split (--split)")
    names = {category["id"]: category["name"] for category in instances.loadCats(instances.getCatIds())}
    taken: Counter[str] = Counter()
    for image in instances.loadImgs(instances.getImgIds()):
        try:
            record = {"width": image["width"], "height": image["height"], "coco_id": image["id"]}
            record["regions"] = [_coco_region(item, image, names) for item in instances.imgToAnns[image["id"]]]
            record["captions"] = [item["caption"] for item in captions.imgToAnns[image["id"]]] if captions else []
            yield _sample(record, source / split / image["file_name"], f"coco_{split}", report, taken)
        except BadSample as error:
            report.skip(error, f"image {image['id']}")


def print_report(report: Report, console: Console) -> None:
    """Print what was written and left out."""
    table = Table(title="converted", show_header=False)
    for name in ("samples", "captions", "regions", "phrases"):
        table.add_row(name, f"{report.counts[name]:,}")
    for reason, count in report.skipped.most_common():
        table.add_row(f"left out: {reason}", f"{count:,}")
    for reason, count in report.mended.most_common():
        table.add_row(f"mended: {reason}", f"{count:,}")
    table.add_row("samples/s", f"{report.counts['samples'] / max(report.seconds, 1e-9):,.0f}")
    console.print(table)
    for example in report.examples:
        console.print(f"  {example}", style="dim", markup=False)


@dataclass(frozen=True, slots=True)
class Format:
    """A source format: what reads it, and what its source is."""

    read: Callable[..., Iterator[Sample]]
    reads: str


FORMATS: Mapping[str, Format] = {
    "jsonl": Format(read_jsonl, "a .jsonl file; pictures lie relative to it"),
    "coco": Format(read_coco, "a folder with annotations/instances_SPLIT.json and SPLIT/"),
}
"""Formats with a source; ``openmoji`` draws its own."""


def _sample(
    record: dict[str, Any], path: Path, source: str, report: Report, taken: Counter[str]
) -> Sample:
    """Build a sample from a JSON object and a picture's path; the stored size becomes that of the upright picture."""
    extension = path.suffix[1:].lower()
    if extension not in IMAGE_EXTENSIONS:
        raise BadSample("no_image", f"{path}: the name ends in none of {IMAGE_EXTENSIONS}")
    try:
        if path.stat().st_size > MAX_MEMBER_BYTES:
            raise BadSample("giant_member", f"{path}: the limit is {MAX_MEMBER_BYTES:,} bytes")
        image = path.read_bytes()
    except OSError as error:
        raise BadSample("image_unreadable", str(error)) from error
    width, height = image_size(image)
    _verify(image, path)
    key = _unique_key(path.stem, taken)
    sample, mended = parse_sample({extension: image, "json": json.dumps(record).encode()}, key, source)
    report.mended.update(mended)
    return replace(sample, width=width, height=height)


def _verify(image: bytes, path: Path) -> None:
    """Decode the picture whole: a file that is cut off has a header like any other."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image)) as picture:
            picture.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise BadSample("corrupt_image", f"{path}: {error}") from error


def _unique_key(stem: str, taken: Counter[str]) -> str:
    """Make a name that a tar key may have: no dots, no slashes, none twice."""
    base = key = re.sub(r"[./\\\x00\s]+", "_", stem) or "image"
    while taken[key]:
        key = f"{base}-{taken[base]}"
        taken[base] += 1
    taken[key] += 1
    return key


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadSample("bad_text", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise BadSample("bad_json", str(error)) from error
    if not isinstance(record, dict):
        raise BadSample("bad_json", f"an object is needed, not {type(record).__name__}")
    return record


def _load_coco(path: Path) -> Any:
    from pycocotools.coco import COCO

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; COCO's standard layout has it")
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def _coco_region(item: Mapping[str, Any], image: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    x, y, width, height = item["bbox"]
    name = names[item["category_id"]]
    box = [x / image["width"], y / image["height"], (x + width) / image["width"], (y + height) / image["height"]]
    return {"box": box, "phrases": [name], "category": name, "crowd": bool(item.get("iscrowd", 0))}


def _draw_chunk(task: tuple[Scenes, str, int, int]) -> list[Sample]:
    scenes, name, start, count = task
    if name in SPLITS:
        return list(scenes.samples(name, count, start))
    return list(scenes.relation_samples(count, start))


def _draw(scenes: Scenes, name: str, count: int, workers: int) -> Iterator[Sample]:
    tasks = [(scenes, name, start, min(_CHUNK, count - start)) for start in range(0, count, _CHUNK)]
    if workers <= 1:
        for task in tasks:
            yield from _draw_chunk(task)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for samples in pool.imap(_draw_chunk, tasks):
            yield from samples


def _guard(samples: Iterable[Sample], report: Report, max_skip_share: float) -> Iterator[Sample]:
    """Pass samples on; at the end refuse a source of which too much had to be left out."""
    kept = 0
    for sample in samples:
        kept += 1
        yield sample
    skipped = report.skipped.total()
    if skipped > max_skip_share * (kept + skipped):
        reasons = ", ".join(f"{reason} {count}" for reason, count in report.skipped.most_common())
        share = f"{skipped:,} of {kept + skipped:,} records were left out, more than max_skip_share={max_skip_share}"
        shown = "; ".join(report.examples[:_SHOWN])
        raise ValueError(f"{share} ({reasons}): {shown}. Mend the source, or raise the share (--max-skip-share)")


def _progress(samples: Iterable[Sample], title: str, total: int | None, console: Console) -> Iterator[Sample]:
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(samples, total=total)
