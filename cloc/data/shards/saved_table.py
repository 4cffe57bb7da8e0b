"""Hands an opened set to other processes of a host: one file that all of them map.

Stands above ``manifest`` at the start of ``data → models → losses → evaluation → engine``. The first process of a host
parses and checks; what it found is written once, and the others take it without parsing or looking at a shard. The file
says nothing that opens a remote store: who takes it says that from its own configuration.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import struct
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloc.data.shards.cache import ShardCache
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.offsets import MIRRORS, NUMBER, OFFSETS_NAME, MappedOffsets, Offsets, RemoteOffsets
from cloc.data.shards.patterns import remote_root
from cloc.data.shards.shard_table import RECORD, ShardTable
from cloc.data.shards.stores import join_url
from cloc.data.shards.tars import ShardError
from cloc.files import make_folder, open_new, open_plain

FOLDER = "tables"
"""Folder of these files, within that of the cache."""

_HEAD = struct.Struct("<8sQQ")  # magic, bytes of the JSON that follows, and their CRC-32
_MAGIC = b"cloc-tab"
_ALIGNED = 64
_KEPT_SECONDS = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the parts of a file begin, in bytes: names, records, offsets that no other file holds; and its end."""

    names: int
    records: int
    offsets: int
    end: int

    @classmethod
    def of(cls, head: int, names: int, shards: int, held: int) -> _Layout:
        first = _up(_HEAD.size + head)
        records = _up(first + names)
        offsets = _up(records + shards * RECORD.itemsize)
        return cls(first, records, offsets, offsets + held * NUMBER.itemsize)


def save_table(
    manifest: Manifest, folder: Path, urls: Sequence[str] = (), name: str = "", facts: dict[str, Any] | None = None
) -> Path:
    """Write what is known of a set into a folder; the same set has the same file there.

    Args:
        manifest: of the set.
        folder: made where it is missing.
        urls: of the set's folders where they are remote; see :func:`cloc.data.shards.patterns.urls_of`.
        name: of the file; by its content where empty, and then such files that are older than 30 days are removed.
        facts: what is kept with it, as JSON.

    Returns:
        The file.
    """
    table, records, names = manifest.shards, manifest.shards.records.copy(), bytes(manifest.shards.name_bytes)
    stores = [_described(store, urls) for store in table.stores]
    here = np.array([one.get("here", False) for one in stores], bool)
    shards = np.flatnonzero(here[records["store"]])
    counts = records["samples"][shards] + 1
    records["first"][shards] = np.cumsum(counts) - counts
    about: dict[str, Any] = {"folder": str(manifest.folder), "categories": list(manifest.categories)}
    about |= {"stores": stores, "urls": len(urls), "facts": facts or {}}
    about |= {"names": len(names), "shards": len(records), "held": int(counts.sum())}
    about |= {"crc": _checksum(names, records.tobytes())}
    head = json.dumps(about, ensure_ascii=True).encode()
    own = name or f"{hashlib.sha256(head + names + records.tobytes()).hexdigest()[:32]}.table"
    layout = _Layout.of(len(head), len(names), len(records), about["held"])
    with open_new(make_folder(folder) / own) as file:
        file.write(_HEAD.pack(_MAGIC, len(head), zlib.crc32(head)) + head)
        for start, part in ((layout.names, names), (layout.records, records.tobytes()), (layout.offsets, b"")):
            file.write(bytes(start - file.tell()) + part)
        for shard in shards.tolist():
            file.write(table.offsets(shard).astype(NUMBER).tobytes())
    if not name:
        _forget_old(folder)
    return folder / own


def _described(store: Offsets, urls: Sequence[str]) -> dict[str, Any]:
    """Where offsets are, without what opens a remote store; ``here`` where no other file holds them."""
    if isinstance(store, RemoteOffsets):
        return {"remote": [join_url(url, OFFSETS_NAME) for url in urls].index(store.url), "digest": store.digest}
    if isinstance(store, MappedOffsets) and store.digest is not None:  # else in a table, which may be replaced
        place = {"path": str(store.path.absolute()), "start": store.start, "count": store.count}
        return place | {"digest": store.digest}
    return {"here": True}


def load_table(path: Path, urls: Sequence[str], cache: ShardCache, own: bool = True) -> tuple[Manifest, dict[str, Any]]:
    """Map what :func:`save_table` has written.

    Args:
        path: of the file.
        urls: of the set's folders where they are remote, as this process names them.
        cache: of remote offsets.
        own: it was written by a process of this job. Else it may have come with a folder of others: all of it is looked
            at, and it may not name other files.

    Returns:
        The manifest, and the facts that were kept with it.

    Raises:
        ShardError: it is not there, not whole, of another user, or of other folders.
    """
    about, layout, mapped = _map(path, own)
    if about["urls"] != len(urls):
        raise ShardError(f"{path}: of {about['urls']} remote folders, this process names {len(urls)}")
    parts = mapped[layout.names : layout.names + about["names"]], mapped[layout.records : layout.offsets]
    if not own and (about["crc"] != _checksum(*parts) or any("here" not in one for one in about["stores"])):
        raise ShardError(f"{path}: not a whole table")
    stores: list[Offsets] = []
    for one in about["stores"]:
        if "remote" in one:
            place = join_url(urls[one["remote"]], OFFSETS_NAME)
            stores.append(RemoteOffsets(place, one["digest"], cache.folder / MIRRORS, cache.access))
        elif "path" in one:
            stores.append(MappedOffsets(Path(one["path"]), one["start"], one["count"], one["digest"]))
        else:
            stores.append(MappedOffsets(path, layout.offsets, about["held"]))
    table = _table(path, about, layout, mapped, stores)
    if not own and (table.records["store"] >= len(stores)).any():
        raise ShardError(f"{path}: not a whole table")
    return Manifest(Path(about["folder"]), table, tuple(about["categories"]), remote_root(urls)), about["facts"]


def remap(path: Path, stores: Sequence[Offsets]) -> ShardTable:
    """The table of a file in another process, which was sent its stores."""
    about, layout, mapped = _map(path)
    return _table(path, about, layout, mapped, stores)


def _table(
    path: Path, about: dict[str, Any], layout: _Layout, mapped: memoryview, stores: Sequence[Offsets]
) -> ShardTable:
    records = np.frombuffer(mapped, RECORD, about["shards"], layout.records)
    names = mapped[layout.names : layout.names + about["names"]]
    return ShardTable(records, names, stores, (remap, (path,)))


def _map(path: Path, own: bool = True) -> tuple[dict[str, Any], _Layout, memoryview]:
    try:
        file = open_plain(path)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from error
    if file is None:
        raise ShardError(f"{path}: not there; who opened the shards has put it in a folder that this process lacks")
    with file:
        status = os.fstat(file.fileno())
        if own and status.st_uid != os.getuid():
            raise ShardError(f"{path}: of another user, and not believed")
        if status.st_size < _HEAD.size:
            raise ShardError(f"{path}: not a whole table")
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        magic, length, crc = _HEAD.unpack(mapped[: _HEAD.size])
        about = json.loads(head := bytes(mapped[_HEAD.size : _HEAD.size + length]))
        layout = _Layout.of(length, about["names"], about["shards"], about["held"])
        whole = (magic, crc) == (_MAGIC, zlib.crc32(head)) and status.st_size == max(layout.end, layout.offsets)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ShardError(f"{path}: not a whole table")
    return about, layout, mapped


def _checksum(names: bytes | memoryview, records: bytes | memoryview) -> int:
    """CRC-32 of the names, and of the records with the zeros behind them."""
    padded = bytes(_up(len(records)) - len(records))
    return zlib.crc32(padded, zlib.crc32(records, zlib.crc32(names)))


def _forget_old(folder: Path) -> None:
    for path in folder.glob("*.table"):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            if not path.is_symlink() and path.stat().st_mtime < time.time() - _KEPT_SECONDS:
                path.unlink()


def _up(place: int) -> int:
    return -(-place // _ALIGNED) * _ALIGNED
