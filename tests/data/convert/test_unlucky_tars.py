"""Tars of strangers: pictures that shards do not hold, and small files that unpack to large ones."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest
from PIL import Image

from cloc.data.convert.formats.registry import FORMATS, guess_format
from cloc.data.inspect.rewriting import rewrite
from cloc.data.shards.tars import ShardError
from tests.data.convert.test_bad_doors import run
from tests.kit.miniatures import HEIGHT, WIDTH
from tests.kit.sources import box, image, jpeg, write, write_coco, write_members


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (9, 99, 200)).save(buffer, format)
    return buffer.getvalue()


def test_other_pictures_of_a_tar_are_encoded_anew(tmp_path: Path) -> None:
    members = {
        "bmp": {"BMP": encoded("BMP"), "txt": "a dog"},
        "gif": {"gif": encoded("GIF"), "json": {"captions": ["a cat"]}},
        "both": {"gif": encoded("GIF"), "jpg": jpeg((WIDTH, HEIGHT)), "txt": "a bird"},
        "none": {"gif": encoded("GIF")},
    }
    done, samples = run(write_members(tmp_path / "in", members), "grit")
    assert {key: (one.extension, *one.captions) for key, one in samples.items()} == {
        "bmp": ("png", "a dog"),
        "gif": ("png", "a cat"),
        "both": ("jpg", "a bird"),
    }
    assert done.report.pictures == {"encoded anew: BMP as PNG": 1, "encoded anew: GIF as PNG": 1}
    assert done.report.given["background"] == 1


def test_a_small_file_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloc.data.inspect.rewriting._LEAST_LIMIT", 2**20)
    source = write(tmp_path / "x.tar.gz", gzip.compress(bytes(8 * 2**20)))
    (tmp_path / "out").mkdir()
    with pytest.raises(ShardError, match=r"x\.tar\.gz: it unpacks to more than 1,048,576 bytes"):
        rewrite(source, tmp_path / "out")
    assert not [*(tmp_path / "out").iterdir()]


def test_a_folder_of_several_data_sets_is_none_itself(tmp_path: Path) -> None:
    made = write_coco(tmp_path / "made", [image(1, "a.jpg")], [box(1, 1)])
    content = next((made / "annotations").glob("*.json")).read_bytes()
    write(tmp_path / "sets/first/labels.json", content)
    write(tmp_path / "sets/refcoco/instances.json", content)
    with pytest.raises(ValueError, match="of no format") as raised:
        guess_format(tmp_path / "sets")
    assert "folders first, refcoco" in str(raised.value)
    write(tmp_path / "parts/train/_annotations.coco.json", content)
    assert guess_format(tmp_path / "parts").name == "coco"


def test_the_refusal_of_auto_is_short_and_says_what_was_looked_for(tmp_path: Path) -> None:
    keys = {f"a key of many letters, the {number}th": 1 for number in range(99)}
    for path in (write(tmp_path / "x.json", keys), write(tmp_path / "deep/x/notes.docx", "x").parent.parent):
        with pytest.raises(ValueError) as raised:
            guess_format(path)
        told = str(raised.value).removeprefix(str(path))
        assert len(told) < 480 and all(one.name in told for one in FORMATS.values() if not one.draws)
