"""Which tower goes to which format, as a table, and the reasons why another does not.

First step of an export (``matrix → hf | open_clip | timm | onnx | torch | regions → verify → card``): a pair that
cannot hold the model is refused before anything is written, with the formats that can. ``docs/export.md`` shows the
same table, and a test holds it against this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from cloc.encoder import Encoder
from cloc.export.class_token import activation, obstacles, plain_block
from cloc.models.image import ConvStem, OpenClipTower, TimmTower
from cloc.models.prompter import PaperPrompter, SharedPrompter
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
        return "ViT of open_clip" if obstacles(tower) else "class-token ViT of open_clip"
    if not isinstance(tower, TimmTower):
        return type(tower).__name__
    if not obstacles(tower):
        return "class-token ViT of timm"
    name = f"timm {'ViT' if tower.is_vit else 'CNN'}"
    if has_conv_stem(tower):
        name += " with convolution stem"
    return name if tower.adapter is None else f"{name} with adapter"


def has_conv_stem(tower: TimmTower) -> bool:
    """Whether the patch projection is our own :class:`ConvStem`."""
    return isinstance(getattr(tower.trunk, "patch_embed", None), ConvStem)


def is_native(tower: nn.Module) -> bool:
    """Whether open_clip's own ``VisionTransformer`` computes a tower; the others go through its ``TimmModel``."""
    return isinstance(tower, OpenClipTower) or not obstacles(tower)


def image_activation(tower: nn.Module) -> str:
    """Activation of a ViT's perceptrons."""
    if isinstance(tower, OpenClipTower):
        return activation(tower.visual.transformer.resblocks[0].mlp.gelu)
    return activation(tower.trunk.blocks[0].mlp.act)


def text_activation(text: ClipText) -> str:
    """Activation of a text transformer's perceptrons."""
    return activation(text.tower.transformer.resblocks[0].mlp.gelu)


def _refuses_open_clip(encoder: Encoder) -> list[str]:
    image, text = encoder.model.image, encoder.model.text
    found = []
    if not is_native(image):
        found += _not_timm_in_open_clip(encoder)
    if not isinstance(text, ClipText):
        found.append(
            f"the text tower is {type(text).__name__}, which open_clip builds by a hub name, not from a folder"
        )
    elif is_native(image):
        kinds = (image_activation(image), text_activation(text))
        if ("quick_gelu" in kinds) and kinds[0] != kinds[1]:
            found.append(
                f"open_clip has one activation for both towers, the image tower has {kinds[0]}, text {kinds[1]}"
            )
    return found


def _not_timm_in_open_clip(encoder: Encoder) -> list[str]:
    """Why open_clip's ``TimmModel``, which gives timm a name and nothing else, does not compute a tower."""
    tower = encoder.model.image
    found = _refuses_timm(encoder)
    if not isinstance(tower, TimmTower) or found:
        return found
    node = encoder.info["config"]["model"]["image"]
    if node.get("options"):
        found.append(f"open_clip builds timm's {node['name']} as it is, without model.image.options={node['options']}")
    native = tower.trunk.pretrained_cfg["input_size"][-1]
    if tower.is_vit and tower.image_size != native:
        found.append(
            f"open_clip builds timm's {node['name']} for {native} px alone, the tower is for {tower.image_size}"
        )
    return found


def _refuses_hf(encoder: Encoder) -> list[str]:
    image, text = encoder.model.image, encoder.model.text
    found = obstacles(image)
    if not found and not has_pre_norm(image):
        found.append("the image tower has no norm before its blocks, CLIPModel always has")
    if not isinstance(text, ClipText):
        return [*found, f"the text tower is {type(text).__name__} and not CLIP's transformer"]
    tower = text.tower
    found += plain_block(tower.transformer.resblocks[0], "text")
    if not text.trims:
        found.append("the text tower looks at its padding, CLIPModel's is causal and pools at the end of text")
    elif tower.pool_type == "eos" and tower.eos_id == 2:
        found.append("the end of text has id 2, which makes CLIPModel pool at the highest id instead")
    if not isinstance(tower.text_projection, nn.Parameter):
        found.append("the text projection is not a plain matrix")
    return found


def has_pre_norm(tower: nn.Module) -> bool:
    """Whether a norm stands before the blocks of a class-token ViT."""
    norm = tower.visual.ln_pre if isinstance(tower, OpenClipTower) else tower.trunk.norm_pre
    return not isinstance(norm, nn.Identity)


def _refuses_timm(encoder: Encoder) -> list[str]:
    tower = encoder.model.image
    if isinstance(tower, OpenClipTower):
        eps = tower.visual.ln_post.eps
        return obstacles(tower) + ([] if eps == 1e-5 else [f"the norms have eps {eps}, timm's CLIP has 1e-5"])
    if not isinstance(tower, TimmTower):
        return [f"the image tower is a {image_kind(tower)}, not a timm model"]
    found = [] if tower.adapter is None else ["the adapter upon the backbone is not part of a timm model"]
    return [*found, "the convolution stem is not part of a timm model"] if has_conv_stem(tower) else found


def _refuses_regions(encoder: Encoder) -> list[str]:
    prompter = encoder.model.prompter
    if prompter is None:
        return ["the model has no Prompter (a plain CLIP)"]
    if not isinstance(prompter, SharedPrompter | PaperPrompter):
        return [f"its Prompter is {type(prompter).__name__}, which needs torchvision"]
    return []


FORMATS: dict[str, Format] = {
    "hf": Format(
        "Hugging Face transformers", "class-token ViT with a first norm", "ClipText", "own file", 1e-5, _refuses_hf
    ),
    "open_clip": Format(
        "open_clip", "any ViT of open_clip, timm by name", "ClipText", "own file", 1e-5, _refuses_open_clip
    ),
    "timm": Format("timm", "class-token ViT, any timm backbone", "–", "–", 1e-5, _refuses_timm),
    "onnx": Format("ONNX", "every tower", "every tower", "graphs of their own", 1e-4, lambda encoder: []),
    "torch": Format("torch.export", "every tower", "every tower", "programs of their own", 1e-4, lambda encoder: []),
    "regions": Format("PyTorch alone", "–", "–", "a module that stands alone", 1e-5, _refuses_regions),
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
