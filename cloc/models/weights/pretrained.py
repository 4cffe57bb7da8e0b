"""What initial weights bring with them: architecture, activation, pixel statistics, positions for another grid.

A tower's ``pretrained`` may name a tag, a file or a folder of another library. :func:`complete` writes all that a
folder or a tag says into the configuration, so that a checkpoint is rebuilt without them; :func:`tower_state` reads a
folder's weights under our names. Serves ``build.py`` and ``weights.py``; names of weights are in ``layouts.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cloc.config.domains import ConfigError
from cloc.config.nodes import find_class
from cloc.models.protocols import CLIP_MEAN, CLIP_STD
from cloc.models.trust.named_sizes import named_weights
from cloc.models.trust.registry import check_node, name_of, parts
from cloc.models.trust.values import HF_CONFIG, OPEN_CLIP_CONFIG, check_holds, check_open_clip, check_room, read_json
from cloc.models.weights.exported import (
    HF_PROCESSOR,
    hf_image_node,
    hf_text_node,
    open_clip_nodes,
    tower_node,
)
from cloc.models.weights.layouts import CLIP_VOCABULARY, TANH
from cloc.models.weights.open_clip_towers import pixel_statistics, text_length
from cloc.models.weights.tower_folders import _defaults, _section

SIGLIP_NAME = "vit_base_patch16_siglip_224"  # only what the options leave open
TOWERS = ("image", "text")
HF_TOKENIZER = "tokenizer_config.json"


def complete(model: Mapping[str, Any], known: Mapping[str, Mapping[str, type]] | None = None) -> dict[str, Any]:
    """Write into a ``model`` configuration what its initial weights say; what is said already stays.

    Args:
        model: nodes ``image`` and ``text``, and ``joint_dim``.
        known: as :func:`cloc.models.build.build_model` has it.

    Returns:
        The same, with architecture, activation, mean, std, context length and tokenizer of the weights, for towers
        that declare that they are described (:class:`cloc.models.protocols.Declares`).

    Raises:
        ConfigError: a folder whose model our towers cannot compute, options that contradict it, or texts of a length
            that its text tower cannot take.
        FileNotFoundError: the folder lacks a file.
    """
    done = dict(model)
    for part in TOWERS:
        node, cls = dict(model[part]), _class_of(model[part], part, known)
        source, described = node.get("pretrained"), getattr(cls, "describes", ())
        if isinstance(source, str) and Path(source).expanduser().is_dir():
            if "folder" in described:
                done[part] = _from_folder(node, part, Path(source).expanduser(), model["joint_dim"], cls)
        elif isinstance(source, str) and "tag" in described:
            done[part] = _from_tag(node, part, source)
    image, text = done["image"], done["text"]
    if _of_open_clip(_class_of(image, "image", known)):  # a checkpoint asks no version of open_clip for them
        done["image"] = _with_pixels(image, *pixel_statistics(str(image.get("name", "ViT-B-16"))))
    open_length = getattr(_class_of(text, "text", known), "open_length", None)
    if open_length and not text.get("context_length", open_length):
        done["text"] = text | {"context_length": open_length}
    return done


def with_former_pixels(node: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """A stored node of an image tower with the pixel statistics that it had: earlier versions did not store them.

    They took CLIP's for every architecture of open_clip's own; those upon timm have always had the published ones.

    Args:
        node: ``image`` of a checkpoint or an export.
        cls: the class that it names.
    """
    if not _of_open_clip(cls):
        return dict(node)
    import open_clip

    name = str(node.get("name", "ViT-B-16"))
    vision = {**(open_clip.get_model_config(name) or {}).get("vision_cfg", {}), **(node.get("options") or {})}
    return _with_pixels(node, *(pixel_statistics(name) if vision.get("timm_model_name") else (CLIP_MEAN, CLIP_STD)))


def _of_open_clip(cls: type) -> bool:
    """Whether an image tower takes the statistics of what open_clip has published, where none are given."""
    return "tag" in getattr(cls, "describes", ()) and {"mean", "std"} <= inspect.signature(cls).parameters.keys()


def _with_pixels(node: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    return {**node, "mean": node.get("mean") or list(mean), "std": node.get("std") or list(std)}


def _class_of(node: Mapping[str, Any], part: str, known: Mapping[str, Mapping[str, type]] | None) -> type:
    """The class that a tower's node names."""
    target: Any = node.get("_target_")
    found = (known or {}).get(part, {})
    return found[target] if target in found else find_class(target, f"model.{part}._target_")


def _length(node: Mapping[str, Any], own: int, text: Mapping[str, Any]) -> int:
    """The number of positions that a text tower will have: what is asked for, or the weights' own.

    Args:
        node: ``model.text``.
        own: positions of the weights.
        text: open_clip's configuration of the tower.
    """
    asked = node.get("context_length") or own
    causal = not text.get("no_causal_mask") and text.get("pool_type", "argmax") in ("argmax", "eos")
    if asked != own and not causal:  # it reads the end of its padding: each position has a meaning of its own
        raise ConfigError(
            f"model.text.context_length={asked} does not go with model.text.pretrained={node['pretrained']}, which "
            f"reads texts padded to {own} tokens; give {own}, or null"
        )
    return asked


def _from_tag(node: dict[str, Any], part: str, tag: str) -> dict[str, Any]:
    """Activation and pixel statistics of an open_clip tag; a file has none to tell."""
    import open_clip

    name = node.get("name", "ViT-B-16")
    text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})  # an unknown name is told by what builds it
    if part == "text" and text:
        node["context_length"] = _length(node, text_length(name, tag), text)
        clean = node.get("clean") or text.get("tokenizer_kwargs", {}).get("clean")
        node |= {"clean": clean} if clean else {}
    known = open_clip.get_pretrained_cfg(name, tag)
    if not known:
        return node
    if part == "text" and "hf_tokenizer_name" in text and node.get("tokenizer", "open_clip") == "open_clip":
        raise ConfigError(
            f"model.text.pretrained={tag}: {name} has a tokenizer of its own, {text['hf_tokenizer_name']!r}; set "
            "model.text.tokenizer to it, or to a folder that holds it"
        )
    brought: dict[str, Any] = {"quick_gelu": True} if known.get("quick_gelu") else {}
    if part == "image":
        brought |= {key: list(known[key]) for key in ("mean", "std") if known.get(key)}
    return node | brought


def _from_folder(node: dict[str, Any], part: str, folder: Path, joint_dim: int, cls: type) -> dict[str, Any]:
    found, width = describe_folder(folder, part)
    key = f"model.{part}"
    check_room({"joint_dim": joint_dim, part: found}, folder, folder)
    theirs = next(cls for cls in parts()[part] if name_of(cls) == found["_target_"])
    check_node(found, part, folder, theirs)
    check_holds(named_weights(theirs, found, joint_dim), folder, folder)
    if not issubclass(cls, theirs):
        raise ConfigError(f"{key}.pretrained={folder} holds weights of {found['_target_']}; set {key}._target_ to it")
    if width is not None and width != joint_dim:
        raise ConfigError(f"{key}.pretrained={folder} has joint width {width}; set model.joint_dim={width}")
    options, own = dict(node.get("options") or {}), found.pop("options", {})
    wrong = [name for name, value in options.items() if own.get(name, value) != value]
    if wrong:
        raise ConfigError(f"{key}.options.{wrong[0]}={options[wrong[0]]!r}: {folder} has {own[wrong[0]]!r}; remove it")
    found["options"] = options | own
    if part == "text":
        found["context_length"] = _length(node, found["context_length"], found["options"])
    else:
        found["image_size"] = node.get("image_size", found["image_size"])  # the positions are resized
        found |= {name: node[name] for name in ("mean", "std") if node.get(name)}
    return node | found | {"_target_": node["_target_"]}


def siglip_cleaning(folder: Path) -> str | None:
    """What SigLIP's texts pass before their tokenizer: lower case and no punctuation, in training and in open_clip.

    The folders of SigLIP 2 hold Gemma's tokenizer, which does neither. One that is marked as case-sensitive is left so.
    """
    file = folder / HF_TOKENIZER
    stored = read_json(file) if file.is_file() else {}
    return None if stored.get("do_lower_case") is False else "canonicalize"


def describe_folder(folder: Path, part: str) -> tuple[dict[str, Any], int | None]:
    """Node of one tower as the folder has it, and the joint width (None where the tower leaves it open)."""
    if (folder / OPEN_CLIP_CONFIG).is_file():
        stored = read_json(folder / OPEN_CLIP_CONFIG)
        config = stored["model_cfg"]
        check_open_clip(config, folder / OPEN_CLIP_CONFIG)
        try:
            nodes = dict(zip(TOWERS, open_clip_nodes(config, stored.get("preprocess_cfg", {})), strict=True))
        except ValueError as error:
            raise ConfigError(f"model.{part}.pretrained={folder}: {error}") from error
        if "hf_tokenizer_name" in config.get("text_cfg", {}):
            nodes["text"]["tokenizer"] = str(folder)
            nodes["text"].setdefault("clean", "whitespace")  # open_clip's own default for such tokenizers
        return nodes[part], config["embed_dim"]
    if not (folder / HF_CONFIG).is_file():
        raise ConfigError(
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
    raise ConfigError(
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
        raise ConfigError(
            f"model.{part}.pretrained={folder} lacks the projection; give the folder of the whole CLIPModel"
        )
    return node, config.get("projection_dim", 512)


def _siglip_node(config: Mapping[str, Any], part: str, folder: Path) -> tuple[dict[str, Any], int | None]:
    own = _defaults("siglip", part) | dict(_section(config, part, folder))
    if own["layer_norm_eps"] != 1e-6:
        raise ConfigError(f"{folder}: layer_norm_eps={own['layer_norm_eps']}; SigLIP's 1e-6 is known alone")
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
        node["clean"] = siglip_cleaning(folder)
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


def _timm_node(config: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(config.get("model_args") or {})
    view = config.get("pretrained_cfg", {})
    size = options.pop("img_size", None) or view.get("input_size", (3, 224, 224))[-1]
    node = {"_target_": "cloc.models.image.TimmTower", "name": config["architecture"], "options": options}
    pixels = {key: list(view[key]) for key in ("mean", "std") if key in view}
    return node | {"image_size": size if isinstance(size, int) else size[-1]} | pixels
