"""The bytes of one tar: where its samples are, and what each holds.

Stands below ``shards`` at the start of ``data → models → losses → evaluation → engine``. Grouping follows webdataset: a
member's key is its path up to the first dot of the file name. Its own readers are not used here because they stream:
they give no offsets, and let damaged tails pass. Nothing here unpickles or runs what a tar holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar

from cloc.config.secrets import public
from cloc.data.schema import MAX_MEMBER_BYTES, regions_of

_Raw = TypeVar("_Raw", bytes, memoryview)
_BLOCK = tarfile.BLOCKSIZE
_MEMBER_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's rule: key, then all behind the first dot


class ShardError(ValueError):
    """A shard or its manifest cannot be used. The message loses the credentials of the URLs in it."""

    def __init__(self, message: str) -> None:
        super().__init__(public(message))


class ShardReadError(ShardError, OSError):
    """A shard that was indexed cannot be read any more."""


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """What the manifest knows of one shard.

    Attributes:
        name: file name within the folder.
        samples: number of samples, usable or not.
        regions: number of usable regions, without groups.
        bytes: size of the file.
        sha256: hash of the file, in hex.
        offsets: ``samples + 1`` byte offsets: where each sample's first header starts, and where the last one ends.
        crowds: number of usable groups, which are not trained on.
        dropped: number of regions that cannot be used. Manifests of older versions count neither, and groups as
            regions.
    """

    name: str
    samples: int
    regions: int
    bytes: int
    sha256: str
    offsets: tuple[int, ...]
    crowds: int = 0
    dropped: int = 0


def read_sample_members(raw: _Raw) -> tuple[str, dict[str, _Raw]]:
    """Split the tar bytes of one sample.

    Args:
        raw: a slice of a tar between two offsets of its ``ShardInfo``. The contents of a memoryview are no copies.

    Returns:
        The key, and the contents by extension in lower case.

    Raises:
        ShardReadError: the bytes are no tar members, or a member is cut off.
    """
    key, members, position = "", {}, 0
    while position < len(raw) and raw[position]:  # a zero block ends a tar
        kind = raw[position + 156 : position + 157]
        if kind in b"xgLK":  # long or non-ASCII names: leave their rules to tarfile
            return _read_with_tarfile(raw)
        try:
            full_name, size, regular = _read_header(bytes(raw[position : position + _BLOCK]))
        except tarfile.HeaderError as error:
            raise ShardReadError(
                f"byte {position} of a sample: no tar header ({error}); rebuild the manifest"
            ) from error
        start = position + _BLOCK
        position = start + _round_up(size if regular else 0)
        name = _MEMBER_NAME.match(full_name)
        if name and regular:
            key = name[1]
            members[name[2].lower()] = raw[start : start + size]
    if position > len(raw):
        raise ShardReadError(f"sample {key!r}: a member is cut off after {len(raw)} bytes; restore the shard")
    return key, members


def _read_header(block: bytes) -> tuple[str, int, bool]:
    """Name, size, and whether it is a regular file.

    The plain case by hand, for tarfile takes eight times as long: regular, name of ASCII without prefix, octal numbers.
    """
    name, size, checksum = block[:100].rstrip(b"\0"), block[124:136].rstrip(b" \0"), block[148:156].rstrip(b" \0")
    plain = block[156:157] == b"0" and not block[345:346].strip(b"\0") and name.isascii() and b"\0" not in name
    if plain and size.isdigit() and checksum.isdigit() and len(block) == _BLOCK:
        # The sum of all bytes, the checksum's own as spaces; Adler's low half is this sum + 1, modulo a prime.
        counted = zlib.adler32(b"".join((block[:148], b" " * 8, block[156:]))) & 0xFFFF
        if counted == (int(checksum, 8) + 1) % 65521:
            return name.decode("ascii"), int(size, 8), True
    header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    return header.name, header.size, header.isreg()


def index_shard(path: Path | str) -> ShardInfo:
    """Read a tar's headers and say where its samples are.

    Raises:
        ShardError: the tar is truncated or damaged, a name is absolute or climbs out, a key or member comes twice.
    """
    return scan_shard(Path(path))[0]


def scan_shard(path: Path) -> tuple[ShardInfo, set[str]]:
    """Index one shard.

    Returns:
        What ``index_shard`` returns, and the categories of the shard's regions.

    Raises:
        ShardError: as ``index_shard``.
    """
    offsets: list[int] = []
    keys: dict[str, set[str]] = {}
    categories: set[str] = set()
    regions, crowds, dropped, last, end = 0, 0, 0, None, 0
    with path.open("rb") as file:
        for member, data in _members(path, file):
            name = _MEMBER_NAME.match(member.name)
            end = member.offset_data + _round_up(member.size)
            if name is None:
                continue
            key, extension = name[1], name[2].lower()
            if key != last:
                _refuse(key in keys, path, f"key {key!r} comes twice, again at byte {member.offset}", "rename one")
                keys[key], last = set(), key
                offsets.append(member.offset)
            _refuse(extension in keys[key], path, f"member {member.name!r} comes twice", "remove one")
            keys[key].add(extension)
            if extension == "json":
                found, lost = regions_of(data, key)
                groups = sum(region.crowd for region in found)
                regions, crowds, dropped = regions + len(found) - groups, crowds + groups, dropped + lost
                categories.update(region.category for region in found if region.category is not None)
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    spans = (*offsets, end) if offsets else (0,)
    info = ShardInfo(path.name, len(offsets), regions, size, digest, spans, crowds, dropped)
    return info, categories


def index_damaged(path: Path) -> ShardInfo:
    """Index what can be trusted of a shard that ``scan_shard`` refuses.

    Returns:
        The samples before the damage; the one that it is in or behind is left out, for it may lack members. All of
        them where the tar is whole. ``regions`` is 0, ``sha256`` empty.
    """
    offsets: list[int] = []
    last, end, size = None, 0, path.stat().st_size
    with contextlib.suppress(tarfile.TarError, EOFError), tarfile.open(path, "r:") as tar:
        for member in tar:
            name = _MEMBER_NAME.match(member.name) if member.isreg() else None
            if name and name[1] != last:
                offsets.append(member.offset)
                last = name[1]
            end = member.offset_data + _round_up(member.size if member.isreg() else 0)
    with path.open("rb") as file:
        file.seek(end)
        whole = file.read(_BLOCK) == bytes(_BLOCK)  # as in _members: without these zeros something is missing
    if whole and offsets:
        offsets.append(end)
    return ShardInfo(path.name, max(0, len(offsets) - 1), 0, size, "", tuple(offsets) or (0,))


def _members(path: Path, file: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield regular members, with the contents of JSON ones; refuse unsafe names and damaged tars."""
    remedy = "restore or rewrite the shard"
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                end = member.offset_data + _round_up(member.size if member.isreg() else 0)
                pure = PurePosixPath(member.name)
                _refuse(pure.is_absolute() or ".." in pure.parts, path, f"member {member.name!r} escapes", remedy)
                _refuse(member.issparse(), path, f"member {member.name!r} is sparse", remedy)
                wanted = member.isreg() and member.name.endswith(".json") and member.size <= MAX_MEMBER_BYTES
                content = tar.extractfile(member) if wanted else None
                if member.isreg():
                    yield member, content.read() if content else b""
    except (tarfile.TarError, EOFError) as error:
        raise ShardError(f"{path}: not a whole tar: {error}; {remedy}") from error
    file.seek(end)  # tarfile takes a damaged header for the end of the tar
    tail = file.read(_BLOCK)
    size = file.seek(0, os.SEEK_END)
    _refuse(size < end, path, f"truncated: {end:,} bytes are needed, {size:,} are there", remedy)
    # Without the zeros that end a tar nobody knows how many members are missing.
    _refuse(len(tail) < _BLOCK or bool(tail.strip(b"\0")), path, f"truncated or damaged at byte {end}", remedy)


def _refuse(condition: bool, path: Path, what: str, remedy: str) -> None:
    if condition:
        raise ShardError(f"{path}: {what}; {remedy}")


def _read_with_tarfile(raw: bytes | memoryview) -> tuple[str, dict[str, bytes]]:
    key, members = "", {}
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            for member in tar:
                name = _MEMBER_NAME.match(member.name)
                # What claims more bytes than there are is a sparse member: a bomb.
                whole = member.isreg() and not member.issparse() and member.size <= len(raw)
                content = tar.extractfile(member) if name and whole else None
                if name and content:
                    key = name[1]
                    members[name[2].lower()] = content.read()
    except tarfile.TarError as error:
        raise ShardReadError(f"a sample of {len(raw)} bytes is no tar: {error}; rebuild the manifest") from error
    return key, members


def _round_up(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
