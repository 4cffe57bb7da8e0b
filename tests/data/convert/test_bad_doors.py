"""What is wrong in sources of other people: said in a line, or counted by reason; never dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cloc.contracts import Sample
from cloc.data.convert.conversion import Conversion, convert
from cloc.data.convert.formats.registry import guess_format
from cloc.data.inspect.check import check
from cloc.data.shards.tars import ShardError
from tests.kit import miniatures
from tests.kit.miniatures import HEIGHT, PIXELS, TEXTS, WIDTH, pictures, table
from tests.kit.sources import jpeg, read_samples, write

QUIET = Console(quiet=True)
LAX = {"max_skip_share": 0.9, "max_drop_share": 1.0}


def run(source: Path, format: str = "auto", **options: Any) -> tuple[Conversion, dict[str, Sample]]:
    out = source.parent / "out"
    done = convert(format, source, out, console=QUIET, **(LAX | options))
    assert check(out).ok and done.report.imbalance() == ""
    return done, read_samples(out)


def refused(source: Path, words: str, format: str = "auto", **options: Any) -> None:
    with pytest.raises((ValueError, FileNotFoundError, ShardError), match=words) as raised:
        convert(format, source, source.parent / "out", console=QUIET, **options)
    assert "\n" not in str(raised.value)


def test_a_class_number_without_a_name(tmp_path: Path) -> None:
    source = miniatures.labelimg(tmp_path / "in").source
    write(source / "two.txt", "0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n")
    refused(source, r"class_without_name.*two\.txt line 2: class '7' has no name; classes\.txt has 2 names \(0 to 1\)")
    done, samples = run(source)
    assert done.report.skipped == {"class_without_name": 1} and set(samples) == {"one"}
    write(source / "two.txt", "7 0.5 0.5 0.25 0.25\n")
    refused(source, "class_without_name", overwrite=True)
    write(source / "two.txt", "1 0.5 0.5 0.25 0.25\n")
    refused(source, "an unfinished conversion of another source or options")  # a label that was mended is another one
    (source / "classes.txt").unlink()
    refused(source, "no list of class names.*--classes FILE")
    refused(source, "no such file; a list of class names", classes=source / "absent.txt")
    refused(source, "has a number without a name", classes=write(tmp_path / "names.json", {"x": "dog"}))


def test_labels_without_a_picture_and_pictures_without_labels(tmp_path: Path) -> None:
    source = miniatures.ultralytics(tmp_path / "in").source
    write(source / "labels/train/three.txt", "0 0.5 0.5 0.2 0.2\n")
    write(source / "images/train/four.jpg", jpeg((WIDTH, HEIGHT)))
    write(source / "images/train/notes.docx", "x")
    write(source / "labels/train/two.txt", "dog 0.5 0.5\n0 nan 0.5 0.2 0.2\n0 x\n0 0.5 0.5 0.2 0.2 0.75\n")
    refused(source, "has the splits train, val; name one with --split")
    done, samples = run(source, split="train")
    assert done.report.skipped == {"no_image": 1, "class_without_name": 1} and done.report.given["background"] == 1
    assert any("1 other files among the pictures are not read (.docx 1)" in note for note in done.notes)
    write(source / "labels/train/two.txt", "0 nan 0.5 0.2 0.2\n0 x\n0 0.5 0.5 0.2 0.2 0.75\n")
    done, samples = run(source, split="train", overwrite=True)
    assert done.report.mended == {"box_not_finite": 1, "region_malformed": 1}
    assert [region.score for region in samples["two"].regions] == [0.75]


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'


def test_xml_with_entities_cut_off_or_of_another_root(tmp_path: Path) -> None:
    source = miniatures.voc_beside(tmp_path / "in").source
    for name, content in {"a": BOMB, "b": "<annotation><object>", "c": "<html></html>", "d": ""}.items():
        write(source / f"train/{name}.xml", content)
        write(source / f"train/{name}.jpg", jpeg((WIDTH, HEIGHT)))
    deep = "<annotation>" + "<x>" * 5000 + "</x>" * 5000 + "</annotation>"
    write(source / "train/one.xml", miniatures.voc_xml("one", 0).replace("<difficult>0", "<difficult>1"))
    write(source / "train/e.xml", deep)
    write(source / "train/e.jpg", jpeg((WIDTH, HEIGHT)))
    done, samples = run(source, "voc")
    assert done.report.skipped == {"bad_annotation": 5} and set(samples) == {"one", "two"}
    assert done.report.mended == {"difficult": 2}
    assert any("entity 'a', which is never read" in text for text in done.report.examples["bad_annotation"])
    done, samples = run(source, "voc", difficult_as_crowd=True, overwrite=True)
    assert [region.crowd for region in samples["one"].regions] == [True, True]


def test_a_table_without_the_column(tmp_path: Path) -> None:
    pictures(tmp_path / "in")
    source = write(tmp_path / "in/set.csv", table([{"photo_of": "one.jpg", "words": "a dog"}]))
    refused(source, "no column of pictures; it has 'photo_of', 'words'; looked for image.*--picture-column", "table")
    refused(source, "no column 'x' .--picture-column.; it has 'photo_of', 'words'", "table", picture_column="x")
    refused(source, "no column of captions or boxes; it has", "table", picture_column="photo_of")
    _, samples = run(source, "table", picture_column="photo_of", caption_column="words")
    assert samples["one"].captions == ("a dog",)
    links = write(tmp_path / "in/links.csv", table([{"url": "http://x/1.jpg", "caption": "a dog"}]))
    refused(links, r"'url' holds addresses.*download them first \(img2dataset\)")


def test_tables_of_windows(tmp_path: Path) -> None:
    pictures(tmp_path / "in/fotos")
    rows = [{"image": f"C:\\data\\fotos\\{name}.jpg", "caption": texts[-1]} for name, texts in TEXTS.items()]
    text = table(rows, ";")
    refused(write(tmp_path / "in/latin.csv", text.encode("cp1252")), r"latin\.csv line 2: not UTF-8: byte 0xf6")
    source = write(tmp_path / "in/marked.csv", b"\xef\xbb\xbf" + text.encode())
    done, samples = run(source)
    assert {key: one.captions for key, one in samples.items()} == {"one": TEXTS["one"][1:], "two": TEXTS["two"]}
    assert any("found by" in note for note in done.notes)
    wide = write(tmp_path / "in/wide.csv", text.encode("utf-16"))
    assert run(wide, overwrite=True)[1].keys() == samples.keys()


def test_lists_of_different_lengths_and_boxes_without_a_class(tmp_path: Path) -> None:
    pictures(tmp_path / "in")
    lines = [
        {"file_name": "one.jpg", "text": "a dog", "objects": {"bbox": [[0, 0, 9, 9]], "categories": []}},
        {"file_name": "two.jpg", "text": "a dog", "objects": [{"bbox": {"x": 0, "y": 0, "width": 20, "height": 10},
                                                               "label": "dog", "iscrowd": 1}]},
        {"file_name": 7, "text": "a dog"},
    ]  # fmt: skip
    write(tmp_path / "in/metadata.jsonl", "\n".join([*map(json.dumps, lines), "{"]))
    done, samples = run(tmp_path / "in")
    assert done.report.skipped == {"bad_annotation": 1, "no_image": 1, "bad_json": 1}
    region = samples["two"].regions[0]
    assert (region.box, region.phrases, region.crowd) == ((0.0, 0.0, 0.5, 0.5), ("dog",), True)
    lines[0]["objects"] = {"bbox": [[0, 0, 9, 9]], "categories": [1]}
    write(tmp_path / "in/metadata.jsonl", "\n".join(map(json.dumps, lines)))
    done, _ = run(tmp_path / "in", overwrite=True)
    assert done.report.skipped == {"class_without_name": 1, "no_image": 1}


def test_texts_and_pictures_that_stand_alone(tmp_path: Path) -> None:
    source = miniatures.image_text(tmp_path / "in").source
    write(source / "alone.txt", "a text")
    write(source / "silent.jpg", jpeg((WIDTH, HEIGHT)))
    write(source / "wrong.jpg", jpeg((WIDTH, HEIGHT)))
    write(source / "wrong.txt", b"gr\xf6\xdfer")
    write(source / "thumbs.db", "x")
    write(source / "README.txt", "Pictures of mine")
    write(source / "._one.jpg", "x")
    done, samples = run(source)
    assert done.report.skipped == {"no_image": 1, "without_text": 1, "bad_text": 1} and set(samples) == {"one", "two"}
    assert any(".db 1" in note for note in done.notes) and any("not read: README.txt" in note for note in done.notes)
    refused(source, "records were left out, more than max_skip_share", overwrite=True)
    assert run(source, whole_file=True, overwrite=True)[1]["one"].captions == ("\r\n".join(TEXTS["one"]),)


def test_open_images_negatives_unsorted_rows_and_labels_without_a_name(tmp_path: Path) -> None:
    source = miniatures.open_images(tmp_path / "in").source
    rows = miniatures.open_images_rows()
    rows = [rows[0], rows[2], rows[1], {**rows[0], "Confidence": 0}, {**rows[0], "ImageID": "two", "LabelName": "/m/x"}]
    write(source / "validation-annotations-bbox.csv", table(rows))
    done, samples = run(source)
    assert done.report.mended == {"verified_negative": 1} and len(samples["one"].regions) == 2
    assert done.report.skipped == {"class_without_name": 1}
    write(source / "validation-annotations-bbox.csv", "ImageID,LabelName\n1,/m/0bt9lr\n")
    refused(source, "no column XMin, XMax, YMin, YMax; it has ImageID, LabelName")


def test_odvg_with_a_label_map_and_lines_that_are_none(tmp_path: Path) -> None:
    pictures(tmp_path / "in")
    size = {"height": HEIGHT, "width": WIDTH}
    instances = [{"bbox": [0, 0, 20, 10], "label": 1}]
    lines = [
        {"filename": "sub\\one.jpg", **size, "detection": {"instances": instances}},
        {"filename": "two.jpg", **size, "detection": {"instances": [{"bbox": [0, 0, 20, 10], "label": 9}]}},
        {"filename": "two.jpg", **size, "detection": {"instances": 3}},
        {"filename": None, "detection": {}},
        {"filename": "two.jpg"},
    ]
    source = write(tmp_path / "in/set.jsonl", "\n".join([*map(json.dumps, lines), "{"]))
    refused(source, "no label map was found", max_skip_share=0.0)
    write(tmp_path / "in/set_label_map.json", {"0": "dog", "1": "red bus"})
    done, samples = run(source, overwrite=True)
    assert done.report.skipped == {"class_without_name": 1, "bad_annotation": 2, "no_image": 1, "bad_json": 1}
    assert samples["one"].regions[0].phrases == ("red bus",)


def test_turned_and_drawn_shapes(tmp_path: Path) -> None:
    pictures(tmp_path / "in/images")
    turned = '<box label="dog" xtl="10" ytl="8" xbr="14" ybr="12" rotation="90.0"/>'
    drawn = '<polygon label="dog" points="4,2;24.0,2;24,12"/><mask label="dog" rle="1" left="0" top="0"/>'
    image = f'<image id="0" name="one.jpg" width="{WIDTH}" height="{HEIGHT}">{turned}{drawn}</image>'
    write(tmp_path / "in/annotations.xml", f"<annotations>{image}</annotations>")
    done, samples = run(tmp_path / "in")
    assert [region.box for region in samples["one"].regions] == [(0.25, 0.4, 0.35, 0.6), (0.1, 0.1, 0.6, 0.6)]
    assert done.report.mended == {"turned_boxed": 1, "polygon_boxed": 1, "box_malformed": 1}
    write(tmp_path / "in/tracks.xml", "<annotations><track id='0'></track></annotations>")
    refused(tmp_path / "in/tracks.xml", "tracks of a video")


def test_a_path_that_fits_two_formats_or_none(tmp_path: Path) -> None:
    source = miniatures.labelimg(tmp_path / "in").source
    for name in PIXELS:
        write(source / f"{name}.xml", miniatures.voc_xml(name, 1))
    with pytest.raises(ValueError, match="may be voc or yolo; name the format instead of auto"):
        guess_format(source)
    (tmp_path / "bare").mkdir()
    pictures(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"of no format that is known.*, yolo; name the format"):
        guess_format(tmp_path / "bare")


@pytest.mark.parametrize(
    "name", ["set.csv", "set.tsv", "set.json", "set.jsonl", "set.xml", "data.yaml", "metadata.jsonl"]
)
def test_empty_and_damaged_files_are_refused_in_a_line(name: str, tmp_path: Path) -> None:
    formats = {"csv": "table", "tsv": "table", "json": "lavis", "jsonl": "odvg", "xml": "cvat", "yaml": "yolo"}
    format = "imagefolder" if name == "metadata.jsonl" else formats[name.rpartition(".")[2]]
    for content in (b"", b"\0\0\0", b"[", b"names: [", b"{}"):
        with pytest.raises(Exception) as raised:
            convert(format, write(tmp_path / name, content), tmp_path / "out", console=QUIET)
        assert issubclass(raised.type, ValueError | OSError | ShardError) and "\n" not in str(raised.value)
