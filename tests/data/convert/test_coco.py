"""COCO's layout as others write it: texts of boxes, grounding files, ids, groups, categories that are none."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cloc.config import ConfigError, DataConfig, TrainConfig
from cloc.contracts import Region
from cloc.data.convert.conversion import Conversion, convert
from cloc.data.convert.formats.coco import TEXT_KEYS
from cloc.data.convert.formats.ids import id_of
from cloc.data.inspect.check import check
from cloc.data.inspect.check_report import print_check, to_json
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.index import load_manifest
from cloc.data.stream.sources import ShardSource, ShardSources
from cloc.engine.pretrain_data import check_data
from tests.kit.sources import box, image, read_samples, write, write_coco, write_members

QUIET = Console(quiet=True)
HALF = (0.0, 0.0, 0.5, 1.0)


def run(tmp_path: Path, **options: Any) -> tuple[Conversion, dict[str, Any]]:
    done = convert("coco", tmp_path / "in", tmp_path / "out", console=QUIET, **options)
    return done, read_samples(tmp_path / "out")


@pytest.mark.parametrize("key", TEXT_KEYS)
@pytest.mark.parametrize("value", ["a red bus", ["a red bus"], [{"sent": "a red bus"}], [{"raw": "a red bus"}]])
def test_texts_of_a_box_are_its_phrases(tmp_path: Path, key: str, value: Any) -> None:
    write_coco(tmp_path / "in", [image(1, "a.jpg")], [box(1, 1, **{key: value})])
    _, samples = run(tmp_path)
    assert samples["a"].regions == (Region(HALF, ("a red bus", "bus"), "bus"),) and samples["a"].captions == ()


@pytest.mark.parametrize("no_box", [{}, {"bbox": None}, {"bbox": []}])
def test_a_text_without_a_box_is_one_of_the_picture(tmp_path: Path, no_box: dict[str, Any]) -> None:
    told = {"id": 1, "image_id": 1, "caption": "a street", **no_box}
    write_coco(tmp_path / "in", [image(1, "a.jpg", caption="a bus")], [told, box(2, 1, caption=None)])
    _, samples = run(tmp_path)
    assert samples["a"].captions == ("a bus", "a street") and samples["a"].regions[0].phrases == ("bus",)


CAPTION = "Two men in green shirts stand by the bus"
OBJECT = [{"id": 1, "name": "object", "supercategory": "object"}]


@pytest.mark.parametrize(
    ("spans", "phrases", "counts"),
    [
        ([[0, 7]], ("Two men",), {}),
        ([[0, 7], [11, 23]], ("Two men", "green shirts"), {}),
        ([[0, 7], [0, 7]], ("Two men",), {}),
        ([0, 7], ("Two men",), {}),
        ([[0.0, 7.0]], ("Two men",), {}),
        ([[0, 7], [0, 999]], ("Two men",), {"phrase_span_malformed": 1}),
        ([[0, 7], [7, 0], [-3, 2], ["0", 7], [0], None], ("Two men",), {"phrase_span_malformed": 5}),
        ([[0, 999]], None, {"phrase_span_malformed": 1, "region_without_phrase": 1}),
        ("0:7", None, {"phrase_span_malformed": 1, "region_without_phrase": 1}),
        ([], None, {"region_without_phrase": 1}),
    ],
)
def test_spans_point_into_the_caption(tmp_path: Path, spans: Any, phrases: Any, counts: dict[str, int]) -> None:
    pictures = [image(n, "a.jpg", caption=CAPTION, tokens_negative=[[0, 40]]) for n in (1, 2)]
    annotations = [box(1, 1, tokens_positive=spans), box(2, 2, tokens_positive=[[33, 40]])]
    write_coco(tmp_path / "in", pictures, annotations, OBJECT)
    done, samples = run(tmp_path, max_drop_share=0.9)
    assert samples["a"].regions == (() if phrases is None else (Region(HALF, phrases),))
    assert samples["a-1"].regions == (Region(HALF, ("the bus",)),) and samples["a"].captions == (CAPTION,)
    assert done.report.mended == counts and done.manifests[0].categories == ()


def test_spans_of_the_picture_by_the_number_of_the_phrase(tmp_path: Path) -> None:
    listed = [[[0, 7]], [[11, 23]]]
    pictures = [image(1, "a.jpg", caption=CAPTION, tokens_positive_eval=listed)]
    write_coco(tmp_path / "in", pictures, [box(1, 1, phrase_ids=[1]), box(2, 1, phrase_ids=0)], OBJECT)
    _, samples = run(tmp_path)
    assert [region.phrases for region in samples["a"].regions] == [("green shirts",), ("Two men",)]


def test_classes_of_a_grounding_file_stay_classes(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "man"}, {"id": 2, "name": "bus"}]
    annotations = [box(1, 1, tokens_positive=[[0, 7]]), box(2, 1, category_id=2)]
    write_coco(tmp_path / "in", [image(1, "a.jpg", caption=CAPTION)], annotations, categories)
    _, samples = run(tmp_path)
    assert samples["a"].regions == (Region(HALF, ("Two men",), "man"), Region(HALF, ("bus",), "bus"))


@pytest.mark.parametrize("other", [1, "1", 1.0])
@pytest.mark.parametrize(
    "second",
    [image(1, "b.jpg"), image(1, "other/a.jpg") | {"file_name": "b/a.jpg"}, image(1, "a.jpg", width=300)],
)
def test_an_id_of_two_pictures_is_refused(tmp_path: Path, other: Any, second: dict[str, Any]) -> None:
    first = image(other, "c/a.jpg" if "/" in second["file_name"] else "a.jpg")
    write_coco(tmp_path / "in", [first, second], [box(1, 1)])
    with pytest.raises(
        ValueError, match=rf"image id 1 stands for '{first['file_name']}' and for '{second['file_name']}'"
    ):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


def test_what_comes_twice_is_one(tmp_path: Path) -> None:
    write_coco(tmp_path / "in", [image(1, "a.jpg"), image(1, "a.jpg")], [box(1, 1), box(1, 1), box(1, 1, caption="a")])
    done, samples = run(tmp_path)
    assert len(samples["a"].regions) == 2 and done.report.mended == {"annotation_twice": 1}


@pytest.mark.parametrize(("of_image", "of_box"), [(1, "1"), ("1", 1), (1, 1.0), ("000000000001", "000000000001")])
def test_ids_as_numbers_and_as_text_are_joined(tmp_path: Path, of_image: Any, of_box: Any) -> None:
    write_coco(tmp_path / "in", [image(of_image, "a.jpg")], [box(1, of_box, category_id="1")])
    _, samples = run(tmp_path)
    assert samples["a"].regions == (Region(HALF, ("bus",), "bus"),) and samples["a"].extra == {"coco_id": of_image}


def test_what_is_no_id() -> None:
    assert [id_of(value) for value in (None, True, [1], {}, 1.5)] == [None, None, None, None, "1.5"]


def test_a_category_id_of_two_classes_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path / "in", [image(1, "a.jpg")], [box(1, 1)], [{"id": 1, "name": "bus"}, {"id": 1, "name": "car"}])
    with pytest.raises(ValueError, match="category id 1 stands for 'bus' and for 'car'"):
        run(tmp_path)


def captions_file(folder: Path, images: list[Any]) -> None:
    told = [{"id": 1, "image_id": images[0]["id"], "caption": "a street"}]
    write(folder / "annotations/captions_val2017.json", {"images": images, "annotations": told})


def test_two_files_of_the_same_pictures(tmp_path: Path) -> None:
    write_coco(tmp_path / "in", [image(1, "a.jpg"), image(2, "b.jpg")], [box(1, 1)])
    captions_file(tmp_path / "in", [image(1, "a.jpg") | {"file_name": "val2017/a.jpg"}, image(2, "b.jpg")])
    _, samples = run(tmp_path, max_skip_share=0.5)
    assert samples["a"].captions == ("a street",) and len(samples["a"].regions) == 1


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([image(1, "b.jpg"), image(2, "a.jpg")], r"'b.jpg' has id 2 in instances_.* and id 1 in captions_"),
        ([image(7, "a.jpg"), image(8, "b.jpg")], r"'a.jpg' has id 1 in instances_.* and id 7 in captions_"),
        ([image(1, "c.jpg")], "image id 1 stands for 'a.jpg' and for 'c.jpg'"),
    ],
)
def test_two_files_that_number_differently_are_refused(tmp_path: Path, others: list[Any], message: str) -> None:
    write_coco(tmp_path / "in", [image(1, "a.jpg"), image(2, "b.jpg")], [box(1, 1)])
    captions_file(tmp_path / "in", others)
    with pytest.raises(ValueError, match=message):
        run(tmp_path)


def test_annotations_of_no_picture_are_told_before_anything_is_read(tmp_path: Path) -> None:
    write_coco(tmp_path / "in", [image(1, "a.jpg")], [box(1, 1), box(2, 12), box(3, 13)])
    with pytest.raises(ValueError, match="2 of 3 annotations are of no picture.*same ids.*--max-drop-share"):
        run(tmp_path)
    assert not (tmp_path / "out").exists()
    shown = io.StringIO()
    convert("coco", tmp_path / "in", tmp_path / "out", console=Console(file=shown, width=200), max_drop_share=0.7)
    assert "dropped: annotation_without_image\t2" in shown.getvalue()


def category(number: int, name: str, parent: str | None = None) -> dict[str, Any]:
    return {"id": number, "name": name} | ({} if parent is None else {"supercategory": parent})


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ([category(0, "parts", "none"), category(1, "bus", "parts")], ("bus",)),
        ([category(0, "bus", "none"), category(1, "bus", "bus")], ("bus",)),
        ([category(0, "things"), category(1, "bus", "things")], ("bus",)),
        ([category(1, "bus", "none"), category(2, "car", "none")], ("bus", "car")),
        ([category(3, "person", "person"), category(1, "bus", "vehicle")], ("bus", "person")),
    ],
)
def test_the_root_of_the_categories_is_no_class(
    tmp_path: Path, categories: list[Any], expected: tuple[str, ...]
) -> None:
    write_coco(tmp_path / "in", [image(1, "a.jpg")], [box(1, 1)], categories)
    done, _ = run(tmp_path)
    assert done.manifests[0].categories == expected
    assert done.notes == () or "only stands above the classes" in done.notes[0]


def test_a_root_with_a_box_is_a_class(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "parts", "supercategory": "none"},
        {"id": 1, "name": "bus", "supercategory": "parts"},
    ]
    write_coco(tmp_path / "in", [image(1, "a.jpg")], [box(1, 1), box(2, 1, category_id=0)], categories)
    done, _ = run(tmp_path)
    assert done.manifests[0].categories == ("bus", "parts")


@pytest.mark.parametrize("flag", ["1", "1.0", "true", "True", " yes ", 1, 1.0, True])
def test_flags_of_groups(tmp_path: Path, flag: Any) -> None:
    write_coco(tmp_path / "in", [image(1, "a.jpg")], [box(1, 1, iscrowd=flag), box(2, 1)])
    done, samples = run(tmp_path)
    assert [region.crowd for region in samples["a"].regions] == [True, False]
    assert (done.report.counts["regions"], done.report.counts["crowds"]) == (1, 1)


@pytest.mark.parametrize("flag", ["0", "0.0", "false", "False", "no", "", 0, 0.0, False, None])
def test_flags_of_single_things(tmp_path: Path, flag: Any) -> None:
    write_coco(tmp_path / "in", [image(1, "a.jpg")], [box(1, 1, iscrowd=flag)])
    done, samples = run(tmp_path)
    assert not samples["a"].regions[0].crowd and (done.report.counts["regions"], done.report.mended) == (1, {})


@pytest.mark.parametrize("flag", ["maybe", [1], {"a": 1}])
def test_a_flag_that_is_none_is_counted(tmp_path: Path, flag: Any) -> None:
    write_coco(tmp_path / "in", [image(1, "a.jpg")], [box(1, 1, iscrowd=flag)])
    done, samples = run(tmp_path)
    assert samples["a"].regions[0].crowd and done.report.mended == {"crowd_malformed": 1}


def test_groups_are_counted_apart_and_taken_as_regions_when_told(tmp_path: Path) -> None:
    write_coco(tmp_path / "in", [image(1, "a.jpg")], [box(n, 1, iscrowd=1) for n in range(4)])
    shown = io.StringIO()
    convert("coco", tmp_path / "in", tmp_path / "out", console=Console(file=shown, width=250))
    assert "written: regions\t0" in shown.getvalue() and "written: crowds\t4" in shown.getvalue()
    assert "warning: all 4 regions are marked as groups" in shown.getvalue()
    assert "--ignore-crowd-flag --overwrite" in shown.getvalue()
    manifest = load_manifest(tmp_path / "out")
    assert (manifest.regions, manifest.crowds, manifest.dropped) == (0, 4, 0)
    found = check(tmp_path / "out")
    assert found.tally.crowds == to_json(found)["crowds"] == 4 and found.tally.regions == {0: 1}
    print_check(found, Console(file=shown, width=250))
    assert "4 groups beside 0 regions" in shown.getvalue()
    done, samples = run(tmp_path, ignore_crowd_flag=True, overwrite=True)
    assert done.report.counts["regions"] == 4 and not any(region.crowd for region in samples["a"].regions)


def test_training_is_told_of_groups_and_unusable_regions(tmp_path: Path) -> None:
    regions = [{"box": [0, 0, 9, 9], "phrases": ["a"]}] * 3 + [{"box": [0, 0, 1, 1], "phrases": ["a"], "crowd": 1}]
    folder = write_members(tmp_path / "set", {"k": {"jpg": b"", "json": {"regions": regions}}})
    data = ShardSources((ShardSource("train", load_manifest(folder), 1),), ShardCache(tmp_path))
    rows = data.left_out()
    assert rows["crowds"].startswith("1 of 4 regions are groups")
    assert rows["dropped"].startswith("warning: 3 of 4 regions cannot be used")
    loss = {"_target_": "cloc.losses.objective.ClocLoss"}
    config = TrainConfig(data=DataConfig(train="set"), batch_size=8, loss=loss)
    with pytest.raises(ConfigError, match="no region; crowds: 1 of 4.*dropped: warning: 3 of 4.*take data with boxes"):
        check_data(config, data)
