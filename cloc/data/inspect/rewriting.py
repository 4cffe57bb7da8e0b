"""Writes shards that cannot be read by offset as ones that can: plain, the members of each sample side by side.

Stands below ``check``, whose ``fix`` reads what is written here. Memory holds the places of a shard's members, never
their contents: what is packed is unpacked to the disk, and members are copied by offset.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cloc.data.shards.compressed import kind_of, told
from cloc.data.shards.tar_headers import BLOCK, Read, walk_whole
from cloc.data.shards.tars import ShardError, open_tar, split_name
from cloc.files import discard, open_file, open_new

_CHUNK = 1 << 20  # bytes that are copied at a time
_MOST_TIMES = 100  # larger than packed; pictures are hardly smaller
_LEAST_LIMIT = 1 << 30  # bytes that anything may unpack to
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, OSError)


def rewrite(path: Path, folder: Path) -> Path:
    """Write a shard anew so that its samples can be read by offset.

    Args:
        path: a tar, compressed or not, whose members may lie in any order.
        folder: where the new one is written, under the same name, with ``.tar`` behind it where it ends in something
            else: names of one folder stay different.

    Raises:
        ShardError: it cannot be unpacked, or is no whole tar.
    """
    target = folder / (path.name if path.suffix == ".tar" else f"{path.name}.tar")
    with open_file(path) as file:
        kind = kind_of(file.read(BLOCK))
    if not kind:
        _join(path, target)
        return target
    packed = folder / f"{target.name}.unpacked"
    _unpack(path, packed, kind)
    try:
        _join(packed, target)
    finally:
        discard(packed)
    return target


def _unpack(path: Path, target: Path, kind: str) -> None:
    with open_file(path) as raw, open_new(target) as out:
        try:
            _copy(_opened(raw, kind, path), out, path, _limit(path, target))
        except _DAMAGE as error:
            raise ShardError(f"{path}: cannot be unpacked ({error}); restore it") from error


def _limit(path: Path, target: Path) -> int:
    """The bytes that a tar may unpack to: a hundred times its size, and no more than there is room for."""
    return min(max(_LEAST_LIMIT, _MOST_TIMES * os.path.getsize(path)), shutil.disk_usage(target.parent).free)


def _copy(unpacked: gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile, out: BinaryIO, path: Path, limit: int) -> None:
    written = 0
    while piece := unpacked.read(_CHUNK):
        written += len(piece)
        if written > limit:
            seen = f"it unpacks to more than {limit:,} bytes, {_MOST_TIMES} times its size or all the room that is left"
            raise ShardError(f"{path}: {seen}; unpack it yourself if it is right")
        out.write(piece)


def _opened(raw: BinaryIO, kind: str, path: Path) -> gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile:
    if kind == "gzip":
        return gzip.open(raw)
    if kind == "bzip2":
        return bz2.open(raw)
    if kind == "xz":
        return lzma.open(raw)
    raise ShardError(f"{path}: {told(kind)}")


def _join(path: Path, target: Path) -> None:
    """Copy the files of samples, those of each key together, in the order in which the keys first come."""
    file, read, size = open_tar(path)
    with file:
        places: dict[str, list[tuple[int, int]]] = {}
        for member in walk_whole(read, size):
            key, _ = split_name(member)
            if key:
                places.setdefault(key, []).append((member.offset, member.end))
        with open_new(target) as out:
            for start, stop in (place for own in places.values() for place in own):
                out.writelines(_pieces(read, start, stop))
            out.write(bytes(2 * BLOCK))


def _pieces(read: Read, start: int, stop: int) -> Iterator[bytes]:
    while start < stop:
        piece = read(start, min(_CHUNK, stop - start))
        if not piece:
            raise OSError(f"byte {start:,} cannot be read")
        yield piece
        start += len(piece)
