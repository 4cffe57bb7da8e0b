"""Lists the members of a tar, header by header.

Stands below ``tars``. Reads what ``tarfile`` reads, member for member and byte for byte, where a tar is in order, and
refuses the rest. ``tarfile`` itself is not used to walk: some versions go round for ever at a negative size, it follows
chains of headers by recursion, and takes damage, or the end of the first of two joined tars, for the end.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cloc.data.shards.compressed import kind_of, told

BLOCK = tarfile.BLOCKSIZE

_CHUNK = 2**20  # bytes of zeros that are skipped at a time
_MAX_CHAIN = 8  # headers of one member; a long name, a long link name and its own are three
_MAX_EXTENSION = 2**20  # bytes of a header that extends another
_GLOBAL, _LONG_NAME, _PAX = tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSIONS = (*_PAX, _GLOBAL, _LONG_NAME, tarfile.GNUTYPE_LONGLINK)

Read = Callable[[int, int], bytes]
"""(start, count) → so many bytes from there; fewer at the end."""


class HeaderError(ValueError):
    """Bytes that are no tar, or not a whole one; says where and why. ``member`` is the one that is cut off, if any."""

    def __init__(self, text: str, member: Member | None = None) -> None:
        super().__init__(text)
        self.member = member


class CompressedError(HeaderError):
    """The bytes are those of a compressed file."""


class Member(NamedTuple):
    """One member of a tar.

    Attributes:
        name: as it is stored; not yet looked at.
        offset: where the first of its headers starts, in bytes.
        start: where its content starts.
        size: of its content.
        regular: it is a file; folders, links and devices are none, nor is what is sparse.
        sparse: it says that it is larger than its content; it may claim a terabyte.
    """

    name: str
    offset: int
    start: int
    size: int
    regular: bool
    sparse: bool = False

    @property
    def end(self) -> int:
        """Where the next header may start."""
        return self.start + _round_up(self.size)


class _Header(NamedTuple):
    """One block. ``size`` is that of the content that follows, which links and folders have not, whatever they say."""

    kind: bytes
    name: str
    size: int
    regular: bool
    has_content: bool


def walk(read: Read, size: int) -> Iterator[Member]:
    """Yield all members, also those behind zero blocks: tars may be joined.

    Args:
        read: of the tar, or of a part of it that starts at a header.
        size: bytes that there are.

    Raises:
        HeaderError: a header is damaged or of a kind that is not read, or a member is cut off. What was yielded before
            is whole.
    """
    position = 0
    while position < size:
        block = read(position, BLOCK)
        if not block.strip(b"\0"):
            position = _skip_zeros(read, position, size)
            continue
        member, position = _read_member(read, position, size)
        if member is not None:
            yield member


def walk_whole(read: Read, size: int) -> Iterator[Member]:
    """Yield all members of a tar; arguments and errors as ``walk``.

    Raises:
        HeaderError: also where no zeros follow the last member: without them nobody knows how many are missing.
    """
    end = 0
    for member in walk(read, size):
        end = member.end
        yield member
    if size - end < BLOCK:
        raise HeaderError(
            f"truncated: no zeros follow byte {end:,}, the end of its last member" if size else "it is empty"
        )


def _read_member(read: Read, position: int, size: int) -> tuple[Member | None, int]:
    """The member whose first header is at ``position``, None for a global header; and where the next one may start."""
    first = position
    fields: dict[str, str] = {}
    for _ in range(_MAX_CHAIN):
        header = _read_header(read(position, BLOCK), position)
        start = position + BLOCK
        if header.kind not in _EXTENSIONS:
            length = int(fields.get("size", header.size)) if header.has_content else 0
            sparse = any(key.startswith("GNU.sparse.") for key in fields)
            regular = header.regular and not sparse
            member = Member(fields.get("path", header.name), first, start, length, regular, sparse)
            return member, _within(member.end, size, member)
        if header.size > _MAX_EXTENSION:
            raise HeaderError(f"byte {position}: a header of {header.size:,} bytes, the limit is {_MAX_EXTENSION:,}")
        position = _within(start + _round_up(header.size), size)
        # Up to the first zero, as tarfile reads it, even where the size says less.
        fields = _extension(header.kind, read(start, position - start), start) | fields  # the outermost one counts
        if header.kind == _GLOBAL and start == first + BLOCK:
            return None, position
    raise HeaderError(f"byte {first}: more than {_MAX_CHAIN} headers for one member")


def _within(end: int, size: int, member: Member | None = None) -> int:
    if end > size:
        raise HeaderError(f"truncated: {end:,} bytes are needed, {size:,} are there", member)
    return end


def _read_header(block: bytes, position: int) -> _Header:
    """Read one block of 512 bytes.

    The plain case by hand, since tarfile is slow: regular, all ASCII, no prefix, octal numbers.
    """
    name, size, checksum = block[:100].rstrip(b"\0"), block[124:136].rstrip(b" \0"), block[148:156].rstrip(b" \0")
    plain = block[156:157] == b"0" and not block[345:346].strip(b"\0") and block.isascii() and b"\0" not in name
    if plain and _is_octal(size) and _is_octal(checksum) and len(block) == BLOCK:
        # The sum of all bytes, the checksum's own as spaces. Adler's low half is this sum + 1, modulo a prime that 512
        # bytes of ASCII do not reach.
        counted = zlib.adler32(b"".join((block[:148], b" " * 8, block[156:]))) & 0xFFFF
        if counted == int(checksum, 8) + 1:
            return _Header(b"0", name.decode("ascii"), int(size, 8), True, True)
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if position == 0 and (kind := kind_of(block)):
            raise CompressedError(told(kind)) from error
        raise HeaderError(f"damaged at byte {position}: no tar header ({error})") from error
    if header.size < 0 or header.issparse() or header.type == tarfile.GNUTYPE_SPARSE:
        seen = f"a size of {header.size}" if header.size < 0 else "a sparse member"
        raise HeaderError(f"byte {position}: {seen}, which is not read")
    has_content = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES or header.type in _EXTENSIONS
    return _Header(header.type, header.name, header.size if has_content else 0, header.isreg(), has_content)


def _is_octal(digits: bytes) -> bool:
    return digits.isdigit() and not digits.strip(b"01234567")


def _extension(kind: bytes, content: bytes, position: int) -> dict[str, str]:
    """What an extending header says of the member behind it: its ``path``, its ``size``, that it is sparse."""
    if kind == _LONG_NAME:
        return {"path": content.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    fields = _records(content, position) if kind in (*_PAX, _GLOBAL) else {}
    kept = {key: value for key, value in fields.items() if key in ("path", "size") or key.startswith("GNU.sparse.")}
    if kind == _GLOBAL and kept:
        raise HeaderError(f"byte {position}: a header that names all members behind it, which is not read")
    if not kept.get("size", "0").isdecimal() or len(kept.get("size", "")) > 20:
        raise HeaderError(f"byte {position}: a size of {kept['size']!r:.40}")
    return kept | ({"path": kept["path"].rstrip("/")} if "path" in kept else {})


def _records(content: bytes, position: int) -> dict[str, str]:
    """Read the records of a pax header: a length, a space, ``KEY=VALUE``, a line break; the length is that of all."""
    fields: dict[str, str] = {}
    start = 0
    while start < len(content) and content[start]:
        digits, _, _ = content[start : start + 12].partition(b" ")
        end = start + int(digits) if digits.isdigit() else 0
        key, equals, value = content[start + len(digits) + 1 : end].partition(b"=")
        if not start < end <= len(content) or not equals or not value.endswith(b"\n"):
            raise HeaderError(f"byte {position + start}: no pax record; the header is damaged")
        fields[key.decode("utf-8", "surrogateescape")] = value[:-1].decode("utf-8", "surrogateescape")
        start = end
    return fields


def _skip_zeros(read: Read, position: int, size: int) -> int:
    """Where the next block that is not all zeros starts, or ``size``."""
    while position < size:
        chunk = read(position, _CHUNK)
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if not chunk or zeros < len(chunk):
            return position + zeros // BLOCK * BLOCK if chunk else size
        position += len(chunk)
    return size


def _round_up(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
