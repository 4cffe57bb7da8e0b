"""Converts other people's data sets to shards (``data convert``).

The way in to ``data → models → losses → evaluation → engine``: a format lists records, processes build samples of them,
each a shard at a time, and a record that cannot be used is counted by reason. Too many of them stop the run. At the end
the counts of the source must be found again. Another format is a module in ``formats``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from cloc import __version__
from cloc.console import print_line, print_rows, progress, working
from cloc.data.convert.formats.registry import DrawnSource, Format, find_format, guess_format
from cloc.data.convert.limits import Limits
from cloc.data.convert.picture_bytes import ORIENTATIONS, REENCODE, UPRIGHT
from cloc.data.convert.records import Recipe, Record, RecordSource, build_samples
from cloc.data.drops import MAX_DROP_SHARE, check_share, dropped, mended
from cloc.data.jobs.report import Report
from cloc.data.jobs.resumable_jobs import Job, Task
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.tars import ShardError

AUTO = "auto"
"""In place of a format's name: the one that fits the source."""


@dataclass(slots=True)
class Conversion:
    """What ``convert`` did.

    Attributes:
        report: what was read, written and left out, that of earlier runs of an interrupted conversion included.
        manifests: what was written.
        seconds: wall-clock time of this run.
        made: samples that this run wrote.
        notes: what a user should know of how the source was read, a line each.
    """

    report: Report = field(default_factory=Report)
    manifests: list[Manifest] = field(default_factory=list)
    seconds: float = 0.0
    made: int = 0
    notes: tuple[str, ...] = ()


def convert(
    format: str,
    source: Path | str | None,
    out: Path | str,
    *,
    samples_per_shard: int = 1000,
    workers: int = 1,
    overwrite: bool = False,
    max_skip_share: float = 0.01,
    max_drop_share: float = MAX_DROP_SHARE,
    reencode: str = "auto",
    orientation: str = UPRIGHT,
    console: Console | None = None,
    **options: Any,
) -> Conversion:
    """Write a data set as shards and print a table of what was read.

    A conversion that was interrupted continues behind its last finished shard when it is called again.

    Args:
        format: a name in ``FORMATS``, or ``auto``: the one that the source's files tell, which is said.
        source: file or folder that the format reads; None for one that draws.
        out: folder to write.
        samples_per_shard: records of every shard but the last; those left out make it shorter.
        workers: processes that read, check and write; the result is the same for any number.
        overwrite: replace the shards that ``out`` already holds.
        max_skip_share: share of the records that may be left out, 0..1.
        max_drop_share: share of the regions that may be dropped from the other records, 0..1; see
            ``drops.region_fault``.
        reencode: what becomes of pictures of a format that shards do not hold, one of ``REENCODE``.
        orientation: what boxes are of where EXIF turns the picture, one of ``ORIENTATIONS``.
        console: where progress and the table go; standard error and standard output where None.
        **options: what else the format takes: see its function in ``formats``.

    Raises:
        ValueError: unknown format or option; more records were left out than ``max_skip_share`` allows, more regions
            dropped than ``max_drop_share``; the boxes are of another order or unit than they are said to be; a picture
            or class has two meanings.
        FileNotFoundError: the source is missing.
        ShardError: ``out`` is not empty, or was begun from another source or with other options; there is nothing to
            write; the counts do not add up.
    """
    result, console = console or Console(), console or Console(stderr=True)
    started = time.perf_counter()
    check_share("max_skip_share", max_skip_share)
    check_share("max_drop_share", max_drop_share)
    _check_choice("reencode", reencode, REENCODE)
    _check_choice("orientation", orientation, ORIENTATIONS)
    chosen = guess_format(Path(source or "")) if format == AUTO else find_format(format)
    if format == AUTO:
        print_line(result, f"{source}: format {chosen.name!r}, {chosen.reads}")
    identity = {"format": chosen.name, "cloc": __version__, "samples_per_shard": samples_per_shard}
    identity |= {"reencode": reencode, "orientation": orientation}
    plain = {name: value.resolve() if isinstance(value, Path) else value for name, value in sorted(options.items())}
    identity |= {"options": {name: str(value) for name, value in plain.items()}}
    if chosen.draws:
        chosen.check_options(options)
        drawn = chosen.open(**options)  # first: what it refuses begins no job
        assert isinstance(drawn, DrawnSource), "a format that draws"
        job = Job(Path(out), identity, overwrite=overwrite)
        done = _convert_drawn(drawn, job, samples_per_shard, workers, console)
    elif source is None or not Path(source).exists():
        raise FileNotFoundError(f"{source}: no such source; format {chosen.name!r} reads {chosen.reads}")
    else:
        chosen.check_options(options)
        opened = _open(chosen, Path(source), options, console)
        limits = Limits(opened, max_skip_share, max_drop_share, frozenset(chosen.options))
        limits.check_start()
        job = Job(Path(out), identity | _fingerprint(Path(source), opened), overwrite=overwrite)
        recipe = replace(opened.recipe, reencode=reencode, orientation=orientation)
        done = _convert_source(opened, recipe, job, samples_per_shard, workers, limits, console)
    job.close()
    done.seconds = time.perf_counter() - started
    print_conversion(done, result)
    return done


def print_conversion(done: Conversion, console: Console) -> None:
    """Print what was read, written and left out."""
    print_rows(console, "converted", _read_and_written(done))
    for example in itertools.chain(*done.report.examples.values()):
        print_line(console, f"  {example}", "dim")
    for note in done.notes:
        print_line(console, note, "yellow")
    for manifest in done.manifests:
        print_line(console, f"wrote {manifest.samples:,} sample{'s' * (manifest.samples != 1)} to {manifest.folder}")


def _read_and_written(done: Conversion) -> Iterator[tuple[str, str]]:
    report = done.report
    for unit in ("records", "captions", "regions"):
        if report.given[unit]:
            yield f"source: {unit}", f"{report.given[unit]:,}"
    for unit in ("samples", "captions", "regions", "crowds", "phrases"):
        if unit != "crowds" or report.counts[unit]:
            yield f"written: {unit}", f"{report.counts[unit]:,}"
    for word, counts in (
        ("left out", dict(report.skipped.most_common())),
        ("dropped", dropped(report.mended)),
        ("mended", mended(report.mended)),
    ):
        for reason, count in counts.items():
            yield f"{word}: {reason}", f"{count:,}"
    if report.given["background"]:
        yield "nothing to learn from", f"{report.given['background']:,}"
    for what, count in report.pictures.most_common():
        yield f"pictures: {what}", f"{count:,}"
    yield "samples/s", f"{done.made / max(done.seconds, 1e-9):,.0f}"


def _convert_source(
    source: RecordSource,
    recipe: Recipe,
    job: Job,
    samples_per_shard: int,
    workers: int,
    limits: Limits,
    console: Console,
) -> Conversion:
    chunks = iter(partial(_next_chunk, iter(source.records), samples_per_shard), ())
    tasks = (Task(partial(build_samples, chunk, recipe)) for chunk in chunks)
    done = _run(job, tasks, source.total, source.name, workers, console, check=limits.check)
    done.report.mended.update(source.mended)
    found = source.finder.notes() if source.finder is not None else ()
    done.notes = (*source.notes, *found, *limits.notes(done.report))
    done.manifests = job.place(source.categories)
    return done


def _convert_drawn(source: DrawnSource, job: Job, samples_per_shard: int, workers: int, console: Console) -> Conversion:
    done = _run(job, source.tasks(samples_per_shard), source.total, source.name, workers, console)
    done.manifests = job.place(source.categories)
    source.finish(job.out, done.manifests)
    return done


def _run(
    job: Job,
    tasks: Iterable[Task],
    total: int | None,
    title: str,
    workers: int,
    console: Console,
    check: Callable[[Report, bool], None] = lambda report, finished: None,
) -> Conversion:
    """Build all shards, with a progress bar, and find every count again."""
    done = Conversion()
    report = done.report
    with progress(console, title, total, "records") as bar:

        def advance(part: Report, earlier: bool) -> None:
            report.add(part)
            records = part.counts["samples"] + part.skipped.total() + part.given["background"]
            done.made += 0 if earlier else part.counts["samples"]
            bar.advance(records, worked=0 if earlier else records)
            check(report, False)

        if job.done:
            print_line(console, f"continuing: {len(job.done):,} shards of {job.out} are finished")
        job.run(tasks, workers=workers, on_shard=advance)
    check(report, True)
    if not report.counts["samples"]:
        background = report.given["background"]
        why = f": all {background:,} pictures have neither box nor caption" if background else ""
        raise ShardError(f"{job.out}: there was no sample to write{why}; check the source")
    _refuse_imbalance(job, report)
    return done


def _refuse_imbalance(job: Job, report: Report) -> None:
    """The end check: what was read is written or counted, and what was written can be read."""
    wrong = [report.imbalance()]
    for unit in ("samples", "regions", "crowds"):
        if job.count(unit) != report.counts[unit]:
            wrong.append(f"{report.counts[unit]:,} {unit} written, {job.count(unit):,} read back")
    if any(wrong):
        found = "; ".join(filter(None, wrong))
        raise ShardError(f"{job.out}: the counts do not add up ({found}); start anew with --overwrite, and report this")


def _open(format: Format, source: Path, options: Mapping[str, Any], console: Console) -> RecordSource:
    try:
        with working(console, "reading annotations"):
            opened = format.open(source, **options)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source}: not {format.reads}, as published ({type(error).__name__}: {error})") from error
    assert isinstance(opened, RecordSource), "a format that does not draw"
    return opened


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: one of {', '.join(choices)} is needed")


def _fingerprint(source: Path, opened: RecordSource) -> dict[str, Any]:
    """Return what changes when the source does."""
    stats = [(path, path.stat()) for path in opened.files]
    return {
        "source": str(source.resolve()),
        "files": [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats],
    }


def _next_chunk(records: Iterator[Record], size: int) -> tuple[Record, ...]:
    return tuple(itertools.islice(records, size))
