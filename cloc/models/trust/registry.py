"""The one gate between the configuration that a file of others brings and the model that is built from it.

A checkpoint, an export or a downloaded folder names registered parts only (:func:`parts`), unless the caller passes the
class. Its values are plain (``values``), weights come from the file itself, and a tokenizer or encoder from a folder
that is here: no code runs and no network is asked. A user's own configuration passes no gate (``config.nodes``).
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import timm
from torch import nn

from cloc import models
from cloc.config import ConfigError
from cloc.config.nodes import present_name
from cloc.models.image import OpenClipTower, TimmTower
from cloc.models.registration import registered_classes
from cloc.models.text import ClipText, HuggingFaceText
from cloc.models.trust.named_sizes import named_weights
from cloc.models.trust.values import (
    HF_CONFIG,
    TEXT_OPTIONS,
    TIMM_OPTIONS,
    VISION_OPTIONS,
    as_object,
    check_holds,
    check_options,
    check_plain,
    check_room,
    is_word,
    read_json,
)

NUMBERS = ("joint_dim", "logit_bias", "crop_scale")
# Arguments that name a folder, where it is not the tokenizer alone.
FOLDERS: dict[type, tuple[str, ...]] = {HuggingFaceText: ("tokenizer", "name")}


@dataclass(frozen=True)
class Admitted:
    """A stored model configuration that may be built.

    Attributes:
        config: for :func:`cloc.models.build.build_model`, without initial weights.
        known: for the same: by part, the classes that may be named, and their names.
    """

    config: dict[str, Any]
    known: dict[str, dict[str, type]]


def admit(model: Any, source: Any, trusted: Sequence[type] = (), held: Path | int | None = None) -> Admitted:
    """Hold a stored ``model`` configuration to what a file of others may say.

    Args:
        model: nodes ``image``, ``text``, ``prompter``, ``grounding``, and numbers.
        source: file or folder that it comes from, for messages.
        trusted: classes that the caller passes; a node may name them too, by their own name, in whatever module.
        held: bytes of its weights or the folder of their files, which must have room for what the configuration says.

    Raises:
        ConfigError: a class that is neither in the registry nor trusted.
        FolderError: a value that could reach code, a path or a network.
    """
    if not isinstance(model, Mapping):
        raise ConfigError(f"{source}: its model is a {type(model).__name__}, not a configuration")
    config = {key: model.get(key) for key in NUMBERS}
    for key, value in config.items():
        if not (value is None or isinstance(value, int | float)):
            raise ConfigError(f"{source}: model.{key}={str(value)[:100]!r}: must be a number")
        check_plain(value, f"model.{key}", source)
    known = {part: {name_of(cls): cls for cls in (*classes, *trusted)} for part, classes in parts().items()}
    for part in known:
        node = model.get(part)
        config[part] = _node(node, part, source, known[part], trusted) if node is not None else None
    check_room({key: _described(node) for key, node in config.items()}, held, source)
    if held is not None:
        named = (
            named_weights(known[part][node["_target_"]], node, config["joint_dim"])
            for part, node in config.items()
            if part in known and node is not None
        )
        check_holds(sum(named), held, source)
    return Admitted(config, known)


def _described(node: Any) -> Any:
    """A node with the sizes that it leaves to the architecture of open_clip, or the encoder's file, that it names."""
    if isinstance(node, Mapping) and node["_target_"] == name_of(HuggingFaceText):
        file = Path(str(node.get("name"))).expanduser() / HF_CONFIG
        return {**node, "encoder": read_json(file)} if file.is_file() else node
    section = SECTIONS.get(node["_target_"]) if isinstance(node, Mapping) else None
    if section is None:
        return node
    own = (open_clip.get_model_config(str(node.get("name", "ViT-B-16"))) or {}).get(section, {})
    return {**node, "options": {**own, **(node.get("options") or {})}}


def parts() -> dict[str, tuple[type, ...]]:
    """By part, the classes that a file of others may name: those of this package, and what the user has registered."""
    _import_ours()
    return registered_classes()


@cache
def _import_ours() -> None:
    for module in pkgutil.iter_modules(models.__path__, "cloc.models."):
        importlib.import_module(module.name)


def name_of(cls: type) -> str:
    """Dotted name of a class, as a ``_target_`` has it."""
    return f"{cls.__module__}.{cls.__qualname__}"


SECTIONS = {name_of(OpenClipTower): "vision_cfg", name_of(ClipText): "text_cfg"}


def _node(node: Any, part: str, source: Any, known: Mapping[str, type], trusted: Sequence[type]) -> dict[str, Any]:
    key, target = f"model.{part}", present_name(node.get("_target_")) if isinstance(node, Mapping) else None
    if not isinstance(target, str) or target not in known:
        # A class that moved, or was named by the package that offers it, is still the one that the caller passes.
        last = str(target).rpartition(".")[2]
        target = next((name_of(cls) for cls in trusted if cls.__name__ == last), None)
    if target is None:
        own = str(node.get("_target_") if isinstance(node, Mapping) else node)[:100]
        names = ", ".join(cls.__name__ for cls in parts()[part])
        raise ConfigError(
            f"{source}: {key}._target_={own!r} is not one of {names}; a file of "
            f"others names no other class. If you have read that one and trust it, pass it: "
            f"cloc.load(PATH, trusted=[{own.rpartition('.')[2]}])"
        )
    found = {**node, "_target_": target} | ({"pretrained": False} if "pretrained" in node else {})
    check_node(found, part, source, known[target])
    return found


def check_node(node: Mapping[str, Any], part: str, source: Any, cls: type) -> None:
    """Hold the arguments of a stored node to plain values, its options to the architecture, its folders to those here.

    Raises:
        FolderError: an argument that says more; names it.
        ConfigError: a folder that is not here.
    """
    for name, value in node.items():
        key = f"model.{part}.{name}"
        if name == "_target_" or value is None:
            continue
        if name in FOLDERS.get(cls, ("tokenizer",)):
            _check_folder(value, key, source)
        elif name == "options" and cls in (TimmTower, OpenClipTower, ClipText):
            check_options(value, _allowed(cls, node, source), key, source)
        else:
            check_plain(value, key, source, texts=not cls.__module__.startswith("cloc."))


def _check_folder(value: Any, key: str, source: Any) -> None:
    if value == "open_clip" and key.endswith("tokenizer"):
        return
    if not isinstance(value, str) or not os.path.isdir(os.path.expanduser(value)):
        raise ConfigError(
            f"{source}: {key}={str(value)[:100]!r} is no folder here, and loading a file never asks a hub; load the "
            "whole run folder, whose text/ holds it, or copy its text/ beside the checkpoint"
        )


def _allowed(cls: type, node: Mapping[str, Any], source: Any) -> Collection[str]:
    if cls is ClipText:
        return TEXT_OPTIONS
    key, name = "name", node.get("name")
    if cls is OpenClipTower:
        options = as_object(node["options"], "model.image.options", source)
        if "timm_model_name" not in options:
            return VISION_OPTIONS
        key, name = "options.timm_model_name", options["timm_model_name"]
    if not isinstance(name, str) or not is_word(name) or not timm.is_model(name):
        raise ConfigError(
            f"{source}: model.image.{key}={str(name)[:100]!r} is not an architecture of timm {timm.__version__}, and a "
            "file of others fetches none"
        )
    return VISION_OPTIONS | TIMM_OPTIONS if cls is OpenClipTower else timm_arguments(name)


def timm_arguments(name: str) -> set[str]:
    """What the classes of a timm backbone take: its architecture, and nothing of ``timm.create_model`` itself."""
    module = sys.modules[timm.model_entrypoint(name).__module__]
    classes = [value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, nn.Module)]
    taken = {argument for cls in classes for argument in inspect.signature(cls).parameters}
    return taken - {"args", "kwargs", "out_indices", *inspect.signature(timm.create_model).parameters}
