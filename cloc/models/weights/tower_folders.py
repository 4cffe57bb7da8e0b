"""Weights of one tower in a folder of another library, under the names of ours (below ``pretrained``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cloc.config.domains import ConfigError
from cloc.models.trust.values import HF_CONFIG, OPEN_CLIP_CONFIG, read_json
from cloc.models.weights.exported import (
    HF_WEIGHTS,
    split_open_clip,
)
from cloc.models.weights.files import read_state
from cloc.models.weights.layouts import from_hf, siglip_to_timm

OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


HF_FILES = (HF_WEIGHTS, "pytorch_model.bin")


PROJECTION = "projection.safetensors"  # beside an exported timm backbone: the matrix to the joint space


def _section(config: Mapping[str, Any], part: str, folder: Path) -> Mapping[str, Any]:
    key = {"image": "vision", "text": "text"}[part]
    if f"{key}_config" in config:
        section: Mapping[str, Any] = config[f"{key}_config"]
        return section
    if config["model_type"].endswith(f"_{key}_model"):
        return config
    raise ConfigError(f"model.{part}.pretrained={folder} holds a {config['model_type']}, which has no {part} tower")


def _defaults(family: str, part: str) -> dict[str, Any]:
    """A saved configuration leaves out what equals the library's defaults."""
    from transformers import CLIPTextConfig, CLIPVisionConfig, SiglipTextConfig, SiglipVisionConfig

    known = {
        "clip": {"image": CLIPVisionConfig, "text": CLIPTextConfig},
        "siglip": {"image": SiglipVisionConfig, "text": SiglipTextConfig},
    }
    found: dict[str, Any] = known[family][part]().to_dict()
    return found


def tower_state(folder: Path, part: str) -> dict[str, Tensor]:
    """Weights of one tower of a folder, under open_clip's names of a tower, or timm's for a ``trunk``.

    Args:
        folder: as :func:`cloc.models.weights.pretrained.complete` takes it.
        part: ``visual``, ``text`` or ``trunk``; a trunk's state may also hold ``proj.weight``, the projection.

    Raises:
        FileNotFoundError: no weight file in the folder.
        ValueError: a weight is missing, or the file holds more than tensors.
    """
    if (folder / OPEN_CLIP_CONFIG).is_file():
        prefixes = {"visual": "image.visual.", "text": "text.tower.", "trunk": "image.trunk."}
        whole = split_open_clip(read_first(folder, OPEN_CLIP_FILES), timm_tower=part == "trunk")
        prefix = prefixes[part]
        state = {name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)}
        if not state:
            tower = "text" if part == "text" else "image"
            raise ValueError(f"{folder}: holds no weight of the {tower} tower; is the folder a whole model?")
        return state | ({"proj.weight": whole["image.proj.weight"]} if part == "trunk" else {})
    config, state = read_json(folder / HF_CONFIG), read_first(folder, HF_FILES)
    if "architecture" in config:
        beside = folder / PROJECTION
        return state | ({"proj.weight": read_state(beside)["weight"]} if beside.is_file() else {})
    kind = "image" if part != "text" else "text"
    siglip = config["model_type"].startswith("siglip")
    own = _defaults("siglip" if siglip else "clip", kind) | dict(_section(config, kind, folder))
    layers = own["num_hidden_layers"]
    if siglip and part == "trunk":
        return siglip_to_timm(state, layers) | {"proj.weight": torch.eye(own["hidden_size"])}
    return from_hf(state, "siglip_text" if siglip else kind, layers)


def read_first(folder: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Weights of the first of these files that is in a folder.

    Raises:
        FileNotFoundError: none is there.
    """
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder}: none of {', '.join(names)} there (sharded weights are not read)")
    return read_state(file)
