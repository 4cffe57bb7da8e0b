"""Image towers of open_clip that are no plain ViT: they start as their weights are, at any size, and train."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.factory import _MODEL_CONFIGS, _rescan_model_configs
from safetensors.torch import save_file
from torch import nn

from cloc.config import ConfigError
from cloc.models import taps
from cloc.models.build import build_model
from cloc.models.image import OpenClipTower
from cloc.models.protocols import blocks, layers, recompute, refusals
from cloc.models.weights.open_clip_towers import pixel_statistics
from cloc.models.weights.pretrained import complete

TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
OUT = {"output_tokens": True}
VISION: dict[str, dict[str, Any]] = {
    "toy-resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "toy-coca": VIT
    | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 5, "output_tokens": True},
    "toy-clipa": VIT | {"pool_type": "avg", "final_ln_after_pool": True},
    "toy-timm": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None},
    "toy-siglip": {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
    "toy-gap": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": None},
    "toy-convnext": {"image_size": 64, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
}
DIM = {"toy-siglip": 96}


@pytest.fixture(scope="module", autouse=True)
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Small architectures beside those of open_clip."""
    folder = tmp_path_factory.mktemp("configs")
    for name, vision in VISION.items():
        config = {"embed_dim": DIM.get(name, 24), "vision_cfg": vision, "text_cfg": TEXT, "custom_text": True}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield
    from open_clip import factory

    factory._MODEL_CONFIG_PATHS.remove(folder)
    for name in VISION:
        _MODEL_CONFIGS.pop(name, None)
    _rescan_model_configs()


def weights(name: str, file: Path) -> Any:
    """A whole model of open_clip, no parameter at a trivial value, and its file."""
    torch.manual_seed(0)
    model: Any = open_clip.create_model(name)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.02)
    save_file({key: value.contiguous().clone() for key, value in model.state_dict().items()}, file)
    return model.eval()


@pytest.mark.parametrize("name", VISION)
@torch.no_grad()
def test_weights_of_a_file_start_as_they_are_and_at_another_size(name: str, tmp_path: Path) -> None:
    theirs, native = weights(name, tmp_path / "w.safetensors"), VISION[name]["image_size"]
    for size in (native, 96):
        node = {"_target_": "cloc.models.image.OpenClipTower", "name": name, "image_size": size}
        text = {"_target_": "cloc.models.text.ClipText", "name": name, "pretrained": str(tmp_path / "w.safetensors")}
        given = {"image": node | {"pretrained": text["pretrained"]}, "text": text, "prompter": None, "grounding": None}
        full = complete({"joint_dim": DIM.get(name, 24), **given})
        ours = build_model(full).eval()
        again = build_model(json.loads(json.dumps(full)), pretrained=False).eval()
        again.load_state_dict(ours.state_dict())
        pixels = torch.randn(2, 3, size, size)
        pooled, tokens = ours.image(pixels)
        torch.testing.assert_close(again.image(pixels), (pooled, tokens), rtol=0, atol=0)
        assert tokens.shape == (2, ours.grid[0] * ours.grid[1], ours.image.width)
        assert ours.image.project_tokens(tokens).shape == (*tokens.shape[:2], pooled.shape[1])
        if size == native:
            seen = theirs.visual(pixels)
            torch.testing.assert_close(pooled, seen[0] if isinstance(seen, tuple) else seen, rtol=0, atol=1e-6)
            texts = torch.randint(1, 99, (2, 20))
            torch.testing.assert_close(ours.text(texts), theirs.text(texts), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", VISION)
def test_every_parameter_has_a_gradient_and_recomputing_changes_none(name: str) -> None:
    torch.manual_seed(0)
    tower = OpenClipTower(DIM.get(name, 24), name, 64).train()
    tower.visual.apply(lambda module: module.__setattr__("momentum", 0.0) if hasattr(module, "running_mean") else None)
    pixels = torch.randn(2, 3, 64, 64)

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(1)
        pooled, tokens = tower(pixels)
        loss = pooled.square().sum() + tokens.square().mean() + tower.project_tokens(tokens).square().mean()
        return list(torch.autograd.grad(loss, list(tower.parameters())))

    before = gradients()
    assert recompute(tower)
    for one, other in zip(gradients(), before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert len(blocks(tower)) > 1 and layers(tower)[1] == len(blocks(tower)) + 1
    assert taps.tokens(tower.eval(), pixels)[0].grid == tower.grid


@torch.no_grad()
def test_a_token_is_projected_as_a_picture_of_it_alone_is_pooled() -> None:
    for name in ("toy-coca", "toy-resnet", "toy-clipa", "toy-gap"):
        tower = OpenClipTower(24, name, 64).eval()
        visual, tokens = tower.visual, torch.randn(3, tower.width)
        if name == "toy-coca":
            alone = tokens.unsqueeze(1)
            query = visual.attn_pool.ln_q(visual.attn_pool.query).expand(3, -1, -1)
            wanted = visual.ln_post(visual.attn_pool.attn(query, alone, alone)[0])[:, 0] @ visual.proj
        elif name == "toy-resnet":
            visual.attnpool.positional_embedding = nn.Parameter(torch.zeros(2, tower.width))
            wanted = visual.attnpool(tokens[..., None, None])
        elif name == "toy-gap":
            tower.inside.norm.bias.normal_()
            seen = visual.trunk.forward_features(torch.randn(1, 3, 64, 64))[:, 1:2]
            alone = torch.cat([seen, seen], 1)  # a class token, which is not averaged, and one patch
            tokens, wanted = tower.inside.norm(seen)[0], visual.head(visual.trunk.forward_head(alone))
        else:
            wanted = visual.ln_post(tokens) @ visual.proj
        torch.testing.assert_close(tower.project_tokens(tokens), wanted, rtol=1e-4, atol=1e-5)


def test_what_a_tower_cannot_have_is_one_line() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"name": "ViT-B-61"}, r"model.image.name='ViT-B-61'.*did you mean ViT-B-16"),
        ({"name": "swin_tiny_patch4_window7_224"}, r"set model.image._target_=cloc.models.image.TimmTower"),
        ({"name": "toy-timm", "options": {"width": 64}}, r"model.image.options.width: toy-timm has no such option; it"),
        (
            {"name": "toy-coca", "options": {"widht": 64}},
            r"options.widht: toy-coca has no such option; did you mean",
        ),
        ({"name": "toy-timm", "quick_gelu": True}, r"model.image.quick_gelu=true: toy-timm is a backbone of timm"),
        ({"name": "toy-resnet", "image_size": 16}, r"model.image.image_size=16: toy-resnet sees nothing below 32 px"),
        (
            {"name": "toy-coca", "options": {"head_width": 0}},
            r"options={'head_width': 0}: open_clip builds no such",
        ),
        ({"name": "toy-coca", "options": {"pool_type": "none"}}, r"a ViT that pools twice, or by 'none'"),
    ]
    for arguments, said in wrong:
        with pytest.raises(ConfigError, match=said) as caught:
            OpenClipTower(24, **{"image_size": 64} | arguments)
        assert "\n" not in str(caught.value)


def test_formats_that_cannot_hold_a_tower_are_declared() -> None:
    refused = {name: OpenClipTower(DIM.get(name, 24), name, 64) for name in VISION}
    held = {
        name: [format for format in ("hf", "open_clip", "timm", "onnx", "torch") if not refusals(tower, format)]
        for name, tower in refused.items()
    }
    assert held == {
        "toy-resnet": ["open_clip", "onnx", "torch"],
        "toy-coca": ["onnx", "torch"],
        "toy-clipa": ["open_clip", "onnx", "torch"],
        "toy-timm": ["onnx", "torch"],  # its classifier has a bias, and 64 px is not its own size
        "toy-gap": ["onnx", "torch"],
        "toy-siglip": ["timm", "onnx", "torch"],
        "toy-convnext": ["open_clip", "timm", "onnx", "torch"],
    }


def test_pixels_are_those_of_the_published_weights() -> None:
    assert pixel_statistics("ViT-B-16-SigLIP") == ((0.5,) * 3, (0.5,) * 3)
    assert pixel_statistics("MobileCLIP-S1") == ((0.0,) * 3, (1.0,) * 3)
    assert pixel_statistics("ViT-B-16")[0][0] == pixel_statistics("toy-timm")[0][0] == pytest.approx(0.48145466)
