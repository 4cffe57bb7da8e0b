"""What conversion makes of pictures: encoded anew where shards do not hold their format, boxes turned with them."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from cloc.contracts import BadSample
from cloc.data.convert import picture_bytes
from cloc.data.convert.conversion import convert
from cloc.data.convert.picture_bytes import prepare, turn_box
from cloc.data.convert.records import Recipe, Record, build_samples
from cloc.data.decode import decode_rgb
from cloc.data.jobs.report import Report
from cloc.data.shards.tars import ShardError
from tests.kit.sources import box, image, jpeg, read_samples, write, write_coco

QUIET = Console(quiet=True)


def encoded(format: str, size: tuple[int, int] = (40, 20), **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    picture.paste((250, 10, 20), (0, 0, size[0] // 2, size[1] // 2))
    picture.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("format", "options", "made"),
    [
        ("BMP", {}, "BMP as PNG"),
        ("TIFF", {}, "TIFF as PNG"),
        ("GIF", {}, "GIF as PNG"),
        ("AVIF", {}, "AVIF as JPEG"),
        ("JPEG2000", {}, "JPEG 2000 as JPEG"),
    ],
)
def test_formats_that_shards_do_not_hold_are_encoded_anew(format: str, options: dict[str, Any], made: str) -> None:
    data = encoded(format, **options)
    done = prepare(format.lower(), data, "auto")
    assert (done.reencoded, done.size, done.extension) == (made, (40, 20), "png" if made.endswith("PNG") else "jpg")
    difference = (decode_rgb(done.image).float() - decode_rgb(data).float()).abs()
    assert difference.max() == 0 if done.extension == "png" else difference.mean() < 4
    assert prepare("bmp", data, "jpeg").extension == "jpg" and prepare("bmp", data, "png").extension == "png"
    with pytest.raises(BadSample, match="--reencode auto") as caught:
        prepare(format.lower(), data, "never")
    assert caught.value.reason == "no_image"


def test_the_first_frame_of_a_gif_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert decode_rgb(prepare("gif", buffer.getvalue(), "auto").image)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("extension", "format", "kept"), [("", "JPEG", "jpg"), ("jfif", "JPEG", "jpg"), ("", "PNG", "png")]
)
def test_what_a_name_does_not_say_the_content_does(extension: str, format: str, kept: str) -> None:
    data = encoded(format)
    assert prepare(extension, data, "never") == (kept, data, (40, 20), "")


@pytest.mark.parametrize("extension", ["txt", "", "bmp", "heic"])
def test_what_is_no_picture(extension: str) -> None:
    with pytest.raises(BadSample) as caught:
        prepare(extension, b"no picture at all", "auto")
    assert caught.value.reason == "no_image"


def test_a_damaged_one_is_refused() -> None:
    with pytest.raises(BadSample, match="corrupt_image"):
        prepare("tif", encoded("TIFF")[:300], "auto")


def test_heic_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    data = b"\0\0\0\x18ftypheic" + bytes(100)
    with pytest.raises(BadSample, match=r"pip install 'cloc-pretrain\[heic\]'"):
        prepare("heic", data, "auto")
    with pytest.raises(BadSample, match="no_image"):
        prepare("jpg", data, "auto")  # as phones and mail programs name them


@pytest.mark.parametrize("name", ["heic", "jpg"])
def test_heic(name: str) -> None:
    heif = pytest.importorskip("pillow_heif")
    picture = Image.new("RGB", (64, 32), (200, 50, 50))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    heif.from_pillow(picture).save(buffer, exif=exif.tobytes())
    done = prepare(name, buffer.getvalue(), "auto")
    assert (done.extension, done.reencoded) == ("jpg", "HEIC as JPEG") and sorted(done.size) == [32, 64]
    assert tuple(decode_rgb(done.image).shape[1:]) == done.size[::-1]
    with pytest.raises(BadSample, match="corrupt_image"):
        prepare(name, buffer.getvalue()[:-200], "auto")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture_bytes, "MAX_PIXELS", 1000)
        with pytest.raises(BadSample, match="decompression_bomb"):
            prepare(name, buffer.getvalue(), "auto")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_stored_pixels_are_turned_with_their_picture(tmp_path: Path, orientation: int) -> None:
    """The red part of the stored picture is where the turned box says, whatever EXIF does to it."""
    picture = Image.new("RGB", (80, 40), "white")
    picture.paste((255, 0, 0), (8, 4, 24, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    region = {"box": [8, 4, 24, 24], "phrases": ["red"]}
    lines = tmp_path / "set.jsonl"
    records = [{"image": "a.png", "regions": [region], **size} for size in ({}, {"width": 80, "height": 40})]
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    done = convert("jsonl", lines, tmp_path / "out", orientation="raw", boxes="xyxy_pixels", console=QUIET)
    assert done.report.pictures == ({"boxes turned with the picture": 2} if orientation > 1 else {})
    for sample in read_samples(tmp_path / "out").values():
        assert (sample.width, sample.height) == ((40, 80) if orientation > 4 else (80, 40))
        x0, y0, x1, y1 = sample.regions[0].box
        red = decode_rgb(sample.image)[1] == 0
        rows, columns = red.any(1).nonzero().flatten() / red.shape[0], red.any(0).nonzero().flatten() / red.shape[1]
        pixel = (1 / red.shape[1], 1 / red.shape[0])
        found = (columns[0], rows[0], columns[-1] + pixel[0], rows[-1] + pixel[1])
        assert [float(value) for value in found] == pytest.approx([x0, y0, x1, y1], abs=1e-5)


def test_turning_back_and_forth() -> None:
    opposite = {6: 8, 8: 6}
    for orientation in range(1, 9):
        there = turn_box((0.1, 0.2, 0.4, 0.9), orientation)
        assert turn_box(there, opposite.get(orientation, orientation)) == pytest.approx((0.1, 0.2, 0.4, 0.9))


def turned(folder: Path, size: tuple[int, int]) -> Path:
    """A picture of 600×400 as stored that is 400×600 upright, and COCO's object that states a size."""
    write_coco(folder, [image(1, "a.jpg", width=size[0], height=size[1])], [box(1, 1, bbox=[60, 40, 120, 200])])
    exif = Image.Exif()
    exif[0x0112] = 6
    write(folder / "val2017/a.jpg", encoded("JPEG", (600, 400), exif=exif))
    return folder


@pytest.mark.parametrize(
    ("orientation", "size", "expected"),
    [
        ("raw", (600, 400), (0.4, 0.1, 0.9, 0.3)),
        ("stated", (600, 400), (0.1, 0.1, 0.3, 0.6)),
        ("upright", (400, 600), (0.15, 40 / 600, 0.45, 0.4)),
        ("stated", (400, 600), (0.15, 40 / 600, 0.45, 0.4)),
        ("upright", (600, 400), "--orientation raw.*--orientation stated"),
        ("raw", (400, 600), "400×600; --orientation upright"),
        ("raw", (500, 500), "shape_conflict"),
    ],
)
def test_what_boxes_mean(tmp_path: Path, orientation: str, size: tuple[int, int], expected: Any) -> None:
    source = turned(tmp_path / "in", size)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            convert("coco", source, tmp_path / "out", orientation=orientation, console=QUIET)
        return
    convert("coco", source, tmp_path / "out", orientation=orientation, console=QUIET)
    sample = read_samples(tmp_path / "out")["a"]
    assert sample.regions[0].box == pytest.approx(expected, abs=1e-5) and (sample.width, sample.height) == (400, 600)


@pytest.mark.parametrize("option", [{"orientation": "sideways"}, {"reencode": "bmp"}])
def test_options_that_are_none(tmp_path: Path, option: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="is needed"):
        convert("coco", tmp_path, tmp_path / "out", console=QUIET, **option)


@dataclass(frozen=True)
class Cell:
    """A picture that is no file."""

    data: bytes

    def read(self) -> tuple[str, bytes]:
        if not self.data:
            raise BadSample("image_unreadable", "row 7: an empty cell")
        return ".PNG" if self.data[1:4] == b"PNG" else "", self.data


def test_a_picture_can_be_anything_that_is_read() -> None:
    cells = [encoded("PNG"), jpeg(), encoded("BMP"), b""]
    told = {"captions": ["a bus"]}
    records = [Record(f"row {number}", f"k{number}", Cell(data), told) for number, data in enumerate(cells)]
    report = Report()
    samples = list(build_samples(records, Recipe("set"), report))
    assert [sample.extension for sample in samples] == ["png", "jpg", "png"]
    assert report.skipped == {"image_unreadable": 1} and report.pictures == {"encoded anew: BMP as PNG": 1}
    assert report.lost == {"captions": 1, "regions": 0}


def test_background_pictures_are_no_fault(tmp_path: Path) -> None:
    images = [image(number, f"{number}.jpg") for number in range(8)]
    write_coco(tmp_path / "in", images, [box(number, number) for number in range(3)])
    shown = io.StringIO()
    done = convert("coco", tmp_path / "in", tmp_path / "out", max_skip_share=0, console=Console(file=shown, width=200))
    assert done.report.given["background"] == 5 and done.report.counts["samples"] == 3 and not done.report.skipped
    assert "nothing to learn from\t5" in shown.getvalue()
    assert "5 of 8 pictures have neither box nor caption; if they should" in shown.getvalue()


def test_background_pictures_hide_no_other_fault(tmp_path: Path) -> None:
    images = [image(number, f"{number}.jpg") for number in range(8)]
    write_coco(tmp_path / "in", images, [box(0, 0), box(1, 1, bbox=[0, 0, 0, 0])])
    with pytest.raises(ValueError, match=r"1 of 2 records were left out.*no_caption_and_no_region 1"):
        convert("coco", tmp_path / "in", tmp_path / "out", max_skip_share=0.4, max_drop_share=1, console=QUIET)
    write_coco(tmp_path / "none", images, [])
    with pytest.raises(ShardError, match="all 8 pictures have neither box nor caption"):
        convert("coco", tmp_path / "none", tmp_path / "out2", console=QUIET)
