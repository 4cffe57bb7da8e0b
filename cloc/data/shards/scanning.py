"""Indexes one tar: where its samples are, what they hold, and what can be trusted of a damaged one.

Stands above ``tars`` at the start of ``data → models → losses → evaluation → engine``. It parses annotations, and with
them loads PyTorch; reading an index that is there needs neither.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cloc.data.regions import is_encodable
from cloc.data.sample import MAX_MEMBER_BYTES, regions_of
from cloc.data.shards.tar_headers import CompressedError, HeaderError, Read, walk_whole
from cloc.data.shards.tars import (
    OpenFile,
    SampleMember,
    ShardError,
    ShardInfo,
    is_hidden,
    open_tar,
    read_tar,
    split_name,
)

_REMEDY = "restore or rewrite the shard"
_FIX = "python -m cloc data check FOLDER --fix OUT"
_LOG = logging.getLogger(__name__)


class MendableError(ShardError):
    """A shard that cannot be read by offset, and of which ``data check --fix`` writes a copy that can."""


class Scan(NamedTuple):
    """What was found in one shard.

    Attributes:
        info: where its samples are.
        categories: of its regions.
        hidden: members that were skipped, since systems keep them beside the user's files; see ``tars.is_hidden``.
    """

    info: ShardInfo
    categories: set[str]
    hidden: int = 0


def tell_hidden(where: str, count: int) -> None:
    """Warn of members that were skipped, if there are any."""
    if count:
        _LOG.warning("%s: %s", where, hidden_told(count))


def hidden_told(count: int) -> str:
    """Say how many members were skipped, and which."""
    return f"{count:,} members skipped: names that start with a dot, or in __MACOSX/, as a Mac leaves them"


def index_shard(path: Path | str) -> ShardInfo:
    """Read a tar's headers and say where its samples are.

    Raises:
        ShardError: the tar is truncated or damaged, a name is absolute or climbs out, a key or member comes twice.
    """
    return scan_shard(Path(path))[0]


def scan_shard(path: Path | str, opened: OpenFile | None = None) -> Scan:
    """Index one shard.

    Args:
        path: of it.
        opened: its bytes, where it is a URL; closed in the end.

    Raises:
        MendableError: it is compressed, or the members of a sample do not lie side by side.
        ShardError: as ``index_shard``.
    """
    offsets: list[int] = []
    skipped: Counter[str] = Counter()
    keys: dict[str, set[str]] = {}
    categories: set[str] = set()
    regions, crowds, dropped, last, end = 0, 0, 0, None, 0
    file, read, size = read_tar(opened) if opened is not None else _open(Path(path))
    with file:
        for key, extension, member in _safe_members(path, read, size, skipped):
            if key != last:
                _refuse_return(path, key, extension, member.offset, keys)
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
    return Scan(info, categories, skipped["hidden"])


def _refuse_return(path: Path | str, key: str, extension: str, offset: int, keys: dict[str, set[str]]) -> None:
    """Refuse a sample that was left before: with the same file it comes twice, with another the tar is unsorted."""
    again = f"again at byte {offset}"
    _refuse(extension in keys.get(key, ()), path, f"key {key!r} comes twice, {again}", "rename one")
    if key in keys:
        what = f"the members of sample {key!r} do not lie side by side ({again})"
        raise MendableError(f"{path}: {what}; make the tar again with tar --sort=name, or join them: {_FIX}")


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


def _safe_members(path: Path | str, read: Read, size: int, skipped: Counter[str]) -> Iterator[SampleMember]:
    """Yield the files of samples; refuse unsafe names and damaged tars; count what is ``hidden``."""
    try:
        for member in walk_whole(read, size):
            pure = PurePosixPath(member.name)
            _refuse(pure.is_absolute() or ".." in pure.parts, path, f"member {member.name!r} escapes", _REMEDY)
            _refuse(member.sparse, path, f"member {member.name!r} is sparse", _REMEDY)
            key, extension = split_name(member)
            skipped["hidden"] += member.regular and is_hidden(member.name)
            if key:
                yield SampleMember(key, extension, member)
    except CompressedError as error:
        raise MendableError(f"{path}: {error}, or write plain copies: {_FIX}") from error
    except HeaderError as error:
        raise ShardError(f"{path}: not a whole tar: {error}; {_REMEDY}") from error


def _refuse(condition: bool, path: Path | str, what: str, remedy: str) -> None:
    if condition:
        raise ShardError(f"{path}: {what}; {remedy}")
