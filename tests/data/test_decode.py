"""Pictures of every kind become upright RGB; what is no picture, or too large, is refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cloc.contracts import BadSample
from cloc.data import decode
from cloc.data.decode import decode_rgb


def halves(mode: str = "RGB", size: tuple[int, int] = (16, 8)) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, (255, 0, 0))
    image.paste((0, 0, 255), (size[0] // 2, 0, size[0], size[1]))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def raw_png(pixels: np.ndarray, color_type: int) -> bytes:
    """A 16-bit PNG, which Pillow writes for gray alone."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def assert_halves(image: Tensor, first: tuple[int, int, int], second: tuple[int, int, int], tolerance: int) -> None:
    assert image.dtype == torch.uint8 and image.shape == (3, 8, 16)
    for columns, color in ((slice(1, 7), first), (slice(9, 15), second)):
        distance = (image[:, 1:7, columns].int() - torch.tensor(color).view(3, 1, 1)).abs().max()
        assert distance <= tolerance, (image[:, 4, columns.start].tolist(), color)


RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize(
    ("kind", "mode", "options", "tolerance"),
    [
        ("JPEG", "RGB", {"quality": 95, "subsampling": 0}, 12),
        ("JPEG", "RGB", {"quality": 95, "progressive": True, "subsampling": 0}, 12),
        ("JPEG", "CMYK", {"quality": 95}, 12),
        ("PNG", "RGB", {}, 0),
        ("PNG", "P", {}, 0),
        ("PNG", "RGBA", {}, 0),
        ("WEBP", "RGB", {"lossless": True}, 0),
        ("WEBP", "RGBA", {"lossless": True}, 0),
    ],
)
def test_every_mode_becomes_rgb(kind: str, mode: str, options: dict[str, object], tolerance: int) -> None:
    assert_halves(decode_rgb(encoded(halves(mode), kind, **options)), RED, BLUE, tolerance)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_makes_the_picture_upright(kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (16, 8), (0, 0, 0))
    for box, color in (((0, 0, 8, 4), RED), ((8, 0, 16, 4), BLUE), ((0, 4, 8, 8), (0, 255, 0))):
        upright.paste(color, box)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    image = decode_rgb(encoded(stored, kind, exif=exif, **options))
    assert image.shape == (3, 8, 16)
    for row, column, color in ((2, 4, RED), (2, 12, BLUE), (6, 4, (0, 255, 0)), (6, 12, (0, 0, 0))):
        assert (image[:, row, column].int() - torch.tensor(color)).abs().max() < 60, (row, column)


def test_exif_orientation_counts_for_modes_that_pillow_decodes() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    assert_halves(decode_rgb(encoded(halves("CMYK"), "JPEG", exif=exif, quality=95)), BLUE, RED, 12)
    assert_halves(decode_rgb(encoded(halves("RGBA"), "PNG", exif=exif)), BLUE, RED, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_gray_pictures_have_three_equal_channels(kind: str) -> None:
    gray = Image.new("L", (16, 8), 200)
    gray.paste(50, (8, 0, 16, 8))
    assert_halves(decode_rgb(encoded(gray, kind)), (200,) * 3, (50,) * 3, 3)


@pytest.mark.parametrize(("channels", "color_type"), [(1, 0), (3, 2), (4, 6), (2, 4)])
def test_16_bit_pictures_are_scaled_to_8(channels: int, color_type: int) -> None:
    pixels = np.full((8, 16, channels), 65535, dtype=np.uint16)
    pixels[:, :8, : max(1, channels - (channels in (2, 4)))] = 200 * 257
    pixels[:, 8:, : max(1, channels - (channels in (2, 4)))] = 50 * 257
    assert_halves(decode_rgb(raw_png(pixels, color_type)), (200,) * 3, (50,) * 3, 1)


def test_transparent_pixels_become_white() -> None:
    picture = halves("RGBA")
    picture.paste((0, 0, 0, 0), (8, 0, 16, 8))
    assert_halves(decode_rgb(encoded(picture, "PNG")), RED, (255,) * 3, 0)
    palette = halves("P")
    assert_halves(decode_rgb(encoded(palette, "PNG", transparency=palette.getpixel((12, 4)))), RED, (255,) * 3, 0)


def test_a_decompression_bomb_is_refused_from_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("L", (9000, 8000)), "PNG")
    monkeypatch.setattr(decode, "pillow_rgb", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadSample, match="9000×8000") as caught:
        decode_rgb(data)
    assert caught.value.reason == "decompression_bomb"


def test_a_bomb_that_pillow_refuses_itself_has_the_same_reason() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + header
        + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    with pytest.raises(BadSample) as caught:
        decode_rgb(body + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    assert caught.value.reason == "decompression_bomb"


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "RGBA"), ("WEBP", "RGB")],
)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_picture_is_refused(kind: str, mode: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise).convert(mode), kind)
    decode_rgb(data)
    with pytest.raises(BadSample) as caught:
        decode_rgb(data[: int(len(data) * share)])
    assert caught.value.reason == "corrupt_image"


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(BadSample) as caught:
        decode_rgb(data)
    assert caught.value.reason == "corrupt_image"
