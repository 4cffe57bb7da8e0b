"""Reads a picture's bytes, and makes of them what training reads.

Stands below ``pictures``, which finds files, and ``records``, which makes samples. What a picture's name cannot say is
told by its content: formats that shards do not hold (BMP, TIFF, GIF, AVIF, JPEG 2000, HEIC) are encoded anew.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from cloc.contracts import BadSample
from cloc.data.decode import decode_rgb, picture_format, upright_size
from cloc.data.sample import IMAGE_EXTENSIONS, MAX_MEMBER_BYTES, MAX_PIXELS
from cloc.files import open_file

REENCODE = ("auto", "png", "jpeg", "never")
"""What becomes of pictures that shards do not hold: PNG where nothing is lost and JPEG otherwise, one of the two, or
left out."""

UPRIGHT, RAW, STATED = ORIENTATIONS = ("upright", "raw", "stated")
"""What boxes are of, where EXIF turns the picture: of the upright one; of the pixels as stored; shares of the upright
one times the stated sides, which lie on their side (Label Studio)."""

SIDEWAYS = range(5, 9)
"""Values of EXIF's orientation that exchange width and height."""

JPEG_QUALITY = 95

_KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_LOSSLESS = ("BMP", "TIFF", "GIF")
_HEIF = "HEIF"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_NAMES = {"JPEG2000": "JPEG 2000", _HEIF: "HEIC"}
PICTURE_SUFFIXES = frozenset(
    f".{extension}"
    for extension in (
        *IMAGE_EXTENSIONS,
        "jpe",
        "jfif",
        "bmp",
        "dib",
        "tif",
        "tiff",
        "gif",
        "avif",
        "jp2",
        "j2k",
        "heic",
        "heif",
    )  # fmt: skip
)
"""Ends of the names of files that can be pictures."""


@runtime_checkable
class Picture(Protocol):
    """A picture that is not a file: small, and pickled to the process that reads it."""

    def read(self) -> tuple[str, bytes]:
        """Return the file name extension ("" where unknown) and the bytes.

        Raises:
            BadSample: it cannot be read.
        """
        ...


class Prepared(NamedTuple):
    """A picture as a shard holds it.

    Attributes:
        extension: of its member.
        image: its bytes.
        size: (width, height) of the upright picture.
        reencoded: for instance ``BMP as PNG``; "" where the bytes are those of the source.
    """

    extension: str
    image: bytes
    size: tuple[int, int]
    reencoded: str = ""


def read_picture(picture: Path | Picture) -> tuple[str, bytes]:
    """Return the file name extension, in small letters, and the bytes of a picture.

    Raises:
        BadSample: ``image_unreadable``, ``giant_member``, or what the picture itself raises.
    """
    if not isinstance(picture, Path):
        extension, image = picture.read()
        return extension.lower().removeprefix("."), image
    try:
        with open_file(picture) as file:
            if os.fstat(file.fileno()).st_size > MAX_MEMBER_BYTES:
                raise BadSample("giant_member", f"{picture}: the limit is {MAX_MEMBER_BYTES:,} bytes")
            return picture.suffix[1:].lower(), file.read()
    except BadSample:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadSample("image_unreadable", f"{picture}: {error}") from error


def prepare(extension: str, image: bytes, reencode: str) -> Prepared:
    """Decode a picture as training does, and encode it anew where shards do not hold its format.

    Args:
        extension: of the file's name; what it says counts where shards hold it and the content can be decoded.
        image: the bytes.
        reencode: one of ``REENCODE``.

    Raises:
        BadSample: ``no_image``: no picture, or one that would have to be encoded anew and is not to; ``corrupt_image``,
            ``decompression_bomb``, ``giant_member``.
    """
    if extension in IMAGE_EXTENSIONS and not _is_heif(image):
        return Prepared(extension, image, upright_size(image))
    kind = _HEIF if _is_heif(image) else picture_format(image)
    if kind in _KEPT:
        return Prepared(_KEPT[kind], image, upright_size(image))
    if kind is None:
        raise BadSample("no_image", f"neither its name ends in one of {IMAGE_EXTENSIONS} nor its content is a picture")
    name = _NAMES.get(kind, kind)
    if reencode == "never":
        raise BadSample("no_image", f"{name} is no format of shards; --reencode auto makes PNG or JPEG of it")
    pixels = _decode_heif(image) if kind == _HEIF else decode_rgb(image)
    target = ("png" if kind in _LOSSLESS else "jpeg") if reencode == "auto" else reencode
    size = (pixels.shape[2], pixels.shape[1])
    return Prepared(_KEPT[target.upper()], _encode(pixels, target), size, f"{name} as {target.upper()}")


def turn_box(box: tuple[float, float, float, float], orientation: int) -> tuple[float, float, float, float]:
    """Turn a box as EXIF turns its picture.

    Args:
        box: x0, y0, x1, y1 in 0..1 of the pixels as stored.
        orientation: EXIF's, 1..8 (Exif 2.32, tag 274).

    Returns:
        The same of the upright picture.
    """
    x0, y0, x1, y1 = box
    if orientation in (2, 3, 7, 8):  # what is left as stored is right, or below, when upright
        x0, x1 = 1 - x1, 1 - x0
    if orientation in (3, 4, 6, 7):
        y0, y1 = 1 - y1, 1 - y0
    return (y0, x0, y1, x1) if orientation in SIDEWAYS else (x0, y0, x1, y1)


def _encode(pixels: Tensor, target: str) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": JPEG_QUALITY} if target == "jpeg" else {}
    tv.to_pil_image(pixels).save(buffer, target.upper(), **options)
    made = buffer.getvalue()
    if len(made) > MAX_MEMBER_BYTES:
        raise BadSample("giant_member", f"{len(made):,} bytes as {target.upper()}; --reencode jpeg makes less of it")
    return made


def _is_heif(image: bytes) -> bool:
    """Whether the bytes are of the family of HEIC; AVIF is of another brand, and Pillow's."""
    return image[4:8] == b"ftyp" and image[8:12] in _HEIF_BRANDS and b"avif" not in image[8:64]


def _decode_heif(image: bytes) -> Tensor:
    """Pixels of a HEIC, upright: its container says how it is turned, and the decoder turns it."""
    try:
        import pillow_heif
    except ImportError as error:
        raise BadSample(
            "no_image", "a HEIC picture needs the extra 'heic': pip install 'cloc-pretrain[heic]'"
        ) from error
    try:
        opened = pillow_heif.open_heif(image, convert_hdr_to_8bit=True)
        if opened.size[0] * opened.size[1] > MAX_PIXELS:
            seen = f"{opened.size[0]}×{opened.size[1]} pixels, the limit is {MAX_PIXELS:,}"
            raise BadSample("decompression_bomb", seen)
        picture: Image.Image = opened.to_pillow()
    except BadSample:
        raise
    except Exception as error:  # damaged files: libheif's errors are of many kinds
        raise BadSample("corrupt_image", f"HEIC: {error}") from error
    rgba = picture.convert("RGBA")
    ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    pixels: Tensor = tv.pil_to_tensor(Image.alpha_composite(ground, rgba).convert("RGB"))
    return pixels
