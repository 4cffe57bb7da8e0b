"""A folder that another library can read ↔ our towers: names of weights, configuration.

Stands beside ``build.py``: ``encoder.load`` rebuilds a model from an exported folder by it, and ``export`` writes with
the same tables, so that one description of the layouts serves both directions. Weights are safetensors, never pickles.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from cloc.models.image import CLIP_MEAN, CLIP_STD
from cloc.models.weights import read_state

OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
HF_CONFIG, HF_WEIGHTS = "config.json", "model.safetensors"
EXTRA_CONFIG, EXTRA_WEIGHTS = "cloc.json", "prompter.safetensors"
CLIP_VOCABULARY = 49408
ACTIVATIONS = {"gelu": False, "quick_gelu": True}

_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_IMAGE = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
    "proj": "visual_projection.weight",
}
_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
_TRANSPOSED = {"visual_projection.weight", "text_projection.weight"}


@dataclass(frozen=True)
class Exported:
    """What an exported folder holds.

    Attributes:
        config: ``model`` node that :func:`cloc.models.build.build_model` takes.
        state: state dict of that model.
        info: ``samples_seen`` and ``version`` of the run; defaults for a folder that cloc did not write.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    info: dict[str, Any]


def hf_names(part: str, layers: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Pair the weights of an open_clip tower with those of a Hugging Face ``CLIPModel``.

    Args:
        part: ``image`` or ``text``.
        layers: number of transformer blocks.

    Yields:
        open_clip's name within the tower, and one name (or three, where query, key and value are apart).
    """
    prefix = {"image": "vision_model", "text": "text_model"}[part]
    for ours, theirs in {"image": _IMAGE, "text": _TEXT}[part].items():
        yield ours, (theirs,)
    for i in range(layers):
        block, layer = f"transformer.resblocks.{i}", f"{prefix}.encoder.layers.{i}"
        for kind in ("weight", "bias"):
            yield f"{block}.attn.in_proj_{kind}", tuple(f"{layer}.self_attn.{x}_proj.{kind}" for x in "qkv")
            for ours, theirs in _BLOCK.items():
                yield f"{block}.{ours}.{kind}", (f"{layer}.{theirs}.{kind}",)


def to_hf(tower: Mapping[str, Tensor], part: str, layers: int) -> dict[str, Tensor]:
    """State dict of an open_clip tower → the same weights under ``CLIPModel``'s names."""
    state: dict[str, Tensor] = {}
    for ours, theirs in hf_names(part, layers):
        value = tower[ours].T if theirs[0] in _TRANSPOSED else tower[ours]
        state |= dict(zip(theirs, value.chunk(len(theirs)), strict=True))
    return {name: value.detach().float().contiguous().clone() for name, value in state.items()}


def from_hf(state: Mapping[str, Tensor], part: str, layers: int) -> dict[str, Tensor]:
    """The inverse of :func:`to_hf`.

    Raises:
        ValueError: a weight is missing; names it.
    """
    tower: dict[str, Tensor] = {}
    for ours, theirs in hf_names(part, layers):
        missing = [name for name in theirs if name not in state]
        if missing:
            raise ValueError(f"the {part} tower lacks the weight {missing[0]!r}; is the folder a whole CLIPModel?")
        value = torch.cat([state[name] for name in theirs])
        tower[ours] = value.T.contiguous() if theirs[0] in _TRANSPOSED else value
    return tower


def is_exported(folder: Path) -> bool:
    """Whether a folder was written by open_clip's or transformers' conventions (a run folder was not)."""
    return (folder / OPEN_CLIP_CONFIG).is_file() or (folder / HF_CONFIG).is_file()


def read_exported(folder: Path) -> Exported:
    """Read a model from an open_clip or a Hugging Face CLIP folder.

    A Prompter and a grounding head are there if cloc's own two files are (``cloc.json``, ``prompter.safetensors``); a
    folder without them is a plain CLIP.

    Raises:
        FileNotFoundError: the weights are missing.
        ValueError: an architecture or a preprocessing that our towers do not have; says which.
    """
    read = _read_open_clip if (folder / OPEN_CLIP_CONFIG).is_file() else _read_hf
    config, state = read(folder)
    extra = _json(folder / EXTRA_CONFIG) if (folder / EXTRA_CONFIG).is_file() else {}
    config |= {part: extra.get(part) for part in ("prompter", "grounding")}
    if config["prompter"]:
        state |= _weights(folder / EXTRA_WEIGHTS)
    info = {"samples_seen": extra.get("samples_seen", 0), "version": extra.get("version", "not written by cloc")}
    return Exported(config, state, info)


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error}); export the model again") from error


def _weights(file: Path) -> dict[str, Tensor]:
    try:
        return read_state(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error}); export the model again") from error


def _read_hf(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = _json(folder / HF_CONFIG)
    kind = config.get("model_type", config.get("architecture"))
    if kind != "clip":
        hint = " (the folder above it holds both towers)" if kind == "clip_vision_model" else ""
        raise ValueError(f"{folder / HF_CONFIG}: model_type={kind!r}; cloc.load takes 'clip', with both towers{hint}")
    vision, text = config["vision_config"], config["text_config"]
    if text["vocab_size"] != CLIP_VOCABULARY:
        raise ValueError(f"{folder}: vocab_size={text['vocab_size']}; cloc.load knows CLIP's {CLIP_VOCABULARY} tokens")
    image_node = _node("image.OpenClipTower", _hf_options(vision, folder), vision["hidden_act"])
    image_node["image_size"] = vision["image_size"]
    image_node["options"] |= {
        "head_width": vision["hidden_size"] // vision["num_attention_heads"],
        "patch_size": vision["patch_size"],
    }
    text_node = _node("text.ClipText", _hf_options(text, folder), text["hidden_act"])
    text_node["context_length"] = text["max_position_embeddings"]
    text_node["options"] |= {"heads": text["num_attention_heads"]}
    state = _weights(folder / HF_WEIGHTS)
    weights = {f"image.visual.{k}": v for k, v in from_hf(state, "image", vision["num_hidden_layers"]).items()}
    weights |= {f"text.tower.{k}": v for k, v in from_hf(state, "text", text["num_hidden_layers"]).items()}
    weights["log_scales.global"] = state["logit_scale"].reshape(1)
    return {"joint_dim": config["projection_dim"], "image": image_node, "text": text_node}, weights


def _hf_options(part: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    if part["hidden_act"] not in ACTIVATIONS:
        raise ValueError(f"{folder}: hidden_act={part['hidden_act']!r}; known are {', '.join(ACTIVATIONS)}")
    options = {
        "width": part["hidden_size"],
        "layers": part["num_hidden_layers"],
        "mlp_ratio": part["intermediate_size"] / part["hidden_size"],
    }
    return options if part["layer_norm_eps"] == 1e-5 else options | {"norm_kwargs": {"eps": part["layer_norm_eps"]}}


def _node(target: str, options: dict[str, Any], activation: str) -> dict[str, Any]:
    """A tower's node; the architecture named here is only what the options leave open."""
    quick = ACTIVATIONS[activation]
    return {"_target_": f"cloc.models.{target}", "name": "ViT-B-16", "quick_gelu": quick, "options": options}


def _read_open_clip(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    stored = _json(folder / OPEN_CLIP_CONFIG)
    config, view = stored.get("model_cfg", {}), stored.get("preprocess_cfg", {})
    vision, text = dict(config.get("vision_cfg", {})), dict(config.get("text_cfg", {}))
    if vision.get("timm_model_name") or text.get("hf_model_name") or "multimodal_cfg" in config or not vision:
        raise ValueError(f"{folder / OPEN_CLIP_CONFIG}: cloc.load takes open_clip's own ViT and text transformer only")
    for key, own in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
        if list(view.get(key, own)) != list(own):
            raise ValueError(f"{folder / OPEN_CLIP_CONFIG}: preprocess_cfg.{key}={view[key]}, not CLIP's {list(own)}")
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    image_node = _node("image.OpenClipTower", vision, activation)
    image_node["image_size"] = vision.pop("image_size", 224)
    text_node = _node("text.ClipText", text, activation)
    text_node["context_length"] = text.pop("context_length", 77)
    state = _weights(folder / OPEN_CLIP_WEIGHTS)
    if "positional_embedding" in state:
        from open_clip.model import convert_to_custom_text_state_dict

        state = convert_to_custom_text_state_dict(state)
    scale = state.pop("logit_scale").reshape(1)
    state.pop("logit_bias", None)
    weights = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        weights[f"{'image.visual' if part == 'visual' else 'text.tower'}.{rest}"] = value
    weights["log_scales.global"] = scale
    return {"joint_dim": config["embed_dim"], "image": image_node, "text": text_node}, weights
