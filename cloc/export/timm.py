"""A folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads: the backbone alone.

One of the four writers (``matrix → hf | open_clip | timm | onnx → verify → card``). The projection to the joint space
is kept beside it, in ``projection.safetensors``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from cloc.data.views import PAD_VALUE
from cloc.encoder import Encoder
from cloc.export.matrix import ExportError
from cloc.export.verify import Probe, Row, watch

PROJECTION = "projection.safetensors"


def write(encoder: Encoder, folder: Path) -> None:
    """Write configuration, backbone and projection.

    Raises:
        ExportError: an option of the model that JSON cannot hold.
    """
    tower, node = encoder.model.image, encoder.info["config"]["model"]["image"]
    arguments: dict[str, Any] = dict(node.get("options") or {})
    if "vit" in node["name"] or "img_size" in arguments:
        arguments.setdefault("img_size", tower.image_size)
    own = tower.trunk.pretrained_cfg
    config = {
        "architecture": tower.trunk.pretrained_cfg.get("architecture") or node["name"].partition(".")[0],
        "num_classes": 0,
        "num_features": tower.trunk.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, tower.image_size, tower.image_size],
            "fixed_input_size": bool(own.get("fixed_input_size", False)),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "border",
            "mean": list(tower.mean),
            "std": list(tower.std),
            "num_classes": 0,
            "first_conv": own.get("first_conv"),
            "classifier": own.get("classifier"),
        },
    }
    try:
        text = json.dumps(config, indent=2)
    except TypeError as error:
        raise ExportError(f"model.image.options={arguments}: {error}; give plain values") from error
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    weights = {k: v.detach().cpu().contiguous().clone() for k, v in tower.trunk.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({"weight": tower.proj.weight.detach().float().cpu().contiguous().clone()}, folder / PROJECTION)


@torch.inference_mode()
def read(folder: Path, probe: Probe) -> dict[str, Tensor]:
    """States of the exported backbone, by timm alone."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    is_vit = hasattr(model, "blocks") and hasattr(model, "num_prefix_tokens")
    with watch(model.blocks[-1] if is_vit else None) as states:
        maps = model.forward_features(probe.pixels)
    pooled = model.forward_head(maps, pre_logits=True) @ load_file(folder / PROJECTION)["weight"].T
    return {"pooled": normalize(pooled, dim=-1), **states, **_tokens(model, maps)}


def _tokens(model: Any, maps: Tensor) -> dict[str, Tensor]:
    """Patch tokens after the last norm ``[B,N,C]``, from whichever layout the architecture has."""
    if maps.ndim == 3:
        tokens = maps[:, getattr(model, "num_prefix_tokens", 0) :]
        return {"tokens": model.fc_norm(tokens) if hasattr(model, "fc_norm") else tokens}
    last = maps.shape[1] != model.num_features  # channels last, as Swin's
    return {"tokens": maps.flatten(1, 2) if last else maps.flatten(2).transpose(1, 2)}


def more_rows(encoder: Encoder, probe: Probe, folder: Path, tolerance: float) -> list[Row]:
    """None: timm holds the backbone only."""
    return []


def usage(encoder: Encoder) -> tuple[str, str]:
    """Example for the card, and what to know."""
    example = """import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)
features = model.forward_features(pixels)"""
    notes = (
        "The backbone alone: text tower and Prompter are not part of it. Training resized the long side of a picture "
        f"to {encoder.model.image.image_size} px and padded it with {PAD_VALUE}. `{PROJECTION}` holds the matrix from "
        "pooled features (`forward_head(features, pre_logits=True)`) to the joint space."
    )
    return example, notes
