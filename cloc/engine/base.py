"""``base``: the model that a run starts from, named once → the towers of the configuration, whole.

Before the configuration is checked (``run``); the weights are taken by ``durable.initial_weights``.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cloc.config import ConfigError
from cloc.loading import load
from cloc.models.foreign.base import bias_of, is_of_others, nodes_of
from cloc.models.trust.text_files import FOLDER, OPEN_CLIP
from cloc.models.weights.pretrained import TOWERS, with_former_pixels

# What may be said of a tower besides its base; all else is what its weights mean.
FREE = {"image": ("image_size", "resize", "frozen", "tune_last", "remember"), "text": ("context_length", "frozen")}
BASES = "run, checkpoint, export, folder of open_clip or Hugging Face, open_clip:NAME:TAG_OR_FILE, or hf://OWNER/NAME"
FILES = {"tokenizer": "tokenizer_config.json", "name": "config.json"}  # of text/ of a run


def follow(composed: DictConfig) -> DictConfig:
    """A configuration whose towers are those of its ``base``; the same where it names none.

    Args:
        composed: keys and types have been checked.

    Returns:
        A copy with ``model.joint_dim``, ``model.image`` and ``model.text`` of the base, and ``model.logit_bias`` where
        the loss is the sigmoid one. What the configuration says of the view (``image_size``, ``resize``), of
        ``context_length`` and of what is frozen holds.

    Raises:
        ConfigError: towers are named besides, or ``init_from``; or the base cannot be trained on.
        FileNotFoundError: it is not there.
    """
    if composed.get("base") is None:
        return composed
    name = str(composed.base)  # a folder may be called 7
    if composed.get("init_from") is not None:
        raise ConfigError(
            f"base={name} with init_from={composed.init_from}: both say where weights come from; give one"
        )
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    given: dict[str, Any] = plain["model"]
    for part in TOWERS:
        _check_free(name, part, given.get(part) or {})
    own = _nodes(name)
    width = given.get("joint_dim")
    if width not in (None, own["joint_dim"]):
        raise ConfigError(f"model.joint_dim={width}: base={name} has joint width {own['joint_dim']}; leave it out")
    sigmoid = (composed.get("loss") or {}).get("contrast") == "sigmoid"
    if given.get("logit_bias") is None:
        given["logit_bias"] = own["logit_bias"] if sigmoid else None
    towers = {part: {**own[part], **(given.get(part) or {})} for part in TOWERS}
    whole = deepcopy(composed)
    OmegaConf.set_struct(whole, False)
    whole.model = {**given, "joint_dim": own["joint_dim"], **towers}
    OmegaConf.set_struct(whole, True)
    return whole


def _check_free(name: str, part: str, node: Mapping[str, Any]) -> None:
    if "_target_" in node:
        raise ConfigError(f"base={name} brings both towers, and model.{part} names one; choose model=base")
    wrong = next((key for key in node if key not in FREE[part]), None)
    if wrong is not None:
        raise ConfigError(
            f"model.{part}.{wrong}={node[wrong]}: base={name} says it; beside a base model.{part} takes "
            f"{', '.join(FREE[part])}"
        )


def _nodes(name: str) -> dict[str, Any]:
    """``joint_dim``, ``logit_bias`` and both towers of a base, without the places of their weights."""
    if is_of_others(name):
        found = nodes_of(name) | {"logit_bias": bias_of(name)}
    else:
        found = _of_cloc(name)
    for part in TOWERS:
        found[part] = {key: value for key, value in found[part].items() if key != "pretrained"}
    return found


def _of_cloc(name: str) -> dict[str, Any]:
    """Those of a run, a checkpoint or an export; its tokenizer lies beside it."""
    try:
        encoder = load(Path(name).expanduser())
    except (FileNotFoundError, ValueError) as error:
        kind = ConfigError if isinstance(error, ValueError) else FileNotFoundError
        raise kind(f"base={name}: no {BASES}. As a model of cloc: {error}") from error
    model: Mapping[str, Any] = encoder.info["config"]["model"]
    image = with_former_pixels(model["image"], type(encoder.model.image))
    text = dict(model["text"])
    file = Path(encoder.info["file"])
    places = [place / FOLDER for place in (file.parent, file.parent.parent)]
    for key, kept in FILES.items():
        named = text.get(key)
        if key == "name" and not str(text["_target_"]).endswith("HuggingFaceText"):
            continue
        if named in (None, OPEN_CLIP) and key == "tokenizer":
            continue
        text[key] = next((str(place) for place in places if (place / kept).is_file()), named)
    return {"joint_dim": model["joint_dim"], "logit_bias": model.get("logit_bias"), "image": image, "text": text}
