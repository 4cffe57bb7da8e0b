"""Which formats of export our towers go to, why not to the others, and what they are there.

Serves ``image.py`` and ``text.py``, whose towers declare it (:class:`cloc.models.protocols.Declares`); ``export`` asks
them. What a class-token ViT is stands in ``class_token.py``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cloc.models.protocols import TimmModel
from cloc.models.weights.class_token import (
    TIMM_NAMES,
    activation,
    describe_timm,
    obstacles_of_open_clip,
    obstacles_of_timm,
    open_clip_vision,
    plain_block,
)

NO_PRE_NORM = "the image tower has no norm before its blocks, CLIPModel always has"


def reasons_of_open_clip(visual: Any, format: str) -> list[str]:
    """Why a format cannot hold open_clip's ViT."""
    if format == "hf":
        found = obstacles_of_open_clip(visual)
        return found or ([NO_PRE_NORM] if isinstance(visual.ln_pre, nn.Identity) else [])
    if format == "timm":
        eps = visual.ln_post.eps
        found = [] if eps in TIMM_NAMES else [f"the norms have eps {eps}, timm's ViTs have 1e-5 (CLIP's) or 1e-6"]
        return obstacles_of_open_clip(visual) + found
    return []


def reasons_of_timm(tower: Any, format: str) -> list[str]:
    """Why a format cannot hold a :class:`cloc.models.image.TimmTower`."""
    if format == "hf":
        found = timm_obstacles(tower)
        return found or ([NO_PRE_NORM] if isinstance(tower.trunk.norm_pre, nn.Identity) else [])
    if format == "timm":
        return _not_timm(tower)
    if format == "open_clip" and timm_obstacles(tower):  # without them it is open_clip's own ViT
        return _not_timm(tower) or _not_timm_in_open_clip(tower)
    return []


def timm_obstacles(tower: Any) -> list[str]:
    """Why a :class:`cloc.models.image.TimmTower` is not a plain class-token ViT; empty where it is one."""
    if tower.adapter is not None:
        return ["an adapter of cloc's own stands upon the backbone"]
    return obstacles_of_timm(tower.trunk, tower.conv_stem)


def _not_timm(tower: Any) -> list[str]:
    found = [] if tower.adapter is None else ["the adapter upon the backbone is not part of a timm model"]
    if tower.adapter is None and not tower.pools:
        found.append(
            f"the head of timm's {tower.name} widens what it pools, and the tower takes the mean of its tokens"
        )
    return [*found, "the convolution stem is not part of a timm model"] if tower.conv_stem else found


def _not_timm_in_open_clip(tower: Any) -> list[str]:
    """Why open_clip's ``TimmModel``, which gives timm a name and nothing else, does not compute a tower."""
    found = []
    if tower.options:
        found.append(f"open_clip builds timm's {tower.name} as it is, without model.image.options={tower.options}")
    native = tower.trunk.pretrained_cfg["input_size"][-1]
    bound = tower.is_vit or "img_size" in tower.arguments
    if bound and tower.image_size != native:
        found.append(f"open_clip builds timm's {tower.name} for {native} px alone, the tower is for {tower.image_size}")
    return found


def timm_kind(tower: Any) -> str:
    """What a :class:`cloc.models.image.TimmTower` is, in words."""
    if not timm_obstacles(tower):
        return "class-token ViT of timm"
    name = f"timm {'ViT' if tower.is_vit else 'CNN'}"
    if tower.conv_stem:
        name += " with convolution stem"
    return name if tower.adapter is None else f"{name} with adapter"


def timm_itself(tower: Any) -> TimmModel:
    """A :class:`cloc.models.image.TimmTower` without adapter and stem as timm builds it."""
    own = tower.trunk.pretrained_cfg
    name = own.get("architecture") or tower.name.partition(".")[0]
    return TimmModel(name, dict(tower.arguments), tower.trunk.state_dict(), own, tower.proj.weight)


def timm_in_open_clip(tower: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``vision_cfg`` and weights: of open_clip's own ViT where that computes the tower, else of its ``TimmModel``."""
    if not timm_obstacles(tower):
        vit = describe_timm(tower.trunk, tower.proj.weight, tower.image_size)
        return open_clip_vision(vit), vit.state
    state = {f"trunk.{name}": value for name, value in tower.trunk.state_dict().items()}
    vision = {
        "timm_model_name": tower.name.partition(".")[0],
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
    }
    return vision, state | {"head.proj.weight": tower.proj.weight}


def timm_activation(tower: Any) -> str | None:
    """Activation of a :class:`cloc.models.image.TimmTower` that is open_clip's own ViT there; None for the others."""
    return None if timm_obstacles(tower) else activation(tower.trunk.blocks[0].mlp.act)


def reasons_of_clip_text(text: Any, format: str) -> list[str]:
    """Why a format cannot hold a :class:`cloc.models.text.ClipText`."""
    if format != "hf":
        return []
    tower = text.tower
    found = plain_block(tower.transformer.resblocks[0], "text")
    if not text.trims:
        found.append("the text tower looks at its padding, CLIPModel's is causal and pools at the end of text")
    elif tower.pool_type == "eos" and tower.eos_id == 2:
        found.append("the end of text has id 2, which makes CLIPModel pool at the highest id instead")
    if not isinstance(tower.text_projection, nn.Parameter):
        found.append("the text projection is not a plain matrix")
    return found
