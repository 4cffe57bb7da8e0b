"""Hostile and unlucky pictures: decoded by one function, as Pillow does, within the memory that their size allows."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from cloc.contracts import BadSample
from cloc.data import decode
from cloc.data.convert.conversion import convert
from cloc.data.decode import FORMATS, decode_rgb
from cloc.data.inspect.check import check
from cloc.data.picture_headers import plain_jpeg, plain_webp
from cloc.data.shards.index import load_manifest
from tests.data.test_bad_input import write_tar
from tests.kit.paths import ROOT
from tests.kit.pictures import (
    BOMBS,
    DECOYS,
    KINDS,
    POSTSCRIPT,
    animated,
    drawn,
    encoded,
    frame,
    jpeg_with_size,
    tiled_tiff,
)
from tests.kit.streams import make_stream

AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def by_pillow(data: bytes) -> np.ndarray:
    """The reference: the first frame, upright, on white."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode.startswith("I"):
            picture = Image.fromarray((np.asarray(picture) / 257).astype(np.uint8))
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return np.asarray(picture.convert("RGB")).transpose(2, 0, 1).astype(int)


def in_a_process(code: str) -> dict[str, Any]:
    """What some code that decodes leaves in ``found``."""
    head = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from cloc.contracts import BadSample
from cloc.data.decode import decode_rgb
from cloc.data.stream.batches import peak_memory
from tests.kit.pictures import BOMBS, KINDS, drawn, encoded
"""
    text = f"{head}{textwrap.dedent(code)}\nprint(json.dumps(found))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-500:]}"
    return json.loads(done.stdout.splitlines()[-1])


def refused(data: bytes) -> str:
    with pytest.raises(BadSample) as caught:
        decode_rgb(data)
    assert "\n" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("name", [pytest.param(name, marks=AVIF if name == "AVIF" else ()) for name in KINDS])
def test_every_kind_is_what_pillow_makes_of_it(name: str) -> None:
    data = KINDS[name]()
    found = decode_rgb(data)
    assert found.dtype == torch.uint8 and found.shape == (3, 20, 30)
    assert np.abs(found.numpy() - by_pillow(data)).max() <= (1 if "JPEG" in name or "16" in name else 0)


def test_conversion_check_and_training_agree_on_any_format_under_the_name_jpg(tmp_path: Path) -> None:
    kinds = [name for name in KINDS if name != "AVIF" or features.check("avif")]
    lines = []
    for number, name in enumerate(kinds):
        (tmp_path / f"{number}.jpg").write_bytes(KINDS[name]())
        lines.append(json.dumps({"image": f"{number}.jpg", "captions": [name]}))
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    done = convert("jsonl", tmp_path / "set.jsonl", tmp_path / "out")
    assert done.report.counts["samples"] == len(kinds)
    found = check(tmp_path / "out")
    assert (found.usable, found.samples) == (len(kinds), len(kinds))
    batch = next(iter(make_stream(load_manifest(tmp_path / "out"))))
    assert not [name for name in batch.stats if name.startswith("skipped")]


@pytest.mark.parametrize("kind", ["EPS", "PPM", "TGA", "PCX", "ICO", "SGI", "PDF", "IM", "SPIDER"])
def test_no_other_format_is_tried(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    picture = drawn("F") if kind == "SPIDER" else drawn()
    assert refused(POSTSCRIPT if kind == "EPS" else encoded(picture, kind)) == "corrupt_image"


def test_no_bit_of_a_png_ends_the_process() -> None:
    """In a process of its own: torchvision's decoder would take this one along."""
    found = in_a_process(
        """
        data = encoded(drawn(size=(6, 5)), "PNG")
        whole, found = decode_rgb(data), {}
        for bit in range(8 * len(data)):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            try:
                found[bit] = "same" if decode_rgb(bytes(changed)).equal(whole) else "another"
            except BadSample as error:
                found[bit] = error.reason
        found = {name: list(found.values()).count(name) for name in found.values()}
        """
    )
    assert found.keys() == {"corrupt_image", "same"}
    assert found["same"] <= 64  # length and checksum of the last chunk, which holds nothing


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", pytest.param("AVIF", marks=AVIF)])
def test_a_damaged_picture_is_refused_or_read_as_pillow_reads_it(kind: str) -> None:
    rng = random.Random(kind)
    data = encoded(drawn("P" if kind == "GIF" else "RGB"), kind)
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))):
            changed[rng.randrange(min(len(changed), rng.choice((40, 10_000))))] = rng.randrange(256)
        try:
            found = decode_rgb(bytes(changed))
        except BadSample as error:
            assert error.reason in ("corrupt_image", "decompression_bomb")
            continue
        assert np.abs(found.numpy() - by_pillow(bytes(changed))).max() <= 2


# --- two sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECOYS)
def test_a_jpeg_cannot_hide_its_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No decoder is called, neither torchvision's nor Pillow's, or what it decodes is small."""
    for own in ("decode_jpeg", "pillow_rgb"):
        inner = getattr(decode, own)

        def small(*arguments: Any, inner: Any = inner) -> Any:
            result = inner(*arguments)
            assert result.numel() <= 3 * 64 * 64, "decoded beyond the limit"
            return result

        monkeypatch.setattr(decode, own, small)
    large, place = jpeg_with_size(9_000)
    assert refused(DECOYS[name](frame(64, 64), large, place)) in ("decompression_bomb", "corrupt_image")


def test_plain_headers_are_those_of_the_decoders() -> None:
    for options in ({}, {"progressive": True}, {"comment": b"c" * 300}, {"dpi": (1, 2)}, {"optimize": True}):
        assert plain_jpeg(encoded(drawn(), "JPEG", **options)) == (30, 20, False)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert plain_jpeg(encoded(drawn(), "JPEG", exif=exif)) == (30, 20, True)
    assert plain_jpeg(encoded(drawn("CMYK"), "JPEG")) is None
    assert plain_webp(encoded(drawn(), "WEBP")) == (30, 20)
    clear = drawn("RGBA")
    clear.putalpha(128)
    others = (encoded(drawn(), "WEBP", exif=exif), animated("WEBP"), encoded(clear, "WEBP"), b"", b"RIFF")
    assert [plain_webp(other) for other in others] == [None] * 5


def test_orientation_in_xmp_counts_as_in_pillow() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(drawn(), "JPEG", xmp=xmp, quality=95)
    assert decode_rgb(data).shape == (3, 30, 20)
    assert np.abs(decode_rgb(data).numpy() - by_pillow(data)).max() <= 2


def test_a_small_file_takes_little_memory() -> None:
    """In a process of its own, whose highest use of memory is known."""
    found = in_a_process(
        """
        for kind in KINDS.values():
            decode_rgb(kind())
        found = {}
        for name, make in BOMBS.items():
            data, before = make(), peak_memory()
            try:
                decode_rgb(data)
                reason = "decoded"
            except BadSample as error:
                reason = error.reason
            found[name] = reason, peak_memory() - before
        """
    )
    assert found.keys() == BOMBS.keys()
    for name, (reason, size) in found.items():
        assert reason in ("decompression_bomb", "corrupt_image") and size < 300 * 2**20, name


def test_a_bad_picture_of_any_kind_is_counted_and_named(tmp_path: Path) -> None:
    bad = {
        "ps": POSTSCRIPT,
        "bit": encoded(drawn(), "PNG")[:-30],
        "bomb": tiled_tiff(),
        "two": jpeg_with_size(9_000)[0],
    }
    members = [(f"{key}.{end}", data) for key, image in bad.items() for end, data in (("jpg", image), ("txt", b"a"))]
    write_tar(tmp_path / "x.tar", [("good.jpg", KINDS["JPEG"]()), ("good.txt", b"a"), *members])
    found = check(tmp_path)
    assert found.usable == 1 and found.bad == {"corrupt_image": 2, "decompression_bomb": 2}
    assert {one.key for one in found.tally.bad} == set(bad)
