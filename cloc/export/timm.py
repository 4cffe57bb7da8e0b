"""A folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads: the backbone alone.

One of the writers (``matrix → timm | … → verify → card``). The projection to the joint space is kept
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
from cloc.export.cloc_files import plain, view_stats
from cloc.export.verify import Probe, Row, compare, original, trunk_tokens
from cloc.files import write_file, write_tensors
from cloc.models import taps
from cloc.models.protocols import declared
from cloc.models.weights.tower_folders import PROJECTION


def write(encoder: Encoder, folder: Path) -> None:
    """Write configuration, backbone and projection.

    Raises:
        ExportError: an option of the model that JSON cannot hold.
    """
    tower = encoder.model.image
    model = declared(tower).timm_model()
    own, proj = model.config, model.projection
    config = {
        "architecture": model.name,
        "num_classes": 0,
        "num_features": proj.shape[1],
        "model_args": model.arguments,
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
        raise ExportError(f"model.image.options={model.arguments}: {error}; give plain values") from error
    write_file(folder / "config.json", text + "\n")
    write_tensors(folder / "model.safetensors", plain(model.state), {"format": "pt"})
    write_tensors(folder / PROJECTION, plain({"weight": proj}))


@torch.no_grad()
def read(folder: Path, probe: Probe) -> dict[str, Tensor]:
    """States of the exported backbone, by timm alone."""
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with taps.around_last(model) as states:
        maps = model.forward_features(probe.pixels)
    pooled = model.forward_head(maps, pre_logits=True) @ load_file(folder / PROJECTION)["weight"].T
    return {"pooled": normalize(pooled, dim=-1), **states, "tokens": trunk_tokens(model, maps)}


@torch.no_grad()
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
