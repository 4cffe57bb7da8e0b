"""Embeddings as files: of shards, folders and COCO files; interrupted and continued; by several processes."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cloc
from cloc.encoder import Encoder
from cloc.evaluation.embed import embed, pieces
from tests.kit.evaluating import launch, png, sample


def table(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as stored:
        return {name: stored[name] for name in stored.files}


def test_embeddings_of_shards_are_the_encoders(
    data: Path, runs: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(pieces, "PIECE", 1)
    monkeypatch.setattr(pieces, "BATCH", 5)
    monkeypatch.setattr("cloc.console.FIRST", 0.0)  # progress is told at once
    counts = embed(str(runs / "cloc"), data / "shards", tmp_path, device="cpu")
    printed, progress = capsys.readouterr()
    assert "embedding with cloc: 5 of 13 pictures (38%), " in progress
    wrote, before, then = printed.splitlines()[-3:]
    assert wrote == f"wrote 12 images, 19 regions, 61 texts, 1 skipped: {tmp_path}" and then.startswith(
        "next: python -c "
    )
    assert shlex.split(before)[2:] == ["-m", "cloc", "search", str(tmp_path), "a brown dog"]
    exec(shlex.split(then)[3])
    assert counts == {"images": 12, "regions": 19, "texts": 24 + 37, "skipped": 1}
    images, regions, texts = (table(tmp_path / f"{name}.npz") for name in ("images", "regions", "texts"))
    assert images["key"].tolist() == [f"s{i:02d}" for i in range(12)] and set(images["width"]) == {32}
    pictures = [Image.open(io.BytesIO(png(i))) for i in range(12)]
    np.testing.assert_allclose(images["embedding"], encoder.encode_image(pictures).numpy(), atol=1e-5)
    own = sample(7).regions
    (rows,) = encoder.encode_regions([pictures[7]], [[region.box for region in own]])
    mine = regions["key"] == "s07"
    np.testing.assert_allclose(regions["embedding"][mine], rows.numpy(), atol=1e-5)
    assert regions["text"][mine].tolist() == [region.phrases[0] for region in own]
    caption = texts["text"].tolist().index("picture number 3")
    assert texts["kind"][caption] == "caption" and texts["key"][caption] == "s03"
    np.testing.assert_allclose(
        texts["embedding"][caption], encoder.encode_text(["picture number 3"])[0].numpy(), atol=1e-5
    )


def test_an_interrupted_run_goes_on_where_it_stopped(
    data: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE", 1)
    monkeypatch.setattr(pieces, "BATCH", 5)
    make, done = pieces.embed_piece, []

    def stops(*arguments: Any) -> Any:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(arguments[-1])
        return make(*arguments)

    monkeypatch.setattr(pieces, "embed_piece", stops)
    with pytest.raises(KeyboardInterrupt):
        embed(str(runs / "cloc"), data / "shards", tmp_path / "out", device="cpu")
    assert not (tmp_path / "out" / "images.npz").exists()
    seen = []
    monkeypatch.setattr(pieces, "embed_piece", lambda *a: seen.append(a[-1]) or make(*a))
    embed(str(runs / "cloc"), data / "shards", tmp_path / "out", device="cpu")
    assert done == [range(0, 5)] and seen == [range(5, 10), range(10, 13)]
    embed(str(runs / "cloc"), data / "shards", tmp_path / "whole", device="cpu")
    for name in ("images", "regions", "texts"):
        one, other = (table(tmp_path / folder / f"{name}.npz") for folder in ("out", "whole"))
        assert all((one[key] == other[key]).all() for key in one)
    with pytest.raises(ValueError, match="another model, data, source or regions"):
        embed(str(runs / "clip"), data / "shards", tmp_path / "out", device="cpu")


def test_embeddings_of_a_folder_and_of_a_coco_file_as_parquet(data: Path, runs: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra 'parquet' is not installed")
    counts = embed(str(runs / "clip"), data / "classes", tmp_path / "folder", device="cpu")
    assert counts == {"images": 9, "regions": 0, "texts": 0, "skipped": 1}
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "1.png").write_bytes(png(1))
    boxes = [{"image_id": 1, "category_id": 5, "bbox": [3.2, 2.4, 16, 12]}, {"image_id": 1, "caption": "noise"}]
    stored = {
        "images": [{"id": 1, "file_name": "1.png", "width": 32, "height": 24}],
        "annotations": boxes,
        "categories": [{"id": 5, "name": "cat"}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(stored))
    file = tmp_path / "annotations" / "instances_val.json"
    counts = embed(str(runs / "clip"), file, tmp_path / "coco", "parquet", device="cpu")
    assert counts == {"images": 1, "regions": 1, "texts": 2, "skipped": 0}
    row = parquet.read_table(tmp_path / "coco" / "regions.parquet").to_pylist()[0]
    assert row["text"] == "cat" and row["box"] == pytest.approx([0.1, 0.1, 0.6, 0.6])
    clip = cloc.load(str(runs / "clip"))
    (rows,) = clip.encode_regions([Image.open(io.BytesIO(png(1)))], [[[0.1, 0.1, 0.6, 0.6]]], "roi_align")
    np.testing.assert_allclose(row["embedding"], rows[0].numpy(), atol=1e-5)


def test_wrong_use_of_embed(data: Path, runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format 'csv'"):
        embed(str(runs / "clip"), data / "shards", tmp_path / "x", "csv")
    with pytest.raises(ValueError, match="source 'prompter': clip has roi_align, crop, mask_pool"):
        embed(str(runs / "clip"), data / "shards", tmp_path / "x", source="prompter", device="cpu")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        embed(str(runs / "clip"), Path("nowhere"), tmp_path / "x", device="cpu")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        embed(str(runs / "clip"), data / "shards", tmp_path / "full", device="cpu")


@pytest.mark.distributed
def test_two_ranks_embed_as_one(data: Path, runs: Path, tmp_path: Path) -> None:
    script = tmp_path / "small.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom cloc.evaluation.embed import embed, pieces as p\n"
        "p.PIECE, p.BATCH = 1, 5\n"
        "embed(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), device='cpu')\n"
    )
    for ranks in (1, 2):
        launch(ranks, str(script), str(runs / "cloc"), str(data / "shards"), str(tmp_path / str(ranks)))
    for name in ("images", "regions", "texts"):
        one, two = (table(tmp_path / folder / f"{name}.npz") for folder in ("1", "2"))
        assert all((one[key] == two[key]).all() for key in one)
