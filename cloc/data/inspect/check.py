"""``data check``: reads every sample of every shard, and says what training would leave out.

Stands beside ``shards`` at the start of ``data → models → losses → evaluation → engine``. Training counts what it
leaves out; this names it, says what a set is made of, and writes it anew without what is broken.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
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
from cloc.data.inspect.rewriting import rewrite
from cloc.data.inspect.tally import Tally, join, tally_part
from cloc.data.jobs.worker_pool import WorkerPool
from cloc.data.shards.compressed import compressed_tars, kind_by_name, told, told_of_folder
from cloc.data.shards.index import tar_names, write_manifest
from cloc.data.shards.keys import free_key
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest, Place, check_file, parse_manifest, read_manifest_text
from cloc.data.shards.offsets import MappedOffsets
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample
from cloc.data.shards.scanning import MendableError, Scan, index_damaged, scan_shard
from cloc.data.shards.tar_headers import HeaderError
from cloc.data.shards.tars import ShardError, ShardInfo
from cloc.data.shards.writer import write_shards
from cloc.files import hidden_folder, open_file

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
        hidden: members that were skipped when the shards were indexed now; see ``tars.is_hidden``.
        rewritable: broken shards of which a copy can be read: compressed, or the members of a sample lie apart.
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
    hidden: int = 0
    rewritable: tuple[str, ...] = ()

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
            boxes are of another order or unit, which leaving something out does not mend. Shards that are compressed,
            or in which the members of a sample lie apart, are written anew beside it first, and read from there.
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
        _refuse_no_shards(path, fix is not None and path == folder)
    had_manifest = (folder / MANIFEST_NAME).is_file()
    if fix is not None:
        _refuse_target(Path(fix), [folder, *others])
    elif index and not had_manifest and not os.access(folder, os.W_OK):
        raise ShardError(f"{folder}: {MANIFEST_NAME} cannot be written here; mend the rights, or pass --no-index")
    started = time.perf_counter()
    with WorkerPool(workers, _one_thread if workers > 1 else None) as pool, contextlib.ExitStack() as stack:
        opened = _open(folder, pool, console)
        sets = [opened.manifest]
        if fix is not None and opened.rewritable:
            sets.append(_rewritten(opened, stack.enter_context(hidden_folder(Path(fix))), pool, console))
        tally = join([_tally(one, pool, f"checking {folder.name}", console) for one in sets])
        seconds = time.perf_counter() - started
        twice = {key: count for key, count in Counter(tally.keys).items() if count > 1}
        result = Check(folder, tally, opened.broken, twice, seconds=seconds, max_drop_share=max_drop_share)
        result.hidden, result.rewritable = opened.hidden, opened.rewritable
        for path in others:
            theirs = _tally(_open(path, pool, console).manifest, pool, f"checking {path.name}", console)
            result.shared = _compare(tally, theirs, str(path), console)
        misread = result.region_fault is not None and result.region_fault.misread
        if fix is not None and not misread:
            result.fixed = _write_usable(sets, result, Path(fix), had_manifest, console)
    if fix is None and index and not opened.broken and (not had_manifest or _can_be_renewed(opened.manifest)):
        write_manifest(opened.manifest)
        result.manifest_written = True
    return result


def _can_be_renewed(manifest: Manifest) -> bool:
    """Whether it is of an older version, whose offsets stand in the JSON, and may be written anew."""
    mapped = all(isinstance(store, MappedOffsets) for store in manifest.shards.stores)
    return not mapped and os.access(manifest.folder, os.W_OK)


def _refuse_no_shards(folder: Path, compressed_too: bool = False) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of shards; see python -m cloc data convert --help")
    names = os.listdir(folder)
    if not (MANIFEST_NAME in names or tar_names(folder) or (compressed_too and compressed_tars(names))):
        raise FileNotFoundError(told_of_folder(str(folder), names))


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


@dataclass(frozen=True, slots=True)
class _Opened:
    """A folder as it was found: its manifest (of shards that cannot be indexed what is before the damage).

    Attributes:
        manifest: that was there, or was made now.
        broken: what is wrong with shards.
        rewritable: those of them that only have to be written anew.
        hidden: members skipped.
    """

    manifest: Manifest
    broken: dict[str, str]
    rewritable: tuple[str, ...] = ()
    hidden: int = 0


def _open(folder: Path, pool: WorkerPool, console: Console) -> _Opened:
    """Index a folder, or read its manifest and compare every size and hash."""
    paths = [folder / name for name in tar_names(folder)]
    if (folder / MANIFEST_NAME).is_file():
        manifest = parse_manifest(read_manifest_text(folder / MANIFEST_NAME), str(folder / MANIFEST_NAME), folder)
        calls = ((folder / shard.name, shard) for shard in manifest.shards)
        with progress(console, f"hashing {folder.name}", len(manifest.shards), "shards") as bar:
            faults = list(bar.each(pool.run(_file_fault, calls, ahead=_AHEAD)))
        manifest.shards.records["checked"] = True  # what is wrong with them is known now, and told
        names = manifest.shards.names()
        broken, known = {name: fault for name, fault in zip(names, faults, strict=True) if fault}, set(names)
        remedy = "not in the manifest, so that nobody reads it; move it away, or delete the manifest and check again"
        return _Opened(manifest, broken | {path.name: remedy for path in paths if path.name not in known})
    with progress(console, f"indexing {folder.name}", len(paths), "shards") as bar:
        scans = list(bar.each(pool.run(_scan, [(path,) for path in paths], ahead=_AHEAD)))
    manifest = Manifest.of(folder, [one.info for one, _, _ in scans], _categories(one for one, _, _ in scans))
    broken = {one.info.name: fault for one, fault, _ in scans if fault}
    packed = {name: f"{told(kind_by_name(name))}, or --fix OUT" for name in compressed_tars(os.listdir(folder))}
    rewritable = (*(one.info.name for one, _, rewritable in scans if rewritable), *packed)
    return _Opened(manifest, broken | packed, rewritable, sum(one.hidden for one, _, _ in scans))


def _categories(scans: Iterable[Scan]) -> list[str]:
    return sorted(set().union(*(one.categories for one in scans)))


def _rewritten(opened: _Opened, room: Path, pool: WorkerPool, console: Console) -> Manifest:
    """Write shards anew in a folder of their own, and index what is there; whatever cannot be stays broken."""
    calls = [(opened.manifest.folder / name, room) for name in opened.rewritable]
    scans = []
    with progress(console, "writing shards anew", len(calls), "shards") as bar:
        for name, (found, fault) in zip(opened.rewritable, bar.each(pool.run(_rewrite, calls)), strict=True):
            if fault:
                opened.broken[name] += f"; {fault}"
            scans += [] if found is None else [found]
    return Manifest.of(room, [one.info for one in scans], _categories(scans))


def _rewrite(path: Path, room: Path) -> tuple[Scan | None, str]:
    try:
        return scan_shard(rewrite(path, room)), ""
    except (ShardError, HeaderError) as error:
        return None, str(error).removeprefix(f"{path}: ")


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


def _scan(path: Path) -> tuple[Scan, str, bool]:
    """What is in a shard; what is wrong with it; and whether writing it anew mends that."""
    try:
        return scan_shard(path), "", False
    except MendableError as error:  # its samples are read from the copy alone
        empty = ShardInfo(path.name, 0, 0, path.stat().st_size, "", (0,))
        return Scan(empty, set()), str(error).removeprefix(f"{path}: "), True
    except ShardError as error:
        return Scan(index_damaged(path), set()), str(error).removeprefix(f"{path}: "), False


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
    sets: list[Manifest], result: Check, out: Path, had_manifest: bool, console: Console
) -> Manifest | None:
    """Write the samples that are neither bad nor shared, with what is usable in them; None where none is left."""
    left_out = {(one.shard, one.index) for one in result.tally.bad}
    shared = set() if result.shared is None else set(result.shared.pictures)
    total = result.usable - len(shared)
    if not total:
        return None
    used: set[str] = set()
    numbers = itertools.count()

    def kept(manifest: Manifest) -> Iterator[Place]:
        names = manifest.shards.names()
        usable = ((shard, index) for shard, index in manifest.places() if (names[shard], index) not in left_out)
        return (place for place in usable if next(numbers) not in shared)

    def samples(bar: Bar) -> Iterator[Sample]:
        for manifest in sets:
            with contextlib.closing(ShardReader(manifest)) as reader:
                for stored in each_sample(reader, kept(manifest), result.folder.name):
                    yield replace(stored.need(), key=free_key(stored.key, used))
                    bar.advance()

    with progress(console, f"writing {out.name}", total) as bar:
        # All categories of a manifest compete in evaluation, also those without a box; others are found again.
        return write_shards(samples(bar), out, categories=sets[0].categories if had_manifest else None)
