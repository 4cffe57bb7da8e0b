"""A folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads: the backbone alone.

One of the writers (``matrix → class_token → timm | … → verify → card``). The projection to the joint space is kept
beside it, in ``projection.safetensors``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from cloc.encoder import Encoder
from cloc.export.capabilities import ExportError
from cloc.export.class_token import describe
from cloc.export.cloc_files import plain, view_stats
from cloc.export.verify import Probe, Row, compare, is_vit, original, trunk_tokens, watch
from cloc.files import write_file, write_tensors
from cloc.models.image import OpenClipTower, TimmTower
from cloc.models.weights.layouts import QUICK, TANH, to_timm
from cloc.models.weights.tower_folders import PROJECTION

CLIP_NAME = "vit_base_patch16_clip_224"


def write(encoder: Encoder, folder: Path) -> None:
    """Write configuration, backbone and projection.

    Raises:
        ExportError: an option of the model that JSON cannot hold.
    """
    tower = encoder.model.image
    if isinstance(tower, OpenClipTower):
        name, arguments, weights, own = _of_open_clip(tower)
        visual: Any = tower.visual  # open_clip has no types
        proj = visual.proj.T
    else:
        assert isinstance(tower, TimmTower)  # others are refused
        name, arguments, weights, own = _of_timm(tower, encoder.info["config"]["model"]["image"])
        proj = tower.proj.weight
    config = {
        "architecture": name,
        "num_classes": 0,
        "num_features": proj.shape[1],
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, tower.image_size, tower.image_size],
            "fixed_input_size": bool(own.get("fixed_input_size", False)),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": {"pad": "border", "squash": "squash"}[encoder.preprocess.mode],
            **view_stats(encoder),
            "num_classes": 0,
            "first_conv": own.get("first_conv"),
            "classifier": own.get("classifier"),
        },
    }
    try:
        text = json.dumps(config, indent=2)
    except TypeError as error:
        raise ExportError(f"model.image.options={arguments}: {error}; give plain values") from error
    write_file(folder / "config.json", text + "\n")
    write_tensors(folder / "model.safetensors", plain(weights), {"format": "pt"})
    write_tensors(folder / PROJECTION, plain({"weight": proj}))


def _of_timm(tower: TimmTower, node: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Name, arguments, weights and timm's own configuration of a timm backbone."""
    arguments: dict[str, Any] = dict(node.get("options") or {})
    if "vit" in node["name"] or "img_size" in arguments:
        arguments.setdefault("img_size", tower.image_size)
    trunk: Any = tower.trunk  # timm types the parts of its modules as nn.Module at most
    own = trunk.pretrained_cfg
    return own.get("architecture") or node["name"].partition(".")[0], arguments, trunk.state_dict(), own


def _of_open_clip(tower: OpenClipTower) -> tuple[str, dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """The same of a class-token ViT of open_clip: timm has its computation too."""
    vit = describe(tower)
    arguments: dict[str, Any] = {
        "img_size": vit.image_size,
        "patch_size": vit.patch_size,
        "embed_dim": vit.width,
        "depth": vit.layers,
        "num_heads": vit.heads,
        "mlp_ratio": vit.mlp_width / vit.width,
        "pre_norm": vit.pre_norm,
    }
    if vit.activation != "gelu":
        arguments["act_layer"] = {QUICK: "quick_gelu", TANH: "gelu_tanh"}[vit.activation]
    own = timm.get_pretrained_cfg(CLIP_NAME)
    assert own is not None  # timm has a model of that name
    return CLIP_NAME, arguments, to_timm(vit.state, vit.layers, vit.pre_norm), own.to_dict()


@torch.inference_mode()
def read(folder: Path, probe: Probe) -> dict[str, Tensor]:
    """States of the exported backbone, by timm alone."""
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with watch(model.blocks[-1] if is_vit(model) else None) as states:
        maps = model.forward_features(probe.pixels)
    pooled = model.forward_head(maps, pre_logits=True) @ load_file(folder / PROJECTION)["weight"].T
    return {"pooled": normalize(pooled, dim=-1), **states, "tokens": trunk_tokens(model, maps)}


@torch.inference_mode()
def more_rows(encoder: Encoder, probe: Probe, folder: Path, tolerance: float) -> list[Row]:
    """Rows of the folder in transformers, where that is installed: its ``TimmWrapperModel`` reads timm's files."""
    try:
        from transformers import TimmWrapperModel
    except ImportError:
        return []
    # Named classes: AutoModel would look for the hub's list of ImageNet labels first.
    model = TimmWrapperModel.from_pretrained(folder).eval()
    seen = model(probe.pixels)
    pooled = normalize(seen.pooler_output @ load_file(folder / PROJECTION)["weight"].T, dim=-1)
    states = {"pooled": pooled, "tokens": trunk_tokens(model.timm_model, seen.last_hidden_state)}
    return compare(original(encoder, probe), states, tolerance, prefix="transformers: ")


def usage(encoder: Encoder) -> tuple[str, str]:
    """Example for the card, and what to know."""
    example = """import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)
features = model.forward_features(pixels)"""
    notes = (
        "The backbone alone: text tower and Prompter are not part of it. Pictures are seen with "
        f"{encoder.preprocess.describe(encoder.image_size)}. `{PROJECTION}` holds the matrix from "
        "pooled features (`forward_head(features, pre_logits=True)`) to the joint space."
    )
    return example, notes
