"""Labels and class names are joined by what they say: a folder more or less shifts nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from cloc.config import ConfigError, DatasetConfig
from cloc.evaluation.sets.class_images import load_images
from cloc.evaluation.sets.class_matching import match_folders, match_labels, names_of
from cloc.evaluation.sets.class_names import ClassList, read_classes

NAMES = ["tench, Tinca tinca", "great white shark", "hen", "cock", "sports-car"]
SYNSETS = ["n01440764", "n01484850", "n01514859", "n01514668", "n04285008"]
LISTED = ClassList(NAMES, SYNSETS)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["cock", "great_white_shark", "hen", "sports car", "tench"], [3, 1, 2, 4, 0]),  # sorted, as a disk lists them
        (["Cock", "hen"], [3, 2]),
        (["n01514668", "n01440764", "n04285008"], [3, 0, 4]),
        (["0", "1", "4"], [0, 1, 4]),
        (["00", "01", "10"], None),
        (["1", "2", "5"], [0, 1, 4]),  # 5 is none of five classes counted from 0
        (["001.tench, tinca tinca", "004.Cock"], [0, 3]),
    ],
)
def test_folders_are_joined_by_name_synset_or_number(folders: list[str], expected: list[int] | None) -> None:
    if expected is None:
        with pytest.raises(ConfigError, match="folders 0 to 10 for 5 classes"):
            match_folders(folders, LISTED, "datasets.x.classes")
        return
    assert match_folders(folders, LISTED, "datasets.x.classes") == expected


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["hen", "cok"], "1 of 2 folders are no class of the 5 in the list.*'cok' looks like 'cock'"),
        (["hen", "n01440764"], "1 of 2 folders"),
        (["hen", "3"], "1 of 2 folders"),
        (["1", "2", "3"], "may be counted from 0 or from 1; make an empty folder '0', or '5'"),
        (["hen", "Hen"], "hen, Hen are the same class"),
        (["1", "01"], "counted from 0 or from 1"),
    ],
)
def test_what_cannot_be_joined_is_refused(folders: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        match_folders(folders, LISTED, "datasets.x.classes")


def test_a_name_of_two_classes_needs_a_synset_or_a_number() -> None:
    twice = ClassList(["missile", "hen", "missile"], SYNSETS[:3])
    with pytest.raises(ConfigError, match=r"'missile' may be any of classes \[0, 2\]"):
        match_folders(["hen", "missile"], twice, "key")
    assert match_folders(["n01514859", "n01440764"], twice, "key") == [2, 0]
    assert twice.repeated == ["missile"]


def test_numbered_labels_follow_the_names_that_both_sides_know() -> None:
    assert match_labels(["hen", "cock"], LISTED, "key") == [2, 3]
    assert match_labels(["a", "b"], LISTED, "key") == [0, 1]  # other words, in the order of the numbers
    with pytest.raises(ConfigError, match="has 'cock' at another number than the set, and lacks 'a'"):
        match_labels(["a", "cock"], LISTED, "key")


@pytest.mark.parametrize("form", ["words.txt", "tabs.txt", "index.json"])
def test_lists_with_synsets(form: str, tmp_path: Path) -> None:
    pairs = list(zip(SYNSETS, NAMES, strict=True))
    texts = {
        "words.txt": "\n".join(f"{synset} {name}" for synset, name in pairs),
        "tabs.txt": "\r\n".join(f"{synset}\t{name}" for synset, name in pairs),
        "index.json": json.dumps({str(number): list(pair) for number, pair in enumerate(pairs)}),
    }
    (tmp_path / form).write_text(texts[form])
    assert read_classes(str(tmp_path / form), "key") == LISTED


@pytest.mark.parametrize("text", ['{"a": 1}', "[1, 2]", "[" * 100_000, "not JSON", "[]", '{"0": [1, [2]], "1": 3}'])
def test_a_list_that_is_none_is_refused_in_a_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_classes(str(tmp_path / "x.json"), "datasets.x.classes")
    assert "\n" not in str(caught.value) and "datasets.x.classes" in str(caught.value)


def test_imagenet_has_its_synsets() -> None:
    known = read_classes("imagenet", "key")
    assert len(known.names) == len(known.synsets) == 1000
    assert known.names[known.synsets.index("n01514668")] == "rooster"
    assert known.repeated == ["missile", "sunglasses"]


def pictures(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(folder / name / "x.png")
    return folder


def loaded(folder: Path, classes: str | None) -> dict[str, str]:
    """Folder → the name that its picture is measured by."""
    found = load_images("toy", DatasetConfig(images=str(folder), classes=classes))
    colors = {int(found.read(i)[0, 0, 0]): found.classes[found.labels[i]] for i in range(len(found.labels))}
    return {name: colors[10 * number] for number, name in enumerate(NAMED) if 10 * number in colors}


NAMED = ["cock", "hen", "great_white_shark"]


@pytest.mark.parametrize("more", [[], [".ipynb_checkpoints"], ["__MACOSX"]])
@pytest.mark.parametrize("kept", [NAMED, NAMED[1:], NAMED[::2]])
def test_a_folder_more_or_less_shifts_no_class(kept: list[str], more: list[str], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(NAMES))
    for number, name in enumerate(NAMED):
        if name in kept:
            (tmp_path / "set" / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(tmp_path / "set" / name / "x.png")
            (tmp_path / "set" / name / "._x.png").write_bytes(b"of a Mac")
    for name in more:
        (tmp_path / "set" / name).mkdir()
        Image.new("RGB", (8, 8), (250, 0, 0)).save(tmp_path / "set" / name / "x.png")
    expected = {name: name.replace("_", " ") for name in kept}
    assert loaded(tmp_path / "set", str(tmp_path / "list.txt")) == expected
    assert loaded(tmp_path / "set", None) == expected


def test_a_reader_is_told_of_repeated_names_and_of_classes_without_a_picture(tmp_path: Path) -> None:
    pictures(tmp_path / "set", ["n01514668", "n04356056"])
    found = load_images("toy", DatasetConfig(images=str(tmp_path / "set"), classes="imagenet"))
    assert [found.classes[label] for label in found.labels] == ["rooster", "sunglasses"]
    assert found.notes[0].startswith("2 class names come more than once") and "'sunglasses'" in found.notes[0]
    assert found.notes[1] == "998 of 1000 classes have no picture; they compete all the same"


def test_synsets_are_no_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set classes=imagenet"):
        names_of(["n01514668", "n04356056"], "datasets.x.images")
