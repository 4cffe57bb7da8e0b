"""Refuses a model configuration of the user's that names what is not there or that no machine holds (before ``build``).

What a library would say of it comes late: after minutes, without memory, or in its own words.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from inspect import Parameter, signature
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
    own = {part: value for part, value in model.items() if not isinstance(value, Mapping) or _is_ours(value, part)}
    _check_sizes(own, "model")
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
    needed, there = 4 * fewest_weights(own, int(model["joint_dim"])), memory()
    if needed > there:
        raise ConfigError(
            f"model: its weights take at least {needed / 2**30:,.0f} GiB, this machine has {there / 2**30:,.0f}; take "
            "fewer or narrower layers"
        )


def _is_ours(node: Mapping[str, Any], part: str) -> bool:
    """Whether the names of a part's arguments mean what they mean here; those of a user's class may mean anything."""
    cls = find_class(node.get("_target_"), f"model.{part}._target_")
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def _check_options(options: Mapping[str, Any], section: type, key: str) -> None:
    """Overrides of an architecture's section, held to the types of open_clip's own dataclass of it."""
    known = get_type_hints(section)
    if "patch_size" in known:
        known["patch_size"] = int | tuple[int, int]  # which its ViT makes of a number
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"{key}.{name}: open_clip's {section.__name__} has no such option{meant(name, known)}")
        if value is not None or getattr(section, name) is not None:
            check_value(known[name], value, f"{key}.{name}")


def _check_timm_options(name: str, options: Mapping[str, Any], key: str) -> None:
    """Arguments of a backbone, held to the types in its class's signature where it has any.

    What no signature names may be taken all the same, by what builds the model: that is tried.
    """
    known: dict[str, Any] = {}
    found, general = _timm_class(name), signature(timm.create_model).parameters
    for cls in reversed(found.__mro__):
        known |= _typed_arguments(cls) if cls is not object else {}
    for option, value in options.items():
        if value is None:
            raise ConfigError(f"{key}.{option}=null: timm leaves it out; remove the key, or give a value")
        if found is not object and option not in known and option not in general and not _takes(name, option, value):
            raise ConfigError(f"{key}.{option}: timm's {found.__name__} has no such argument{meant(option, known)}")
        check_value(known.get(option, Any), value, f"{key}.{option}")


def _typed_arguments(cls: type) -> dict[str, Any]:
    """Annotations of the arguments of a class itself, but those that its own defaults contradict."""
    parameters, hints = signature(cls).parameters, {}
    with suppress(NameError, TypeError, AttributeError):  # annotations that only a type checker resolves
        hints = get_type_hints(cls.__init__)  # type: ignore[misc]  # of this very class
    found = {name: hints.get(name, Any) for name in parameters}
    for name, hint in found.items():
        default = parameters[name].default
        try:
            check_value(Any if default in (None, Parameter.empty) else hint, default, name)
        except ConfigError:
            found[name] = Any
    return found


def _takes(name: str, option: str, value: Any) -> bool:
    """Whether a backbone can be built with an option as far as its name is concerned; built without memory."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            timm.create_model(name, num_classes=0, **{option: value})
    except TypeError as error:
        return option not in str(error)
    except Exception:  # noqa: BLE001  (of the value, or of what is read while it is built: told by what builds it)
        return True
    return True


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
