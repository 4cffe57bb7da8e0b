"""Reads one tar: where its samples are, and what each holds.

Stands below ``manifest`` at the start of ``data → models → losses → evaluation → engine``. Grouping follows webdataset:
a member's key is its path up to the first dot of the file name. Its own readers are not used here because they stream:
they give no offsets, and let damaged tails pass. Nothing here unpickles or runs what a tar holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from cloc.config.secrets import public
from cloc.data.json_values import shown
from cloc.data.regions import is_encodable
from cloc.data.sample import MAX_MEMBER_BYTES, regions_of
from cloc.data.shards.tar_headers import HeaderError, Member, Read, walk, walk_whole
from cloc.files import open_file

_Raw = TypeVar("_Raw", bytes, memoryview)
_MEMBER_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's rule: key, then all behind the first dot
_REMEDY = "restore or rewrite the shard"
_MAX_NAME = 255  # bytes of a file's name
_LATER = {"crowds", "dropped"}  # which manifests of older versions have not


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

    def part(self, start: int, stop: int) -> ShardInfo:
        """Describe some of its samples alone; the counts of regions and the hash stay those of the whole."""
        offsets = self.offsets[start : stop + 1]
        return replace(self, samples=len(offsets) - 1, offsets=offsets)

    def to_json(self) -> dict[str, Any]:
        """Return a manifest's object of it: the inverse of ``from_json``."""
        return asdict(self) | {"offsets": list(self.offsets)}

    @classmethod
    def from_json(cls, record: Any) -> ShardInfo:
        """Rebuild from a manifest's object.

        Raises:
            ValueError: a value is missing or of another kind, the name is not that of a file in the folder, or the
                offsets do not ascend within the file, one more than samples.
        """
        known = cls.__dataclass_fields__.keys()
        if not isinstance(record, dict) or not known - _LATER <= record.keys() <= known:
            raise ValueError(f"a shard is {shown(record)}; it has {', '.join(known)}")
        name, offsets = record["name"], record["offsets"]
        file = isinstance(name, str) and PurePosixPath(name).name == name and name.isprintable()
        if not file or len(name.encode()) > _MAX_NAME:
            raise ValueError(f"it names a shard outside of its folder, {shown(name)}")
        if not isinstance(offsets, list) or not isinstance(record["sha256"], str):
            raise ValueError(f"offsets of {name} are {shown(offsets)}, sha256 is {shown(record['sha256'])}")
        counts = [record[key] for key in known - {"name", "sha256", "offsets"} if key in record]
        if not all(type(count) is int and count >= 0 for count in (*counts, *offsets)):
            raise ValueError(f"a count or an offset of {name} is no whole number: {shown(counts)}, {shown(offsets)}")
        limits = itertools.pairwise((0, *offsets, record["bytes"]))
        if len(offsets) != record["samples"] + 1 or any(before > after for before, after in limits):
            raise ValueError(f"the offsets of {name} do not fit its samples or bytes")
        return cls(**record | {"offsets": tuple(offsets)})


class SampleMember(NamedTuple):
    """A file that belongs to a sample: the sample's key, what stands behind the first dot, and where it is."""

    key: str
    extension: str
    member: Member


def read_sample_members(raw: _Raw) -> tuple[str, dict[str, _Raw]]:
    """Split the tar bytes of one sample.

    Args:
        raw: a slice of a tar between two offsets of its ``ShardInfo``. The contents of a memoryview are no copies.

    Returns:
        The key, and the contents by extension in lower case.

    Raises:
        ShardReadError: the bytes are no tar members, a member is cut off or comes twice, or there are two samples.
    """
    key = ""
    members: dict[str, _Raw] = {}
    try:
        for member_key, extension, member in sample_members(
            lambda start, count: bytes(raw[start : start + count]), len(raw)
        ):
            if members and member_key != key or extension in members:
                seen = f"{extension!r} comes twice" if member_key == key else f"{member_key!r} follows"
                raise ShardReadError(f"sample {key!r}: {seen} within its bytes; rebuild the manifest")
            key = member_key
            members[extension] = raw[member.start : member.start + member.size]
    except HeaderError as error:
        raise ShardReadError(f"sample {key!r} of {len(raw):,} bytes: {error}; rebuild the manifest") from error
    return key, members


def sample_members(read: Read, size: int) -> Iterator[SampleMember]:
    """Yield the files of a tar that have a sample's name; arguments and errors as ``walk``."""
    for member in walk(read, size):
        key, extension = split_name(member)
        if key:
            yield SampleMember(key, extension, member)


def split_name(member: Member) -> tuple[str, str]:
    """Key and extension, in lower case, of a sample's file; empty for a member that is none."""
    name = _MEMBER_NAME.match(member.name) if member.regular else None
    return (name[1], name[2].lower()) if name else ("", "")


def open_tar(path: Path) -> tuple[BufferedReader, Read, int]:
    """Open a tar: the file, what reads of it, and its size.

    Raises:
        OSError: it is not there, may not be read, or is no regular file.
    """
    file = open_file(path)
    return file, lambda start, count: os.pread(file.fileno(), count, start), os.fstat(file.fileno()).st_size


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
    try:
        file, read, size = open_tar(path)
    except OSError as error:
        raise ShardError(
            f"{path}: cannot be opened ({error.strerror or error}); restore it, or move it away"
        ) from error
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
    info = ShardInfo(path.name, len(offsets), regions, size, digest, spans, crowds, dropped)
    return info, categories


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


def missed_by(shard: ShardInfo, read: Read, size: int) -> str:
    """What lies before a shard's first offset or behind its last one and belongs to a sample; empty for nothing."""
    first, last = shard.offsets[0], shard.offsets[-1]
    try:
        before = next(sample_members(read, first), None)
        behind = next(sample_members(lambda start, count: read(start + last, count), size - last), None)
    except HeaderError as error:
        return f"its first or last offset is wrong ({error})"
    missed = before or behind
    return f"it misses {missed.member.name!r:.120}" if missed else ""


def _safe_members(path: Path, read: Read, size: int) -> Iterator[SampleMember]:
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


def _refuse(condition: bool, path: Path, what: str, remedy: str) -> None:
    if condition:
        raise ShardError(f"{path}: {what}; {remedy}")
