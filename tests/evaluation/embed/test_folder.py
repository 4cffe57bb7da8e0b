"""A folder as people have it: sub-folders, other files, pictures that cannot be read or are large."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cloc.contracts import BadSample, Sample
from cloc.evaluation.embed import embed, inputs, open_source, pieces
from cloc.evaluation.embed.inputs import EmbedInput
from tests.kit.evaluating import png


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("one.PNG", "2024/zwei.png", "2024/été 'a' \"b\".png", "2024/May/3.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(len(name)))
    Image.new("RGB", (9, 7)).save(folder / "four.bmp")
    Image.new("L", (9, 7)).save(folder / "five.tiff")
    for name in ("notes.txt", "film.mov", "IMG_1.heic", "IMG_2.HEIC", "README", "._one.png", ".thumbs/x.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no picture")
    (folder / "again").symlink_to(folder / "2024")
    return folder


def test_pictures_below_a_folder_and_what_else_is_there(photos: Path) -> None:
    found = open_source(photos)
    assert found.folder == photos and found.count == 6
    assert [found.read(i).key for i in range(6)] == [
        "2024/May/3.png", "2024/zwei.png", "2024/été 'a' \"b\".png", "five.tiff", "four.bmp", "one.PNG",
    ]  # fmt: skip
    others = {".heic": 2, ".mov": 1, ".txt": 1, "hidden": 1, "hidden folders": 1, "linked folders": 1}
    assert found.others == others | {"without ending": 1}
    assert inputs.told_others(found.others).startswith("2 .heic, 1 .mov, 1 .txt, ")


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is empty"):
        open_source(tmp_path)
    (tmp_path / "a.heic").touch()
    with pytest.raises(ValueError, match="it holds 1 .heic"):
        open_source(tmp_path)


def test_unreadable_pictures_are_named_and_counted_against_a_limit(
    photos: Path, runs: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "bad.jpg").write_bytes(b"\xff\xd8\xff garbage")
    (photos / "gone.jpg").symlink_to(photos / "nothing")
    out, model = tmp_path / "out", str(runs / "clip")
    monkeypatch.setattr(inputs, "MAX_FILE_BYTES", (photos / "2024" / "zwei.png").stat().st_size + 100)
    (photos / "giant.png").write_bytes(bytes(2 * inputs.MAX_FILE_BYTES))
    with pytest.raises(ValueError, match=r"3 of 9 pictures cannot be read.*bad.jpg: corrupt_image.*skipped.json"):
        embed(model, photos, out, device="cpu")
    assert not (out / "images.npz").exists()
    counts = embed(model, photos, out, device="cpu", max_skip_share=0.34)
    assert counts == {"images": 6, "regions": 0, "texts": 0, "skipped": 3}
    told = capsys.readouterr().err
    assert "skipped bad.jpg: corrupt_image" in told and "skipped giant.png: giant_file" in told and "2 .heic" in told
    skipped = json.loads((out / "skipped.json").read_text())
    assert skipped["count"] == 9 and [(row["at"], row["key"]) for row in skipped["skipped"]] == [
        (3, "bad.jpg"),
        (6, "giant.png"),
        (7, "gone.jpg"),
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_picture_that_may_not_be_read_is_skipped(photos: Path) -> None:
    (photos / "one.PNG").chmod(0)
    with pytest.raises(BadSample, match="unreadable"):
        open_source(photos).read(5)


def test_large_pictures_go_through_in_smaller_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    sides, seen = [10, 10, 10, 40, 10], []

    def read(index: int) -> Sample:
        return Sample(str(index), bytes([sides[index]]), "png")

    monkeypatch.setattr(pieces, "TOGETHER", 350)
    monkeypatch.setattr(pieces, "decode_rgb", lambda data: torch.zeros(3, data[0], data[0]))
    rows: Any = None
    for group in pieces._groups(EmbedInput(read, 5, ""), range(5), rows):
        seen.append([sample.key for sample, _ in group])
    assert seen == [["0", "1", "2"], ["3"], ["4"]]


def test_the_files_and_columns_of_data_with_boxes_stay(data: Path, runs: Path, tmp_path: Path) -> None:
    embed(str(runs / "cloc"), data / "shards", tmp_path, device="cpu")
    columns = {
        "images": ["key", "width", "height", "embedding"],
        "regions": ["key", "box", "text", "embedding"],
        "texts": ["key", "text", "kind", "embedding"],
    }
    for name, expected in columns.items():
        with np.load(tmp_path / f"{name}.npz") as stored:
            assert stored.files == expected and stored["embedding"].dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(stored["embedding"], axis=1), 1, atol=1e-5)
