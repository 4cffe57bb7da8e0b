"""Sets and models that the tests of evaluation share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cloc.data.shards.writer import write_shards
from cloc.encoder import Encoder
from cloc.loading import load
from cloc.models.build import build_model
from tests.kit.evaluating import COLORS, MODEL, png, sample


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards; a folder by class; a What'sUp file with its pictures."""
    folder = tmp_path_factory.mktemp("data")
    samples = [sample(i) for i in range(12)]
    broken = replace(samples[0], key="s99", image=png(0)[:100])
    write_shards([*samples, broken], folder / "shards", samples_per_shard=5, categories=list(COLORS))
    for name, color in COLORS.items():
        (folder / "classes" / f"{name}_ish").mkdir(parents=True)
        for i in range(0 if name == "gray" else 3):
            Image.new("RGB", (20, 16), color).save(folder / "classes" / f"{name}_ish" / f"{i}.png")
    (folder / "classes" / "red_ish" / "broken.png").write_bytes(png(0)[:80])
    (folder / "relations").mkdir()
    items = []
    words = {
        "left_of": "to the left of",
        "right_of": "to the right of",
        "in-front_of": "in front of",
        "behind": "behind",
    }
    for number, (name, word) in enumerate(words.items()):
        (folder / "relations" / f"cap_{name}_fork.jpeg").write_bytes(png(40 + number))
        options = [f"A cap {own} a fork" for own in [word, *(other for other in words.values() if other != word)]]
        items.append({"image_path": f"x/cap_{name}_fork.jpeg", "caption_options": options})
    (folder / "relations.json").write_text(json.dumps(items))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of a CLOC and a CLIP with random weights."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    for name, config in (("cloc", MODEL), ("clip", MODEL | {"prompter": None, "grounding": None})):
        weights = {f"model.{key}": value for key, value in build_model(config).state_dict().items()}
        info = {"version": "0", "config": {"model": config}, "cursor": 8, "samples_seen": 8}
        (folder / name / "checkpoints").mkdir(parents=True)
        torch.save({"state_dict": weights, "cloc": info}, folder / name / "checkpoints" / "last.ckpt")
    return folder


@pytest.fixture(scope="module")
def encoder(runs: Path) -> Encoder:
    return load(runs / "cloc")
