"""Decodes a picture: encoded bytes → upright RGB uint8 tensor (``order → decode → views → collate → stream``).

The one way from a picture's bytes to its pixels: conversion, ``data check``, training, evaluation and export take it,
so that what one accepts the others accept. A file's name does not count.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
from PIL import Image, ImageOps
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_webp
from torchvision.transforms.v2 import functional as tv

from cloc.contracts import BadSample
from cloc.data.picture_headers import (
    plain_jpeg,
    plain_webp,
    refuse_costly_jpeg2000,
    refuse_large_tile,
    refuse_many_scans,
)
from cloc.data.sample import MAX_PIXELS, codec_fault

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
"""Pillow's names of the formats that are decoded. Others are never tried: some start programs (EPS)."""

with warnings.catch_warnings():
    # PyTorch warns, once a process, of a tensor over bytes, which nobody may write to. Decoders only read.
    warnings.simplefilter("ignore")
    torch.frombuffer(b" ", dtype=torch.uint8)

_TURNED = range(2, 9)  # values of the EXIF orientation that are not "as it lies"
_TILE_TAGS = (322, 323)  # TIFF's TileWidth and TileLength


def decode_rgb(data: bytes) -> Tensor:
    """Decode a picture of one of ``FORMATS``.

    Args:
        data: the file's bytes.

    Returns:
        ``[3,H,W]`` uint8, upright (EXIF orientation applied), the first frame of an animation; gray, CMYK, 16-bit and
        palette pictures become RGB, transparent pixels white.

    Raises:
        BadSample: ``decompression_bomb`` or ``corrupt_image``.
    """
    return decoder(data)()


def decoder(data: bytes) -> Callable[[], Tensor]:
    """Look at what can be told from the header alone, and say how to decode the rest, as ``decode_rgb`` does.

    Apart, since a reader prepares many pictures, then decodes them in a row (see ``batches.TOGETHER``).

    Raises:
        BadSample: ``decompression_bomb`` or ``corrupt_image``, here or by what is returned.
    """
    jpeg, webp = plain_jpeg(data), plain_webp(data)
    if jpeg is not None:
        width, height, exif = jpeg
        _refuse_bomb(width, height)
        if not exif or _is_upright(data):
            return partial(_by_torchvision, decode_jpeg, data, (width, height))
    elif webp is not None:
        _refuse_bomb(*webp)
        return partial(_by_torchvision, decode_webp, data, webp)
    return partial(_by_pillow, data)


def upright_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels of the upright picture, as it decodes; errors as ``decode_rgb``."""
    height, width = decode_rgb(data).shape[1:]
    return width, height


def picture_format(data: bytes) -> str | None:
    """Return which of ``FORMATS`` (or ``MPO``, several JPEGs in one) the bytes begin as; None for anything else."""
    try:
        with _opened(data) as picture:
            return picture.format
    except BadSample:
        return None


def orientation_of(data: bytes) -> int:
    """Return how EXIF turns the picture when it is decoded, 1..8 (Exif 2.32, tag 274); 1 where nothing says so."""
    try:
        with _opened(data) as picture:
            value = picture.getexif().get(Base.Orientation)
    except BadSample:
        return 1
    return next((turned for turned in _TURNED if value == turned), 1)


def pillow_rgb(picture: Image.Image) -> Tensor:
    """Pillow image of any mode → upright RGB ``[3,H,W]`` uint8; transparent pixels become white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits, in whatever order of bytes
        picture = picture.convert("I").point(lambda value: value / 257).convert("L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(ground, picture.convert("RGBA"))
    pixels: Tensor = tv.pil_to_tensor(picture.convert("RGB"))
    return pixels


def _by_torchvision(decode: Callable[[Tensor, ImageReadMode], Tensor], data: bytes, size: tuple[int, int]) -> Tensor:
    """Decode a plain JPEG or WebP, in less than half of Pillow's time.

    torchvision's PNG decoder is none to use: one flipped bit ends the process.
    """
    try:
        image = decode(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError as error:
        raise BadSample("corrupt_image", codec_fault(error)) from error
    if image.shape != (3, size[1], size[0]):
        raise BadSample("corrupt_image", f"its header says {size[0]}×{size[1]}, it decodes to {tuple(image.shape)}")
    return image


def _by_pillow(data: bytes) -> Tensor:
    with _opened(data) as picture:
        _refuse_bomb(*picture.size)
        if picture.format in ("JPEG", "MPO"):
            refuse_many_scans(data, picture.width * picture.height)
        elif picture.format == "JPEG2000":
            refuse_costly_jpeg2000(bytes(data))
        elif isinstance(picture, TiffImageFile):
            across, down = (int(picture.tag_v2.get(tag, 0)) for tag in _TILE_TAGS)
            refuse_large_tile((across, down), picture.size)
        elif picture.format == "PNG":
            with _opened(data) as chunks:
                chunks.verify()  # decoding compares no checksum of the pixels' chunks
        return pillow_rgb(picture)


def _refuse_bomb(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadSample("decompression_bomb", f"{width}×{height} pixels, the limit is {MAX_PIXELS:,}")


def _is_upright(data: bytes) -> bool:
    """Whether a JPEG lies as it is to be seen; False also where that cannot be read, which Pillow then says."""
    try:
        with _opened(data) as picture:
            return picture.getexif().get(Base.Orientation) not in _TURNED
    except BadSample:
        return False


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open a picture with Pillow; what goes wrong while it is open is the picture's fault."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, where the limit here is stricter, and of odd metadata
            with Image.open(io.BytesIO(data), formats=_formats()) as picture:
                yield picture
    except BadSample:
        raise
    except Image.DecompressionBombError as error:
        raise BadSample("decompression_bomb", str(error)) from error
    except Exception as error:  # damaged files raise nearly all that there is, from struct.error to AssertionError
        raise BadSample("corrupt_image", codec_fault(error) or type(error).__name__) from error


@cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
