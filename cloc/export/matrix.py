"""Which tower goes to which format, as a table, and the reasons why another does not.

First step of an export (``matrix → hf | open_clip | timm | onnx → verify → card``): a pair that cannot hold the model
is refused before anything is written, with the formats that can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from cloc.encoder import Encoder
from cloc.models.exported import CLIP_VOCABULARY
from cloc.models.image import ConvStem, OpenClipTower, TimmTower
from cloc.models.text import ClipText


class ExportError(ValueError):
    """An export that cannot be made or that is not the model; says what to do."""


@dataclass(frozen=True)
class Format:
    """One target format.

    Attributes:
        title: for tables.
        image: image towers that it holds.
        text: text towers that it holds.
        regions: how the Prompter travels.
        tolerance: largest difference allowed, in float32, in units of max(1, largest value of the original).
        refuses: yields a reason for each property of a model that the format cannot hold.
    """

    title: str
    image: str
    text: str
    regions: str
    tolerance: float
    refuses: Callable[[Encoder], list[str]]


def image_kind(tower: nn.Module) -> str:
    """What an image tower is, in the words of the matrix."""
    if isinstance(tower, OpenClipTower):
        return "class-token ViT of open_clip"
    if not isinstance(tower, TimmTower):
        return type(tower).__name__
    name = f"timm {'ViT' if tower.is_vit else 'CNN'}"
    if has_conv_stem(tower):
        name += " with convolution stem"
    return name if tower.adapter is None else f"{name} with adapter"


def has_conv_stem(tower: TimmTower) -> bool:
    """Whether the patch projection is our own :class:`ConvStem`."""
    return isinstance(getattr(tower.trunk, "patch_embed", None), ConvStem)


def activation(block: nn.Module) -> str:
    """Activation of an open_clip block in transformers' words, read from the module that runs."""
    return {"GELU": "gelu", "QuickGELU": "quick_gelu"}.get(type(block.mlp.gelu).__name__, type(block.mlp.gelu).__name__)


def _clip_pair(encoder: Encoder) -> list[str]:
    """What both open_clip and transformers ask for: both towers in CLIP's shape, with CLIP's vocabulary."""
    image, text = encoder.model.image, encoder.model.text
    found = []
    if not isinstance(image, OpenClipTower):
        found.append(f"the image tower is a {image_kind(image)}")
    if not isinstance(text, ClipText):
        found.append(f"the text tower is {type(text).__name__}")
    elif text.tokenizer != "open_clip":
        found.append(f"the tokenizer is {text.tokenizer!r} instead of open_clip's own")
    return found


def _refuses_open_clip(encoder: Encoder) -> list[str]:
    found = _clip_pair(encoder)
    if not found:
        towers = (encoder.model.image.visual, encoder.model.text.tower)
        acts = [activation(tower.transformer.resblocks[0]) for tower in towers]
        if acts[0] != acts[1]:
            found.append(f"open_clip has one activation for both towers, the image tower has {acts[0]}, text {acts[1]}")
    return found


def _refuses_hf(encoder: Encoder) -> list[str]:
    found = _clip_pair(encoder)
    if found:
        return found
    visual, text = encoder.model.image.visual, encoder.model.text.tower
    if visual.pool_type != "tok" or visual.attn_pool is not None or visual.final_ln_after_pool:
        found.append(f"the image tower pools by {visual.pool_type!r}, CLIPModel by the normalized class token")
    if isinstance(visual.ln_pre, nn.Identity):
        found.append("the image tower has no norm before its blocks")
    if not isinstance(text.text_projection, nn.Parameter):
        found.append("the text projection is not a plain matrix")
    if text.pool_type == "argmax" and text.vocab_size != CLIP_VOCABULARY:
        found.append(f"the text tower has {text.vocab_size} tokens instead of CLIP's {CLIP_VOCABULARY}")
    for name, tower in (("image", visual), ("text", text)):
        block = tower.transformer.resblocks[0]
        if type(block).__name__ != "ResidualAttentionBlock" or not isinstance(block.ls_1, nn.Identity):
            found.append(f"the {name} tower's blocks are {type(block).__name__} or scale their branches")
        elif activation(block) not in ("gelu", "quick_gelu"):
            found.append(f"the {name} tower's activation is {activation(block)}")
    return found


def _refuses_timm(encoder: Encoder) -> list[str]:
    tower = encoder.model.image
    if not isinstance(tower, TimmTower):
        return [f"the image tower is a {image_kind(tower)}, not a timm model"]
    found = [] if tower.adapter is None else ["the adapter upon the backbone is not part of a timm model"]
    return [*found, "the convolution stem is not part of a timm model"] if has_conv_stem(tower) else found


FORMATS: dict[str, Format] = {
    "hf": Format("Hugging Face transformers", "class-token ViT of open_clip", "CLIP", "own file", 1e-5, _refuses_hf),
    "open_clip": Format(
        "open_clip", "any ViT of open_clip", "CLIP, of the same activation", "own file", 1e-5, _refuses_open_clip
    ),
    "timm": Format("timm", "timm ViT or CNN without adapter and convolution stem", "–", "–", 1e-5, _refuses_timm),
    "onnx": Format("ONNX", "every tower", "every tower", "graphs of their own", 1e-4, lambda encoder: []),
}


def check_pair(encoder: Encoder, format: str) -> Format:
    """Refuse a format that cannot hold a model.

    Raises:
        ExportError: names each reason, and the formats that can hold this model.
    """
    reasons = FORMATS[format].refuses(encoder)
    if reasons:
        able = [name for name, other in FORMATS.items() if not other.refuses(encoder)]
        raise ExportError(
            f"{encoder.name} cannot go to {format}: {'; '.join(reasons)}. Possible for this model: {', '.join(able)}"
        )
    return FORMATS[format]
