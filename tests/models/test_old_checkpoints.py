"""Checkpoints that earlier versions wrote keep loading, whatever moves: the classes that they name, and their weights.

The files of ``tests/data_files`` are what :func:`write` wrote at version 0.1, before the parts declared themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import cloc
from cloc import __version__
from cloc.config import ConfigError, find_class, nodes, resolve
from cloc.models.build import build_model
from cloc.models.image import TimmTower
from cloc.models.model import Cloc
from cloc.models.protocols import CLIP_MEAN, CLIP_STD
from cloc.models.weights.pretrained import complete
from tests.kit.paths import ROOT

FOLDER = ROOT / "tests" / "data_files"
SMALL_TEXT = {"width": 8, "heads": 2, "layers": 1, "vocab_size": 40}
TEXT = {"_target_": "cloc.models.text.ClipText", "context_length": 8, "options": SMALL_TEXT}
MODELS: dict[str, dict[str, Any]] = {
    "timm": {
        "joint_dim": 8,
        "image": {
            "_target_": "cloc.models.image.TimmTower",
            "name": "vit_tiny_patch16_224",
            "image_size": 32,
            "options": {"patch_size": 16, "embed_dim": 8, "depth": 1, "num_heads": 2, "class_token": False}
            | {"global_pool": "avg"},
            "conv_stem": True,
            "positions": "fourier",
        },
        "text": TEXT,
        "prompter": {"_target_": "cloc.models.prompter.SharedPrompter"},
        "grounding": {"_target_": "cloc.models.grounding.SpatialHead"},
        "logit_bias": -10.0,
    },
    "open_clip": {
        "joint_dim": 8,
        "image": {
            "_target_": "cloc.models.image.OpenClipTower",
            "image_size": 32,
            "options": {"width": 8, "layers": 1, "head_width": 4, "patch_size": 16},
        },
        "text": TEXT,
        "prompter": {"_target_": "cloc.models.prompter.PaperPrompter"},
        "grounding": {"_target_": "cloc.models.grounding.MlpHead"},
    },
}


def answers(model: Cloc) -> dict[str, torch.Tensor]:
    """What a model makes of a picture, a box and a text."""
    images = torch.arange(3 * 32 * 32, dtype=torch.int64).remainder(251).to(torch.uint8).view(1, 3, 32, 32)
    with torch.no_grad():
        image, text = model.encode_images(images), model.encode_texts(torch.tensor([[38, 3, 5, 39]]))
        regions = model.encode_boxes(image, torch.tensor([[[0.1, 0.2, 0.6, 0.9]]]))
        return {"image": image.pooled, "text": text, "regions": regions, "boxes": model.ground(image, text[None])}


def write(file: Path, model: dict[str, Any]) -> None:
    """A checkpoint of random weights, with the answers that it must give."""
    torch.manual_seed(0)
    built = build_model(model, pretrained=False).eval()
    config = {"model": model, "samples": 8, "loss": {"_target_": "cloc.losses.objective.ClocLoss"}}
    info = {"version": __version__, "config": config, "cursor": 8, "samples_seen": 8, "counters": {}}
    state = {f"model.{name}": value for name, value in built.state_dict().items()}
    torch.save({"state_dict": state, "cloc": info, "answers": answers(built)}, file)


@pytest.mark.parametrize("name", MODELS)
def test_a_stored_checkpoint_gives_its_answers(name: str) -> None:
    file = FOLDER / f"checkpoint_{name}.pt"
    encoder = cloc.load(str(file))
    expected = torch.load(file, weights_only=True)["answers"]
    for part, value in answers(encoder.model).items():
        torch.testing.assert_close(value, expected[part], rtol=1e-4, atol=1e-5, msg=part)


@pytest.mark.parametrize("name", MODELS)
def test_stored_checkpoints_have_the_weights_that_are_written_today(name: str, tmp_path: Path) -> None:
    write(tmp_path / "new.pt", MODELS[name])
    files = (FOLDER / f"checkpoint_{name}.pt", tmp_path / "new.pt")
    old, new = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert list(old) == list(new)
    for key, value in old.items():
        assert torch.equal(value, new[key]), key


def test_pixels_are_those_that_a_checkpoint_was_trained_with(tmp_path: Path) -> None:
    """Earlier versions took CLIP's for all ViTs of open_clip, and did not store them."""
    image = MODELS["open_clip"]["image"] | {"name": "ViT-L-14-CLIPA"}
    write(tmp_path / "old.pt", MODELS["open_clip"] | {"image": image})
    old = cloc.load(str(tmp_path / "old.pt")).model
    assert tuple(old.image.mean) == CLIP_MEAN and tuple(old.image.std) == CLIP_STD
    resized = cloc.load(str(tmp_path / "old.pt"), image_size=64).model
    assert tuple(resized.image.mean) == CLIP_MEAN
    write(tmp_path / "new.pt", complete(MODELS["open_clip"] | {"image": image}))
    assert cloc.load(str(tmp_path / "new.pt")).model.image.mean[0] == 0.485


def test_the_loss_that_checkpoints_name_is_where_it_was() -> None:
    stored = torch.load(FOLDER / "checkpoint_timm.pt", weights_only=True)["cloc"]["config"]["loss"]["_target_"]
    assert find_class(stored, "loss._target_").__name__ == "ClocLoss"


def test_every_alias_leads_to_a_class() -> None:
    for old, new in nodes.MOVED.items():
        assert find_class(old, "a") is find_class(new, "a") and f"{find_class(new, 'a').__module__}" in new


def test_hydra_finds_a_callback_that_moved() -> None:
    from hydra.utils import get_class

    for old in ("cloc.engine.sweep.SweepFolder", "cloc.engine.sweep.report.SweepFolder"):
        assert get_class(old) is find_class(old, "a") is find_class("cloc.engine.sweep.hook.SweepFolder", "a")
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        import cloc.engine.sweep

        _ = cloc.engine.sweep.Nothing


def test_a_part_that_moved_is_found_under_its_old_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a user's configuration, among known classes, and in a checkpoint, which names no other class by it."""
    old = "cloc.towers.OldTower"
    moved = MODELS["timm"] | {"image": MODELS["timm"]["image"] | {"_target_": old}}
    monkeypatch.setitem(nodes.MOVED, old, "cloc.models.image.TimmTower")
    write(tmp_path / "moved.pt", moved)
    assert resolve(moved["image"], "model.image")[0] is TimmTower
    known = {"cloc.models.image.TimmTower": TimmTower}
    assert resolve(moved["image"], "model.image", known)[0] is TimmTower
    assert isinstance(cloc.load(str(tmp_path / "moved.pt")).model.image, TimmTower)
    monkeypatch.setitem(nodes.MOVED, old, "torch.nn.Linear")
    with pytest.raises(ConfigError, match="is not one of TimmTower"):
        cloc.load(str(tmp_path / "moved.pt"))
