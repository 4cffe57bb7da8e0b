"""COCO's JSON under any name and in the folders that other tools write, each known by ``auto``."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cloc.contracts import Region
from cloc.data.convert.conversion import convert
from cloc.data.convert.formats.peek import HEAD_BYTES, JsonPeek, entries, peek_json, peek_text
from cloc.data.convert.formats.registry import guess_format
from tests.kit.sources import HEIGHT, WIDTH, box, image, jpeg, read_samples, write, write_coco

QUIET = Console(quiet=True)
HALF = (0.0, 0.0, 0.5, 1.0)
BUS = Region(HALF, ("bus",), "bus")


def coco(path: Path, names: list[str], pictures: list[str] | None = None, root: Path | None = None) -> Path:
    """One file of COCO's JSON with a box in each picture, and the pictures."""
    images = [image(number, name) for number, name in enumerate(names, 1)]
    boxes = [box(number, number) for number in range(1, len(names) + 1)]
    write(path, {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "bus"}]})
    for name in names if pictures is None else pictures:
        write((root or path.parent) / name, jpeg())
    return path


def roboflow(root: Path) -> Path:
    """As Roboflow's "COCO JSON" export has it: https://roboflow.com/formats/coco-json."""
    coco(root / "train/_annotations.coco.json", ["street_jpg.rf.0a0b9f.jpg"])
    write(root / "README.roboflow.txt", "exported")
    return root


def cvat(root: Path) -> Path:
    """CVAT's "COCO 1.0": https://docs.cvat.ai/docs/dataset_management/formats/format-coco/."""
    coco(root / "annotations/instances_default.json", ["a.jpg"], ["images/a.jpg"], root)
    return root


def cvat_subset(root: Path) -> Path:
    coco(root / "annotations/instances_Train.json", ["sub/a.jpg"], ["images/Train/sub/a.jpg"], root)
    return root


def fiftyone(root: Path) -> Path:
    """FiftyOne's COCODetectionDataset: https://docs.voxel51.com/user_guide/export_datasets.html."""
    coco(root / "labels.json", ["a.jpg"], ["data/a.jpg"])
    return root


def label_studio(root: Path) -> Path:
    """Label Studio's COCO export: https://labelstud.io/guide/export."""
    coco(root / "result.json", ["images\\0a1b-a.jpg"], ["images/0a1b-a.jpg"])
    return root


def datumaro(root: Path) -> Path:
    """Datumaro's coco_instances: annotations/instances_SUBSET.json and images/SUBSET/."""
    coco(root / "annotations/instances_train.json", ["a.jpg"], ["images/train/a.jpg"], root)
    return root


def supervision(root: Path) -> Path:
    """``DetectionDataset.as_coco``: the two paths are the caller's."""
    coco(root / "annotations.json", ["a.jpg"], ["images/a.jpg"])
    return root


def written_by_supervision(root: Path) -> Path:
    """``DetectionDataset.as_coco`` of supervision."""
    sv = pytest.importorskip("supervision")
    numpy = pytest.importorskip("numpy")
    picture = str(write(root / "source/a.jpg", jpeg()))
    found = sv.Detections(xyxy=numpy.array([[0.0, 0.0, WIDTH / 2, HEIGHT]]), class_id=numpy.array([0]))
    data = sv.DetectionDataset(classes=["bus"], images=[picture], annotations={picture: found})
    data.as_coco(images_directory_path=str(root / "set/images"), annotations_path=str(root / "set/annotations.json"))
    return root / "set"


def written_by_datumaro(root: Path) -> Path:
    """All tasks of the format ``coco`` of datumaro 1.13: instances, captions, image_info, stuff."""
    pytest.importorskip("datumaro")
    from datumaro.components import annotation, dataset, dataset_base, media

    labels = {annotation.AnnotationType.label: annotation.LabelCategories.from_iterable(["bus"])}
    pixels = media.Image.from_bytes(data=jpeg(), ext=".jpg")
    marks = [annotation.Bbox(0, 0, WIDTH / 2, HEIGHT, label=0, id=1), annotation.Caption("a street", id=2)]
    item = dataset_base.DatasetItem(id="a", subset="train", media=pixels, annotations=marks)
    dataset.Dataset.from_iterable([item], categories=labels).export(str(root / "set"), "coco", save_media=True)
    return root / "set"


def coco_tasks(root: Path) -> Path:
    """What COCO's own download and datumaro put beside the boxes of a split is passed over."""
    coco(root / "annotations/instances_train.json", ["a.jpg"], ["images/train/a.jpg"], root)
    for name in ("image_info_train", "stuff_train", "person_keypoints_train"):
        coco(root / f"annotations/{name}.json", ["a.jpg"], [])
    return root


def caption_first(root: Path) -> Path:
    """Large files are known by what they begin with."""
    boxes = [box(number, number % 2) for number in range(6000)]
    pictures = [image(0, "0.jpg"), image(1, "1.jpg")]
    record = {"annotations": boxes, "images": pictures, "categories": [{"id": 1, "name": "bus"}]}
    for name in ("0.jpg", "1.jpg"):
        write(root / name, jpeg())
    assert write(root / "mine.json", record).stat().st_size > HEAD_BYTES
    return root


LAYOUTS = [roboflow, cvat, cvat_subset, fiftyone, label_studio, datumaro, supervision, coco_tasks]
WRITTEN = [written_by_supervision, written_by_datumaro]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("as_file", [False, True])
def test_layouts_come_back_box_for_box(tmp_path: Path, layout: Any, as_file: bool) -> None:
    source = layout(tmp_path / "in")
    source = (
        next(path for path in sorted(source.rglob("*.json")) if path.name != "image_info_train.json")
        if as_file
        else source
    )
    done = convert("auto", source, tmp_path / "out", console=QUIET)
    assert [sample.regions for sample in read_samples(tmp_path / "out").values()] == [(BUS,)]
    assert done.report.skipped == {} and done.manifests[0].categories == ("bus",)


@pytest.mark.parametrize("writer", WRITTEN)
def test_what_other_tools_write_comes_back_box_for_box(tmp_path: Path, writer: Any) -> None:
    done = convert("auto", writer(tmp_path), tmp_path / "out", console=QUIET)
    assert [sample.regions for sample in read_samples(tmp_path / "out").values()] == [(BUS,)]
    assert done.report.skipped == {} and done.notes == ()


def test_the_beginning_is_enough(tmp_path: Path) -> None:
    assert guess_format(caption_first(tmp_path / "in")).name == "coco"


def test_several_files_are_named_and_chosen_by_split(tmp_path: Path) -> None:
    root = roboflow(tmp_path / "in")
    coco(root / "valid/_annotations.coco.json", ["other.jpg"])
    assert guess_format(root).name == "coco"
    names = r"train/_annotations.coco.json, valid/_annotations.coco.json; name one as SOURCE, or its split with --split"
    with pytest.raises(ValueError, match=names):
        convert("coco", root, tmp_path / "out", console=QUIET)
    with pytest.raises(FileNotFoundError, match=r"no file of split 'test', but train/_ann"):
        convert("coco", root, tmp_path / "out", split="test", console=QUIET)
    convert("coco", root, tmp_path / "out", split="valid", console=QUIET)
    assert list(read_samples(tmp_path / "out")) == ["other"]


def test_a_missing_picture_of_a_split_is_not_taken_from_another(tmp_path: Path) -> None:
    coco(
        tmp_path / "in/annotations/instances_val.json",
        ["0.jpg", "1.jpg"],
        ["val/0.jpg", "train/1.jpg"],
        tmp_path / "in",
    )
    done = convert("coco", tmp_path / "in", tmp_path / "out", max_skip_share=0.5, console=QUIET)
    assert done.report.skipped == {"image_unreadable": 1} and list(read_samples(tmp_path / "out")) == ["0"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"pictures": [], "boxes": []},
            r"not COCO's JSON, which has images and annotations, but \('pictures', 'boxes'\)",
        ),
        ([{"bbox": [0, 0, 1, 1]}], r"but a list of \['bbox'\]"),
        ("hello", "but no JSON"),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert("coco", write(tmp_path / "x.json", content), tmp_path / "out", console=QUIET)
    with pytest.raises(ValueError, match=r"of no format that is known by its files \((JSON|a file that begins)"):
        guess_format(tmp_path / "x.json")


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    write(tmp_path / "in/notes.json", {"a": 1})
    write(tmp_path / "in/a.jpg", jpeg())
    with pytest.raises(
        FileNotFoundError, match=r"instances_val2017.json: no such file.* but notes.json; name the file"
    ):
        convert("coco", tmp_path / "in", tmp_path / "out", console=QUIET)
    with pytest.raises(ValueError, match=r"\(1 .jpg, 1 .json\); looked for coco, "):
        guess_format(tmp_path / "in")


def test_the_format_is_said(tmp_path: Path) -> None:
    shown = io.StringIO()
    convert("auto", fiftyone(tmp_path / "in"), tmp_path / "out", console=Console(file=shown, width=200))
    assert f"{tmp_path}/in: format 'coco', " in shown.getvalue()


@pytest.mark.parametrize("size", [{"width": 0, "height": 0}, {"width": None, "height": None}, {}])
def test_the_size_of_the_picture_itself(tmp_path: Path, size: dict[str, Any]) -> None:
    picture = {"id": 1.0, "file_name": "a.jpg", **size}
    write_coco(tmp_path / "in", [picture], [box(1, "1")])
    convert("coco", tmp_path / "in", tmp_path / "out", console=QUIET)
    sample = read_samples(tmp_path / "out")["a"]
    assert sample.regions == (BUS,) and (sample.width, sample.height) == (600, 400)


@pytest.mark.parametrize("of_captions", [{"id": 1}, {"id": "1", "file_name": "", "width": 0, "height": 0}])
def test_pictures_of_two_files_are_merged_key_by_key(tmp_path: Path, of_captions: dict[str, Any]) -> None:
    write_coco(tmp_path / "in", [image(1, "a.jpg")], [box(1, 1)])
    told = {"images": [of_captions], "annotations": [{"id": 1, "image_id": 1, "caption": "a street"}]}
    write(tmp_path / "in/annotations/captions_val2017.json", told)
    convert("coco", tmp_path / "in", tmp_path / "out", console=QUIET)
    assert read_samples(tmp_path / "out")["a"].captions == ("a street",)


def test_lvis_minival_is_found_by_the_url(tmp_path: Path) -> None:
    url = "http://images.cocodataset.org/val2017/000000000139.jpg"
    pictures = [image(139, "000000000139.jpg", coco_url=url)]
    categories = [{"id": 1, "name": "cab_(taxi)", "synonyms": ["cab_(taxi)", "taxi"]}]
    record = {"images": pictures, "annotations": [box(1, 139)], "categories": categories}
    write(tmp_path / "in/lvis_v1_minival_inserted_image_name.json", record)
    for folder in ("train2017", "val2017"):
        write(tmp_path / f"in/{folder}/000000000139.jpg", jpeg())
    done = convert("auto", tmp_path / "in", tmp_path / "out", console=QUIET)
    assert read_samples(tmp_path / "out")["000000000139"].regions == (
        Region(HALF, ("cab (taxi)", "taxi"), "cab (taxi)"),
    )
    assert done.notes == ("1 pictures were found by another name that the source has for them",)


@pytest.mark.parametrize("where", ["train/patch8", "train/images/v1/patch8", "images/train", "train"])
def test_objects365(tmp_path: Path, where: str) -> None:
    """https://www.objects365.org: names with images/vN/, folders without; folders of Ultralytics' objects365.yaml."""
    pictures = [image(420917, "images/v1/patch8/objects365_v1_00420917.jpg")]
    categories = [{"id": 1, "name": "Cabinet/shelf"}, {"id": 2, "name": "Person"}]
    boxes = [box(1, 420917, isfake=0), box(2, 420917, category_id=2, iscrowd=1)]
    record = {"images": pictures, "annotations": boxes, "categories": categories}
    write(tmp_path / "in/annotations/zhiyuan_objv2_train.json", record)
    write(tmp_path / "in" / where / "objects365_v1_00420917.jpg", jpeg())
    assert guess_format(tmp_path / "in").name == "objects365"
    done = convert("auto", tmp_path / "in", tmp_path / "out", console=QUIET)
    sample = read_samples(tmp_path / "out")["objects365_v1_00420917"]
    assert sample.regions == (
        Region(HALF, ("Cabinet", "shelf"), "Cabinet/shelf"),
        Region(HALF, ("Person",), "Person", crowd=True),
    )
    assert done.manifests[0].categories == ("Cabinet/shelf", "Person")


def test_grounding_json_keeps_phrases_crowds_and_groups(tmp_path: Path) -> None:
    """GLIP's final_mixed_train.json and MDETR's files: one object class, spans into the caption."""
    caption = "Two men wait while a bus leaves"
    pictures = [image(1, "a.jpg", caption=caption, dataset_name="mixed", tokens_negative=[[0, len(caption)]])]
    boxes = [box(1, 1, tokens_positive=[[0, 7]]), box(2, 1, bbox=[300, 0, 300, 400], tokens_positive=[[0, 7]])]
    boxes += [box(3, 1, tokens_positive=[[19, 24]], iscrowd=1)]
    write(tmp_path / "in/a.jpg", jpeg())
    record = {"info": {}, "images": pictures, "annotations": boxes, "categories": [{"id": 1, "name": "object"}]}
    convert("auto", write(tmp_path / "in/final_mixed_train.json", record), tmp_path / "out", console=QUIET)
    sample = read_samples(tmp_path / "out")["a"]
    assert sample.captions == (caption,)
    assert [(region.box, region.phrases, region.crowd) for region in sample.regions] == [
        (HALF, ("Two men",), False),
        ((0.5, 0.0, 1.0, 1.0), ("Two men",), False),
        (HALF, ("a bus",), True),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"images": [{"id": 1, "x": {"y": 1}}], "n": 3},
            JsonPeek(("images", "n"), {"images": frozenset("ix")}, whole=True),
        ),
        ([{"a": 1, "b": [{"c": 2}]}, 3], JsonPeek((), {"": frozenset("ab")}, True, True)),
        ([[1]], JsonPeek((), {"": frozenset()}, True, True)),
        ({"a": []}, JsonPeek(("a",), {"a": frozenset()}, whole=True)),
        ('{"a": 1}\n{"b": 2}', JsonPeek(("a",))),
        ('{"a": [{"b": 1}, {"c', JsonPeek(("a",), {"a": frozenset("b")})),
        ("\ufeff" + '{"a": 1}', JsonPeek(("a",), whole=True)),
        ("hello", None),
        ("", None),
        (b"\0\1", None),
    ],
)
def test_what_a_file_begins_with(tmp_path: Path, content: Any, expected: JsonPeek | None) -> None:
    if isinstance(content, dict) and "images" in content:
        expected = JsonPeek(("images", "n"), {"images": frozenset({"id", "x"})}, whole=True)
    assert peek_json(write(tmp_path / "x.json", content)) == expected


def test_peeking_is_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", json.dumps({"images": [{"id": 1}] * 100_000, "annotations": []}))
    assert peek_json(path) == JsonPeek(("images",), {"images": frozenset({"id"})})
    assert len(peek_text(path)) == HEAD_BYTES and peek_text(tmp_path / "absent") == "" and peek_json(tmp_path) is None
    assert entries(tmp_path, ".json") == [path] and entries(tmp_path / "absent") == []
