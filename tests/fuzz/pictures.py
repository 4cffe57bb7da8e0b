"""Encoded pictures; the reference is Pillow: the first frame, upright, transparent pixels white."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cloc.contracts import BadSample
from cloc.data.decode import decode_rgb

from . import mutate
from .kinds import Case, Kind, Unreadable

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "RGBA", "LA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "L", "P", "1"),
    "TIFF": ("RGB", "L", "RGBA", "CMYK", "1"),
    "AVIF": ("RGB", "RGBA"),
    "JPEG2000": ("RGB", "L"),
}
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\r\n%%BoundingBox: 0 0 32 32\r\n%%EndComments\r\nshowpage\r\n%%EOF\r\n"
MOST_PIXELS = 64_000_000
JPEG_TOLERANCE = 3.0  # mean difference in levels: two builds of one decoder round chroma differently


def prepare(folder: Path) -> None:
    """Nothing: pictures are drawn as they are needed."""


def make(rng: random.Random, folder: Path, prepared: None) -> Case:
    """One file: whole, damaged, of a format that is not taken, or one that says two things of its size."""
    oddity = rng.random()
    if oddity < 0.05:
        what, data = "PostScript", POSTSCRIPT
    elif oddity < 0.10:
        what, data = _two_sizes(rng)
    elif oddity < 0.25:
        what, data = _png_with_fitting_checksums(rng)
    else:
        what, data = _picture(rng)
        if rng.random() < 0.75:
            name, data = mutate.damage(data, rng)
            what = f"{name} {what}"
    return Case(what, lambda: decode_rgb(data).numpy(), lambda: _reference(data), (BadSample,), data, same=_same)


def _picture(rng: random.Random, kind: str | None = None) -> tuple[str, bytes]:
    kind = kind or rng.choice((*FORMATS, "JPEG", "PNG"))
    mode, size = rng.choice(MODES[kind]), (rng.randrange(1, 60), rng.randrange(1, 60))
    drawn = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    picture = Image.fromarray(drawn // 64 * 64)
    picture = Image.fromarray(drawn[..., 0].astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    options: dict[str, Any] = {}
    if kind in ("GIF", "WEBP", "PNG") and rng.random() < 0.3:
        options = {"save_all": True, "append_images": [picture.transpose(Image.Transpose.ROTATE_180)]}
    if kind == "JPEG":
        options = {"progressive": rng.random() < 0.3, "quality": rng.choice((30, 90))}
    if kind in ("JPEG", "PNG", "WEBP") and rng.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = rng.randrange(10)
        options["exif"] = exif
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture.save(buffer, kind, **options)
    return f"{kind} {mode}{' animated' if 'save_all' in options else ''}", buffer.getvalue()


def _two_sizes(rng: random.Random) -> tuple[str, bytes]:
    """A JPEG behind whose first marker lies a frame header of another size, which only a careless reader takes."""
    _, data = _picture(rng, "JPEG")
    frame = next(place for place in range(2, len(data)) if data[place : place + 2] in (b"\xff\xc0", b"\xff\xc2"))
    side = rng.choice((9_000, 20_000, 65_500))
    large = bytearray(data)
    large[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    fill, length = rng.randrange(1, 3), rng.choice((0xFFFF, 40))
    inside = bytearray(length - 2)
    place = min(rng.randrange(len(inside)), len(inside) - 12)
    if length == 0xFFFF and fill == 1:
        place = 2 + ((0xE1 << 8) | (length >> 8)) - 5
    inside[place : place + 10] = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", 16, 16) + b"\x03"
    head = b"\xff\xd8" + b"\xff" * fill + b"\xe1" + struct.pack(">H", length) + bytes(inside)
    return f"JPEG of {side} px behind another header", head + bytes(large[2:])


def _png_with_fitting_checksums(rng: random.Random) -> tuple[str, bytes]:
    """Damage a PNG's chunks and give them checksums that fit."""
    _, data = _picture(rng, "PNG")
    out, position, chunks = [data[:8]], 8, []
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    chosen = rng.randrange(len(chunks))
    for place, (name, body) in enumerate(chunks):
        if place == chosen:
            body = mutate.damage(body, rng)[1] if body else rng.randbytes(4)
        out.append(len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big"))
    return f"PNG, {chunks[chosen][0].decode()} damaged", b"".join(out)


def _reference(data: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    raise Unreadable(f"{opened.width}x{opened.height} pixels")
                picture = ImageOps.exif_transpose(opened)
                return np.asarray(_on_white(picture)).transpose(2, 0, 1)
    except Unreadable:
        raise
    except Exception as error:  # noqa: BLE001  (Pillow raises nearly all there are)
        raise Unreadable(f"Pillow: {type(error).__name__} {error}"[:120]) from error


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _same(found: np.ndarray, expected: np.ndarray) -> bool:
    if found.shape != expected.shape:
        return False
    return float(np.abs(found.astype(int) - expected.astype(int)).mean()) <= JPEG_TOLERANCE


PICTURES = Kind("picture", 0.25, prepare, make)
