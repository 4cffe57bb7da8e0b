"""Refuses a model configuration of the user's that names what is not there or that no machine holds (before ``build``).

What a library would say of it comes late: after minutes, without memory, or in its own words.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

import open_clip
import timm
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from cloc.config import ConfigError, find_class
from cloc.config.values import check_value, written
from cloc.models.image import OpenClipTower, TimmTower
from cloc.models.text import ClipText
from cloc.models.timm_backbone import check_name
from cloc.models.trust.values import fewest_weights, most
from cloc.models.weights.open_clip_towers import architecture
from cloc.usage import meant

TOWERS = ("image", "text")
COUNTS = ("layers", "depth", "width", "embed_dim", "heads", "num_heads", "head_width", "patch_size", "vocab_size")
LEAST = dict.fromkeys(COUNTS, 1) | {"eos_id": 0, "pad_id": 0}
FILES = (".safetensors", ".bin", ".pt", ".pth", ".npz", ".npy")


def check_model(model: Mapping[str, Any]) -> None:
    """Look at names and sizes; cheap.

    Args:
        model: ``joint_dim`` and the nodes of the parts.

    Raises:
        ConfigError: an architecture or a tag that the library does not know, or more weights than the memory holds.
        FileNotFoundError: initial weights that are not there.
    """
    for part in TOWERS:
        node, key = model[part], f"model.{part}"
        cls = find_class(node.get("_target_"), f"{key}._target_")
        if issubclass(cls, TimmTower):
            if isinstance(node.get("name"), str):
                check_name(node["name"])
            _check_timm_options(str(node.get("name")), node.get("options") or {}, f"{key}.options")
            if (node.get("options") or {}).get("global_pool") == "" and not node.get("adapter_depth"):
                raise ConfigError(f"{key}.options.global_pool='': the tower would not pool; give avg or token")
            check_file(node.get("pretrained"), f"{key}.pretrained")
        elif issubclass(cls, OpenClipTower | ClipText):
            name = node.get("name", "ViT-B-16")
            if isinstance(name, str):
                architecture(name, part)
            _check_options(
                node.get("options") or {}, CLIPVisionCfg if part == "image" else CLIPTextCfg, f"{key}.options"
            )
            check_tag(name, node.get("pretrained"), f"{key}.pretrained")
    _check_sizes(model, "model")
    needed, there = 4 * fewest_weights(model, int(model["joint_dim"])), memory()
    if needed > there:
        raise ConfigError(
            f"model: its weights take at least {needed / 2**30:,.0f} GiB, this machine has {there / 2**30:,.0f}; take "
            "fewer or narrower layers"
        )


def _check_options(options: Mapping[str, Any], section: type, key: str) -> None:
    """Overrides of an architecture's section, held to the types of open_clip's own dataclass of it."""
    known = get_type_hints(section)
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"{key}.{name}: open_clip's {section.__name__} has no such option{meant(name, known)}")
        if value is not None or getattr(section, name) is not None:
            check_value(known[name], value, f"{key}.{name}")


def _check_timm_options(name: str, options: Mapping[str, Any], key: str) -> None:
    """Arguments of a backbone, held to the types in its class's signature where it has any."""
    known: dict[str, Any] = {}
    found = _timm_class(name)
    for cls in reversed(found.__mro__):
        known |= dict.fromkeys(signature(cls).parameters, Any) if cls is not object else {}
        with suppress(NameError, TypeError, AttributeError):  # annotations that only a type checker resolves
            known |= get_type_hints(cls.__init__)  # type: ignore[misc]  # of this very class
    for option, value in options.items():
        if value is None:
            raise ConfigError(f"{key}.{option}=null: timm leaves it out; remove the key, or give a value")
        if found is not object and option not in known and option not in signature(timm.create_model).parameters:
            raise ConfigError(f"{key}.{option}: timm's {found.__name__} has no such argument{meant(option, known)}")
        check_value(known.get(option, Any), value, f"{key}.{option}")


@cache
def _timm_class(name: str) -> type:
    """Class of a backbone, built without memory; none in particular where it cannot be."""
    if ":" in name:
        return object
    with torch.random.fork_rng(devices=[]):  # the weights that are drawn later stay the same
        try:
            with torch.device("meta"):
                return type(timm.create_model(name, num_classes=0))
        except (RuntimeError, NotImplementedError):  # a class that reads values while it is built
            return object


def memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_tag(name: str, tag: Any, key: str) -> None:
    """Refuse a tag of weights that open_clip does not have for an architecture, and a file that is not there.

    Raises:
        ConfigError: names the tags.
        FileNotFoundError: it looks like a file or folder.
    """
    if not isinstance(tag, str) or Path(tag).expanduser().exists():
        return
    check_file(tag if _is_path(tag) else None, key)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not open_clip.get_pretrained_cfg(name, tag):
        raise _unknown(tag, tags, key, f"a file, a folder or one of open_clip's weights of {name}")


def check_file(path: Any, key: str) -> None:
    """Refuse a file or folder that is not there.

    Raises:
        FileNotFoundError: names the key.
    """
    if isinstance(path, str) and not Path(path).expanduser().exists():
        raise FileNotFoundError(f"{key}={written(path)}: no such file or folder")


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.endswith(FILES)


def _unknown(name: str, known: Sequence[str], key: str, what: str) -> ConfigError:
    listed = f"; there are {', '.join(known)}" if known and len(known) <= 12 else ""
    return ConfigError(f"{key}={written(name)}: not {what}{meant(name, known) or listed}")


def _check_sizes(value: Any, key: str) -> None:
    """Numbers of an architecture, by the last part of their keys."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_sizes(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_sizes(inner, key)
    elif isinstance(value, int | float):
        least = LEAST.get(key.rpartition(".")[2], -most(key))
        if not least <= value <= most(key):
            raise ConfigError(f"{key}={written(value)}: no architecture has that; give {least:,} to {most(key):,}")
