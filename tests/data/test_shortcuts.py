"""The short ways that reading takes for the plain case end where the long ones do."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from cloc.data.picture_headers import plain_jpeg
from cloc.data.sample import parse_box
from cloc.data.shards.tar_headers import _read_header
from cloc.data.shards.tars import ShardReadError, read_sample_members
from cloc.data.tokenizer import Tokenizer
from cloc.data.transforms import _resize


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])
@pytest.mark.parametrize("name", ["a.jpg", "folder/a.b.json", "é.jpg", "x" * 96 + ".jpg", "f" * 90 + "/" + "x" * 60])
def test_tar_headers_are_read_as_tarfile_reads_them(name: str, kind: bytes, style: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type = 123_456 if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0, kind
    block = member.tobuf(style, "utf-8", "surrogateescape")[-512:]
    expected = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    found = _read_header(block, 0)
    assert (found.name, found.size, found.regular) == (expected.name, expected.size, expected.isreg())


@pytest.mark.parametrize("place", [0, 50, 124, 130, 148, 156, 300, 511])
def test_a_damaged_tar_header_is_refused(place: int) -> None:
    member = tarfile.TarInfo("a.jpg")
    member.size = 5
    raw = bytearray(member.tobuf(tarfile.USTAR_FORMAT) + b"hello".ljust(512, b"\0"))
    raw[place] ^= 1
    with pytest.raises(ShardReadError):
        read_sample_members(bytes(raw))


TEXTS = st.one_of(st.text(max_size=60), st.text(st.sampled_from("aZ 0'&;#<>-.,lt\t\né’“"), max_size=60))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(TEXTS)
def test_tokens_are_those_of_open_clip(text: str) -> None:
    ids, _ = our_tokenizer().encode(text)
    assert list(ids[1:-1]) == open_clip_tokenizer().encode(text)[:75]


our_tokenizer = cache(lambda: Tokenizer("open_clip", 77))  # each takes long to load
open_clip_tokenizer = cache(SimpleTokenizer)


def jpeg(mode: str, size: tuple[int, int], **options: object) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010E] = 6, "x" * 20_000


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (300, 7), (64, 500)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": EXIF}, {"comment": b"\xff\xc0 no frame"}])
def test_jpeg_headers_are_read_as_pillow_reads_them(
    mode: str, size: tuple[int, int], options: dict[str, object]
) -> None:
    data = jpeg(mode, size, **options)
    expected = None if mode == "CMYK" else (*size, "exif" in options)  # four inks go to Pillow
    assert plain_jpeg(data) == expected
    assert Image.open(io.BytesIO(data)).size == size


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 700), st.integers(0, 255), st.integers(0, 700))
def test_a_damaged_jpeg_header_gives_a_size_or_nothing(place: int, value: int, length: int) -> None:
    data = bytearray(jpeg("RGB", (20, 30)))
    data[place % len(data)] = value
    found = plain_jpeg(bytes(data[:length]))
    assert found is None or len(found) == 3


@pytest.mark.parametrize("box", [(31, 17), (200, 150), (1, 40), (64, 64)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_resizing_is_torchvisions(box: tuple[int, int], channels_last: bool) -> None:
    image = torch.randint(0, 255, (3, 64, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    if channels_last:
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    expected = tv.resize(image, list(box), InterpolationMode.BICUBIC, antialias=True)
    assert _resize(image, *box).equal(expected)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.floats(-2, 2), min_size=4, max_size=4))
def test_boxes_are_the_same_on_both_ways(values: list[float]) -> None:
    counts, other = Counter(), Counter()
    assert parse_box(values, counts) == parse_box(tuple(values), other) and counts == other  # a tuple goes the long way
