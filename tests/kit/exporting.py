"""Run folders of random weights for the tests of exports, and what to ask of an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import cloc
from cloc import __version__
from cloc.data.word_tokenizer import write_word_tokenizer
from cloc.encoder import Encoder
from cloc.export.verify import make_probe
from cloc.loading import load
from cloc.models.build import build_model

OPEN_CLIP = {
    "_target_": "cloc.models.image.OpenClipTower",
    "image_size": 64,
    "options": {"width": 64, "layers": 2, "head_width": 32, "patch_size": 16},
}
TEXT = {"_target_": "cloc.models.text.ClipText", "options": {"width": 64, "heads": 2, "layers": 2}}
TIMM = {
    "_target_": "cloc.models.image.TimmTower",
    "name": "vit_tiny_patch16_224",
    "image_size": 64,
    "options": {"embed_dim": 64, "depth": 2, "num_heads": 2},
}
CNN = {"_target_": TIMM["_target_"], "name": "test_efficientnet", "image_size": 64}
SHARED = {"_target_": "cloc.models.prompter.SharedPrompter"}
PAPER = {"_target_": "cloc.models.prompter.PaperPrompter"}
READING = PAPER | {"average": "prompt", "positions": "learned", "norm": "post", "mlp_ratio": 2.0, "box_tokens": 1}
ROI = {"_target_": "cloc.models.prompter.RoiAlign"}
SPATIAL = {"_target_": "cloc.models.grounding.SpatialHead"}
MLP = {"_target_": "cloc.models.grounding.MlpHead"}


def word_text(folder: Path) -> dict[str, Any]:
    """A text tower with a tokenizer of its own, of a few words."""
    pytest.importorskip("transformers")
    texts = ["a chick and a cup", "two dogs run left of an umbrella in front of a fence", "photo of the number brown"]
    rows = write_word_tokenizer(texts, folder)
    options = {"width": 64, "heads": 2, "layers": 1, "vocab_size": rows, "pool_type": "eos", "eos_id": 3}
    return {"_target_": TEXT["_target_"], "tokenizer": str(folder), "context_length": 24, "options": options}


def make_run(
    folder: Path,
    image: dict[str, Any] = OPEN_CLIP,
    text: dict[str, Any] = TEXT,
    seed: int = 0,
    joint_dim: int = 32,
    **parts: Any,
) -> Path:
    """A run folder with a checkpoint of random weights, as training writes it; no part is at a trivial value."""
    torch.manual_seed(seed)
    config = {"joint_dim": joint_dim, "image": image, "text": text, "prompter": None, "grounding": None} | parts
    model = build_model(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not name.startswith("log_scales"):
                value.add_(torch.randn_like(value) * 0.02)
        model.log_scales["global"].fill_(3.3)
    save(folder / "checkpoints" / "last.ckpt", stored(model.state_dict(), config))
    return folder


def stored(state: dict[str, torch.Tensor], config: dict[str, Any], **info: Any) -> dict[str, Any]:
    """Content of a checkpoint."""
    own = {"version": __version__, "config": {"model": config, "samples": 8}, "cursor": 8, "samples_seen": 8}
    return {"state_dict": {f"model.{name}": value for name, value in state.items()}, "cloc": own | info}


def save(file: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)


def parity(folder: Path) -> dict[str, float]:
    """Differences of an export that was proven."""
    found = json.loads((folder / "parity.json").read_text())
    assert found["ok"] and all(row["ok"] for row in found["rows"])
    return {row["name"]: row["difference"] for row in found["rows"]}


def check_loaded(run: Path, folder: Path) -> None:
    """``cloc.load`` of run and export answer alike, from pictures of any size."""
    ours, again = load(run), cloc.load(str(folder))
    pictures = make_probe(ours).pictures
    boxes = [[[0.1, 0.2, 0.5, 0.9], [0, 0, 1, 1]]] * len(pictures)
    torch.testing.assert_close(again.encode_image(pictures), ours.encode_image(pictures), atol=1e-5, rtol=0)
    texts = ["a chick", "x"]
    torch.testing.assert_close(again.encode_text(texts), ours.encode_text(texts), atol=1e-5, rtol=0)
    assert again.sources == ours.sources and again.can_ground == ours.can_ground
    for source in ours.sources:
        found, expected = (torch.cat(e.encode_regions(pictures, boxes, source)) for e in (again, ours))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    if ours.can_ground:
        found, expected = (torch.cat(e.ground(pictures, [["a cup"]] * 4)) for e in (again, ours))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert again.model.scales()["global"].item() == pytest.approx(ours.model.scales()["global"].item())
    assert again.preprocess == ours.preprocess and again.tokenizer.encode("a chick") == ours.tokenizer.encode("a chick")


def build_llava(folder: Path) -> tuple[Any, int]:
    """LLaVA around the exported tower, with a small random language model; returns it and the id of an image token."""
    transformers = pytest.importorskip("transformers")
    image_token, vocabulary = 90, 100
    text = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    tower = transformers.CLIPVisionModel.from_pretrained(folder / "vision")
    config = transformers.LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=image_token,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    return model, image_token


def check_llava(encoder: Encoder, folder: Path) -> None:
    """What the projector of a LLaVA around ``folder/vision`` reads are the model's own penultimate patch tokens."""
    transformers = pytest.importorskip("transformers")
    model, image_token = build_llava(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder / "vision")
    read: dict[str, torch.Tensor] = {}
    projector = model.model.multi_modal_projector
    handle = projector.register_forward_pre_hook(lambda module, inputs: read.update(features=inputs[0]))
    ids = torch.tensor([[1, *[image_token] * model.config.image_seq_length, 5]])
    for picture in make_probe(encoder).pictures:
        with torch.no_grad():
            model(input_ids=ids, pixel_values=processor(picture, return_tensors="pt").pixel_values)
        expected, _ = encoder.encode_dense([picture], layers=-2)
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(read["features"], expected, atol=1e-5 * scale, rtol=0)
    handle.remove()
