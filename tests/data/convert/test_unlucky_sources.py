"""Sources that look right and are not: no picture takes the boxes of another."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from cloc.contracts import BadSample
from cloc.data.convert.formats.files import json_items
from cloc.data.convert.formats.label_studio import label_studio_object
from cloc.data.convert.formats.listing import PictureFolder, class_names, files_below, read_classes
from cloc.data.convert.formats.peek import peek_json
from cloc.data.convert.formats.row_files import Cell
from cloc.data.convert.formats.voc import _picture_of
from cloc.data.convert.pictures import MissingPicture, PictureFinder
from tests.data.convert.test_bad_doors import run
from tests.kit import miniatures
from tests.kit.miniatures import HEIGHT, WIDTH
from tests.kit.sources import jpeg, write

PICTURE = jpeg((WIDTH, HEIGHT))


def test_yolo_labels_that_two_pictures_could_have(tmp_path: Path) -> None:
    for name in ("images/camera1/1.jpg", "images/camera2/1.jpg", "images/camera2/2.jpg"):
        write(tmp_path / "in" / name, PICTURE)
    write(tmp_path / "in/labels/1.txt", "0 0.5 0.5 0.5 0.5\n")
    write(tmp_path / "in/labels/2.txt", "0 0.5 0.5 0.5 0.5\n")
    write(tmp_path / "in/classes.txt", "dog\n")
    done, samples = run(tmp_path / "in", "yolo")
    assert done.report.skipped == {"picture_ambiguous": 2} and set(samples) == {"2"}


def test_a_split_of_a_yaml_that_is_not_there_is_told(tmp_path: Path) -> None:
    source = miniatures.ultralytics(tmp_path / "in").source
    (source / "images/train").rename(source / "images/training")
    done, _ = run(source, "yolo")
    assert any("train is " in note and "not there, not read" in note for note in done.notes)


def test_a_class_that_yaml_reads_as_false() -> None:
    with pytest.raises(ValueError, match="a class that is called no, off or false as False; put the name into quotes"):
        class_names({"names": ["dog", False]}, Path("data.yaml"))


def test_a_picture_of_a_lost_name_is_not_that_of_another_folder(tmp_path: Path) -> None:
    for name in ("train/2.jpg", "val/1.jpg", "val/deep/3.jpg"):
        write(tmp_path / name, PICTURE)
    finder = PictureFinder(tmp_path)
    assert isinstance(finder.find("train/1.jpg"), MissingPicture)
    assert isinstance(finder.find("D:\\set\\train\\1.png"), MissingPicture)
    assert finder.find("val/3.jpg") == tmp_path / "val/deep/3.jpg"
    assert finder.find("photos/1.jpg") == tmp_path / "val/1.jpg"


def test_voc_a_lost_picture_is_not_that_of_another_xml(tmp_path: Path) -> None:
    for name in ("train/1.xml", "val/1.xml", "val/1.jpg"):
        write(tmp_path / name, PICTURE if name.endswith("jpg") else miniatures.voc_xml("one", 1))
    pictures = PictureFolder.below(tmp_path)
    assert _picture_of(tmp_path / "val/1.xml", pictures)[0] == tmp_path / "val/1.jpg"
    assert _picture_of(tmp_path / "train/1.xml", pictures)[0] is None


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    write(tmp_path / "a/1.jpg", PICTURE)
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "a/again").symlink_to(tmp_path / "a")
    assert [*itertools.islice(files_below(tmp_path), 5)] == [tmp_path / "a/1.jpg"]


def test_a_turned_ellipse_and_a_shape_that_is_no_box() -> None:
    sizes = {"original_width": 200, "original_height": 100}
    ellipse = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "rotation": 90, "ellipselabels": ["dog"]}
    dot = {"x": 5, "y": 5, "width": 1, "keypointlabels": ["dog"]}
    result = [{"id": str(number), "value": value, **sizes} for number, value in enumerate((ellipse, dot))]
    task = {"data": {"image": "a.jpg"}, "annotations": [{"result": result}]}
    counts: Counter[str] = Counter()
    ours, other = label_studio_object({"task": task}, counts)["regions"]
    assert ours["box"] == pytest.approx([45, 30, 55, 70]) and counts["turned_boxed"] == 1  # 20 and 10 pixels
    assert other["box"] == [5, 5, 1, None]


def test_brackets_within_texts_are_no_depth(tmp_path: Path) -> None:
    texts = ["[ {\\\\", 'a \\"[', "x" * 70_000 + "[" * 9, '\\\\\\"['] * 3_000
    path = write(tmp_path / "set.json", "[" + ",".join(f'"{text}"' for text in texts[:4] + [texts[0]] * 9_000) + "]")
    assert [*json_items(path, "item")] == json.loads(path.read_bytes())
    write(path, "[" * 6_000)
    with pytest.raises(ValueError, match="nested deeper than 5,000"):
        [*json_items(path, "item")]
    assert peek_json(path) is not None


def test_a_parquet_of_a_stranger_names_no_file_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "private.jpg", PICTURE)
    write(tmp_path / "set/own.jpg", PICTURE)

    class Value:
        def __init__(self, path: str) -> None:
            self.path = path

        def as_py(self) -> dict[str, str | None]:
            return {"bytes": None, "path": self.path}

    for path, fine in (("own.jpg", True), ("../private.jpg", False), (str(tmp_path / "private.jpg"), False)):
        monkeypatch.setattr("cloc.data.convert.formats.row_files._column", lambda *given, path=path: [Value(path)])
        cell = Cell(tmp_path / "set/x.parquet", 0, 0, "image")
        if fine:
            assert cell.read() == ("jpg", PICTURE)
        else:
            with pytest.raises(BadSample, match="is no file in the folder of"):
                cell.read()


def test_an_empty_line_of_a_list_of_classes_has_a_number(tmp_path: Path) -> None:
    names = read_classes(write(tmp_path / "classes.txt", "dog\r\n\r\n cat\r\n\r\n"))
    assert names.names == {0: "dog", 2: "cat"}
    with pytest.raises(ValueError, match="is no list of class names"):
        read_classes(write(tmp_path / "classes.txt", "\n\n"))


def test_a_number_that_json_has_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write null for NaN and Infinity"):
        [*json_items(write(tmp_path / "x.json", "[1.0, NaN]"), "item")]
