"""Hostile input: refused with a clear reason or mended, always counted, never run."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cloc.contracts import BadSample
from cloc.data import sample as schema
from cloc.data.decode import decode_rgb
from cloc.data.inspect.check import check
from cloc.data.sample import parse_sample
from cloc.data.shards.index import load_manifest
from cloc.data.shards.scanning import index_shard
from cloc.data.shards.tars import ShardError

GOOD_BOX = [0.1, 0.1, 0.5, 0.5]


def picture(kind: str = "PNG", size: tuple[int, int] = (8, 6), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 50, 50)).save(buffer, kind, **options)
    return buffer.getvalue()


PNG = picture()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims any size, without its pixels."""
    body = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunk = (13).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big")


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], **attributes: Any) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for attribute, value in attributes.items():
                setattr(member, attribute, value)
            tar.addfile(member, io.BytesIO(data))
    return path


def as_json(**record: Any) -> bytes:
    return json.dumps(record).encode()


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"json": b"{}"}, "no_image"),
        ({"png": b"", "json": b"{}"}, "no_image"),
        ({"gif": PNG, "txt": b"a chick"}, "no_image"),
        ({"png": PNG, "json": b"{"}, "bad_json"),
        ({"png": PNG, "json": b"[1]"}, "bad_json"),
        ({"png": PNG, "json": b"[" * 100_000}, "bad_json"),
        ({"png": PNG, "json": as_json(captions=["x"], regions={"box": GOOD_BOX})}, "bad_json"),
        ({"png": PNG, "json": as_json(captions=["x"], width="wide")}, "bad_json"),
        ({"png": PNG, "json": as_json(captions=["x"], width=float("inf"))}, "bad_json"),
        ({"png": PNG, "json": b'{"captions": ["\xff\xfe"]}'}, "bad_text"),
        ({"png": PNG, "txt": b"\xff\xfe"}, "bad_text"),
        ({"png": PNG}, "no_caption_and_no_region"),
        ({"png": PNG, "txt": b"  \n"}, "no_caption_and_no_region"),
        ({"png": PNG, "json": as_json(captions=[])}, "no_caption_and_no_region"),
        ({"png": PNG, "json": as_json(captions=[" ", None, 3, "\ud800"])}, "no_caption_and_no_region"),
        ({"png": PNG, "json": as_json(regions=[{"box": [0, 0, 0, 0], "phrases": ["x"]}])}, "no_caption_and_no_region"),
    ],
)
def test_sample_that_cannot_be_used(members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        parse_sample(members, "key", "toy")
    assert caught.value.reason == reason
    assert caught.value.detail


def test_giant_member(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MAX_MEMBER_BYTES", 100)
    with pytest.raises(BadSample, match="giant_member.*'bin' has 101 bytes"):
        parse_sample({"png": PNG[:50], "txt": b"x", "bin": b"0" * 101}, "key", "toy")


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        ({"box": [0.5, 0.1, 0.1, 0.5]}, "box_inverted"),
        ({"box": [0.1, 0.5, 0.5, 0.1]}, "box_inverted"),
        ({"box": [0.1, 0.1, 0.1, 0.5]}, "box_empty"),
        ({"box": [1.1, 0.1, 1.2, 0.5]}, "box_outside"),
        ({"box": [-0.5, 0.1, -0.1, 0.5]}, "box_outside"),
        ({"box": [1.0, 0.1, 1.1, 0.5]}, "box_outside"),
        ({"box": [float("nan"), 0.1, 0.5, 0.5]}, "box_not_finite"),
        ({"box": [0.1, 0.1, float("inf"), 0.5]}, "box_not_finite"),
        ({"box": [0.1, 0.1, 10**400, 0.5]}, "box_not_finite"),
        ({"box": [10, 20, 300, 400]}, "box_in_pixels"),
        ({"box": [0.1, 0.1, 0.5]}, "box_malformed"),
        ({"box": ["0.1", 0.1, 0.5, 0.5]}, "box_malformed"),
        ({"box": None}, "box_malformed"),
        ({"box": GOOD_BOX, "phrases": []}, "region_without_phrase"),
        ({"box": GOOD_BOX, "phrases": ["  "]}, "region_without_phrase"),
        ({"box": GOOD_BOX, "phrases": None}, "region_without_phrase"),
    ],
)
def test_bad_region_is_dropped_and_counted(region: dict[str, Any], reason: str) -> None:
    regions = [{"phrases": ["a chick"], **region}, {"box": GOOD_BOX, "phrases": ["a cup"]}, "no region"]
    sample, counts = parse_sample({"png": PNG, "json": as_json(captions=["x"], regions=regions)}, "key", "toy")
    assert [found.phrases for found in sample.regions] == [("a cup",)]
    assert counts[reason] == counts["region_malformed"] == 1


def test_box_that_juts_out_is_clipped_and_counted() -> None:
    regions = [{"box": [-0.2, 0.1, 1.3, 0.5], "phrases": ["a chick"]}, {"box": [0, 0, 1, 1], "phrases": ["a cup"]}]
    sample, counts = parse_sample({"png": PNG, "json": as_json(regions=regions)}, "key", "toy")
    assert [region.box for region in sample.regions] == [(0.0, 0.1, 1.0, 0.5), (0.0, 0.0, 1.0, 1.0)]
    assert counts == {"box_clipped": 1}


def test_ten_thousand_regions() -> None:
    regions = [{"box": GOOD_BOX, "phrases": ["a chick"]}] * 10_000
    sample, counts = parse_sample({"png": PNG, "json": as_json(regions=regions)}, "key", "toy")
    assert len(sample.regions) == schema.MAX_REGIONS
    assert counts == {"too_many_regions": 9_000}


def test_captions_and_plain_shards() -> None:
    record = as_json(captions=["🐤 a chick ", "", "b"], color="red")
    sample, counts = parse_sample({"JPG": PNG, "json": record}, "key", "toy")
    assert (sample.captions, counts) == (("🐤 a chick", "b"), {"empty_caption": 1})
    assert (sample.extension, sample.source, sample.extra) == ("jpg", "toy", {"color": "red"})
    assert parse_sample({"jpg": PNG, "txt": "Küken".encode()}, "k", "t")[0].captions == ("Küken",)
    both = {"jpg": PNG, "txt": b"from txt", "json": as_json(caption="from json", width=None, url="u")}
    assert parse_sample(both, "k", "t")[0].captions == ("from txt",)
    del both["txt"]
    assert parse_sample(both, "k", "t")[0].captions == ("from json",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "corrupt_image"),
        (b"not a picture", "corrupt_image"),
        (PNG[:20], "corrupt_image"),
        (png_header(9_000, 9_000), "decompression_bomb"),
        (png_header(60_000, 60_000), "decompression_bomb"),
    ],
)
def test_size_of_bad_picture(data: bytes, reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        decode_rgb(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize(("orientation", "size"), [(1, (8, 6)), (3, (8, 6)), (6, (6, 8)), (8, (6, 8))])
def test_size_is_that_of_the_upright_picture(orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode_rgb(picture("JPEG", exif=exif)).shape == (3, *reversed(size))


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/etc/a.png"])
def test_names_that_escape_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ShardError, match="escapes"):
        index_shard(write_tar(tmp_path / "x.tar", [("ok.png", PNG), (name, PNG)]))


@pytest.mark.parametrize(
    "names",
    [["a.png", "a.png"], ["a.png", "a.PNG"], ["a.png", "b.png", "a.json"], ["a.png", "a.json", "b.png", "a.png"]],
)
def test_duplicate_keys_in_a_shard_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ShardError, match="comes twice|side by side"):
        index_shard(write_tar(tmp_path / "x.tar", [(name, PNG) for name in names]))


@pytest.mark.parametrize("keep", [700, 1500, 4000, 5130])
def test_truncated_tar_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_tar(tmp_path / "x.tar", [(f"{i}.png", b"x" * 900) for i in range(8)])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ShardError, match=r"x\.tar"):
        index_shard(path)


def test_damage_in_the_middle_of_a_tar_is_not_taken_for_its_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [(f"{i}.png", b"x" * 900) for i in range(4)])
    data = bytearray(path.read_bytes())
    data[2 * 1536 : 2 * 1536 + 512] = b"\xaa" * 512
    path.write_bytes(data)
    with pytest.raises(ShardError, match="damaged at byte 3072"):
        index_shard(path)


def test_empty_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [])
    write_tar(tmp_path / "b.tar", [("k.png", PNG), ("k.txt", b"a chick")])
    assert [shard.samples for shard in load_manifest(tmp_path).shards] == [0, 1]
    (tmp_path / "c.tar").write_bytes(b"")
    with pytest.raises(ShardError, match=r"c\.tar"):
        load_manifest(tmp_path)


def test_links_and_folders_hold_no_sample(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("k.png", b"")], type=tarfile.SYMTYPE, linkname="/etc/passwd")
    assert index_shard(path).samples == 0


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was loaded",)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    members = [
        ("k.png", PNG),
        ("k.txt", b"a chick"),
        ("k.pyd", pickle.dumps(_Bomb())),
        ("k.pkl", pickle.dumps(_Bomb())),
    ]
    write_tar(tmp_path / "x.tar", members)
    assert check(tmp_path).ok


def test_check_counts_by_reason_with_keys(tmp_path: Path) -> None:
    noisy = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(noisy, "JPEG")
    text = b"a chick"
    members = [("good.png", PNG), ("good.txt", text), ("cut.jpg", noisy.getvalue()[:300]), ("cut.txt", text)]
    members += [("lone.txt", text), ("mute.png", PNG), ("bomb.png", png_header(9_000, 9_000)), ("bomb.txt", text)]
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "b.tar", [("good.png", PNG), ("good.txt", text)])
    result = check(tmp_path)
    assert not result.ok and result.manifest_written
    assert (result.samples, result.usable) == (6, 2)
    reasons = {"corrupt_image": 1, "no_image": 1, "no_caption_and_no_region": 1, "decompression_bomb": 1}
    assert result.bad == reasons
    assert [one.key for one in result.tally.bad if one.reason == "corrupt_image"] == ["cut"]
    assert result.duplicates == {"good": 2}
    assert not check(tmp_path).manifest_written


@pytest.mark.parametrize("mode", ["CMYK", "L", "I;16", "RGBA", "LA", "P", "1"])
def test_every_color_mode_decodes(tmp_path: Path, mode: str) -> None:
    buffer = io.BytesIO()
    kind = "JPEG" if mode == "CMYK" else "PNG"
    Image.new(mode, (9, 7), 1 if mode in ("1", "P", "L", "I;16") else None).save(buffer, kind)
    write_tar(tmp_path / "x.tar", [(f"k.{'jpg' if kind == 'JPEG' else 'png'}", buffer.getvalue()), ("k.txt", b"x")])
    result = check(tmp_path)
    assert result.ok, result.tally.bad
