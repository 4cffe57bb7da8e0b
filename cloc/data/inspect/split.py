"""``data split``: parts one's own shards into training, validation and test, by picture.

Stands beside ``check`` at the start of ``data → models → losses → evaluation → engine``. Samples of the same picture,
be it the same file or one that was resized or compressed anew, go to the same part; so ``data check`` of one part
against another finds nothing. Which part that is follows from the seed and the pictures, not from names or order.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from cloc import __version__
from cloc.console import print_line, print_rows, progress
from cloc.contracts import BadSample, Sample
from cloc.data.boxes import NORMALIZED
from cloc.data.drops import MAX_DROP_SHARE, check_share, dropped, mended, region_fault
from cloc.data.inspect.duplicates import Fingerprints, same_pictures
from cloc.data.inspect.tally import Tally, join, tally_part
from cloc.data.jobs.report import Report
from cloc.data.jobs.resumable_jobs import Job, Task
from cloc.data.jobs.worker_pool import WorkerPool
from cloc.data.shards.index import load_manifest
from cloc.data.shards.keys import free_key
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest, Place
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.data.shards.tars import ShardError

TRAIN, VAL, TEST = "train", "val", "test"
MAX_SKIP_SHARE = 0.01
"""Share of the samples that may be unusable; they are left out."""
_PART = 128  # samples that a process reads at a time
_AHEAD = 32  # see ``check``
_NEAR = 0.5  # a part may have so much more or less than it should, as a share of that


class Entry(NamedTuple):
    """A sample of the source, and the key that it gets."""

    place: Place
    key: str


@dataclass(slots=True)
class Split:
    """What ``split`` did.

    Attributes:
        manifests: what was written, by part.
        pictures: how many different ones each part has.
        repeated: samples whose picture another sample has too.
        left_out: samples that cannot be used, by reason.
        mended: what was dropped or mended in the others, by reason.
        seconds: wall-clock time.
    """

    manifests: dict[str, Manifest]
    pictures: dict[str, int]
    repeated: int
    left_out: Counter[str]
    mended: Counter[str]
    seconds: float = 0.0


def split(
    source: Path | str,
    out: Path | str,
    *,
    val: float = 0.1,
    test: float = 0.0,
    seed: int = 0,
    workers: int = 1,
    samples_per_shard: int = 1000,
    max_skip_share: float = MAX_SKIP_SHARE,
    max_drop_share: float = MAX_DROP_SHARE,
    overwrite: bool = False,
    console: Console | None = None,
) -> Split:
    """Write the samples of a folder of shards as ``OUT/train``, ``OUT/val`` and, where asked for, ``OUT/test``.

    All pictures are read and compared first. Writing that was interrupted continues when it is called again.

    Args:
        source: shards.
        out: folder to write.
        val: share of the samples that validation gets, in 0..1.
        test: share of the test set; none where 0.
        seed: another one draws other pictures. The same pictures and seed make the same parts, whatever their order.
        workers: processes; the result is the same for any number.
        samples_per_shard: samples of every shard but the last.
        max_skip_share: share of the samples that may be left out because they cannot be used, 0..1.
        max_drop_share: share of the regions that may be unusable, 0..1; see ``drops.region_fault``.
        overwrite: replace what ``out`` holds.
        console: where progress goes; standard error where None.

    Raises:
        FileNotFoundError: there is no such folder, or no shard in it.
        ValueError: the shares leave a part without samples; too much of the source cannot be used; so many pictures
            are the same that no parts of such shares can be made.
        ShardError: a shard cannot be read; ``out`` is not empty, lies within ``source``, or holds another split.
    """
    source, out, console = Path(source), Path(out), console or Console(stderr=True)
    started = time.perf_counter()
    for name, share in (("max_skip_share", max_skip_share), ("max_drop_share", max_drop_share)):
        check_share(name, share)
    shares = _shares(val, test)
    _refuse_target(source, out)
    had_manifest = (source / MANIFEST_NAME).is_file()
    manifest = load_manifest(source)
    _refuse_empty_parts(manifest.samples, shares)
    settings = {"split": str(source.resolve()), "cloc": __version__, "samples_per_shard": samples_per_shard}
    digests = [manifest.shards.sha256(number) for number in range(len(manifest.shards))]
    job = Job(out, settings | {"shares": shares, "seed": seed, "sha256": digests}, overwrite=overwrite)
    with WorkerPool(workers) as pool:
        tally = _read(manifest, pool, console)
    left_out = _refuse_unusable(source, tally, max_skip_share, max_drop_share)
    groups = _groups(tally.prints, console)
    parts = _deal(groups, tally.prints, shares, seed)
    entries = _entries(manifest, tally)
    tasks = [
        Task(partial(_samples, manifest, tuple(entries[number] for number in numbers)), name)
        for name, part in parts.items()
        for numbers in _chunks(sorted(int(number) for group in part for number in group), samples_per_shard)
    ]
    _write(job, tasks, len(entries), workers, console)
    placed = job.place(manifest.categories if had_manifest else None)
    job.close()
    repeated = sum(len(group) for group in groups if len(group) > 1)
    pictures = {name: len(part) for name, part in parts.items()}
    manifests = dict(zip(parts, placed, strict=True))
    return Split(manifests, pictures, repeated, left_out, tally.mended, time.perf_counter() - started)


def print_split(done: Split, console: Console | None = None) -> None:
    """Print what each part has, and what was left out."""
    console = console or Console()
    rows = []
    for name, manifest in done.manifests.items():
        regions = sum(info.regions for info in manifest.shards)
        counts = f"{manifest.samples:,} samples of {done.pictures[name]:,} pictures, {regions:,} regions"
        rows.append((name, f"{counts}; {manifest.folder}"))
    rows.append(("same picture", f"{done.repeated:,} samples, kept together"))
    for word, reasons in (
        ("left out", dict(done.left_out.most_common())),
        ("dropped", dropped(done.mended)),
        ("mended", mended(done.mended)),
    ):
        rows += [(f"{word}: {reason}", f"{count:,}") for reason, count in reasons.items()]
    print_rows(console, "split", rows)
    print_line(console, f"{done.seconds:,.0f} s", "dim")


def _shares(val: float, test: float) -> dict[str, float]:
    """What each part gets; training the rest.

    Raises:
        ValueError: that makes no sense.
    """
    if not 0 < val < 1:
        raise ValueError(f"--val {val}: give a share of the samples above 0 and below 1, such as 0.1")
    if not 0 <= test < 1:
        raise ValueError(f"--test {test}: give a share of the samples from 0 to below 1, such as 0.1")
    if val + test >= 0.9:
        raise ValueError(f"--val {val} --test {test}: training would get {1 - val - test:.0%}; give smaller shares")
    return {TRAIN: 1 - val - test, VAL: val} | ({TEST: test} if test else {})


def _refuse_target(source: Path, out: Path) -> None:
    """Refuse to write where shards are read, or might be replaced."""
    here, there = source.resolve(), out.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise ShardError(f"{out}: this and {source}, which is read, lie in one another; name a folder elsewhere")


def _refuse_empty_parts(samples: int, shares: Mapping[str, float]) -> None:
    for name, share in shares.items():
        if round(share * samples) < 1:
            raise ValueError(f"{name} would get {share:.2%} of {samples:,} samples, which is none; give a larger share")


def _read(manifest: Manifest, pool: WorkerPool, console: Console) -> Tally:
    """Read and decode all samples, for their fingerprints."""
    calls = (
        (manifest.folder, shard.part(start, start + _PART), start)
        for shard in manifest.shards
        for start in range(0, shard.samples, _PART)
    )
    with progress(console, f"reading {manifest.folder.name}", manifest.samples) as bar:
        return join(list(bar.each(pool.run(tally_part, calls, ahead=_AHEAD), lambda part: part.samples)))


def _refuse_unusable(source: Path, tally: Tally, max_skip_share: float, max_drop_share: float) -> Counter[str]:
    """Refuse a source of which too much cannot be used; return what is left out."""
    fault = region_fault(tally.given, tally.mended, tally.boxes, NORMALIZED, max_drop_share)
    if fault is not None:
        raise ValueError(f"{source}: {fault.text}; python -m cloc data check {source} tells more")
    left_out = Counter(one.reason for one in tally.bad)
    if len(tally.bad) > max_skip_share * tally.samples:
        first, seen = tally.bad[0], ", ".join(f"{reason} {count:,}" for reason, count in left_out.most_common())
        raise ValueError(
            f"{source}: {len(tally.bad):,} of {tally.samples:,} samples cannot be used ({seen}; first {first.key} in "
            f"{first.shard}: {first.detail}), more than --max-skip-share {max_skip_share}; mend them, or raise it"
        )
    return left_out


def _groups(prints: Fingerprints, console: Console) -> list[np.ndarray]:
    with progress(console, "comparing pictures", unit="rounds") as bar:
        return same_pictures(prints, bar.move)


def _deal(
    groups: list[np.ndarray], prints: Fingerprints, shares: Mapping[str, float], seed: int
) -> dict[str, list[np.ndarray]]:
    """Deal the groups out to the parts, whole: in the order of a hash of seed and picture, each part until it is full.

    Raises:
        ValueError: a part is far from its share, since a group is too large.
    """
    total = sum(map(len, groups))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in shares}
    room = {name: round(share * total) for name, share in shares.items() if name != TRAIN}
    for group in sorted(groups, key=lambda group: _rank(prints.files[group], seed)):
        name = next((name for name, left in room.items() if len(group) <= left), TRAIN)
        parts[name].append(group)
        if name != TRAIN:
            room[name] -= len(group)
    for name, share in shares.items():
        have, wanted = sum(map(len, parts[name])), share * total
        if abs(have - wanted) > max(1.0, _NEAR * wanted) or not have:
            largest = max(map(len, groups))
            raise ValueError(
                f"{name} would get {have:,} of {total:,} samples for a share of {share:.2%}: what is the same picture "
                f"stays together, and {largest:,} samples are one picture; give other shares, or part them by hand"
            )
    return parts


def _rank(files: np.ndarray, seed: int) -> bytes:
    """What a group is ordered by: the same for the same pictures, whatever their keys and order."""
    return hashlib.blake2b(f"{seed} {int(files.min()):016x}".encode(), digest_size=16).digest()


def _entries(manifest: Manifest, tally: Tally) -> list[Entry]:
    """The usable samples, in the order of their fingerprints."""
    left_out, names = {(one.shard, one.index) for one in tally.bad}, manifest.shards.names()
    usable = (place for place in manifest.places() if (names[place[0]], place[1]) not in left_out)
    used: set[str] = set()
    return [Entry(place, free_key(key, used)) for place, key in zip(usable, tally.prints.keys, strict=True)]


def _chunks(numbers: list[int], size: int) -> Iterator[list[int]]:
    """Parts of nearly equal length, none above ``size``."""
    count = max(1, math.ceil(len(numbers) / size))
    return (numbers[start : start + size] for start in range(0, count * size, size))


def _samples(manifest: Manifest, entries: tuple[Entry, ...], report: Report) -> Iterator[Sample]:
    with_key = {entry.place: entry.key for entry in entries}
    reader = ShardReader(manifest)
    for stored in each_sample(reader, [entry.place for entry in entries]):
        try:
            yield replace(stored.need(), key=with_key[stored.place])
        except BadSample as error:  # it could be read a moment ago
            raise ShardError(
                f"{manifest.folder}: {error}; the shards have changed: run the same command again"
            ) from error
    reader.close()


def _write(job: Job, tasks: list[Task], total: int, workers: int, console: Console) -> None:
    """Write all parts, and find every sample again."""
    with progress(console, f"writing {job.out.name}", total) as bar:

        def advance(report: Report, earlier: bool) -> None:
            bar.advance(report.counts["samples"], worked=0 if earlier else report.counts["samples"])

        if job.done:
            print_line(console, f"continuing: {len(job.done):,} shards of {job.out} are finished")
        job.run(tasks, workers=workers, on_shard=advance)
    if job.count("samples") != total:
        raise ShardError(f"{job.out}: {total:,} samples were to be written, {job.count('samples'):,} read back")
