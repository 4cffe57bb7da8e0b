"""``data check``: reads every sample of every shard, and says what training would leave out.

Stands beside ``shards`` at the start of ``data → models → losses → evaluation → engine``. Training counts what it
leaves out; this names it, says what a set is made of, and writes it anew without what is broken.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from cloc.console import Bar, progress
from cloc.contracts import Sample
from cloc.data.boxes import NORMALIZED
from cloc.data.drops import MAX_DROP_SHARE, RegionFault, check_share, region_fault
from cloc.data.inspect import duplicates
from cloc.data.inspect.duplicates import Shared
from cloc.data.inspect.tally import Tally, join, tally_part
from cloc.data.jobs.worker_pool import WorkerPool
from cloc.data.shards.index import write_manifest
from cloc.data.shards.keys import safe_key
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest, check_file, parse_manifest, read_manifest_text
from cloc.data.shards.offsets import MappedOffsets
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.data.shards.scanning import index_damaged, scan_shard
from cloc.data.shards.tars import ShardError, ShardInfo
from cloc.data.shards.writer import write_shards
from cloc.files import open_file

_PART = 128  # samples of a call: few enough that all processes end at about the same time
_AHEAD = 32  # calls per process that may be done before an earlier one: results are small, and calls differ in size


@dataclass(slots=True)
class Check:
    """What ``check`` found.

    Attributes:
        folder: what was checked.
        tally: of all its samples.
        broken: shards that cannot be used as they are, with what is wrong with them. What can be read of them is
            checked all the same.
        duplicates: keys that occur more than once, with their number.
        manifest_written: the folder had no manifest, or one of an older version, and now has one.
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
        index: write the manifest where the folder has none, or one of an older version, and its shards are whole.
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
    with WorkerPool(workers, _one_thread if workers > 1 else None) as pool:
        manifest, broken = _open(folder, pool, console)
        tally = _tally(manifest, pool, f"checking {folder.name}", console)
        seconds = time.perf_counter() - started
        twice = {key: count for key, count in Counter(tally.keys).items() if count > 1}
        result = Check(folder, tally, broken, twice, seconds=seconds, max_drop_share=max_drop_share)
        for path in others:
            other, _ = _open(path, pool, console)
            theirs = _tally(other, pool, f"checking {path.name}", console)
            result.shared = _compare(tally, theirs, str(path), console)
    misread = result.region_fault is not None and result.region_fault.misread
    if fix is not None and not misread:
        result.fixed = _write_usable(manifest, result, Path(fix), had_manifest, console)
    elif fix is None and index and not broken and (not had_manifest or _can_be_renewed(manifest)):
        write_manifest(manifest)
        result.manifest_written = True
    return result


def _can_be_renewed(manifest: Manifest) -> bool:
    """Whether it is of an older version, whose offsets stand in the JSON, and may be written anew."""
    mapped = all(isinstance(store, MappedOffsets) for store in manifest.shards.stores)
    return not mapped and os.access(manifest.folder, os.W_OK)


def _refuse_no_shards(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of shards; see python -m cloc data convert --help")
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


def _one_thread() -> None:
    torch.set_num_threads(1)  # the processes are the parallelism


def _open(folder: Path, pool: WorkerPool, console: Console) -> tuple[Manifest, dict[str, str]]:
    """Index a folder, or read its manifest and compare every size and hash.

    Returns:
        The manifest (of shards that cannot be indexed what is before the damage), and what is wrong with shards.
    """
    paths = sorted(folder.glob("*.tar"))
    if (folder / MANIFEST_NAME).is_file():
        manifest = parse_manifest(read_manifest_text(folder / MANIFEST_NAME), str(folder / MANIFEST_NAME), folder)
        calls = ((folder / shard.name, shard) for shard in manifest.shards)
        with progress(console, f"hashing {folder.name}", len(manifest.shards), "shards") as bar:
            faults = list(bar.each(pool.run(_file_fault, calls, ahead=_AHEAD)))
        manifest.shards.records["checked"] = True  # what is wrong with them is known now, and told
        names = manifest.shards.names()
        broken, known = {name: fault for name, fault in zip(names, faults, strict=True) if fault}, set(names)
        remedy = "not in the manifest, so that nobody reads it; move it away, or delete the manifest and check again"
        return manifest, broken | {path.name: remedy for path in paths if path.name not in known}
    with progress(console, f"indexing {folder.name}", len(paths), "shards") as bar:
        scans = list(bar.each(pool.run(_scan, [(path,) for path in paths], ahead=_AHEAD)))
    categories = set().union(*(found for _, found, _ in scans))
    manifest = Manifest.of(folder, [info for info, _, _ in scans], sorted(categories))
    return manifest, {info.name: fault for info, _, fault in scans if fault}


def _file_fault(path: Path, shard: ShardInfo) -> str:
    """What is wrong with a file that the manifest describes; empty where nothing is."""
    try:
        check_file(path, shard)
    except ShardError as error:
        return str(error).removeprefix(f"{path}: ")
    with open_file(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest == shard.sha256:
        return ""
    seen = f"its SHA-256 is {digest[:12]}…, the manifest says {shard.sha256[:12]}…"
    return f"{seen}; restore the shard, or delete the manifest and check again"


def _scan(path: Path) -> tuple[ShardInfo, set[str], str]:
    try:
        return *scan_shard(path), ""
    except ShardError as error:
        return index_damaged(path), set(), str(error).removeprefix(f"{path}: ")


def _tally(manifest: Manifest, pool: WorkerPool, title: str, console: Console) -> Tally:
    """Check all samples, with a progress bar."""
    calls = (
        (manifest.folder, shard.part(start, start + _PART), start)
        for shard in manifest.shards
        for start in range(0, shard.samples, _PART)
    )
    with progress(console, title, manifest.samples) as bar:
        parts = list(bar.each(pool.run(tally_part, calls, ahead=_AHEAD), lambda part: part.samples))
    return join(parts)


def _compare(ours: Tally, theirs: Tally, folder: str, console: Console) -> Shared:
    with progress(console, "comparing pictures", unit="pictures") as bar:
        matches, here, there = duplicates.shared_pictures(ours.prints, theirs.prints, bar.move)
    captions = duplicates.shared_captions(ours.prints, theirs.prints)
    phrases = len(ours.phrases.keys() & theirs.phrases.keys())
    return Shared(folder, matches, here, len(there), captions, phrases, len(theirs.bad))


def _write_usable(
    manifest: Manifest, result: Check, out: Path, had_manifest: bool, console: Console
) -> Manifest | None:
    """Write the samples that are neither bad nor shared, with what is usable in them; None where none is left."""
    left_out = {(one.shard, one.index) for one in result.tally.bad}
    shared = set() if result.shared is None else set(result.shared.pictures)
    total = result.usable - len(shared)
    if not total:
        return None
    used: set[str] = set()
    names = manifest.shards.names()

    def samples(bar: Bar) -> Iterator[Sample]:
        usable = [(shard, index) for shard, index in manifest.places() if (names[shard], index) not in left_out]
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
