"""Boxes in other orders and units: converted when told, recognized when not, and never vanished or wrong in silence."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from cloc.__main__ import app
from cloc.data.boxes import BOX_KINDS, fit, likely_kinds, normalize_box, observe, parse_box
from cloc.data.convert.conversion import convert
from cloc.data.inspect.check import check
from cloc.data.inspect.check_report import print_check, to_json
from cloc.data.shards.tars import ShardError
from tests.kit.sources import HEIGHT, WIDTH, image, jpeg, read_samples, write_coco, write_members
from tests.kit.sources import box as coco_box

QUIET = Console(quiet=True)
SCALES = {"normalized": (1, 1), "percent": (100, 100), "thousand": (1000, 1000), "pixels": (WIDTH, HEIGHT)}
BOXES = [(0.1, 0.1, 0.4, 0.3), (0.5, 0.2, 0.95, 0.9), (0.05, 0.6, 0.3, 0.98), (0.55, 0.55, 0.7, 0.6)]
BOXES += [(0.02, 0.03, 0.2, 0.1), (0.6, 0.05, 0.9, 0.5), (0.4, 0.7, 0.99, 0.97), (0.3, 0.3, 0.35, 0.8)]


def spell(box: tuple[float, ...], kind: str) -> list[float]:
    """Write an xyxy box in 0..1 as somebody else would."""
    layout, unit = kind.split("_")
    across, down = SCALES[unit]
    x0, y0, x1, y1 = box[0] * across, box[1] * down, box[2] * across, box[3] * down
    written = {
        "xyxy": [x0, y0, x1, y1],
        "xywh": [x0, y0, x1 - x0, y1 - y0],
        "cxcywh": [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0],
        "yxyx": [y0, x0, y1, x1],
    }[layout]
    return [round(value, 4) for value in written]


def write_jsonl(folder: Path, *regions: list[Any], captions: bool = True, **more: Any) -> Path:
    """One picture a list of regions; captions keep the pictures when all boxes are lost."""
    (folder / "x.jpg").write_bytes(jpeg())
    lines = [
        {"image": "x.jpg", "regions": own, **({"captions": ["a view"]} if captions else {}), **more} for own in regions
    ]
    path = folder / "set.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def regions_as(kind: str, key: str = "box") -> list[list[dict[str, Any]]]:
    return [[{key: spell(box, kind), "phrases": ["a thing"]}] for box in BOXES]


def found_boxes(folder: Path) -> list[list[tuple[float, ...]]]:
    return [[region.box for region in sample.regions] for sample in read_samples(folder).values()]


@pytest.mark.parametrize("kind", BOX_KINDS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_every_kind_says_the_same(kind: str, values: list[float]) -> None:
    x0, x1, y0, y1 = sorted(values[:2]) + sorted(values[2:])
    box = normalize_box(spell((x0, y0, x1, y1), kind), kind, (WIDTH, HEIGHT))
    assert box == pytest.approx([x0, y0, x1, y1], abs=2e-4)


@pytest.mark.parametrize("value", [None, "x", [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, True], {"x": 1}, 10**400])
def test_what_is_no_box_stays_for_the_parser(value: Any) -> None:
    assert normalize_box(value, "xywh_pixels", (10, 10)) is value


def test_numbers_beyond_float64_are_no_coordinates() -> None:
    counts: Counter[str] = Counter()
    assert parse_box(normalize_box([10**400, 0, 1, 1], "xywh_pixels", (10, 10)), counts) is None
    assert counts == {"box_not_finite": 1}
    observe([[10**400, 0, 1, 1], [float("nan"), 0, 1, 1], None, [1e308] * 4], (10, 10), "xywh_pixels", counts)
    assert counts["boxes"] == 1


@pytest.mark.parametrize("told", ["xyxy_normalized", "xywh_pixels"])
@pytest.mark.parametrize("kind", [kind for kind in BOX_KINDS if not kind.startswith("yxyx")])
def test_the_kind_is_recognized(told: str, kind: str) -> None:
    seen: Counter[str] = Counter()
    observe([spell(box, kind) for box in BOXES], (WIDTH, HEIGHT), told, seen)
    assert fit(seen, kind) == 1
    assert kind == told or likely_kinds(seen, told)[0] == kind


@pytest.mark.parametrize("kind", [kind for kind in BOX_KINDS if kind != "xyxy_normalized" and "yxyx" not in kind])
def test_jsonl_in_another_kind_is_refused_and_converted_when_told(tmp_path: Path, kind: str) -> None:
    source = write_jsonl(tmp_path, *regions_as(kind))
    with pytest.raises(ValueError, match=rf"look like {kind}.*--boxes {kind} --overwrite.*--max-drop-share"):
        convert("jsonl", source, tmp_path / "out", console=QUIET)
    assert not (tmp_path / "out/manifest.json").exists()
    convert("jsonl", source, tmp_path / "out", boxes=kind, overwrite=True, console=QUIET)
    for (found,), box in zip(found_boxes(tmp_path / "out"), BOXES, strict=True):
        assert found == pytest.approx(box, abs=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in BOX_KINDS if kind != "xywh_pixels" and "yxyx" not in kind])
def test_coco_in_another_kind_is_refused_and_converted_when_told(tmp_path: Path, kind: str) -> None:
    annotations = [coco_box(n, n % 8, bbox=spell(box, kind)) for n, box in enumerate(BOXES * 2)]
    source = write_coco(tmp_path / "in", [image(n, f"{n}.jpg") for n in range(8)], annotations)
    with pytest.raises(ValueError, match=rf"look like {kind}.*--boxes {kind} --overwrite"):
        convert("coco", source, tmp_path / "out", console=QUIET)
    convert("coco", source, tmp_path / "out", boxes=kind, overwrite=True, console=QUIET)
    for (found, _), box in zip(found_boxes(tmp_path / "out"), BOXES, strict=True):
        assert found == pytest.approx(box, abs=1e-4)


def test_without_captions_the_records_are_left_out_and_the_kind_is_told(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path, *regions_as("xyxy_thousand"), captions=False)
    with pytest.raises(ValueError, match=r"8 of 8 records.*no_caption_and_no_region 8.*--boxes xyxy_thousand"):
        convert("jsonl", source, tmp_path / "out", console=QUIET)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("name", ["max_skip_share", "max_drop_share"])
def test_what_is_no_share(tmp_path: Path, name: str, share: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={share}: a share is within 0..1"):
        convert("jsonl", write_jsonl(tmp_path, []), tmp_path / "out", console=QUIET, **{name: share})


def test_a_kind_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boxes='xyxy': there is no such kind of box; the kinds are xyxy_normalized"):
        convert("jsonl", write_jsonl(tmp_path, []), tmp_path / "out", boxes="xyxy", console=QUIET)


FOUR = spell(BOXES[0], "xywh_pixels")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"regions": [{"bbox": FOUR, "phrases": ["a"]}]}, r"region_without_box 1.*'bbox'.*box is read"),
        ({"regions": [{"box": [0, 0, 1, 1], "caption": "a"}]}, r"region_without_phrase 1.*'caption'.*phrases is read"),
        ({"regions": [{"box": {"x": 1, "y": 2, "w": 3, "h": 4}, "phrases": ["a"]}]}, "box_malformed 1"),
        ({"regions": [{"box": ["0", "0", "1", "1"], "phrases": ["a"]}]}, "box_malformed 1"),
        ({"boxes": [FOUR, FOUR]}, r"2 of 2 regions.*regions_under_another_key 2.*'boxes' holds"),
        ({"regions": [], "bboxes": [FOUR]}, "regions_under_another_key 1"),
        ({"regions": None, "bbox": FOUR}, "regions_under_another_key 1"),
        ({"objects": {"bbox": [FOUR, FOUR], "category": [1, 2]}}, "regions_under_another_key 2"),
        ({"annotations": [{"bbox": FOUR, "label": "a"}]}, "regions_under_another_key 1"),
        ({"things": [{"bbox": FOUR}, {"Box": FOUR}, {"text": "no box"}]}, "regions_under_another_key 2"),
        ({"objects": [{"x": 1, "y": 2, "width": 3, "height": 4}]}, "regions_under_another_key 1"),
        ({"detections": [{"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}]}, "regions_under_another_key 1"),
        ({"objects": [{"bndbox": {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}}]}, "regions_under_another_key 1"),
    ],
)
def test_regions_under_other_names_do_not_vanish(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    (tmp_path / "x.jpg").write_bytes(jpeg())
    source = tmp_path / "set.jsonl"
    source.write_text(json.dumps({"image": "x.jpg", "captions": ["a view"]} | line))
    with pytest.raises(ValueError, match=message):
        convert("jsonl", source, tmp_path / "out", console=QUIET)
    folder = write_members(tmp_path / "shards", {"k": {"jpg": jpeg(), "json": {"captions": ["a"]} | line}})
    found = check(folder, fix=tmp_path / "copy")
    assert not found.ok and found.usable == 1 and found.region_fault is not None
    assert found.fixed is None or check(tmp_path / "copy").ok


@pytest.mark.parametrize(
    "line",
    [{"camera": [1, 2, 3, 4]}, {"matrix": [[1, 0, 0, 0]] * 4}, {"objects": ["a", "b"]}, {"labels": [1, 2, 3, 4, 5]}],
)
def test_what_is_no_box_is_no_region(tmp_path: Path, line: dict[str, Any]) -> None:
    folder = write_members(tmp_path / "set", {"k": {"jpg": jpeg(), "json": {"captions": ["a"]} | line}})
    assert check(folder).ok and read_samples(folder)["k"].extra == line


def test_few_bad_boxes_are_dropped_and_many_are_not(tmp_path: Path) -> None:
    good = regions_as("xyxy_normalized") * 5
    bad = [[{"box": [0.5, 0.5, 0.2, 0.2], "phrases": ["a"]}]] * 5
    source = write_jsonl(tmp_path, *good, *bad)
    with pytest.raises(
        ValueError, match=r"5 of 45 regions are dropped, more than max_drop_share=0\.1 \(box_inverted 5\)"
    ):
        convert("jsonl", source, tmp_path / "out", console=QUIET)
    shown = io.StringIO()
    done = convert("jsonl", source, tmp_path / "out", max_drop_share=0.2, console=Console(file=shown, width=200))
    assert done.report.counts["regions"] == 40
    assert "dropped: box_inverted" in shown.getvalue() and "mended" not in shown.getvalue()


def test_boxes_that_reach_out_a_little_are_no_fault(tmp_path: Path) -> None:
    out = [[{"box": [0.2, 0.1, 1.001, 0.9], "phrases": ["a"]}]] * 9
    shown = io.StringIO()
    done = convert("jsonl", write_jsonl(tmp_path, *out), tmp_path / "out", console=Console(file=shown, width=200))
    assert done.report.mended == {"box_clipped": 9} and "mended: box_clipped" in shown.getvalue()


def test_another_kind_is_told_after_a_thousand_boxes(tmp_path: Path) -> None:
    own = [region for (region,) in regions_as("xyxy_pixels")] * 25
    source = write_jsonl(tmp_path, *[own] * 8)
    with pytest.raises(ValueError, match=r"1,000 of 1,000 regions.*--boxes xyxy_pixels"):
        convert("jsonl", source, tmp_path / "out", samples_per_shard=1, console=QUIET)


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([[0.0002, 0.0003, 0.0008, 0.0009]] * 4, "4 are smaller than a pixel"),
        ([[0.1, 0.1, 1.4, 1.4]] * 4, "4 reach out of their pictures"),
        ([spell(box, "xywh_normalized") for box in BOXES], "look like xywh_normalized"),
        ([spell(box, "xyxy_thousand") for box in BOXES], "look like xyxy_thousand"),
    ],
)
def test_check_says_that_shards_hold_another_kind(tmp_path: Path, boxes: list[Any], words: str) -> None:
    records = {f"k{n}": {"captions": ["a"], "regions": [{"box": box, "phrases": ["a"]}]} for n, box in enumerate(boxes)}
    folder = write_members(tmp_path / "set", {key: {"jpg": jpeg(), "json": record} for key, record in records.items()})
    found = check(folder, fix=tmp_path / "copy")
    assert not found.ok and found.fixed is None and not (tmp_path / "copy").exists()
    shown = io.StringIO()
    print_check(found, Console(file=shown, width=200))
    assert words in shown.getvalue() and words in to_json(found)["region_fault"]
    assert check(folder, max_drop_share=1).ok
    done = CliRunner().invoke(app, ["data", "check", str(folder), "--no-index"])
    assert done.exit_code == 1 and words in done.output


def test_check_names_dropped_regions_and_fix_leaves_them_out(tmp_path: Path) -> None:
    good, bad = {"box": [0, 0, 0.5, 0.5], "phrases": ["a"]}, {"box": [0.5, 0.5, 0.2, 0.2], "phrases": ["a"]}
    record = {"captions": ["a"], "regions": [good] * 7 + [bad]}
    folder = write_members(tmp_path / "set", {"k": {"jpg": jpeg(), "json": record}})
    found = check(folder, fix=tmp_path / "copy")
    assert not found.ok and "k (x.tar #0)" in found.tally.examples["box_inverted"][0]
    assert to_json(found)["dropped"] == {"box_inverted": 1} and to_json(found)["mended"] == {}
    assert check(tmp_path / "copy").ok


@pytest.mark.parametrize("size", [{"width": 0, "height": 0}, {"width": None, "height": None}, {}])
def test_where_no_size_is_stated_boxes_are_of_the_picture_itself(tmp_path: Path, size: dict[str, Any]) -> None:
    source = write_jsonl(tmp_path, *regions_as("xywh_pixels"), **size)
    convert("jsonl", source, tmp_path / "out", boxes="xywh_pixels", console=QUIET)
    assert found_boxes(tmp_path / "out")[0][0] == pytest.approx(BOXES[0])


@pytest.mark.parametrize("side", ["600", -600, True, [600], float("nan"), 10**400])
def test_a_size_that_is_none_is_counted(tmp_path: Path, side: Any) -> None:
    source = write_jsonl(tmp_path, *regions_as("xywh_pixels"), width=side, height=400)
    with pytest.raises((ValueError, ShardError), match="8 of 8 records.*bad_json"):
        convert("jsonl", source, tmp_path / "out", boxes="xywh_pixels", console=QUIET)


def test_the_options_on_the_command_line(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path, *regions_as("cxcywh_normalized"))
    command = ["data", "convert", "jsonl", str(source), str(tmp_path / "out")]
    assert CliRunner().invoke(app, command).exit_code == 1
    assert CliRunner().invoke(app, [*command, "--boxes", "cxcywh_normalized", "--overwrite"]).exit_code == 0
