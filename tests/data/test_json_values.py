"""JSON that Python takes and nothing behind it can use: the sample is bad or the value mended, and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloc.contracts import BadSample
from cloc.data.convert.conversion import convert
from cloc.data.convert.formats.files import json_items
from cloc.data.inspect.check import check
from cloc.data.json_values import MAX_DEPTH
from cloc.data.sample import encode_json, parse_sample
from cloc.data.shards.index import index_folder, load_manifest, write_manifest
from tests.data.test_bad_input import GOOD_BOX, PNG, write_tar
from tests.kit.streams import make_stream

HUGE = "9" * 400
DEEP = "[" * 500 + "]" * 500
NUMBERS = (HUGE, f"-{HUGE}", "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "true", '"1"', "[]", "{}", DEEP)

REGION = '{"box": [0.1, 0.1, 0.5, 0.5], "phrases": ["a cup"], "score": 0.5}'
GRIT = '{"caption": "a cup", "width": 9, "height": 9, "original_width": 9, "original_height": 9, '
GRIT += '"ref_exps": [[0, 5, 0.1, 0.1, 0.5, 0.5, 0.9]]}'
# A place where a number stands → the text around it.
PLACES: dict[str, str] = {
    "width": '{"captions": ["x"], "width": %s}',
    "height": '{"captions": ["x"], "height": %s}',
    "score": '{"captions": ["x"], "regions": [' + REGION.replace("0.5}", "%s}") + "]}",
    "box": '{"captions": ["x"], "regions": [' + REGION.replace("[0.1,", "[%s,") + "]}",
    "crowd": '{"captions": ["x"], "regions": [' + REGION.replace("0.5}", '0.5, "crowd": %s}') + "]}",
    "coco_id": '{"captions": ["x"], "coco_id": %s}',
    "captions": '{"captions": [%s, "x"]}',
    "regions": '{"captions": ["x"], "regions": [%s]}',
    "original_width": GRIT.replace('"original_width": 9', '"original_width": %s'),
    "a side of GRIT": GRIT.replace('"width": 9', '"width": %s'),
    "start": GRIT.replace("[[0,", "[[%s,"),
    "end": GRIT.replace(" 5,", " %s,"),
    "a box of GRIT": GRIT.replace(" 5, 0.1,", " 5, %s,"),
    "a score of GRIT": GRIT.replace("0.9]", "%s]"),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_number_ends_indexing_checking_conversion_or_training(place: str, tmp_path: Path) -> None:
    records = [PLACES[place] % number for number in NUMBERS]
    members = [(f"good.{end}", data) for end, data in (("png", PNG), ("txt", b"x"))]
    for number, record in enumerate(records):
        members += [(f"k{number}.png", PNG), (f"k{number}.json", record.encode())]
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set" / "x.tar", members)
    assert load_manifest(tmp_path / "set").samples == len(NUMBERS) + 1
    found = check(tmp_path / "set", index=False)
    assert found.samples == found.usable + sum(found.bad.values()) and found.bad.keys() <= {"bad_json"}
    (tmp_path / "k.png").write_bytes(PNG)
    lines = ['{"image": "k.png", ' + record[1:] for record in (*records, '{"captions": ["x"]}')]
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    report = convert("jsonl", tmp_path / "set.jsonl", tmp_path / "out", max_skip_share=1, max_drop_share=1).report
    assert report.given["records"] == len(lines) == report.counts["samples"] + report.skipped.total()
    batch = next(iter(make_stream(load_manifest(tmp_path / "set"), max_skip_share=1)))
    assert {name for name in batch.stats if name.startswith("skipped/")} <= {"skipped/bad_json"}


def parsed(record: str) -> Any:
    return parse_sample({"png": PNG, "json": record.encode()}, "k", "set")


@pytest.mark.parametrize("number", [HUGE, "1e999", "NaN", "true", "-1", '"9"'])
def test_a_size_is_a_number_of_pixels(number: str) -> None:
    with pytest.raises(BadSample, match="width is .*a number of pixels is needed") as caught:
        parsed(PLACES["width"] % number)
    assert caught.value.reason == "bad_json" and len(str(caught.value)) < 200


@pytest.mark.parametrize("number", [HUGE, "1e999", "NaN", "true", '"1"', DEEP])
def test_a_score_is_mended(number: str) -> None:
    sample, counts = parsed(PLACES["score"] % number)
    assert sample.regions[0].score is None and counts == {"score_malformed": 1}


@pytest.mark.parametrize(("number", "reason"), [(HUGE, "box_not_finite"), ("true", "box_malformed")])
def test_a_box_is_dropped(number: str, reason: str) -> None:
    sample, counts = parsed(PLACES["box"] % number)
    assert not sample.regions and counts == {reason: 1}


@pytest.mark.parametrize("record", ['{"captions": ["x"], "a": %s}' % ("9" * 5000), "[" * 100_000, '{"a":' * 100_000])
def test_what_python_itself_refuses_is_bad_json(record: str) -> None:
    with pytest.raises(BadSample) as caught:
        parsed(record)
    assert caught.value.reason == "bad_json" and "\n" not in str(caught.value)


def test_what_is_kept_can_be_written_again() -> None:
    nested = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    sample, _ = parsed(f'{{"captions": ["x"], "a": {nested[1:-1]}, "a2": NaN, "captions": ["last"]}}')
    assert sample.captions == ("last",)
    assert json.loads(encode_json(sample))["captions"] == ["last"]
    with pytest.raises(BadSample, match="nested deeper"):
        parsed(f'{{"captions": ["x"], "a": {DEEP}}}')


def test_a_category_that_utf8_cannot_hold_stays_out_of_the_manifest(tmp_path: Path) -> None:
    region = {"box": GOOD_BOX, "phrases": ["a cup"]}
    record = {"captions": ["x"], "regions": [region | {"category": "\ud800"}, region | {"category": "cup"}]}
    write_tar(tmp_path / "x.tar", [("k.png", PNG), ("k.json", json.dumps(record).encode())])
    manifest = index_folder(tmp_path)
    write_manifest(manifest)
    assert manifest.categories == ("cup",) and load_manifest(tmp_path) == manifest


@pytest.mark.parametrize(
    "value", [HUGE, "1e999", "NaN", "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000, '"\xff"', "1", "", "0123"]
)
def test_large_files_are_refused_in_a_line_or_read(value: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(f'{{"images": [{{"id": {value}}}]}}'.encode("latin-1"))
    try:
        found = list(json_items(path, "images.item"))
    except ValueError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert found == [{"id": 1}]
