"""``data check``: every sample of every shard, before training finds out.

Stands beside ``shards`` at the start of ``data → models → losses → evaluation → engine``. Training counts what it
leaves out; this names it, says what a set is made of, and writes it anew without what is broken.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cloc.contracts import Sample
from cloc.data.boxes import NORMALIZED
from cloc.data.console import Bar, progress
from cloc.data.convert.resumable_jobs import start_worker, worker_pool
from cloc.data.drops import MAX_DROP_SHARE, RegionFault, check_share, region_fault
from cloc.data.inspect import duplicates
from cloc.data.inspect.duplicates import Shared
from cloc.data.inspect.tally import Tally, join, tally_part
from cloc.data.shards.index import write_manifest
from cloc.data.shards.keys import safe_key
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest, check_file, parse_manifest, read_manifest_text
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.data.shards.tars import ShardError, ShardInfo, index_damaged, scan_shard
from cloc.data.shards.writer import write_shards
from cloc.files import open_file

_PART = 128  # samples of a task: few enough that all processes end at about the same time


@dataclass(slots=True)
class Check:
    """What ``check`` found.

    Attributes:
        folder: what was checked.
        tally: of all its samples.
        broken: shards that cannot be used as they are, with what is wrong with them. What can be read of them is
            checked all the same.
        duplicates: keys that occur more than once, with their number.
        manifest_written: the folder had no manifest, and now has one.
        shared: what it shares with another set, if one was given.
        fixed: the clean copy that was written.
        seconds: how long reading took.
        max_drop_share: share of the regions that may be unusable.
    """

    folder: Path
    tally: Tally
    broken: dict[str, str]
    duplicates: dict[str, int]
    manifest_written: bool = False
    shared: Shared | None = None
    fixed: Manifest | None = None
    seconds: float = 0.0
    max_drop_share: float = MAX_DROP_SHARE

    @property
    def samples(self) -> int:
        """All that there are."""
        return self.tally.samples

    @property
    def usable(self) -> int:
        """Those that can be read, parse and decode."""
        return self.samples - len(self.tally.bad)

    @property
    def bad(self) -> Counter[str]:
        """Number of samples that cannot be used, by reason."""
        return Counter(one.reason for one in self.tally.bad)

    @property
    def region_fault(self) -> RegionFault | None:
        """Why the regions cannot be right, if so."""
        tally = self.tally
        return region_fault(tally.given, tally.mended, tally.boxes, NORMALIZED, self.max_drop_share)

    @property
    def ok(self) -> bool:
        """Nothing keeps the set from being used as it is meant.

        Every shard and sample can be used, there is one, no key comes twice, nearly all regions can be used and have
        boxes in 0..1, and no picture is in the other set.
        """
        leaked = self.shared is not None and bool(self.shared.pictures)
        faults = self.tally.bad or self.broken or self.duplicates or self.region_fault or leaked
        return self.usable > 0 and not faults


def check(
    folder: Path | str,
    *,
    workers: int = 1,
    against: Path | str | None = None,
    fix: Path | str | None = None,
    index: bool = True,
    max_drop_share: float = MAX_DROP_SHARE,
    console: Console | None = None,
) -> Check:
    """Read, parse and decode every sample.

    Args:
        folder: shards.
        workers: processes; 1 does it all in this one.
        against: another folder of shards, to be searched for the same pictures and captions.
        fix: folder to write a copy to that the same check finds nothing wrong with: without the unusable samples, and
            the pictures that are in ``against``. Nothing is written to ``folder`` then; and nothing at all where the
            boxes are of another order or unit, which leaving something out does not mend.
        index: write the manifest where the folder has none and its shards are whole.
        max_drop_share: share of the regions that may be unusable, 0..1; see ``drops.region_fault``.
        console: where progress goes; standard error where None.

    Raises:
        FileNotFoundError: there is no such folder, or no shard in it.
        ShardError: the manifest is damaged; ``fix`` is not empty, or within a folder that is read; the manifest cannot
            be written. All this before any sample is read.
    """
    folder, console = Path(folder), console or Console(stderr=True)
    check_share("max_drop_share", max_drop_share)
    others = [] if against is None else [Path(against)]
    for path in (folder, *others):
        _refuse_no_shards(path)
    had_manifest = (folder / MANIFEST_NAME).is_file()
    if fix is not None:
        _refuse_target(Path(fix), [folder, *others])
    elif index and not had_manifest and not os.access(folder, os.W_OK):
        raise ShardError(f"{folder}: {MANIFEST_NAME} cannot be written here; mend the rights, or pass --no-index")
    started = time.perf_counter()
    with _pool(workers) as run:
        manifest, broken = _open(folder, run, console)
        tally = _tally(manifest, run, f"checking {folder.name}", console)
        seconds = time.perf_counter() - started
        twice = {key: count for key, count in Counter(tally.keys).items() if count > 1}
        found = Check(folder, tally, broken, twice, seconds=seconds, max_drop_share=max_drop_share)
        for path in others:
            other, _ = _open(path, run, console)
            theirs = _tally(other, run, f"checking {path.name}", console)
            found.shared = _compare(tally, theirs, str(path), console)
    misread = found.region_fault is not None and found.region_fault.misread
    if fix is not None and not misread:
        found.fixed = _write_usable(manifest, found, Path(fix), had_manifest, console)
    elif fix is None and index and not had_manifest and not broken:
        write_manifest(manifest)
        found.manifest_written = True
    return found


def _refuse_no_shards(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of shards; make one: python -m cloc data convert")
    if not (folder / MANIFEST_NAME).is_file() and not any(folder.glob("*.tar")):
        inside = sorted(path.name for path in folder.iterdir())[:5]
        raise FileNotFoundError(f"{folder}: holds no .tar, but {inside or 'nothing'}; name the folder of the shards")


def _refuse_target(out: Path, sources: list[Path]) -> None:
    """Say now, not after hours of reading, what would keep the clean copy from being written."""
    for source in sources:
        if out.resolve().is_relative_to(source.resolve()):
            raise ShardError(f"--fix {out}: this is in {source}, which is read; name a folder elsewhere")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ShardError(f"--fix {out}: is not an empty folder; name another one")
    parent = next(path for path in (out, *out.resolve().parents) if path.exists())
    if not os.access(parent, os.W_OK):
        raise ShardError(f"--fix {out}: {parent} cannot be written to; name a folder elsewhere")


_Run = Callable[[Callable[..., Any], list[tuple[Any, ...]]], Iterator[tuple[int, Any]]]


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[_Run]:
    """Yield what calls a function with each of some arguments, and yields (number, result) as they are done."""
    if workers <= 1:
        yield lambda function, calls: ((number, function(*call)) for number, call in enumerate(calls))
        return
    with worker_pool(workers, _start_reader) as pool:

        def run(function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
            futures = {pool.submit(function, *call): number for number, call in enumerate(calls)}
            for future in as_completed(futures):
                yield futures.pop(future), future.result()

        yield run


def _start_reader() -> None:
    start_worker()
    torch.set_num_threads(1)  # the processes are the parallelism


def _open(folder: Path, run: _Run, console: Console) -> tuple[Manifest, dict[str, str]]:
    """Index a folder, or read its manifest and compare every size and hash.

    Returns:
        The manifest (of shards that cannot be indexed what is before the damage), and what is wrong with shards.
    """
    paths = sorted(folder.glob("*.tar"))
    if (folder / MANIFEST_NAME).is_file():
        manifest = parse_manifest(read_manifest_text(folder / MANIFEST_NAME), str(folder / MANIFEST_NAME), folder)
        calls = [(folder / shard.name, shard) for shard in manifest.shards]
        with progress(console, f"hashing {folder.name}", len(calls), "shards") as bar:
            faults = _all(run(_file_fault, calls), bar)
        broken = {shard.name: fault for shard, fault in zip(manifest.shards, faults, strict=True) if fault}
        known = {shard.name for shard in manifest.shards}
        remedy = "not in the manifest, so that nobody reads it; move it away, or delete the manifest and check again"
        return manifest, broken | {path.name: remedy for path in paths if path.name not in known}
    with progress(console, f"indexing {folder.name}", len(paths), "shards") as bar:
        scans = _all(run(_scan, [(path,) for path in paths]), bar)
    categories = set().union(*(found for _, found, _ in scans))
    manifest = Manifest(folder, tuple(info for info, _, _ in scans), tuple(sorted(categories)))
    return manifest, {info.name: fault for info, _, fault in scans if fault}


def _all(results: Iterator[tuple[int, Any]], bar: Bar) -> list[Any]:
    """Put results in the order of their numbers."""
    done = {}
    for number, result in results:
        done[number] = result
        bar.advance()
    return [done[number] for number in sorted(done)]


def _file_fault(path: Path, shard: ShardInfo) -> str:
    """What is wrong with a file that the manifest describes; empty where nothing is."""
    try:
        check_file(path, shard)
    except ShardError as error:
        return str(error).removeprefix(f"{path}: ")
    with open_file(path) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == shard.sha256:
        return ""
    seen = f"its SHA-256 is {found[:12]}…, the manifest says {shard.sha256[:12]}…"
    return f"{seen}; restore the shard, or delete the manifest and check again"


def _scan(path: Path) -> tuple[ShardInfo, set[str], str]:
    try:
        return *scan_shard(path), ""
    except ShardError as error:
        return index_damaged(path), set(), str(error).removeprefix(f"{path}: ")


def _tally(manifest: Manifest, run: _Run, title: str, console: Console) -> Tally:
    """Check all samples, with a progress bar."""
    calls = [
        (manifest.folder, shard.part(start, start + _PART), start)
        for shard in manifest.shards
        for start in range(0, shard.samples, _PART)
    ]
    parts: dict[int, Tally] = {}
    with progress(console, title, manifest.samples) as bar:
        for number, part in run(tally_part, calls):
            parts[number] = part
            bar.advance(part.samples)
    return join([parts[number] for number in range(len(calls))])


def _compare(ours: Tally, theirs: Tally, folder: str, console: Console) -> Shared:
    with progress(console, "comparing pictures", unit="pictures") as bar:
        matches, here, there = duplicates.shared_pictures(ours.prints, theirs.prints, bar.move)
    captions = duplicates.shared_captions(ours.prints, theirs.prints)
    phrases = len(ours.phrases.keys() & theirs.phrases.keys())
    return Shared(folder, matches, here, len(there), captions, phrases, len(theirs.bad))


def _write_usable(manifest: Manifest, found: Check, out: Path, had_manifest: bool, console: Console) -> Manifest | None:
    """Write the samples that are neither bad nor shared, with what is usable in them; None where none is left."""
    left_out = {(one.shard, one.index) for one in found.tally.bad}
    shared = set() if found.shared is None else set(found.shared.pictures)
    total = found.usable - len(shared)
    if not total:
        return None
    used: set[str] = set()

    def samples(bar: Bar) -> Iterator[Sample]:
        usable = [
            (shard, index) for shard, index in manifest.places() if (manifest.shards[shard].name, index) not in left_out
        ]
        kept = [place for number, place in enumerate(usable) if number not in shared]
        with contextlib.closing(ShardReader(manifest)) as reader:
            for stored in each_sample(reader, kept):
                yield replace(stored.need(), key=_new_key(stored.key, used))
                bar.advance()

    with progress(console, f"writing {out.name}", total) as bar:
        # All categories of a manifest compete in evaluation, also those without a box; others are found again.
        return write_shards(samples(bar), out, categories=manifest.categories if had_manifest else None)


def _new_key(key: str, used: set[str]) -> str:
    """A key that is safe, and that no sample has yet."""
    safe = new = safe_key(key)
    number = 1
    while new in used:
        number += 1
        new = f"{safe}-{number}"
    used.add(new)
    return new
