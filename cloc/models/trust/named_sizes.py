"""How many weights a tower has whose size follows from a name of timm or open_clip (below ``registry``).

A file of a few bytes can name a giant. Its tower is built on the meta device, which holds shapes and no numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from cloc.models.image import OpenClipTower, TimmTower
from cloc.models.text import ClipText
from cloc.models.trust.values import TIMM_OPTIONS
from cloc.models.weights.downloads import timm_weights
from cloc.models.weights.open_clip_towers import open_clip_tower


def named_weights(cls: type, node: Mapping[str, Any], joint_dim: Any) -> int:
    """Numbers that the weights of a tower have; 0 where no name says it, and where none can be built.

    Args:
        cls: of the tower.
        node: that was held to plain values; what else is wrong with it is told when it is built.
        joint_dim: D.
    """
    if cls not in (TimmTower, OpenClipTower, ClipText):
        return 0
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            tower = _trunk(node) if cls is TimmTower else _tower(cls, node, joint_dim)
    except Exception:  # noqa: BLE001  (of a value that does not fit, each class has an error of its own)
        return 0
    return sum(parameter.numel() for parameter in tower.parameters())


def trunk_weights(config: Mapping[str, Any]) -> int:
    """The same for the backbone of timm in open_clip's ``model_cfg``; 0 where it has none."""
    vision = config.get("vision_cfg", {})
    if not vision.get("timm_model_name"):
        return 0
    options = {key: value for key, value in vision.items() if key in TIMM_OPTIONS}
    node = {"options": options, "image_size": vision.get("image_size", 224)}
    return named_weights(OpenClipTower, node, config.get("embed_dim"))


def _trunk(node: Mapping[str, Any]) -> nn.Module:
    name = node["name"]
    with timm_weights(name, False):
        found: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **(node.get("options") or {}))
    return found


def _tower(cls: type, node: Mapping[str, Any], joint_dim: Any) -> nn.Module:
    name, options = node.get("name", "ViT-B-16"), dict(node.get("options") or {})
    part, size = ("text", None) if cls is ClipText else ("visual", node.get("image_size", 224))
    length = node.get("context_length")
    found: nn.Module = open_clip_tower(part, name, joint_dim, None, False, size, options, length)
    return found
