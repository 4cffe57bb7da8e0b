"""Pictures are found by the names that annotations of other machines give them, and never outside of their folder."""

from __future__ import annotations

import pickle
import time
import unicodedata
from pathlib import Path

import pytest

from cloc.contracts import BadSample
from cloc.data.convert.picture_bytes import read_picture
from cloc.data.convert.pictures import MissingPicture, PictureFinder


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


NFC, NFD = (unicodedata.normalize(form, "grün/Äpfel.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("file", "name", "how"),
    [
        ("a.jpg", "a.jpg", None),
        ("a.jpg", "./a.jpg", None),
        ("b/a.jpg", "b\\a.jpg", "backslashes as separators"),
        ("a.jpg", "..\\..\\media\\upload\\4\\a.jpg", "the end of the path"),
        ("upload/4/a.jpg", "..\\..\\media\\upload\\4\\a.jpg", "the end of the path"),
        ("a.jpg", "../a.jpg", "their path without what leads upward"),
        ("a.jpg", "C:\\Users\\me\\a.jpg", "the end of the path"),
        ("a.jpg", "/home/somebody/a.jpg", "the end of the path"),
        ("default/a.jpg", "a.jpg", "the end of the path"),
        (NFC, NFD, "another Unicode form"),
        (NFD, NFC, "another Unicode form"),
        ("A.JPG", "a.jpg", "case"),
        ("Train/a.JPG", "train/a.jpg", "case"),
        ("a.jpg", "a", "another extension"),
        ("a.v2.jpg", "a.v2", "another extension"),
        ("a.PNG", "a.bmp", "another extension"),
        ("my photo.jpg", "my%20photo.jpg", "percent-decoding"),
        ("4/a.jpg", "https://host/data/4/a.jpg?token=x", "the path within a URL"),
        ("images/a.jpg", "/data/local-files/?d=images/a.jpg", "the path within a URL"),
        ("my%20photo.jpg", "my%20photo.jpg", None),
        ("a\\b.jpg", "a\\b.jpg", None),
    ],
)
def test_a_name_leads_to_its_file(tmp_path: Path, file: str, name: str, how: str | None) -> None:
    finder = PictureFinder(make(tmp_path, file))
    assert finder.find(name) == tmp_path / Path(name if how is None else file)
    assert finder.found == ({} if how is None else {how: 1})
    assert list(finder.notes()) == ([] if how is None else [f"1 pictures were found by {how}"])


def test_the_longest_tail_decides(tmp_path: Path) -> None:
    finder = PictureFinder(
        make(tmp_path, "train/4/a.jpg", "val/4/a.jpg", "val/5/a.jpg", "train/a.JPG", "x/train/a.jpg")
    )
    assert finder.find("/data/val/4/a.jpg") == tmp_path / "val/4/a.jpg"
    assert finder.find("D:\\x\\5\\a.jpg") == tmp_path / "val/5/a.jpg"
    assert finder.find("/other/train/a.jpg") == tmp_path / "train/a.JPG"  # no folder beside those that the name has


def test_several_that_fit_are_named_and_none_is_taken(tmp_path: Path) -> None:
    found = PictureFinder(make(tmp_path, "train/a.jpg", "val/a.jpg")).find("a.jpg")
    with pytest.raises(BadSample, match=r"train/a.jpg and .*val/a.jpg; name it by its folder") as caught:
        read_picture(found)
    assert caught.value.reason == "picture_ambiguous" and pickle.loads(pickle.dumps(found)) == found


def test_a_mask_of_the_same_stem_is_not_taken(tmp_path: Path) -> None:
    finder = PictureFinder(make(tmp_path, "JPEGImages/a.jpg", "Masks/a.png", "labels/b.txt", "c/b.jpg"))
    assert finder.find("JPEGImages/a.bmp") == tmp_path / "JPEGImages/a.jpg"
    assert finder.find("b.png") == tmp_path / "c/b.jpg"


@pytest.mark.parametrize("first", [True, False])
def test_one_file_is_not_the_picture_of_two_names(tmp_path: Path, first: bool) -> None:
    finder = PictureFinder(make(tmp_path, "train/a.jpg"))
    names = ["train/a.jpg", "val/a.jpg"] if first else ["val/a.jpg", "old/a.jpg"]
    assert finder.find(names[0]) == finder.find(names[0]) == tmp_path / "train/a.jpg"
    other = finder.find(names[1])
    assert isinstance(other, MissingPicture) and other.reason == "picture_ambiguous" and names[1] in other.detail


@pytest.mark.parametrize("name", ["../out.jpg", "in/../../out.jpg", "..\\out.jpg"])
def test_nothing_outside_is_taken(tmp_path: Path, name: str) -> None:
    make(tmp_path, "out.jpg", "set/in/a.jpg")
    found = PictureFinder(tmp_path / "set").find(name)
    assert isinstance(found, MissingPicture) and found.reason == "image_unreadable"
    absolute = PictureFinder(tmp_path / "set").find(str(tmp_path / "out.jpg"))
    assert (
        isinstance(absolute, MissingPicture)
        and "it lies outside; name a folder above it with --images" in absolute.detail
    )
    assert PictureFinder(tmp_path).find(str(tmp_path / "out.jpg")) == tmp_path / "out.jpg"
    if "\\" not in name:
        assert PictureFinder(tmp_path / "set", outside=True).find(name) == tmp_path / "set" / name


@pytest.mark.parametrize(
    "name", ["", "/", "..", "\0.jpg", "\ud800.jpg", "http://[", "x" * 5000, "%ff.jpg", "?d=", "C:"]
)
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    found = PictureFinder(make(tmp_path, "a.jpg")).find(name)
    assert isinstance(found, MissingPicture) and "no such file below" in found.detail


def test_links_are_followed_once(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/p/a.jpg", "set/.hidden/b.jpg")
    (tmp_path / "set/pictures").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "elsewhere")
    finder = PictureFinder(tmp_path / "set")
    assert finder.find("D:\\a.jpg") == tmp_path / "set/pictures/p/a.jpg"
    assert isinstance(finder.find("D:\\b.jpg"), MissingPicture)


def test_folders_in_turn(tmp_path: Path) -> None:
    make(tmp_path, "images/a.jpg", "data/x/a.jpg", "data/x/b.jpg", "c.jpg")
    finder = PictureFinder(tmp_path / "images", tmp_path / "data", as_written=(tmp_path,))
    assert finder.find("x/a.jpg") == tmp_path / "data/x/a.jpg" and finder.find("z/a.jpg") == tmp_path / "images/a.jpg"
    assert finder.find("z/b.jpg") == tmp_path / "data/x/b.jpg" and finder.find("c.jpg") == tmp_path / "c.jpg"
    assert isinstance(finder.find("z/c.jpg"), MissingPicture)


def test_a_folder_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloc.data.convert.pictures.MAX_FILES", 2)
    found = PictureFinder(make(tmp_path, "1.jpg", "2.jpg", "3.jpg")).find("x/1.jpg")
    assert isinstance(found, MissingPicture) and "more than 2 files; name a smaller one" in found.detail


@pytest.mark.slow
def test_a_hundred_thousand_pictures_are_found_in_seconds(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}").mkdir()
        for other in range(1000):
            (tmp_path / f"{number}/{number}-{other}.jpg").touch()
    started = time.process_time()
    finder = PictureFinder(tmp_path)
    for number in range(100):
        for other in range(1000):
            assert isinstance(finder.find(f"D:\\set\\{number}\\{number}-{other}.JPG"), Path)
    assert time.process_time() - started < 30
