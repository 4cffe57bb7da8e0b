"""Other people's data sets → shards.

The way in to ``data → models → losses → evaluation → engine``: each format is a generator of ``Sample``, and
``convert`` writes what it yields. A record that cannot be used is counted by reason; too many of them stop the run.
Another format is a generator in ``formats`` and its line in ``FORMATS``.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cloc.contracts import Sample
from cloc.data.formats import SHOWN_EXAMPLES, Report, read_coco, read_jsonl
from cloc.data.openmoji import SPLITS, Scenes, attribution
from cloc.data.shards import Manifest, write_shards
from cloc.data.vocabulary import write_word_tokenizer

ATTRIBUTION_NAME = "ATTRIBUTION.txt"

_CHUNK = 250  # scenes drawn per task: a quarter of a second


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
    train: int = 20_000,
    val: int = 1_000,
    test: int = 1_000,
    relation_sets: int = 100,
    image_size: int = 64,
    sprite: tuple[int, int] = (12, 24),
    kinds: int = 144,
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
        kinds: how many different things there are.
        seed: number of the data set.
        workers: processes that draw; the result is the same for any number.
    """
    scenes = Scenes(seed, image_size, sprite=sprite, kinds=kinds)
    categories = [thing.phrase for thing in scenes.things]
    texts = list(categories)
    for name, count in {"train": train, "val": val, "test": test, "relations": relation_sets}.items():
        if count <= 0:
            continue
        total = count * 4 if name == "relations" else count
        drawn = _progress(report.tally(_draw(scenes, name, count, workers)), f"openmoji {name}", total, console)
        if name == "train":
            drawn = _overhear(drawn, texts)
        report.manifests.append(write(drawn, out / name, categories=categories))
        (out / name / ATTRIBUTION_NAME).write_text(attribution(), encoding="utf-8")
    (out / ATTRIBUTION_NAME).write_text(attribution(), encoding="utf-8")
    write_word_tokenizer(texts, out / "tokenizer")


def _overhear(samples: Iterable[Sample], texts: list[str]) -> Iterator[Sample]:
    for sample in samples:
        texts.extend(sample.captions)
        yield sample


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
        shown = "; ".join(report.examples[:SHOWN_EXAMPLES])
        raise ValueError(f"{share} ({reasons}): {shown}. Mend the source, or raise the share (--max-skip-share)")


def _progress(samples: Iterable[Sample], title: str, total: int | None, console: Console) -> Iterator[Sample]:
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(samples, total=total)
