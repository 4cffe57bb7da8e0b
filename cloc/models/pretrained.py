"""What initial weights bring with them: architecture, activation, pixel statistics, positions for another grid.

A tower's ``pretrained`` may name a tag, a file or a folder of another library. :func:`complete` writes all that a
folder or a tag says into the configuration, so that a checkpoint is rebuilt without them; :func:`tower_state` reads a
folder's weights under our names. Serves ``build.py`` and ``weights.py``; names of weights are in ``layouts.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cloc.models.exported import (
    HF_CONFIG,
    HF_PROCESSOR,
    HF_WEIGHTS,
    OPEN_CLIP_CONFIG,
    hf_image_node,
    hf_text_node,
    open_clip_nodes,
    read_json,
    split_open_clip,
    tower_node,
)
from cloc.models.layouts import CLIP_VOCABULARY, TANH, from_hf, siglip_to_timm
from cloc.models.weights import read_state

OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
HF_FILES = (HF_WEIGHTS, "pytorch_model.bin")
PROJECTION = "projection.safetensors"  # beside an exported timm backbone: the matrix to the joint space
SIGLIP_NAME = "vit_base_patch16_siglip_224"  # only what the options leave open
ANY = ("image", "text")


def complete(model: Mapping[str, Any]) -> dict[str, Any]:
    """Write into a ``model`` configuration what its initial weights say; what is said already stays.

    Args:
        model: nodes ``image`` and ``text``, and ``joint_dim``.

    Returns:
        The same, with architecture, activation, mean, std, context length and tokenizer of the weights.

    Raises:
        ValueError: a folder whose model our towers cannot compute, or options that contradict it.
        FileNotFoundError: the folder lacks a file.
    """
    done = dict(model)
    for part in ANY:
        node = dict(model[part])
        source = node.get("pretrained")
        if isinstance(source, str) and Path(source).expanduser().is_dir():
            if not node["_target_"].endswith("HuggingFaceText"):  # reads its folder by itself
                done[part] = _from_folder(node, part, Path(source).expanduser(), model["joint_dim"])
        elif isinstance(source, str) and node["_target_"].endswith(("OpenClipTower", "ClipText")):
            done[part] = _from_tag(node, part, source)
    return done


def _from_tag(node: dict[str, Any], part: str, tag: str) -> dict[str, Any]:
    """Activation and pixel statistics of an open_clip tag; a file has none to tell."""
    import open_clip

    name = node.get("name", "ViT-B-16")
    known = open_clip.get_pretrained_cfg(name, tag)
    if not known:
        return node
    text = open_clip.get_model_config(name)["text_cfg"]
    if part == "text" and "hf_tokenizer_name" in text and node.get("tokenizer", "open_clip") == "open_clip":
        raise ValueError(
            f"model.text.pretrained={tag}: {name} has a tokenizer of its own, {text['hf_tokenizer_name']!r}; set "
            "model.text.tokenizer to it, or to a folder that holds it"
        )
    brought = {"quick_gelu": True} if known.get("quick_gelu") else {}
    if part == "image":
        brought |= {key: list(known[key]) for key in ("mean", "std") if known.get(key)}
    return node | brought


def _from_folder(node: dict[str, Any], part: str, folder: Path, joint_dim: int) -> dict[str, Any]:
    found, width = _describe(folder, part)
    key = f"model.{part}"
    if found["_target_"] != node["_target_"]:
        raise ValueError(f"{key}.pretrained={folder} holds weights of {found['_target_']}; set {key}._target_ to it")
    if width is not None and width != joint_dim:
        raise ValueError(f"{key}.pretrained={folder} has joint width {width}; set model.joint_dim={width}")
    options, own = dict(node.get("options") or {}), found.pop("options", {})
    wrong = [name for name, value in options.items() if own.get(name, value) != value]
    if wrong:
        raise ValueError(f"{key}.options.{wrong[0]}={options[wrong[0]]!r}: {folder} has {own[wrong[0]]!r}; remove it")
    found["options"] = options | own
    if part == "image":
        found["image_size"] = node.get("image_size", found["image_size"])  # the positions are resized
        found |= {name: node[name] for name in ("mean", "std") if node.get(name)}
    return node | found


def _describe(folder: Path, part: str) -> tuple[dict[str, Any], int | None]:
    """Node of one tower as the folder has it, and the joint width (None where the tower leaves it open)."""
    if (folder / OPEN_CLIP_CONFIG).is_file():
        stored = read_json(folder / OPEN_CLIP_CONFIG)
        config = stored["model_cfg"]
        try:
            nodes = dict(zip(ANY, open_clip_nodes(config, stored.get("preprocess_cfg", {})), strict=True))
        except ValueError as error:
            raise ValueError(f"model.{part}.pretrained={folder}: {error}") from error
        if "hf_tokenizer_name" in config.get("text_cfg", {}):
            nodes["text"]["tokenizer"] = str(folder)
        return nodes[part], config["embed_dim"]
    if not (folder / HF_CONFIG).is_file():
        raise ValueError(
            f"model.{part}.pretrained={folder}: no {OPEN_CLIP_CONFIG} and no {HF_CONFIG} there; give a folder of "
            "open_clip, timm or a Hugging Face CLIP or SigLIP, a weight file, or a tag"
        )
    config = read_json(folder / HF_CONFIG)
    kind = config.get("model_type", "")
    if part == "image" and "architecture" in config:
        return _timm_node(config), None
    if kind in ("clip", "clip_vision_model", "clip_text_model"):
        return _clip_node(config, part, folder)
    if kind in ("siglip", "siglip_vision_model", "siglip_text_model"):
        return _siglip_node(config, part, folder)
    raise ValueError(
        f"model.{part}.pretrained={folder}: model_type={kind!r} is not known; known are open_clip, timm, clip, siglip"
    )


def _pixels(folder: Path) -> dict[str, Any]:
    """Pixel statistics of an image processor, where the folder has one."""
    stored = read_json(folder / HF_PROCESSOR) if (folder / HF_PROCESSOR).is_file() else {}
    return {ours: stored[theirs] for ours, theirs in (("mean", "image_mean"), ("std", "image_std")) if theirs in stored}


def _clip_node(config: Mapping[str, Any], part: str, folder: Path) -> tuple[dict[str, Any], int]:
    own = _defaults("clip", part) | dict(_section(config, part, folder))
    node = hf_image_node(own) | _pixels(folder) if part == "image" else hf_text_node(own)
    if part == "text" and own["vocab_size"] != CLIP_VOCABULARY:
        node["tokenizer"] = str(folder)
    if "vision_config" not in config:
        raise ValueError(
            f"model.{part}.pretrained={folder} lacks the projection; give the folder of the whole CLIPModel"
        )
    return node, config.get("projection_dim", 512)


def _section(config: Mapping[str, Any], part: str, folder: Path) -> Mapping[str, Any]:
    key = {"image": "vision", "text": "text"}[part]
    if f"{key}_config" in config:
        return config[f"{key}_config"]
    if config["model_type"].endswith(f"_{key}_model"):
        return config
    raise ValueError(f"model.{part}.pretrained={folder} holds a {config['model_type']}, which has no {part} tower")


def _siglip_node(config: Mapping[str, Any], part: str, folder: Path) -> tuple[dict[str, Any], int | None]:
    own = _defaults("siglip", part) | dict(_section(config, part, folder))
    if own["layer_norm_eps"] != 1e-6:
        raise ValueError(f"{folder}: layer_norm_eps={own['layer_norm_eps']}; SigLIP's 1e-6 is known alone")
    if part == "text":
        options = {
            "width": own["hidden_size"],
            "heads": own["num_attention_heads"],
            "layers": own["num_hidden_layers"],
            "mlp_ratio": own["intermediate_size"] / own["hidden_size"],
            "vocab_size": own["vocab_size"],
            "norm_kwargs": {"eps": 1e-6},
            "no_causal_mask": True,
            "pool_type": "last",
            "proj_type": "linear",
            "proj_bias": True,
            "pad_id": own["pad_token_id"],
        }
        node = tower_node("text.ClipText", options, own["hidden_act"])
        node |= {"context_length": own["max_position_embeddings"], "tokenizer": str(folder)}
        return node, own.get("projection_size") or own["hidden_size"]
    options = {
        "patch_size": own["patch_size"],
        "embed_dim": own["hidden_size"],
        "depth": own["num_hidden_layers"],
        "num_heads": own["num_attention_heads"],
        "mlp_ratio": own["intermediate_size"] / own["hidden_size"],
        "act_layer": "gelu_tanh" if own["hidden_act"] == TANH else own["hidden_act"],
    }
    node = {"_target_": "cloc.models.image.TimmTower", "name": SIGLIP_NAME, "options": options}
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3} | _pixels(folder)
    return node | {"image_size": own["image_size"]} | pixels, None


def _defaults(family: str, part: str) -> dict[str, Any]:
    """A saved configuration leaves out what equals the library's defaults."""
    from transformers import CLIPTextConfig, CLIPVisionConfig, SiglipTextConfig, SiglipVisionConfig

    known = {
        "clip": {"image": CLIPVisionConfig, "text": CLIPTextConfig},
        "siglip": {"image": SiglipVisionConfig, "text": SiglipTextConfig},
    }
    return known[family][part]().to_dict()


def _timm_node(config: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(config.get("model_args") or {})
    view = config.get("pretrained_cfg", {})
    size = options.pop("img_size", None) or view.get("input_size", (3, 224, 224))[-1]
    node = {"_target_": "cloc.models.image.TimmTower", "name": config["architecture"], "options": options}
    pixels = {key: list(view[key]) for key in ("mean", "std") if key in view}
    return node | {"image_size": size if isinstance(size, int) else size[-1]} | pixels


def tower_state(folder: Path, part: str) -> dict[str, Tensor]:
    """Weights of one tower of a folder, under open_clip's names of a tower, or timm's for a ``trunk``.

    Args:
        folder: as :func:`complete` takes it.
        part: ``visual``, ``text`` or ``trunk``; a trunk's state may also hold ``proj.weight``, the projection.

    Raises:
        FileNotFoundError: no weight file in the folder.
        ValueError: a weight is missing, or the file holds more than tensors.
    """
    if (folder / OPEN_CLIP_CONFIG).is_file():
        prefixes = {"visual": "image.visual.", "text": "text.tower.", "trunk": "image.trunk."}
        whole, prefix = split_open_clip(_read_first(folder, OPEN_CLIP_FILES)), prefixes[part]
        state = {name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)}
        return state | ({"proj.weight": whole["image.proj.weight"]} if part == "trunk" else {})
    config, state = read_json(folder / HF_CONFIG), _read_first(folder, HF_FILES)
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


def _read_first(folder: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder}: none of {', '.join(names)} there (sharded weights are not read)")
    return read_state(file)
