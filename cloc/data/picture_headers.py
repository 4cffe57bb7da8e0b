"""Reads format and size from an encoded picture's header, before a decoder takes memory for it.

Stands below ``decode``. A decoder believes the header that it finds itself, and a hostile file shows another one to
whoever looks carelessly. So a header is read here only where it can be read in one way; the rest is Pillow's, which
takes the size from where its decoders take it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from cloc.contracts import BadSample
from cloc.data.sample import MAX_PIXELS

_SOS, _EXIF, _PROGRESSIVE = 0xDA, 0xE1, 0xC2
_FRAMES = (0xC0, 0xC1, _PROGRESSIVE)
_SEGMENTS = frozenset((*range(0xE0, 0xF0), 0xFE, 0xDB, 0xC4, 0xDD))  # APPn, COM, DQT, DHT, DRI: have a length, no more
_MAX_SCANNED = 32 * MAX_PIXELS  # a decoder visits every pixel in each scan of a JPEG; the usual script has ten scans
_TILE_PIXELS = 2**22  # of a TIFF's or JPEG 2000's tile in a smaller picture

_SOC, _SIZ, _COD, _COC, _SOT, _SOD = b"\xff\x4f", b"\xff\x51", b"\xff\x52", b"\xff\x53", b"\xff\x90", b"\xff\x93"
_MIN_BLOCK, _MIN_PRECINCT = 8, 10  # log2 of their areas in pixels: OpenJPEG takes about 1 KB for each
_MAX_TILES = 4096


def plain_jpeg(data: bytes | memoryview) -> tuple[int, int, bool] | None:
    """Width, height, and whether it may hold an orientation, of an 8-bit JPEG in gray or three colors.

    None where anything stands before the first scan that decoders skip by rules of their own: fill bytes, markers
    without a length, a second frame. libjpeg then reads the frame that is read here.

    Raises:
        BadSample: ``decompression_bomb``: more scans than a picture of that size can need.
    """
    frame: tuple[int, int, int, bool] | None = None
    position, exif = 2, False
    if data[:3] != b"\xff\xd8\xff":
        return None
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == _SOS:
            break
        if marker in _FRAMES and frame is None:
            frame = _frame(data, position, length)
        elif marker not in _SEGMENTS or length < 2:
            return None
        exif |= marker == _EXIF
        position += 2 + length
    else:
        return None
    if frame is None:
        return None
    width, height, components, progressive = frame
    if progressive or data[position + 4] != components:
        refuse_many_scans(data, width * height)
    return width, height, exif


def _frame(data: bytes | memoryview, position: int, length: int) -> tuple[int, int, int, bool] | None:
    """Width, height, number of components and "progressive" of a frame header; None for what is left to Pillow."""
    precision, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
    if precision != 8 or components not in (1, 3) or not width * height or length != 8 + 3 * components:
        return None
    return width, height, components, data[position + 1] == _PROGRESSIVE


def refuse_many_scans(data: bytes | memoryview, pixels: int) -> None:
    """Refuse a JPEG of so many scans that decoding would take minutes.

    Raises:
        BadSample: ``decompression_bomb``.
    """
    scans = bytes(data).count(b"\xff\xda")  # within a scan no FF stands before anything but 00 or a restart
    if scans * pixels > _MAX_SCANNED:
        raise BadSample("decompression_bomb", f"a JPEG of {scans:,} scans over {pixels:,} pixels")


def plain_webp(data: bytes | memoryview) -> tuple[int, int] | None:
    """Width and height of a WebP that is one lossy frame and nothing else: no alpha, no EXIF, no animation."""
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8 " or data[23:26] != b"\x9d\x01\x2a":
        return None
    (whole,), (frame,) = struct.unpack_from("<I", data, 4), struct.unpack_from("<I", data, 16)
    if not whole + 8 == len(data) == 20 + frame + frame % 2:
        return None
    width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return width, height


def refuse_large_tile(tile: tuple[int, int], picture: tuple[int, int]) -> None:
    """Refuse tiles that are far larger than the picture: a decoder takes memory for a whole one.

    Raises:
        BadSample: ``decompression_bomb``.
    """
    (width, height), (across, down) = picture, tile
    if across * down > max(width * height, _TILE_PIXELS):
        raise BadSample("decompression_bomb", f"tiles of {across}×{down} pixels in a picture of {width}×{height}")


def refuse_costly_jpeg2000(data: bytes) -> None:
    """Refuse a JPEG 2000 of tiny code blocks, precincts or tiles: of a megapixel of them OpenJPEG makes gigabytes.

    Raises:
        BadSample: ``decompression_bomb``; ``corrupt_image`` where the structure cannot be followed.
    """
    try:
        for marker, segment, in_tile in _codestream(data):
            if marker == _SIZ:
                x, y, _, _, across, down, left, top = struct.unpack_from(">8I", segment, 4)
                refused = -(-(x - left) // across) * -(-(y - top) // down) > _MAX_TILES
            else:
                refused = in_tile or marker == _COC or _tiny_blocks(segment)
            if refused:
                raise BadSample("decompression_bomb", "a JPEG 2000 of tiny tiles or blocks, or of blocks that vary")
    except (struct.error, IndexError, ZeroDivisionError) as error:
        raise BadSample("corrupt_image", f"a JPEG 2000 that is cut off or has no order ({error})") from error


def _tiny_blocks(segment: bytes) -> bool:
    """Whether a COD segment, given from its length on, asks for tiny code blocks or precincts."""
    precincts = segment[12:] if segment[2] & 1 else b""
    small = [size for size in precincts if (size & 15) + (size >> 4) < _MIN_PRECINCT]
    return segment[8] + segment[9] + 4 < _MIN_BLOCK or bool(small)


def _codestream(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield the SIZ, COD and COC markers of a JPEG 2000: marker, segment from its length on, "in a tile's header"."""
    position, part = _codestream_start(data), -1  # where the next part of a tile starts, once there is one
    while position < len(data):
        marker, length = data[position : position + 2], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == _SOT:
            (size,) = struct.unpack_from(">I", data, position + 6)
            part = position + size if size else len(data)
        if marker == _SOD:
            if part <= position:
                raise IndexError("a tile of no length")
            position = part
            continue
        if marker in (_SIZ, _COD, _COC):
            yield marker, data[position + 2 : position + 2 + length], part >= 0
        if marker[0] != 0xFF or len(marker) < 2:
            raise IndexError("no marker where one should be")
        position += 2 if marker in (_SOC, b"\xff\xd9") else 2 + max(length, 2)


def _codestream_start(data: bytes) -> int:
    """Where the codestream starts: at once, or in the box ``jp2c``."""
    position = 0
    while not data.startswith(_SOC + _SIZ, position):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind != b"jp2c" and length < 8:
            raise IndexError("a box of no length")
        position += 8 if kind == b"jp2c" else length
    return position
