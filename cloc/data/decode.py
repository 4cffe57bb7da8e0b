"""Encoded bytes → upright RGB uint8 tensor (``order → decode → views → collate → stream``)."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as tv

from cloc.contracts import BadSample
from cloc.data.schema import MAX_PIXELS, codec_fault

with warnings.catch_warnings():
    # PyTorch warns, once a process, of a tensor over bytes, which nobody may write to. Decoders only read.
    warnings.simplefilter("ignore")
    torch.frombuffer(b" ", dtype=torch.uint8)

_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15; the three are no frames


def decode_rgb(data: bytes) -> Tensor:
    """Decode a JPEG, PNG or WebP file.

    Args:
        data: the file's bytes.

    Returns:
        ``[3,H,W]`` uint8, upright (EXIF orientation applied); gray, CMYK, 16-bit and alpha pictures become RGB.

    Raises:
        BadSample: ``decompression_bomb`` or ``corrupt_image``.
    """
    return decoder(data)()


def decoder(data: bytes) -> Callable[[], Tensor]:
    """Look at the header alone, and say how to decode the rest: what is called returns as ``decode_rgb`` does.

    Apart, for a reader prepares many pictures, then decodes them in a row (see ``stream.TOGETHER``).

    Raises:
        BadSample: ``decompression_bomb`` or ``corrupt_image``; the latter also by what is returned.
    """
    width, height, plain = _jpeg_header(data) or _pillow_header(data)
    if width * height > MAX_PIXELS:
        raise BadSample("decompression_bomb", f"{width}×{height} pixels, the limit is {MAX_PIXELS}")
    if not plain:
        return partial(_decode_pillow, data)
    return partial(_decode, torch.frombuffer(data, dtype=torch.uint8))


def _decode(buffer: Tensor) -> Tensor:
    try:
        image = decode_image(buffer, ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        raise BadSample("corrupt_image", codec_fault(error)) from error
    # A 16-bit PNG comes as it is, whatever the mode.
    return image if image.dtype == torch.uint8 else tv.to_dtype(image, torch.uint8, scale=True)


def _jpeg_header(data: bytes) -> tuple[int, int, bool] | None:
    """Width, height and "gray or three colors" of a JPEG; None for what is none, or has an odd header.

    Pillow needs 20 times as long, which is felt at a thousand pictures a second.
    """
    position = 2 if data[:2] == b"\xff\xd8" else len(data)
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _FRAME_MARKERS:
            height, width, components = struct.unpack_from(">HHB", data, position + 5)
            return width, height, components in (1, 3)
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _pillow_header(data: bytes) -> tuple[int, int, bool]:
    """Width, height, and whether torchvision makes the same RGB of it as Pillow."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures; the limit here is stricter
            with Image.open(io.BytesIO(data)) as header:
                # torchvision leaves a WebP as it lies
                upright = header.format != "WEBP" or "exif" not in header.info
                return *header.size, upright and header.mode in ("RGB", "L")
    except Image.DecompressionBombError as error:
        raise BadSample("decompression_bomb", str(error)) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise BadSample("corrupt_image", codec_fault(error)) from error


def _decode_pillow(data: bytes) -> Tensor:
    """Modes that torchvision refuses or leaves unscaled (16-bit, CMYK, palettes, alpha): Pillow knows them all."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return pillow_rgb(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadSample("corrupt_image", codec_fault(error)) from error


def pillow_rgb(picture: Image.Image) -> Tensor:
    """Pillow image of any mode → upright RGB ``[3,H,W]`` uint8; transparent pixels become white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or picture.mode == "I":
        picture = picture.point(lambda value: value / 257).convert("L")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(ground, picture.convert("RGBA"))
    return tv.pil_to_tensor(picture.convert("RGB"))
