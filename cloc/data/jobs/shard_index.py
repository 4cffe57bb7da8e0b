"""``data index``: the index of a folder of shards, made by one process or in parts by many machines.

Stands above ``shards`` at the start of ``data → models → losses → evaluation → engine``. A part is a run of shards in
the order of their names. What is known of it waits in ``FOLDER/.index``, where no reader looks, and is not made again
while its shards stay as they are. Whoever completes the last part joins them, into the bytes that one process writes.
"""

from __future__ import annotations

import os
import shlex
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from cloc.console import progress
from cloc.data.jobs.worker_pool import WorkerPool
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.index import check_files, need_tars, tar_names, write_manifest
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest, parse_manifest, read_manifest_text, remedy_for
from cloc.data.shards.offsets import MappedOffsets
from cloc.data.shards.saved_table import load_table, save_table
from cloc.data.shards.scanning import scan_shard, tell_hidden
from cloc.data.shards.shard_table import ShardTable
from cloc.data.shards.tars import ShardError, ShardInfo, ShardReadError
from cloc.files import discard, make_folder

PARTS_NAME = ".index"
"""Folder within that of the shards where finished parts wait."""

_LOOKERS = 16  # files whose dates are asked for at a time


@dataclass(frozen=True, slots=True)
class Part:
    """A share of a folder's shards.

    Attributes:
        number: from 1 on.
        count: of all parts.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``i/N``.

        Raises:
            ValueError: it is something else, or there is no such part.
        """
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) <= 100_000):
            raise ValueError(f"--part {text}: give i/N, the parts are 1/N, 2/N, … N/N")
        return cls(int(number), int(count))

    def of(self, names: Sequence[str]) -> list[str]:
        """Its share of the names of all shards."""
        return list(names[len(names) * (self.number - 1) // self.count : len(names) * self.number // self.count])

    @property
    def file(self) -> str:
        """Name of the file that holds what is known of it."""
        return f"part-{self.number:05d}-of-{self.count:05d}.table"


@dataclass(frozen=True, slots=True)
class Indexed:
    """What ``index`` has done.

    Attributes:
        folder: of the shards.
        part: that was asked for.
        manifest: of the whole folder; None while parts are missing.
        written: whether it was written now; else it was there.
        missing: numbers of the parts that are not there yet, or whose shards have changed.
        shards: how many shards were read now.
    """

    folder: Path
    part: Part
    manifest: Manifest | None
    written: bool = False
    missing: tuple[int, ...] = ()
    shards: int = 0

    @property
    def told(self) -> str:
        """A line for people."""
        count = self.part.count
        if self.manifest is None:
            numbers = ", ".join(map(str, self.missing))
            are = "is not there yet, or is" if len(self.missing) == 1 else "are not there yet, or are"
            return f"part{'s' * (len(self.missing) > 1)} {numbers} of {count} {are} of shards that have changed since"
        said, shards = "wrote" if self.written else "there already, and fits:", len(self.manifest.shards)
        return f"{said} {self.folder / MANIFEST_NAME}: {self.manifest.samples:,} samples in {shards:,} shards"

    @property
    def next(self) -> list[str]:
        """The command of the first part that is missing, if one is."""
        command = ["python", "-m", "cloc", "data", "index", str(self.folder), "--part"]
        return [shlex.join([*command, f"{number}/{self.part.count}"]) for number in self.missing[:1]]


def index(folder: Path | str, part: Part | None = None, *, workers: int = 1, console: Console | None = None) -> Indexed:
    """Index a folder, or a part of it; write the manifest once all parts are there.

    Args:
        folder: of the shards.
        part: all of it where None.
        workers: processes that read; 1 does it all in this one.
        console: where progress goes; standard error where None.

    Raises:
        FileNotFoundError: there is no such folder, or no shard in it.
        ShardError: a shard is damaged; what was read before is kept. Or the folder has a manifest that does not fit its
            shards, or cannot be written to.
    """
    folder, console, part = Path(folder), console or Console(stderr=True), part or Part(1, 1)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of shards; see python -m cloc data convert --help")
    names = need_tars(folder)
    known = _known(folder, names, part)
    if known is not None:
        return known
    _need_rights(folder)
    try:
        found = _index(folder, names, part, workers, console)
    except ShardReadError:  # a part has gone: another process has joined them meanwhile
        known = _known(folder, names, part)
        if known is None:
            raise
        return known
    return found if found.manifest is not None else _known(folder, names, part) or found


def _index(folder: Path, names: list[str], part: Part, workers: int, console: Console) -> Indexed:
    count = _index_part(folder, part, part.of(names), workers, console)
    missing = _missing(folder, part.count, names)
    if missing:
        return Indexed(folder, part, None, missing=missing, shards=count)
    manifest, written = _join(folder, part.count)
    return Indexed(folder, part, manifest, written, shards=count)


def _known(folder: Path, names: list[str], part: Part) -> Indexed | None:
    """The manifest that is there, where it fits; one of an older version is written anew."""
    path = folder / MANIFEST_NAME
    if not path.exists():
        return None
    manifest = parse_manifest(read_manifest_text(path), str(path), folder)
    known = manifest.shards.names()
    if sorted(known) != names:
        other = next(iter(set(known).symmetric_difference(names)))
        what = "says nothing of" if other in names else "names a shard that is not there:"
        raise ShardError(f"{path}: it {what} {other}; {remedy_for(folder)}")
    check_files(manifest, (part.number - 1, part.count))
    if all(isinstance(store, MappedOffsets) for store in manifest.shards.stores):
        return Indexed(folder, part, manifest)
    _need_rights(folder)
    write_manifest(manifest)
    return Indexed(folder, part, manifest, written=True)


def _need_rights(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise ShardError(f"{folder}: {MANIFEST_NAME} cannot be written here; mend the rights")


def _index_part(folder: Path, part: Part, names: list[str], workers: int, console: Console) -> int:
    """Read the shards of a part that are not known yet, and write what is known; return how many were read."""
    done, categories, stamps = _read_part(folder, part)
    paths = [folder / name for name in names]
    known = done.names()
    if known != names[: len(known)] or stamps != _stamps(paths[: len(known)]):
        done, categories, stamps = ShardTable.of(()), set(), []
    rest = paths[len(done) :]
    if not rest and (folder / PARTS_NAME / part.file).is_file():
        return 0
    infos: list[ShardInfo] = []
    skipped = 0
    try:
        with WorkerPool(workers) as pool, progress(console, f"indexing {folder.name}", len(rest), "shards") as bar:
            for info, found, stamp, hidden in bar.each(pool.run(_scan, ((path,) for path in rest))):
                infos.append(info)
                categories |= found
                stamps.append(stamp)
                skipped += hidden
    finally:  # also of a part that a damaged shard or Ctrl-C has cut short
        if infos or not rest:
            table = ShardTable.joined([(done, ""), (ShardTable.of(infos), "")])
            manifest = Manifest(folder, table, tuple(sorted(categories)))
            save_table(manifest, make_folder(folder, PARTS_NAME), name=part.file, facts={"stamps": stamps})
    tell_hidden(str(folder), skipped)
    return len(infos)


def _scan(path: Path) -> tuple[ShardInfo, set[str], list[int], int]:
    stamp = _stamp(path)
    found = scan_shard(path)
    return replace(found.info, offsets=array("Q", found.info.offsets)), found.categories, stamp, found.hidden


def _read_part(folder: Path, part: Part) -> tuple[ShardTable, set[str], list[list[int]]]:
    """What was written of a part; nothing where nothing was."""
    try:
        manifest, facts = load_table(folder / PARTS_NAME / part.file, (), ShardCache(folder), own=False)
        manifest.shards.names()  # they came with the folder, and may be anything
        return manifest.shards, set(manifest.categories), list(facts["stamps"])
    except (ValueError, KeyError, TypeError):
        return ShardTable.of(()), set(), []


def _missing(folder: Path, count: int, names: list[str]) -> tuple[int, ...]:
    """Numbers of the parts that are not there, not whole, or of shards that have changed since."""

    def lacks(part: Part) -> bool:
        table, _, stamps = _read_part(folder, part)
        mine = part.of(names)
        return table.names() != mine or stamps != _stamps([folder / name for name in mine])

    parts = (Part(number, count) for number in range(1, count + 1))
    return tuple(part.number for part in parts if not (folder / PARTS_NAME / part.file).is_file() or lacks(part))


def _join(folder: Path, count: int) -> tuple[Manifest, bool]:
    """Write the manifest of all parts, and remove them; False where another process was faster."""
    found = [_read_part(folder, Part(number, count)) for number in range(1, count + 1)]
    table = ShardTable.joined([(table, "") for table, _, _ in found])
    categories = sorted(set().union(*(names for _, names, _ in found)))
    if table.names() != tar_names(folder):  # another process has just joined and removed them
        path = folder / MANIFEST_NAME
        return parse_manifest(read_manifest_text(path), str(path), folder), False
    manifest = Manifest(folder, table, tuple(categories))
    write_manifest(manifest)
    discard(folder / PARTS_NAME)
    return manifest, True


def _stamps(paths: list[Path]) -> list[list[int]]:
    with ThreadPoolExecutor(_LOOKERS) as pool:
        return list(pool.map(_stamp, paths))


def _stamp(path: Path) -> list[int]:
    """What changes when a shard's file does."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]
