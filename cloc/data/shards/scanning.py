"""Indexes one tar: where its samples are, what they hold, and what can be trusted of a damaged one.

Stands above ``tars`` at the start of ``data → models → losses → evaluation → engine``. It parses annotations, and with
them loads PyTorch; reading an index that is there needs neither.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cloc.data.regions import is_encodable
from cloc.data.sample import MAX_MEMBER_BYTES, regions_of
from cloc.data.shards.tar_headers import HeaderError, Read, walk_whole
from cloc.data.shards.tars import OpenFile, SampleMember, ShardError, ShardInfo, open_tar, read_tar, split_name

_REMEDY = "restore or rewrite the shard"


def index_shard(path: Path | str) -> ShardInfo:
    """Read a tar's headers and say where its samples are.

    Raises:
        ShardError: the tar is truncated or damaged, a name is absolute or climbs out, a key or member comes twice.
    """
    return scan_shard(Path(path))[0]


def scan_shard(path: Path | str, opened: OpenFile | None = None) -> tuple[ShardInfo, set[str]]:
    """Index one shard.

    Args:
        path: of it.
        opened: its bytes, where it is a URL; closed in the end.

    Returns:
        What ``index_shard`` returns, and the categories of the shard's regions.

    Raises:
        ShardError: as ``index_shard``.
    """
    offsets: list[int] = []
    keys: dict[str, set[str]] = {}
    categories: set[str] = set()
    regions, crowds, dropped, last, end = 0, 0, 0, None, 0
    file, read, size = read_tar(opened) if opened is not None else _open(Path(path))
    with file:
        for key, extension, member in _safe_members(path, read, size):
            if key != last:
                _refuse(key in keys, path, f"key {key!r} comes twice, again at byte {member.offset}", "rename one")
                keys[key], last = set(), key
                offsets.append(member.offset)
            _refuse(extension in keys[key], path, f"member {member.name!r} comes twice", "remove one")
            keys[key].add(extension)
            end = member.end
            if extension == "json" and member.size <= MAX_MEMBER_BYTES:
                usable, unusable = regions_of(read(member.start, member.size), key)
                groups = sum(region.crowd for region in usable)
                regions, crowds, dropped = regions + len(usable) - groups, crowds + groups, dropped + unusable
                named = (region.category for region in usable if region.category is not None)
                categories.update(filter(is_encodable, named))  # of others the manifest cannot be written
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    spans = (*offsets, end) if offsets else (0,)
    info = ShardInfo(PurePosixPath(path).name, len(offsets), regions, size, digest, spans, crowds, dropped)
    return info, categories


def _open(path: Path) -> tuple[OpenFile, Read, int]:
    try:
        return open_tar(path)
    except OSError as error:
        reason = error.strerror or error
        raise ShardError(f"{path}: cannot be opened ({reason}); restore it, or move it away") from error


def index_damaged(path: Path) -> ShardInfo:
    """Index what can be trusted of a shard that ``scan_shard`` refuses.

    Returns:
        The samples before the damage; the one that it is in or behind is left out, since it may lack members. All of
        them where the tar is whole. ``regions`` is 0, ``sha256`` empty.
    """
    offsets, size = [], 0
    with contextlib.suppress(OSError):
        file, read, size = open_tar(path)
        with file:
            offsets = _trusted_offsets(read, size)
    return ShardInfo(path.name, max(0, len(offsets) - 1), 0, size, "", tuple(offsets) or (0,))


def _trusted_offsets(read: Read, size: int) -> list[int]:
    """Where each sample starts, as far as a tar can be read, and the last one ends; none that lacks its end."""
    offsets, last, end = [], "", 0
    try:
        for member in walk_whole(read, size):
            key, _ = split_name(member)
            if key and key != last:
                offsets.append(member.offset)
            last, end = (key, member.end) if key else (last, end)
    except HeaderError as error:
        # A member that is cut off and of another sample tells that the one before is whole.
        if error.member is None:
            return offsets
        key, _ = split_name(error.member)
        return [*offsets, error.member.offset] if key and key != last else offsets
    return [*offsets, end] if offsets else []


def _safe_members(path: Path | str, read: Read, size: int) -> Iterator[SampleMember]:
    """Yield the files of samples; refuse unsafe names and damaged tars."""
    try:
        for member in walk_whole(read, size):
            pure = PurePosixPath(member.name)
            _refuse(pure.is_absolute() or ".." in pure.parts, path, f"member {member.name!r} escapes", _REMEDY)
            _refuse(member.sparse, path, f"member {member.name!r} is sparse", _REMEDY)
            key, extension = split_name(member)
            if key:
                yield SampleMember(key, extension, member)
    except HeaderError as error:
        raise ShardError(f"{path}: not a whole tar: {error}; {_REMEDY}") from error


def _refuse(condition: bool, path: Path | str, what: str, remedy: str) -> None:
    if condition:
        raise ShardError(f"{path}: {what}; {remedy}")
