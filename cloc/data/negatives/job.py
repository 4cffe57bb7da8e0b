"""``data negatives``: writes a set again with hard negative texts for its regions.

Stands beside ``check`` and ``split`` at the start of ``data → models → losses → evaluation → engine``. All samples are
read once for the words that the set uses, and once more as they are written.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from cloc import __version__
from cloc.console import print_line, print_rows, progress
from cloc.contracts import BadSample, Sample
from cloc.data.drops import MAX_DROP_SHARE, check_share, dropped, dropped_regions, mended
from cloc.data.jobs.report import Report
from cloc.data.jobs.resumable_jobs import Job, Task
from cloc.data.jobs.worker_pool import WorkerPool
from cloc.data.negatives.generate import Generator, Vocabulary, joined
from cloc.data.shards.index import load_manifest
from cloc.data.shards.keys import free_key
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.data.shards.tars import ShardError, ShardInfo
from cloc.files import read_file, write_file

MAX_PER_REGION = 100
MAX_SKIP_SHARE = 0.01
_NOTICES = ("ATTRIBUTION.txt", "LICENSE.txt")  # beside the shards: whoever passes pictures on passes these on
_MADE = ("exchanged: ", "regions ")

Entry = tuple[int, str]
"""A sample's place in its shard, and the key that it gets."""


@dataclass(slots=True)
class _Part:
    """What reading a part of the samples found."""

    vocabulary: Vocabulary
    entries: list[Entry] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    first: str = ""
    mended: Counter[str] = field(default_factory=Counter)
    regions: int = 0
    samples: int = 0


@dataclass(slots=True)
class Negatives:
    """What ``add_negatives`` did.

    Attributes:
        manifest: of what was written.
        regions: that are no crowds.
        made: negatives by what was exchanged, and regions with fewer than were asked for.
        left_out: samples that cannot be used, by reason.
        mended: what was dropped or mended in the others, by reason.
        seconds: wall-clock time.
    """

    manifest: Manifest
    regions: int
    made: Counter[str]
    left_out: Counter[str]
    mended: Counter[str]
    seconds: float


def add_negatives(
    source: Path | str,
    out: Path | str,
    *,
    per_region: int = 10,
    seed: int = 0,
    workers: int = 1,
    max_skip_share: float = MAX_SKIP_SHARE,
    max_drop_share: float = MAX_DROP_SHARE,
    overwrite: bool = False,
    console: Console | None = None,
) -> Negatives:
    """Write the shards of a folder again, each region with up to K texts that are nearly right and wrong.

    Writing that was interrupted continues when it is called again.

    Args:
        source: shards.
        out: folder to write; a shard for each of the source's.
        per_region: K; negatives that are there already are kept and count.
        seed: another one draws others.
        workers: processes; the result is the same for any number.
        max_skip_share: share of the samples that may be left out because they cannot be used, 0..1.
        max_drop_share: share of the regions that may be unusable, 0..1.
        overwrite: replace what ``out`` holds.
        console: where progress goes; standard error where None.

    Raises:
        FileNotFoundError: there is no such folder, or no shard in it.
        ValueError: a number out of its range; too much of the source cannot be used; it has no region.
        ShardError: a shard cannot be read; ``out`` is not empty, lies within ``source``, or holds another job.
    """
    source, out, console = Path(source), Path(out), console or Console(stderr=True)
    started = time.perf_counter()
    for name, share in (("max_skip_share", max_skip_share), ("max_drop_share", max_drop_share)):
        check_share(name, share)
    if not 1 <= per_region <= MAX_PER_REGION:
        raise ValueError(f"--per-region {per_region}: give a number from 1 to {MAX_PER_REGION}")
    _refuse_target(source, out)
    manifest = load_manifest(source)
    digests = [manifest.shards.sha256(number) for number in range(len(manifest.shards))]
    identity: dict[str, object] = {"negatives": str(source.resolve()), "cloc": __version__, "sha256": digests}
    job = Job(out, identity | {"per_region": per_region, "seed": seed}, overwrite=overwrite)
    with WorkerPool(workers) as pool:
        parts = _read(manifest, pool, console)
    found = _refuse_unusable(source, parts, max_skip_share, max_drop_share)
    vocabulary = joined((part.vocabulary for part in parts), manifest.categories)
    made = _write(job, manifest, _entries(parts), Generator(vocabulary, per_region, seed), workers, console)
    placed = job.place(manifest.categories)[0]
    for name in _NOTICES:
        if (source / name).is_file():
            write_file(out / name, read_file(source / name))
    job.close()
    return Negatives(placed, found.regions, made, found.bad, found.mended, time.perf_counter() - started)


def print_negatives(done: Negatives, console: Console | None = None) -> None:
    """Print what was made and what could not be."""
    console = console or Console()
    total = sum(count for name, count in done.made.items() if name.startswith("exchanged"))
    rows = [("samples", f"{done.manifest.samples:,}; {done.manifest.folder}")]
    rows.append(("negatives", f"{total:,} made for {done.regions:,} regions"))
    rows += [(name, f"{count:,}") for name, count in sorted(done.made.items())]
    for word, reasons in (
        ("left out", dict(done.left_out.most_common())),
        ("dropped", dropped(done.mended)),
        ("mended", mended(done.mended)),
    ):
        rows += [(f"{word}: {reason}", f"{count:,}") for reason, count in reasons.items()]
    print_rows(console, "negatives", rows)
    print_line(console, f"{done.seconds:,.0f} s", "dim")


def _refuse_target(source: Path, out: Path) -> None:
    here, there = source.resolve(), out.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise ShardError(f"{out}: this and {source}, which is read, lie in one another; name a folder elsewhere")


def _read(manifest: Manifest, pool: WorkerPool, console: Console) -> list[_Part]:
    """Read all samples for their words and keys, a shard at a time."""
    calls = ((manifest.folder, shard, manifest.categories) for shard in manifest.shards)
    with progress(console, f"reading {manifest.folder.name}", manifest.samples) as bar:
        return list(bar.each(pool.run(_read_shard, calls), lambda part: part.samples))


def _read_shard(folder: Path, shard: ShardInfo, classes: tuple[str, ...]) -> _Part:
    part = _Part(Vocabulary(classes=frozenset(classes)))
    with contextlib.closing(ShardReader(Manifest.of(folder, [shard], ()))) as reader:
        for stored in each_sample(reader):
            part.samples += 1
            if isinstance(stored.error, BadSample):
                part.bad[stored.error.reason] += 1
                part.first = part.first or f"{stored.key}: {stored.error}"
                continue
            sample = stored.need()
            part.entries.append((stored.place[1], sample.key))
            part.mended.update(stored.mended)
            part.regions += sum(not region.crowd for region in sample.regions)
            part.vocabulary.read(sample)
    return part


def _refuse_unusable(source: Path, parts: list[_Part], max_skip_share: float, max_drop_share: float) -> _Part:
    """Refuse a source of which too much cannot be used; return the sums of all parts."""
    whole = _Part(Vocabulary(), first=next((part.first for part in parts if part.first), ""))
    for part in parts:
        whole.bad.update(part.bad)
        whole.mended.update(part.mended)
        whole.regions, whole.samples = whole.regions + part.regions, whole.samples + part.samples
    remedy = f"python -m cloc data check {source} tells more"
    if (bad := whole.bad.total()) > max_skip_share * whole.samples:
        said = f"{bad:,} of {whole.samples:,} samples cannot be used (first {whole.first})"
        raise ValueError(f"{source}: {said}, more than --max-skip-share {max_skip_share}; {remedy}")
    lost = dropped_regions(whole.mended)
    if sum(lost.values()) > max_drop_share * (whole.regions + sum(lost.values())):
        said = ", ".join(f"{reason} {count:,}" for reason, count in lost.items())
        raise ValueError(
            f"{source}: regions are dropped ({said}), more than --max-drop-share {max_drop_share}; {remedy}"
        )
    if not whole.regions:
        raise ValueError(f"{source}: no sample has a region; negatives are texts of regions")
    return whole


def _entries(parts: list[_Part]) -> list[tuple[Entry, ...]]:
    """By shard, its usable samples under keys of which none comes twice."""
    used: set[str] = set()
    return [tuple((place, free_key(key, used)) for place, key in part.entries) for part in parts]


def _write(
    job: Job,
    manifest: Manifest,
    entries: list[tuple[Entry, ...]],
    generator: Generator,
    workers: int,
    console: Console,
) -> Counter[str]:
    """Write all shards, find every sample again, and count what was made."""
    total, counts = sum(map(len, entries)), Counter[str]()
    shards = zip(manifest.shards, entries, strict=True)
    tasks = (Task(partial(_samples, manifest.folder, shard, own)) for shard, own in shards)
    with progress(console, f"writing {job.out.name}", total) as bar:

        def advance(report: Report, earlier: bool) -> None:
            counts.update({name: count for name, count in report.counts.items() if name.startswith(_MADE)})
            bar.advance(report.counts["samples"], worked=0 if earlier else report.counts["samples"])

        if job.done:
            print_line(console, f"continuing: {len(job.done):,} shards of {job.out} are finished")
        job.run(tasks, workers=workers, initialize=partial(_kept, generator), on_shard=advance)
    if job.count("samples") != total:
        raise ShardError(f"{job.out}: {total:,} samples were to be written, {job.count('samples'):,} read back")
    return counts


def _kept(generator: Generator) -> Generator:
    """What each process keeps: handed over once, not with every shard."""
    return generator


def _samples(
    folder: Path, shard: ShardInfo, entries: tuple[Entry, ...], report: Report, generator: Generator
) -> Iterator[Sample]:
    with contextlib.closing(ShardReader(Manifest.of(folder, [shard], ()))) as reader:
        found = each_sample(reader, [(0, index) for index, _ in entries])
        for stored, (_, key) in zip(found, entries, strict=True):
            try:
                sample = stored.need()
            except BadSample as error:  # it could be read a moment ago
                raise ShardError(f"{folder}: {error}; the shards have changed: run the same command again") from error
            yield generator(replace(sample, key=key), report.counts)
