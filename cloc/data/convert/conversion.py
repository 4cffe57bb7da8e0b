"""Other people's data sets → shards.

The way in to ``data → models → losses → evaluation → engine``: a format lists records, processes build samples of them,
each a shard at a time, and a record that cannot be used is counted by reason. Too many of them stop the run. At the end
the counts of the source must be found again. Another format is a module in ``formats`` and its line in ``FORMATS``.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from cloc import __version__
from cloc.contracts import Sample
from cloc.data.console import print_line, print_rows, progress
from cloc.data.convert.formats import FORMATS
from cloc.data.convert.limits import Limits
from cloc.data.convert.records import Record, RecordSource, build_samples
from cloc.data.drops import MAX_DROP_SHARE, check_share, dropped, mended
from cloc.data.jobs.report import Report
from cloc.data.jobs.resumable_jobs import Job, Task
from cloc.data.openmoji.scenes import SPLITS, Scenes, attribution
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.data.shards.tars import ShardError
from cloc.data.word_tokenizer import write_word_tokenizer
from cloc.files import write_file

ATTRIBUTION_NAME = "ATTRIBUTION.txt"

_RELATION_SET = 4  # pictures


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
    console: Console | None = None,
    **options: Any,
) -> Conversion:
    """Write a data set as shards and print a table of what was read.

    A conversion that was interrupted continues behind its last finished shard when it is called again.

    Args:
        format: a key of ``FORMATS``, or ``openmoji``.
        source: file or folder that the format reads; None for ``openmoji``.
        out: folder to write.
        samples_per_shard: records of every shard but the last; those left out make it shorter.
        workers: processes that read, check and write; the result is the same for any number.
        overwrite: replace the shards that ``out`` already holds.
        max_skip_share: share of the records that may be left out, 0..1.
        max_drop_share: share of the regions that may be dropped from the other records, 0..1; see
            ``drops.region_fault``.
        console: where progress and the table go; standard error and standard output where None.
        **options: what else the format takes: see ``convert_openmoji`` and the functions of ``FORMATS``.

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
    identity = {"format": format, "cloc": __version__, "samples_per_shard": samples_per_shard}
    plain = {name: value.resolve() if isinstance(value, Path) else value for name, value in sorted(options.items())}
    identity |= {"options": {name: str(value) for name, value in plain.items()}}
    if format == "openmoji":
        _check_options(format, convert_openmoji, options)
        job = Job(Path(out), identity, overwrite=overwrite)
        done = convert_openmoji(job, samples_per_shard, workers, console, **options)
    elif format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown; the formats are {', '.join(['openmoji', *FORMATS])}")
    elif source is None or not Path(source).exists():
        raise FileNotFoundError(f"{source}: no such source; format {format!r} reads {FORMATS[format].reads}")
    else:
        _check_options(format, FORMATS[format].open, options)
        opened = _open(format, Path(source), options, console)
        limits = Limits(opened, max_skip_share, max_drop_share, frozenset(_options_of(FORMATS[format].open)))
        limits.check_start()
        job = Job(Path(out), identity | _fingerprint(Path(source), opened), overwrite=overwrite)
        done = _convert_source(opened, job, samples_per_shard, workers, limits, console)
    job.close()
    done.seconds = time.perf_counter() - started
    print_conversion(done, result)
    return done


def convert_openmoji(
    job: Job,
    samples_per_shard: int,
    workers: int,
    console: Console,
    *,
    train: int = 20_000,
    val: int = 1_000,
    test: int = 1_000,
    relation_sets: int = 100,
    image_size: int = 64,
    sprite: tuple[int, int] = (15, 29),
    kinds: int = 144,
    seed: int = 0,
) -> Conversion:
    """Draw OpenMoji scenes into the folders ``train``, ``val``, ``test`` and ``relations`` of the job's target.

    Args:
        job: the target.
        samples_per_shard: samples of every shard but the last.
        workers: processes that draw.
        console: where progress goes.
        train: scenes of that split; none of it is written where 0. So are ``val`` and ``test``.
        val: see ``train``.
        test: see ``train``.
        relation_sets: sets of four pictures of the relation benchmark.
        image_size: side of a picture in pixels.
        sprite: smallest and largest long side of a thing in pixels.
        kinds: how many different things there are.
        seed: number of the data set.
    """
    scenes = Scenes(seed, image_size, sprite=sprite, kinds=kinds)
    categories = [thing.phrase for thing in scenes.things]
    sizes = {"train": train, "val": val, "test": test, "relations": relation_sets}
    tasks = (
        Task(partial(_draw, scenes, name, start, min(step, count - start)), name)
        for name, count in sizes.items()
        for step in [max(1, samples_per_shard // (_RELATION_SET if name == "relations" else 1))]
        for start in range(0, count, step)
    )
    total = train + val + test + relation_sets * _RELATION_SET
    done = _run(job, tasks, total, "openmoji", workers, console)
    done.manifests = job.place(categories)
    for manifest in done.manifests:
        write_file(manifest.folder / ATTRIBUTION_NAME, attribution())
    write_file(job.out / ATTRIBUTION_NAME, attribution())
    trained = (text for manifest in done.manifests if manifest.folder.name == "train" for text in _captions(manifest))
    write_word_tokenizer(itertools.chain(categories, trained), job.out / "tokenizer")
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
    yield "samples/s", f"{done.made / max(done.seconds, 1e-9):,.0f}"


def _convert_source(
    source: RecordSource, job: Job, samples_per_shard: int, workers: int, limits: Limits, console: Console
) -> Conversion:
    chunks = iter(partial(_next_chunk, iter(source.records), samples_per_shard), ())
    tasks = (Task(partial(build_samples, chunk, source.recipe)) for chunk in chunks)
    done = _run(job, tasks, source.total, source.name, workers, console, check=limits.check)
    done.report.mended.update(source.mended)
    done.notes = (*source.notes, *limits.notes(done.report))
    done.manifests = job.place(source.categories)
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
            records = part.counts["samples"] + part.skipped.total()
            done.made += 0 if earlier else part.counts["samples"]
            bar.advance(records, worked=0 if earlier else records)
            check(report, False)

        if job.done:
            print_line(console, f"continuing: {len(job.done):,} shards of {job.out} are finished")
        job.run(tasks, workers=workers, on_shard=advance)
    check(report, True)
    if not report.counts["samples"]:
        raise ShardError(f"{job.out}: there was no sample to write; check the source")
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


def _open(format: str, source: Path, options: Mapping[str, Any], console: Console) -> RecordSource:
    try:
        with console.status("reading annotations"):
            return FORMATS[format].open(source, **options)
    except (KeyError, TypeError, AttributeError) as error:
        reads = FORMATS[format].reads
        raise ValueError(f"{source}: not {reads}, as published ({type(error).__name__}: {error})") from error


def _options_of(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _check_options(format: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    known = _options_of(function)
    for name in options:
        if name not in known:
            raise ValueError(
                f"format {format!r} takes no {name}; it takes {', '.join(known) or 'no option of its own'}"
            )


def _fingerprint(source: Path, opened: RecordSource) -> dict[str, Any]:
    """Return what changes when the source does."""
    stats = [(path, path.stat()) for path in opened.files]
    return {
        "source": str(source.resolve()),
        "files": [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats],
    }


def _next_chunk(records: Iterator[Record], size: int) -> tuple[Record, ...]:
    return tuple(itertools.islice(records, size))


def _draw(scenes: Scenes, name: str, start: int, count: int, report: Report) -> Iterator[Sample]:
    drawn = scenes.samples(name, count, start) if name in SPLITS else scenes.relation_samples(count, start)
    for sample in drawn:
        report.given.update(records=1, captions=len(sample.captions), regions=len(sample.regions))
        yield sample


def _captions(manifest: Manifest) -> Iterator[str]:
    with contextlib.closing(ShardReader(manifest)) as reader:
        for stored in each_sample(reader):
            yield from stored.need().captions
