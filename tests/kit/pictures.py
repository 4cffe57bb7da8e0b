"""Encoded pictures of every kind, and such as lie of their size or are far larger than their file."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def drawn(mode: str = "RGB", size: tuple[int, int] = (30, 20), seed: int = 0) -> Image.Image:
    """Blocks of few colors, so that no palette and no lossless format changes them."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8) // 64 * 64
    if mode == "I;16":
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(noise).convert(mode)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def gray_ramp_gif() -> bytes:
    """Animated, its palette a gray ramp."""
    frames = [drawn("L", seed=number) for number in range(3)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def clear_gif() -> bytes:
    picture = drawn("P")
    return encoded(picture, "GIF", transparency=picture.getpixel((5, 5)))


def animated(kind: str) -> bytes:
    return encoded(drawn(), kind, save_all=True, append_images=[drawn(seed=1)], lossless=True)


def tiff(mode: str, order: str = "II") -> bytes:
    """A raw TIFF of 16 bits in either order of bytes."""
    pixels = np.asarray(drawn(mode)).astype(">u2" if order == "MM" else "<u2")
    sign = ">" if order == "MM" else "<"
    height, width = pixels.shape
    tags = ((256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 122), (277, 1), (278, height))
    entries = b"".join(struct.pack(sign + "HHII", tag, 4, 1, value) for tag, value in (*tags, (279, pixels.nbytes)))
    head = order.encode() + struct.pack(sign + "HIH", 42, 8, len(tags) + 1) + entries + struct.pack(sign + "I", 0)
    return head + pixels.tobytes()


KINDS: dict[str, Any] = {
    "animated gray GIF": gray_ramp_gif,
    "GIF": lambda: encoded(drawn("P"), "GIF"),
    "GIF with a transparent color": clear_gif,
    "animated WebP": lambda: animated("WEBP"),
    "animated PNG": lambda: animated("PNG"),
    "BMP": lambda: encoded(drawn(), "BMP"),
    "BMP of one bit": lambda: encoded(drawn("1"), "BMP"),
    "TIFF": lambda: encoded(drawn(), "TIFF"),
    "TIFF by LZW": lambda: encoded(drawn("CMYK"), "TIFF", compression="tiff_lzw"),
    "TIFF of 16 bits": lambda: tiff("I;16"),
    "TIFF of 16 bits, high byte first": lambda: tiff("I;16", "MM"),
    "TIFF of floats": lambda: encoded(drawn("F"), "TIFF"),
    "AVIF": lambda: encoded(drawn(), "AVIF"),
    "JPEG 2000": lambda: encoded(drawn(), "JPEG2000"),
    "JPEG 2000 codestream": lambda: encoded(drawn(), "JPEG2000", no_jp2=True),
    "PNG with a palette": lambda: encoded(drawn("P"), "PNG"),
    "PNG with gray and alpha": lambda: encoded(drawn("LA"), "PNG"),
    "PNG of one bit": lambda: encoded(drawn("1"), "PNG"),
    "PNG of 16 bits": lambda: encoded(drawn("I;16"), "PNG"),
    "lossless WebP with alpha": lambda: encoded(drawn("RGBA"), "WEBP", lossless=True),
    "lossy WebP": lambda: encoded(drawn(), "WEBP"),
    "JPEG": lambda: encoded(drawn(), "JPEG"),
    "CMYK JPEG": lambda: encoded(drawn("CMYK"), "JPEG"),
}
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\r\n%%BoundingBox: 0 0 32 32\r\n%%EndComments\r\nshowpage\r\n%%EOF\r\n"


# --- JPEGs of two sizes ---


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def frame(width: int, height: int, marker: int = 0xC0) -> bytes:
    return segment(marker, struct.pack(">BHHB", 8, height, width, 3) + b"\x01\x11\x00\x02\x11\x01\x03\x11\x01")


def jpeg_with_size(side: int) -> tuple[bytes, int]:
    """A JPEG whose frame header says ``side``, and where this header is."""
    data = bytearray(encoded(Image.new("RGB", (64, 64)), "JPEG", subsampling=0))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", side, side)
    return bytes(data), place


def behind_fill_bytes(decoy: bytes, large: bytes, place: int) -> bytes:
    """FF FF E1: who takes the second FF for a marker jumps into the segment, to the decoy."""
    body = bytearray(0xFFFD)
    start = 2 + 0xE1FF - 5
    body[start : start + len(decoy)] = decoy
    return b"\xff\xd8\xff" + segment(0xE1, bytes(body)) + large[2:]


DECOYS: dict[str, Any] = {
    "fill bytes": behind_fill_bytes,
    "restart marker": lambda decoy, large, place: b"\xff\xd8\xff\xd0" + segment(0xE5, b"..." + decoy) + large[2:],
    "marker without length": lambda decoy, large, place: b"\xff\xd8\xff\x01" + decoy + large[2:],
    "frame within a segment": lambda decoy, large, place: b"\xff\xd8" + segment(0xE2, decoy * 3) + large[2:],
    "two frames": lambda decoy, large, place: large[:place] + decoy + large[place:],
    "two frames, the large one first": lambda decoy, large, place: large[: place + 19] + decoy + large[place + 19 :],
    "hierarchical frame": lambda decoy, large, place: large[:place] + frame(64, 64, 0xDE) + large[place:],
    "segment of length 0": lambda decoy, large, place: b"\xff\xd8\xff\xe3\0\0" + decoy + large[2:],
    "junk between segments": lambda decoy, large, place: b"\xff\xd8" + b"\xff\xe3\0\x03." + b"junk" + large[2:],
    "size that comes later": lambda decoy, large, place: large[:place] + frame(64, 0) + large[place + 19 :],
    "nothing hidden": lambda decoy, large, place: large,
}


# --- small files of large pictures ---


def grown(data: bytes, place: int, form: str, *sides: int) -> bytes:
    return data[:place] + struct.pack(form, *sides) + data[place + struct.calcsize(form) :]


def grown_gif(side: int) -> bytes:
    data = encoded(drawn("P"), "GIF")
    return grown(data, data.rindex(b",\0\0\0\0") + 5, "<HH", side, side)


def grown_webp() -> bytes:
    data = animated("WEBP")
    place = data.index(b"VP8X") + 12
    return data[:place] + (9_999).to_bytes(3, "little") * 2 + data[place + 6 :]


def grown_jp2(side: int, **options: Any) -> bytes:
    data = encoded(drawn(size=(64, 64)), "JPEG2000", **options)
    for place in (data.index(b"ihdr") + 4, data.index(b"\xff\x4f\xff\x51") + 8, data.index(b"\xff\x4f\xff\x51") + 24):
        data = grown(data, place, ">II", side, side)
    return data


def tiny_precincts() -> bytes:
    data = grown_jp2(1_000, codeblock_size=(4, 4), num_resolutions=1, precinct_size=(256, 256))
    place = data.index(b"\xff\x52")
    last = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big") - 1
    return data[:last] + b"\0" + data[last + 1 :]


def tiled_tiff() -> bytes:
    """One pixel in a tile of 40,000 by 40,000, by LZW."""
    tags = ((256, 1), (257, 1), (258, 8), (259, 5), (262, 1), (277, 1), (322, 40_000), (323, 40_000))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in (*tags, (324, 134), (325, 100)))
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 2) + entries + bytes(4) + bytes(100)


def many_scans() -> bytes:
    """A progressive JPEG of 49 megapixels whose last scan comes again and again."""
    data = bytearray(encoded(Image.new("RGB", (64, 64)), "JPEG", progressive=True))
    place = data.index(b"\xff\xc2")
    data[place + 5 : place + 9] = struct.pack(">HH", 7_000, 7_000)
    last = data.rindex(b"\xff\xda")
    return bytes(data[:last] + data[last:-2] * 500 + data[-2:])


def inflated_png(kind: bytes, head: bytes) -> bytes:
    """A PNG with a chunk of compressed text that is large when it is inflated."""
    data = encoded(drawn(), "PNG")
    body = head + zlib.compress(bytes(100_000_000))
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk + data[33:]


BOMBS: dict[str, Any] = {
    "GIF of a large screen": lambda: grown(encoded(drawn("P"), "GIF"), 6, "<HH", 9_000, 9_000),
    "GIF of a large frame": lambda: grown_gif(9_000),
    "GIF of a giant frame": lambda: grown_gif(60_000),
    "WebP of a large canvas": grown_webp,
    "BMP": lambda: grown(encoded(drawn(), "BMP"), 18, "<ii", 9_000, -9_000),
    "JPEG 2000": lambda: grown_jp2(9_000),
    "JPEG 2000 of small code blocks": lambda: grown_jp2(7_900, codeblock_size=(4, 4), num_resolutions=1),
    "JPEG 2000 of precincts of a pixel": tiny_precincts,
    "TIFF of a large tile": tiled_tiff,
    "JPEG of a thousand scans": many_scans,
    "PNG of giant text": lambda: inflated_png(b"zTXt", b"k\0\0"),
}
