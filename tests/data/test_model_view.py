"""The view of training is the model's own: what ``model.image`` says reaches the batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cloc.config import validate
from cloc.contracts import Batch
from cloc.data.stream.sources import open_sources
from cloc.data.transforms import PAD_VALUE
from cloc.engine.module import Pretrain
from tests.kit.paths import ROOT
from tests.kit.streams import make_manifest

SMALL = ["name=toy", "samples=8", "batch_size=8", "model=tiny", "model.image.options.depth=1"]


def first_batch(folder: Path, *overrides: str) -> Batch:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("train", [*SMALL, f"data.train={folder}", *overrides])
    config = validate(composed)
    module = Pretrain(config, OmegaConf.to_container(composed, resolve=True))
    return next(iter(module.open_stream(open_sources(config.data), rank=0, world=1)))


@pytest.mark.parametrize("resize", ["pad", "squash"])
def test_the_models_resize_reaches_the_batches(tmp_path: Path, resize: str) -> None:
    batch = first_batch(make_manifest(tmp_path / "set").folder, f"model.image.resize={resize}")
    full = batch.content == torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert full.all() if resize == "squash" else not full.all()  # the pictures are not square
    assert batch.content[:, 2:].amax(1).eq(1).all()
    corners = batch.images[:, :, 0, 0]
    assert (corners == PAD_VALUE).all(1).any() == (resize == "pad")


def test_the_models_size_reaches_the_batches(tmp_path: Path) -> None:
    batch = first_batch(make_manifest(tmp_path / "set").folder, "model.image.image_size=48")
    assert batch.images.shape == (8, 3, 48, 48)
