"""Reads one tar by the places of its samples, and says what is known of it: ``ShardInfo``.

Stands below ``manifest`` at the start of ``data → models → losses → evaluation → engine``. Grouping follows webdataset:
a member's key is its path up to the first dot of the file name. Its own readers are not used here because they stream:
they give no offsets, and let damaged tails pass. Nothing here unpickles or runs what a tar holds.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cloc.config.secrets import public
from cloc.data.json_values import shown
from cloc.data.shards.tar_headers import HeaderError, Member, Read, walk
from cloc.files import open_file

_Raw = TypeVar("_Raw", bytes, memoryview)
OpenFile = BufferedReader | FileIO
"""A file that is read."""
_MEMBER_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # webdataset's rule: key, then all behind the first dot
_SHA256 = re.compile(r"(?:[0-9a-f]{64})?")  # empty where it is not known
MAX_NAME = 255
"""Bytes of a file's name."""
MAX_COUNT = 2**62
"""Of bytes and samples, each and in all: what is counted fits into 64 bits."""
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
    offsets: Sequence[int]
    crowds: int = 0
    dropped: int = 0

    def part(self, start: int, stop: int) -> ShardInfo:
        """Describe some of its samples alone; the counts of regions and the hash stay those of the whole."""
        offsets = tuple(self.offsets[start : stop + 1])
        return replace(self, samples=len(offsets) - 1, offsets=offsets)

    def to_json(self) -> dict[str, Any]:
        """Return what describes it in a file of its own, offsets included: the inverse of ``from_json``."""
        return {key: getattr(self, key) for key in self.__dataclass_fields__} | {"offsets": list(self.offsets)}

    @classmethod
    def from_json(cls, record: Any) -> ShardInfo:
        """Rebuild from the object of a manifest of version 1.

        Raises:
            ValueError: a value is missing or of another kind, the name is not that of a file in the folder, or the
                offsets do not ascend within the file, one more than samples.
        """
        known = cls.__dataclass_fields__.keys()
        if not isinstance(record, dict) or not known - _LATER <= record.keys() <= known:
            raise ValueError(f"a shard is {shown(record)}; it has {', '.join(known)}")
        name, offsets = record["name"], record["offsets"]
        check_name(name)
        check_hash(name, record["sha256"])
        if not isinstance(offsets, list):
            raise ValueError(f"offsets of {name} are {shown(offsets)}")
        counts = [record[key] for key in known - {"name", "sha256", "offsets"} if key in record]
        if not all(type(count) is int and 0 <= count < MAX_COUNT for count in (*counts, *offsets)):
            raise ValueError(f"a count or an offset of {name} is no whole number: {shown(counts)}, {shown(offsets)}")
        limits = itertools.pairwise((0, *offsets, record["bytes"]))
        if len(offsets) != record["samples"] + 1 or any(before > after for before, after in limits):
            raise ValueError(f"the offsets of {name} do not fit its samples or bytes")
        return cls(**record | {"offsets": tuple(offsets)})


def check_name(name: Any) -> None:
    """Refuse what is not the name of a file in the folder of a manifest.

    Raises:
        ValueError: says what it is.
    """
    plain = isinstance(name, str) and name.isprintable() and "/" not in name and name not in ("", ".", "..")
    if not plain or len(name.encode()) > MAX_NAME:
        raise ValueError(f"it names a shard outside of its folder, {shown(name)}")


def check_hash(name: str, sha256: Any) -> None:
    """Refuse what is no SHA-256 in hex digits.

    Raises:
        ValueError: says whose.
    """
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ValueError(f"sha256 of {name} is {shown(sha256)}, not 64 hex digits")


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
    name = _MEMBER_NAME.match(member.name) if member.regular and not is_hidden(member.name) else None
    return (name[1], name[2].lower()) if name else ("", "")


def is_hidden(name: str) -> bool:
    """Whether a member is a file that systems keep beside the user's (``._NAME`` and ``__MACOSX/`` of a Mac)."""
    *folders, base = name.rstrip("/").split("/")
    return base.startswith(".") and base not in (".", "..") or "__MACOSX" in folders


def open_tar(path: Path) -> tuple[OpenFile, Read, int]:
    """Open a tar: the file, what reads of it, and its size.

    Raises:
        OSError: it is not there, may not be read, or is no regular file.
    """
    return read_tar(open_file(path))


def read_tar(file: OpenFile) -> tuple[OpenFile, Read, int]:
    """As :func:`open_tar`, of one that is open."""
    return file, lambda start, count: os.pread(file.fileno(), count, start), os.fstat(file.fileno()).st_size


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
