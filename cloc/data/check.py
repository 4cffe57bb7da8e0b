"""``data check``: every sample of every shard, before training finds out.

Stands beside ``shards`` at the start of ``data → models → losses → evaluation → engine``. Training counts what it
leaves out; this names it, says what a set is made of, and writes it anew without what is broken.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import re
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cloc.contracts import BadSample, Sample
from cloc.data import duplicates
from cloc.data.decode import decode_rgb
from cloc.data.duplicates import Fingerprints, Shared
from cloc.data.jobs import start_worker
from cloc.data.schema import parse_sample
from cloc.data.shards import (
    MANIFEST_NAME,
    Manifest,
    ShardError,
    ShardInfo,
    ShardReader,
    load_manifest,
    read_sample_members,
    write_manifest,
    write_shards,
)
from cloc.data.tars import scan_shard

_PART = 128  # samples of a task: few enough that all processes end at about the same time
_UNSAFE = re.compile(r"[./\\\x00]")


class Bad(NamedTuple):
    """A sample that cannot be used."""

    key: str
    shard: str
    index: int
    reason: str
    detail: str


@dataclass(slots=True)
class Tally:
    """What some samples hold.

    Attributes:
        keys: of all samples.
        bad: those that cannot be used.
        mended: captions and regions that were dropped or mended in usable samples, by reason.
        captions: number of captions of each usable sample, as a histogram.
        regions: number of regions of each usable sample, as a histogram.
        phrases: how often each phrase names a region.
        words: number of words of each of these, as a histogram.
        areas: share of the picture that each box covers, 0..1.
        prints: fingerprints of the usable samples.
    """

    keys: list[str] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    mended: Counter[str] = field(default_factory=Counter)
    captions: Counter[int] = field(default_factory=Counter)
    regions: Counter[int] = field(default_factory=Counter)
    phrases: Counter[str] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    prints: Fingerprints = field(default_factory=Fingerprints)


@dataclass(slots=True)
class Check:
    """What ``check`` found.

    Attributes:
        folder: what was checked.
        tally: of all its samples.
        broken: shards that cannot be used as they are, with what is wrong with them. Their samples before the damage
            are checked all the same.
        duplicates: keys that occur more than once, with their number.
        manifest_written: the folder had no manifest, and now has one.
        shared: what it shares with another set, if one was given.
        fixed: the clean copy that was written.
        seconds: how long reading took.
    """

    folder: Path
    tally: Tally
    broken: dict[str, str]
    duplicates: dict[str, int]
    manifest_written: bool = False
    shared: Shared | None = None
    fixed: Manifest | None = None
    seconds: float = 0.0

    @property
    def samples(self) -> int:
        """All that were read."""
        return len(self.tally.keys)

    @property
    def usable(self) -> int:
        """Those that parse and decode."""
        return self.samples - len(self.tally.bad)

    @property
    def bad(self) -> Counter[str]:
        """Number of samples that cannot be used, by reason."""
        return Counter(one.reason for one in self.tally.bad)

    @property
    def ok(self) -> bool:
        """Every shard and sample can be used, there is one, no key comes twice, and no picture is in the other set."""
        leaked = self.shared is not None and bool(self.shared.pictures)
        return self.usable > 0 and not (self.tally.bad or self.broken or self.duplicates or leaked)


def check(
    folder: Path | str,
    *,
    workers: int = 1,
    against: Path | str | None = None,
    fix: Path | str | None = None,
    console: Console | None = None,
) -> Check:
    """Read, parse and decode every sample.

    The manifest is written where it is missing and the shards are whole, unless ``fix`` is given. Nothing else in the
    folder is touched.

    Args:
        folder: shards.
        workers: processes; 1 does it all in this one.
        against: another folder of shards, to be searched for the same pictures and captions.
        fix: folder to write the usable samples to.
        console: where progress goes; standard error where None.

    Raises:
        FileNotFoundError: there is no such folder, or no shard in it.
        ShardError: the manifest does not fit the files, or ``fix`` is not empty.
    """
    folder, console, started = Path(folder), console or Console(stderr=True), time.perf_counter()
    with _pool(workers) as run:
        manifest, broken, had_manifest = _open(folder, run)
        tally = _tally(manifest, run, f"checking {folder.name}", console)
        seconds = time.perf_counter() - started
        keys = Counter(tally.keys)
        found = Check(folder, tally, broken, {key: count for key, count in keys.items() if count > 1}, seconds=seconds)
        if against is not None:
            other, _, _ = _open(Path(against), run)
            theirs = _tally(other, run, f"checking {other.folder.name}", console)
            found.shared = _compare(tally, theirs, str(against))
    if fix is not None:
        found.fixed = _write_usable(manifest, found, Path(fix), had_manifest, console)
    elif not had_manifest and not broken:
        write_manifest(manifest)
        found.manifest_written = True
    return found


_Run = Callable[[Callable[..., Any], list[tuple[Any, ...]]], Iterator[tuple[int, Any]]]


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[_Run]:
    """Yield what calls a function with each of some arguments, and yields (number, result) as they are done."""
    if workers <= 1:
        yield lambda function, calls: ((number, function(*call)) for number, call in enumerate(calls))
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_reader)

    def run(function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        futures = {pool.submit(function, *call): number for number, call in enumerate(calls)}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)


def _start_reader() -> None:
    start_worker()
    torch.set_num_threads(1)  # the processes are the parallelism


def _open(folder: Path, run: _Run) -> tuple[Manifest, dict[str, str], bool]:
    """Index a folder, or read its manifest and compare every hash.

    Returns:
        The manifest (of broken shards what is before the damage), what is wrong with shards, whether a manifest was
        there.
    """
    paths = sorted(folder.glob("*.tar"))
    if (folder / MANIFEST_NAME).is_file() or not paths:
        manifest = load_manifest(folder)  # or says why it cannot
        calls = [(manifest.folder / shard.name, shard.sha256) for shard in manifest.shards]
        faults = dict(run(_hash_fault, calls))
        broken = {shard.name: faults[number] for number, shard in enumerate(manifest.shards) if faults[number]}
        return manifest, broken, True
    scans = dict(run(_scan, [(path,) for path in paths]))
    shards = [scans[number] for number in range(len(paths))]
    categories = set().union(*(found for _, found, _ in shards))
    manifest = Manifest(folder, tuple(info for info, _, _ in shards), tuple(sorted(categories)))
    return manifest, {info.name: fault for info, _, fault in shards if fault}, False


def _hash_fault(path: Path, expected: str) -> str:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == expected:
        return ""
    return (
        f"its SHA-256 is {found[:12]}…, the manifest says {expected[:12]}…; restore the shard, or delete the manifest"
    )


def _scan(path: Path) -> tuple[ShardInfo, set[str], str]:
    try:
        return *scan_shard(path), ""
    except ShardError as error:
        offsets = _offsets_before_damage(path)
        return ShardInfo(path.name, len(offsets) - 1, 0, path.stat().st_size, "", offsets), set(), str(error)


def _offsets_before_damage(path: Path) -> tuple[int, ...]:
    """Where the samples of a broken tar start, up to the one that the damage is in or behind."""
    offsets, last, size = [0], None, path.stat().st_size
    with contextlib.suppress(tarfile.TarError, EOFError), tarfile.open(path, "r:") as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            key = (folder, name.partition(".")[0])
            if member.isreg() and "." in name and key != last:
                offsets += [member.offset] if last else []
                last = key
            if member.offset_data + member.size > size:
                break
    return tuple(offsets)


def _tally(manifest: Manifest, run: _Run, title: str, console: Console) -> Tally:
    """Check all samples, with a progress bar."""
    calls = [
        (manifest.folder, replace(shard, offsets=shard.offsets[start : start + _PART + 1]), start)
        for shard in manifest.shards
        for start in range(0, shard.samples, _PART)
    ]
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    parts: dict[int, Tally] = {}
    hidden = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as progress:
        bar = progress.add_task(title, total=manifest.samples, rate="")
        started = time.perf_counter()
        for number, part in run(_tally_part, calls):
            parts[number] = part
            progress.update(bar, advance=len(part.keys))
            rate = progress.tasks[0].completed / (time.perf_counter() - started)
            progress.update(bar, rate=f"{rate:,.0f} samples/s")
    return _join([parts[number] for number in range(len(calls))])


def _tally_part(folder: Path, part: ShardInfo, first: int) -> Tally:
    """Check the samples between the offsets of a part of a shard; ``first`` is the number of its first one."""
    tally, reader = Tally(), ShardReader(Manifest(folder, (part,), ()))
    areas: list[float] = []
    files, gradients, captions, owners = [], [], [], []
    for index in range(len(part.offsets) - 1):
        key = f"sample {first + index}"
        try:
            key, members = read_sample_members(reader.read(0, index))
            sample, mended = parse_sample(members, key, folder.name)
            picture = decode_rgb(sample.image)
        except (BadSample, OSError) as error:
            reason, detail = _fault(error)
            tally.bad.append(Bad(key, part.name, first + index, reason, detail))
            continue
        finally:
            tally.keys.append(key)
        tally.mended.update(mended)
        tally.captions[len(sample.captions)] += 1
        tally.regions[len(sample.regions)] += 1
        for region in sample.regions:
            tally.phrases.update(region.phrases)
            tally.words.update(len(phrase.split()) for phrase in region.phrases)
            x0, y0, x1, y1 = region.box
            areas.append((x1 - x0) * (y1 - y0))
        owners += [len(files)] * len(sample.captions)
        captions += map(duplicates.text_hash, sample.captions)
        files.append(duplicates.file_hash(sample.image))
        gradients.append(duplicates.gradient_hash(picture))
        tally.prints.keys.append(key)
    reader.close()
    tally.areas = np.array(areas, np.float32)
    tally.prints.files, tally.prints.captions = np.array(files, np.uint64), np.array(captions, np.uint64)
    tally.prints.gradients = np.array(gradients, np.uint64).reshape(-1, 2)
    tally.prints.owners = np.array(owners, np.int64)
    return tally


def _fault(error: Exception) -> tuple[str, str]:
    return (error.reason, error.detail) if isinstance(error, BadSample) else ("unreadable_shard", str(error))


def _join(parts: Iterable[Tally]) -> Tally:
    parts, whole = list(parts), Tally()
    for part in parts:
        whole.keys += part.keys
        whole.bad += part.bad
        for name in ("mended", "captions", "regions", "phrases", "words"):
            getattr(whole, name).update(getattr(part, name))
    if parts:
        whole.areas = np.concatenate([part.areas for part in parts])
        whole.prints = duplicates.join([part.prints for part in parts])
    return whole


def _compare(ours: Tally, theirs: Tally, folder: str) -> Shared:
    pictures = duplicates.shared_pictures(ours.prints, theirs.prints)
    captions = duplicates.shared_captions(ours.prints, theirs.prints)
    return Shared(folder, pictures, captions, len(ours.phrases.keys() & theirs.phrases.keys()))


def _write_usable(manifest: Manifest, found: Check, out: Path, had_manifest: bool, console: Console) -> Manifest:
    """Write the samples that are not bad, with what is usable in them, to a new folder."""
    left_out = {(one.shard, one.index) for one in found.tally.bad}
    used: set[str] = set()

    def samples() -> Iterator[Sample]:
        reader = ShardReader(manifest)
        for number, shard in enumerate(manifest.shards):
            for index in range(shard.samples):
                if (shard.name, index) not in left_out:
                    key, members = read_sample_members(reader.read(number, index))
                    sample, _ = parse_sample(members, key, manifest.folder.name)
                    yield replace(sample, key=_new_key(key, used))

    with console.status(f"writing {found.usable:,} samples to {out}"):
        # All categories of a manifest compete in evaluation, also those without a box; others are found again.
        return write_shards(samples(), out, categories=manifest.categories if had_manifest else None)


def _new_key(key: str, used: set[str]) -> str:
    """A key that is safe, and that no sample has yet."""
    safe = new = _UNSAFE.sub("_", key)
    number = 1
    while new in used:
        number += 1
        new = f"{safe}-{number}"
    used.add(new)
    return new
