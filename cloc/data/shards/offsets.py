"""Where each sample begins: the numbers of ``manifest.offsets``, mapped, held, or asked for shard by shard.

Stands between ``stores`` and ``shard_table`` at the start of ``data → models → losses → evaluation → engine``. The file
is a header of 32 bytes and then, for each shard in the manifest's order, ``samples + 1`` little-endian 64-bit numbers.
It is never parsed: a process maps it, and all processes of a host share its pages. Of a remote one only the shards that
are read are ever asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from cloc.config.secrets import public
from cloc.data.shards.stores import Access, attempt, filesystem, read_blocks, read_range, read_ranges, without_user
from cloc.data.shards.tars import ShardError, ShardReadError
from cloc.files import make_folder, open_file, open_plain, reopen

OFFSETS_NAME = "manifest.offsets"
MIRRORS = "offsets"
"""Folder of the mirrors of remote ones, within that of the cache."""
HEADER_BYTES = 32
NUMBER = np.dtype("<u8")
REMEDY = "restore it with its manifest, or delete both and rebuild them: python -m cloc data index FOLDER"
WHOLE_BYTES = 1 << 22
"""Remote files up to this size are fetched whole, by one request: half a million samples."""

_HEADER = struct.Struct("<8sIIQQ")  # magic, order of bytes, version, how many numbers follow, the manifest they are of
_MAGIC, _ORDER, _VERSION = b"cloc-off", 0x01020304, 1
_RECENT = 256  # shards whose numbers a process keeps of a remote file: 8 kB each at 1,000 samples


class Offsets(Protocol):
    """What holds the numbers of some shards."""

    where: str
    """Its file, for messages."""

    def read(self, first: int, count: int, crc: int, access: Access | None = None) -> np.ndarray:
        """The ``[count]`` numbers of one shard from number ``first`` on, whose CRC-32 should be ``crc``.

        Args:
            first: number of the first.
            count: how many. Fewer come where they are not there, or are others.
            crc: their checksum. Only what was fetched is compared with it here.
            access: how long a remote store is asked; as the set was opened by default.

        Raises:
            ShardReadError: they cannot be had.
        """


def digest_of(samples: np.ndarray, crcs: np.ndarray) -> int:
    """What a header says of the manifest that it belongs to: 64 bits of its counts and checksums ``[shards]``."""
    facts = samples.astype("<i8").tobytes() + crcs.astype("<u4").tobytes()
    return int.from_bytes(hashlib.sha256(facts).digest()[:8], "little")


def write_numbers(file: BinaryIO, count: int, digest: int, shards: Iterable[np.ndarray]) -> None:
    """Write a header and the numbers of all shards into an open file."""
    file.write(_HEADER.pack(_MAGIC, _ORDER, _VERSION, count, digest))
    for numbers in shards:
        file.write(numbers.astype(NUMBER).tobytes())


def check_header(header: bytes, where: str, count: int, digest: int) -> None:
    """Compare the first bytes of a file with what its manifest asks for.

    Raises:
        ShardError: it is another kind of file, of another byte order or version, or another manifest's.
    """
    if len(header) < HEADER_BYTES or not header.startswith(_MAGIC):
        raise ShardError(f"{where}: not a file of offsets; {REMEDY}")
    _, order, version, numbers, owner = _HEADER.unpack(header)
    if order != _ORDER:
        swapped = order == int.from_bytes(_ORDER.to_bytes(4, "big"), "little")
        seen = "big-endian numbers" if swapped else "numbers of an unknown byte order"
        raise ShardError(f"{where}: {seen}, this program reads little-endian ones; {REMEDY}")
    if version != _VERSION:
        raise ShardError(f"{where}: version {version} of offsets, this program reads {_VERSION}; {REMEDY}")
    if (numbers, owner) != (count, digest):
        seen = f"{numbers:,} numbers of another manifest" if numbers == count else f"{numbers:,} numbers"
        raise ShardError(f"{where}: {seen}, the manifest beside it asks for {count:,}; {REMEDY}")


def check_size(size: int | None, where: str, count: int) -> None:
    """Compare the size of a file with the number of numbers that should be in it.

    Raises:
        ShardError: it is another.
    """
    needed = HEADER_BYTES + NUMBER.itemsize * count
    if size is not None and size != needed:
        raise ShardError(f"{where}: {size:,} bytes, {count:,} offsets take {needed:,}; {REMEDY}")


class HeldOffsets:
    """Numbers in memory: of old manifests, of shards that were indexed here, of small remote files.

    Args:
        numbers: ``[count]`` of all shards.
        where: what they were read from.
    """

    def __init__(self, numbers: np.ndarray, where: str = "") -> None:
        self.numbers, self.where = numbers.astype(NUMBER, copy=False), where

    def read(self, first: int, count: int, crc: int, access: Access | None = None) -> np.ndarray:
        """See :class:`Offsets`."""
        return self.numbers[first : first + count]


class MappedOffsets:
    """Numbers in a local file, mapped into memory when they are first read. Goes into other processes by its path.

    Args:
        path: of the file.
        start: byte of its first number.
        count: of the numbers.
        digest: of the manifest that its header must name; None for a file without such a header.
    """

    def __init__(self, path: Path, start: int, count: int, digest: int | None = None) -> None:
        self.path, self.start, self.count, self.digest, self.where = path, start, count, digest, str(path)
        self._numbers: np.ndarray | None = None

    @classmethod
    def opened(cls, path: Path, count: int, digest: int) -> MappedOffsets:
        """The file beside a manifest, its header and size compared with what the manifest asks for.

        Raises:
            ShardError: it is not there, or not what it should be.
        """
        made = cls(path, HEADER_BYTES, count, digest)
        try:
            with open_file(path) as file:
                made._check(file)
        except OSError as error:
            what = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            raise ShardError(f"{path}: {what}, and the manifest beside it needs it; {REMEDY}") from error
        return made

    def read(self, first: int, count: int, crc: int, access: Access | None = None) -> np.ndarray:
        """See :class:`Offsets`."""
        if self._numbers is None:
            self._numbers = self._map()
        return self._numbers[first : first + count]

    def _check(self, file: BufferedReader) -> None:
        if self.digest is not None:
            check_header(file.read(HEADER_BYTES), self.where, self.count, self.digest)
        check_size(os.fstat(file.fileno()).st_size - self.start + HEADER_BYTES, self.where, self.count)

    def _map(self) -> np.ndarray:
        try:
            with open_file(self.path) as file:
                self._check(file)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ShardError as error:  # it was right when the set was opened
            raise ShardReadError(str(error)) from error
        except OSError as error:
            reason = error.strerror or error
            raise ShardReadError(f"{self.path}: cannot be read ({reason}); {REMEDY}") from error
        return np.frombuffer(mapped, NUMBER, self.count, self.start)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_numbers": None}


class RemoteOffsets:
    """Numbers in a remote file, asked for shard by shard and kept in a local mirror that has holes.

    The mirror belongs to all processes of a host and needs no lock: what is in it counts when its CRC-32 is right, and
    whoever misses a shard fetches it and writes the same bytes.

    Args:
        url: of the file.
        digest: of its manifest.
        folder: of the mirrors.
        access: how stores are reached.
    """

    def __init__(self, url: str, digest: int, folder: Path, access: Access) -> None:
        self.url, self.digest, self.where, self.access = url, digest, public(url), access
        name = hashlib.sha256(f"{without_user(url)}\n{digest}".encode()).hexdigest()[:32]
        self.folder, self.mirror = folder, f"{name}.offsets"
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()

    @classmethod
    def opened(cls, url: str, count: int, digest: int, folder: Path, access: Access) -> RemoteOffsets | HeldOffsets:
        """The file beside a remote manifest; a small one, or one of a server without ranges, is fetched whole.

        Raises:
            ShardError: it is not there, or not what it should be.
        """
        size, where = HEADER_BYTES + NUMBER.itemsize * count, public(url)
        if size > WHOLE_BYTES:
            with contextlib.suppress(ShardReadError):  # no ranges, or no answer: then whole
                check_header(read_range(url, 0, HEADER_BYTES, access.at_start), where, count, digest)
                return cls(url, digest, folder, access)
        data = _whole(url, size, access)
        check_header(data[:HEADER_BYTES], where, count, digest)
        check_size(len(data), where, count)
        return HeldOffsets(np.frombuffer(data, NUMBER, count, HEADER_BYTES), where)

    def read(self, first: int, count: int, crc: int, access: Access | None = None) -> np.ndarray:
        """See :class:`Offsets`."""
        recent = self._recent.get(first)
        if recent is not None:
            return recent
        data = self._mirrored(first, count, crc)
        for _ in range(2):  # a transfer may flip a bit
            if data is None:
                data = self._keep(first, read_range(self.url, *_span(first, count), access or self.access), crc)
        return np.empty(0, NUMBER) if data is None else self._remember(first, data)

    def bring(self, wanted: Sequence[tuple[int, int, int]]) -> None:
        """Ask for the numbers (first, count, CRC-32) of several shards at once; what fails is asked for when read."""
        missing = [one for one in wanted if one[0] not in self._recent and self._mirrored(*one) is None]
        spans = [(self.url, *_span(first, count)) for first, count, _ in missing]
        found = read_ranges(spans, self.access) if spans else []
        for (first, _, crc), data in zip(missing, found, strict=True):
            if isinstance(data, bytes) and self._keep(first, data, crc) is not None:
                self._remember(first, data)

    def _remember(self, first: int, data: bytes) -> np.ndarray:
        self._recent[first] = found = np.frombuffer(data, NUMBER)
        if len(self._recent) > _RECENT:  # the first that came leaves: a thread that fetches ahead may be here too
            self._recent.popitem(last=False)
        return found

    def _mirrored(self, first: int, count: int, crc: int) -> bytes | None:
        start, stop = _span(first, count)
        with contextlib.suppress(OSError):  # of another user, on a disk that fails: the store has them
            file = open_plain(self.folder / self.mirror)
            if file is not None:
                with file:
                    data = os.pread(file.fileno(), stop - start, start)
                return data if len(data) == stop - start and zlib.crc32(data) == crc else None
        return None

    def _keep(self, first: int, data: bytes, crc: int) -> bytes | None:
        """Write what has come into the mirror and return it; None where it is not what was asked for."""
        if zlib.crc32(data) != crc:
            return None
        with contextlib.suppress(OSError):  # a full disk: then it is asked for again
            make_folder(self.folder)
            with reopen(self.folder / self.mirror) as file:
                file.seek(_span(first, 0)[0])
                file.write(data)
        return data

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_recent": OrderedDict()}


def _span(first: int, count: int) -> tuple[int, int]:
    """Bytes of some numbers in a file."""
    start = HEADER_BYTES + NUMBER.itemsize * first
    return start, start + NUMBER.itemsize * count


def _whole(url: str, size: int, access: Access) -> bytes:
    system, path = filesystem(url, access)
    try:
        return attempt(
            url, "cannot be read", lambda: b"".join(read_blocks(system, path, size, access)), access.at_start
        )
    except FileNotFoundError as error:
        raise ShardError(f"{url}: is not there, and the manifest beside it needs it; {REMEDY}") from error
