"""A folder that cloc exported → our towers and their weights. ``encoder.load`` rebuilds a model from it.

Beside ``build.py``; the names of weights are in ``layouts.py``. A folder without ``cloc.json`` is another library's own
and goes to ``foreign_load.py``. Weights are safetensors, never pickles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from cloc.models.trust.values import HF_CONFIG, OPEN_CLIP_CONFIG, check_open_clip, read_json
from cloc.models.weights.digests import EXTRA_CONFIG, check_file, listed
from cloc.models.weights.files import read_state
from cloc.models.weights.layouts import ACTIVATIONS, CLIP_VOCABULARY, QUICK, TANH, from_hf

# What of open_clip's vision_cfg reaches a backbone of timm: the rest of it is of its own ViT.
TIMM_OPTIONS = ("timm_", "patch_dropout")

OPEN_CLIP_WEIGHTS, HF_WEIGHTS = "open_clip_model.safetensors", "model.safetensors"
HF_PROCESSOR = "preprocessor_config.json"
EXTRA_WEIGHTS = "prompter.safetensors"
LOADABLE = ("hf", "open_clip")  # formats that hold the whole model


@dataclass(frozen=True)
class Exported:
    """What an exported folder holds.

    Attributes:
        config: ``model`` node that :func:`cloc.models.build.build_model` takes.
        state: state dict of that model.
        info: ``samples_seen`` and ``version`` of the run.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    info: dict[str, Any]


def is_exported(folder: Path) -> bool:
    """Whether a folder was written by cloc's export, or by open_clip's or transformers' conventions (no run folder)."""
    return any((folder / name).is_file() for name in (EXTRA_CONFIG, OPEN_CLIP_CONFIG, HF_CONFIG))


def read_exported(folder: Path) -> Exported:
    """Read a model from a folder that ``export hf`` or ``export open_clip`` wrote.

    Raises:
        FileNotFoundError: the weights are missing.
        ValueError: another format, which holds a part of the model only; or a damaged file.
    """
    if not (folder / EXTRA_CONFIG).is_file():
        config = read_json(folder / HF_CONFIG)
        kind = config.get("model_type", config.get("architecture"))
        hint = "; the folder above it holds both towers" if kind == "clip_vision_model" else ""
        raise ValueError(
            f"{folder / HF_CONFIG}: model_type={kind!r}; cloc.load takes exports of cloc, and CLIP or SigLIP models "
            f"with both towers{hint}"
        )
    extra = read_json(folder / EXTRA_CONFIG)
    format = extra.get("format", "hf" if (folder / HF_WEIGHTS).is_file() else "open_clip")
    if format not in LOADABLE:
        raise ValueError(
            f"{folder} is an export to {format}, which cloc.load does not take; its README.md says how to load it. "
            f"Load the run itself, or its export to {' or '.join(LOADABLE)}"
        )
    config, state = (_read_open_clip if format == "open_clip" else _read_hf)(folder)
    for name in listed(folder):  # weights and configuration are compared where they are read
        if "tokenizer" in name and (folder / name).is_file():
            check_file(folder / name)
    if extra.get("tokenizer") == "own":
        config["text"]["tokenizer"] = str(folder)
    config["image"]["resize"] = extra.get("resize", "pad")
    config |= {part: extra.get(part) for part in ("prompter", "grounding", "logit_bias")}
    if (folder / EXTRA_WEIGHTS).is_file() or config["prompter"]:
        state |= _weights(folder / EXTRA_WEIGHTS)
    info = {"samples_seen": extra.get("samples_seen", 0), "version": extra.get("version", "unknown")}
    return Exported(config, state, info)


def _weights(file: Path) -> dict[str, Tensor]:
    try:
        return read_state(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: not a whole safetensors file ({error}); export the model again") from error


def tower_node(target: str, options: dict[str, Any], activation: str) -> dict[str, Any]:
    """Node of a tower of open_clip's making. The architecture named here is only what the options leave open.

    Raises:
        ValueError: an activation that open_clip's towers do not have.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is not known; known are {', '.join(ACTIVATIONS)}")
    if activation == TANH:
        options = options | {"act_kwargs": {"approximate": "tanh"}}
    quick = activation == QUICK
    return {"_target_": f"cloc.models.{target}", "name": "ViT-B-16", "quick_gelu": quick, "options": options}


def hf_image_node(vision: Mapping[str, Any]) -> dict[str, Any]:
    """``vision_config`` of a CLIPModel → node of an ``OpenClipTower``."""
    options = _hf_options(vision) | {
        "head_width": vision["hidden_size"] // vision["num_attention_heads"],
        "patch_size": vision["patch_size"],
    }
    return tower_node("image.OpenClipTower", options, vision["hidden_act"]) | {"image_size": vision["image_size"]}


def hf_text_node(text: Mapping[str, Any]) -> dict[str, Any]:
    """``text_config`` of a CLIPModel → node of a ``ClipText``."""
    options = _hf_options(text) | {"heads": text["num_attention_heads"], "vocab_size": text["vocab_size"]}
    # transformers pools at the highest id where eos_token_id is 2, and at the first token of that id elsewhere; CLIP's
    # end of text is both.
    if text["eos_token_id"] != 2 and text["vocab_size"] != CLIP_VOCABULARY:
        options |= {"pool_type": "eos", "eos_id": text["eos_token_id"]}
    node = tower_node("text.ClipText", options, text["hidden_act"])
    return node | {"context_length": text["max_position_embeddings"]}


def _hf_options(part: Mapping[str, Any]) -> dict[str, Any]:
    options = {
        "width": part["hidden_size"],
        "layers": part["num_hidden_layers"],
        "mlp_ratio": part["intermediate_size"] / part["hidden_size"],
    }
    return options if part["layer_norm_eps"] == 1e-5 else options | {"norm_kwargs": {"eps": part["layer_norm_eps"]}}


def _read_hf(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config, view = read_json(folder / HF_CONFIG), read_json(folder / HF_PROCESSOR)
    vision, text = config["vision_config"], config["text_config"]
    image_node, text_node = hf_image_node(vision), hf_text_node(text)
    image_node |= {"mean": view["image_mean"], "std": view["image_std"]}
    state = _weights(folder / HF_WEIGHTS)
    weights = {f"image.visual.{k}": v for k, v in from_hf(state, "image", vision["num_hidden_layers"]).items()}
    weights |= {f"text.tower.{k}": v for k, v in from_hf(state, "text", text["num_hidden_layers"]).items()}
    weights["log_scales.global"] = state["logit_scale"].reshape(1)
    return {"joint_dim": config["projection_dim"], "image": image_node, "text": text_node}, weights


def open_clip_nodes(config: Mapping[str, Any], view: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """open_clip's ``model_cfg`` and ``preprocess_cfg`` → nodes of both towers.

    Raises:
        ValueError: towers that we have no equal of.
    """
    vision, text = dict(config.get("vision_cfg", {})), dict(config.get("text_cfg", {}))
    if "multimodal_cfg" in config:
        raise ValueError(
            "a CoCa, whose text tower cannot be taken; for its image tower give model.image.name=coca_… and its weight "
            "file as model.image.pretrained"
        )
    if not vision or text.get("hf_model_name"):
        raise ValueError("only open_clip's own text transformer and its ViT or timm trunk can be taken")
    activation = QUICK if config.get("quick_gelu") else "gelu"
    size = vision.pop("image_size", 224)
    trunk = vision.get("timm_model_name")
    plain = (vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear")) == ("", "linear")
    if trunk and plain:
        image_node = {"_target_": "cloc.models.image.TimmTower", "name": trunk}
    else:
        if trunk:  # with the pooling and projection that open_clip gives it
            vision = {key: value for key, value in vision.items() if key.startswith(TIMM_OPTIONS)}
        image_node = tower_node("image.OpenClipTower", vision, activation)
    image_node |= {"image_size": size} | {key: list(view[key]) for key in ("mean", "std") if key in view}
    text.pop("hf_tokenizer_name", None)
    clean = text.pop("tokenizer_kwargs", {}).get("clean")
    text_node = tower_node("text.ClipText", text, activation) | ({"clean": clean} if clean else {})
    text_node["context_length"] = text.pop("context_length", 77)
    return image_node, text_node


def split_open_clip(state: dict[str, Tensor], timm_tower: bool) -> dict[str, Tensor]:
    """A state dict of a whole open_clip model, in either of its layouts → the same under our names of towers.

    Args:
        state: of the file.
        timm_tower: a trunk of timm is named as in a ``TimmTower``, and not as in an ``OpenClipTower``.
    """
    if "positional_embedding" in state:
        from open_clip.model import convert_to_custom_text_state_dict

        state = convert_to_custom_text_state_dict(state)
    trunk = {"visual.trunk.": "image.trunk.", "visual.head.proj.": "image.proj."} if timm_tower else {}
    ours = trunk | {"visual.": "image.visual.", "text.": "text.tower."}
    weights = {}
    for name, value in state.items():
        prefix = next((prefix for prefix in ours if name.startswith(prefix)), None)
        if prefix:
            weights[ours[prefix] + name.removeprefix(prefix)] = value
    return weights


def _read_open_clip(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    stored = read_json(folder / OPEN_CLIP_CONFIG)
    check_open_clip(stored.get("model_cfg", {}), folder / OPEN_CLIP_CONFIG)
    try:
        image_node, text_node = open_clip_nodes(stored["model_cfg"], stored["preprocess_cfg"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{folder / OPEN_CLIP_CONFIG}: {error}") from error
    state = _weights(folder / OPEN_CLIP_WEIGHTS)
    timm_tower = image_node["_target_"].endswith("TimmTower")
    weights = split_open_clip(state, timm_tower) | {"log_scales.global": state["logit_scale"].reshape(1)}
    return {"joint_dim": stored["model_cfg"]["embed_dim"], "image": image_node, "text": text_node}, weights
