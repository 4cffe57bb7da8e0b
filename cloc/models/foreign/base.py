"""A CLIP of others as the start of a run: what it is named by → both towers' nodes, and their weights.

``engine.base`` writes the nodes into a configuration, ``engine`` and ``export`` take the weights. A run or an export of
cloc's own goes through ``cloc.loading`` instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from cloc.config import ConfigError
from cloc.data.downloads import from_hub
from cloc.models.build import build_model
from cloc.models.foreign.loading import PREFIX, check_named_weights
from cloc.models.model import Cloc
from cloc.models.trust.values import HF_CONFIG, OPEN_CLIP_CONFIG, FolderError, check_open_clip, read_json
from cloc.models.weights.digests import EXTRA_CONFIG
from cloc.models.weights.downloads import open_clip_weights
from cloc.models.weights.exported import is_exported
from cloc.models.weights.pretrained import TOWERS, complete, describe_folder
from cloc.models.weights.tower_folders import HF_FILES, OPEN_CLIP_FILES, read_first

HUB = "hf://"
IMAGE, TEXT = "cloc.models.image.OpenClipTower", "cloc.models.text.ClipText"
DESCRIBING = ("*.json", "*.txt", "*.model")  # of a repository: all but its weights
SAFE, PICKLED = ("model.safetensors", "open_clip_model.safetensors"), ("*_pytorch_model.bin", "pytorch_model.bin")
SCALES = {"logit_scale": "log_scales", "logit_bias": "biases"}  # theirs: ours


def is_of_others(name: str) -> bool:
    """Whether a name leads to a model of another library: by its prefix, or to a folder that cloc has not written."""
    if name.startswith((PREFIX, HUB)):
        return True
    folder = Path(name).expanduser()
    return folder.is_dir() and is_exported(folder) and not (folder / EXTRA_CONFIG).is_file()


def is_fetched(name: str) -> bool:
    """Whether weights of that name are looked for on a network, where they have not been fetched yet."""
    kind, _, rest = name.removeprefix(PREFIX).partition(":")
    return name.startswith(HUB) or (
        name.startswith(PREFIX) and kind != "local-dir" and not Path(rest).expanduser().is_file()
    )


def nodes_of(name: str) -> dict[str, Any]:
    """The ``model`` configuration of a CLIP of others, whole but for its weights.

    Args:
        name: ``open_clip:NAME:TAG_OR_FILE``, ``open_clip:local-dir:FOLDER``, ``open_clip:hf-hub:OWNER/NAME``,
            ``hf://OWNER/NAME``, or a folder of open_clip or of a Hugging Face CLIP or SigLIP.

    Returns:
        ``joint_dim``, ``image`` and ``text``; each tower's ``pretrained`` names its weights. A repository is described
        by its small files, which are fetched.

    Raises:
        ConfigError: no such architecture or tag, or a tower that cannot be trained here; says which and the remedy.
        FileNotFoundError: no such file or folder.
        DownloadError: a repository cannot be had.
    """
    place = _folder(name, DESCRIBING)
    with _telling(name, place):
        return complete(_of_name(name) if place is None else _of_folder(place))


def model_of(name: str, model: Mapping[str, Any]) -> Cloc:
    """A CLIP of others with its weights and temperature, in towers as a run has them.

    Args:
        name: as :func:`nodes_of` takes it.
        model: of the run, made from these nodes; another ``image_size`` or ``context_length`` stretches positions.

    Raises:
        ConfigError: its towers are others than those of the run.
        FileNotFoundError: weights are missing.
        DownloadError: they cannot be had.
    """
    place = _folder(name, (*DESCRIBING, *SAFE), PICKLED)
    with _telling(name, place):
        nodes = _of_name(name) if place is None else _of_folder(place)
        towers = {part: {**model[part], "pretrained": nodes[part]["pretrained"]} for part in TOWERS}
        whole = {"joint_dim": model["joint_dim"], "logit_bias": model.get("logit_bias"), **towers}
        built = build_model({**whole, "prompter": None, "grounding": None})
        for theirs, value in _scalars(name, place).items():
            held = getattr(built, SCALES[theirs])
            if "global" in held:
                held["global"].data.fill_(float(value))
        return built


def _folder(name: str, wanted: tuple[str, ...], otherwise: tuple[str, ...] = ()) -> Path | None:
    """Where a model lies, fetched if it has to be; None for an architecture of open_clip with a tag or file."""
    kind, _, rest = name.removeprefix(PREFIX).partition(":")
    if name.startswith(HUB):
        return _fetch(name, name.removeprefix(HUB), wanted, otherwise)
    if not name.startswith(PREFIX):
        return Path(name).expanduser()
    if kind == "hf-hub":
        return _fetch(name, rest, wanted, otherwise)
    if kind == "local-dir" and not Path(rest).expanduser().is_dir():
        raise FileNotFoundError(f"base={name}: no folder {rest}")
    return Path(rest).expanduser() if kind == "local-dir" else None


def _fetch(name: str, repository: str, wanted: tuple[str, ...], otherwise: tuple[str, ...]) -> Path:
    """A repository's files on this machine; pickled weights (read as tensors alone) only where there are no others."""
    from huggingface_hub import snapshot_download

    repository, _, revision = repository.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository):
        raise ConfigError(f"base={name}: {repository!r} names no repository of the hub; write OWNER/NAME")
    take = partial(snapshot_download, repository, revision=revision or None)
    with from_hub(f"base={name}", repository):
        folder = Path(take(allow_patterns=list(wanted)))
        if otherwise and not any((folder / file).is_file() for file in SAFE):
            take(allow_patterns=list(otherwise))
    return folder


@contextmanager
def _telling(name: str, place: Path | None) -> Any:
    """What is wrong with a tower's ``pretrained`` is told by the name that was given."""
    try:
        yield
    except (ConfigError, FolderError) as error:
        said = str(error)
        for part in TOWERS if place is not None else ():
            said = re.sub(f"^model.{part}.pretrained={re.escape(str(place))}", f"base={name}", said)
        raise ConfigError(said if said.startswith(f"base={name}") else f"base={name}: {said}") from error


def _of_name(name: str) -> dict[str, Any]:
    """Nodes of an architecture of open_clip with a tag or a weight file."""
    import open_clip

    architecture, _, weights = name.removeprefix(PREFIX).partition(":")
    config = open_clip.get_model_config(architecture)
    if config is not None:  # an unknown one is told below
        _check_text(config)
    try:
        check_named_weights(architecture, weights, name)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"base={error}") from error
    assert config is not None
    text = {"_target_": TEXT, "name": architecture, "pretrained": weights, "context_length": None}
    image = {"_target_": IMAGE, "name": architecture, "pretrained": weights, "image_size": _side(config["vision_cfg"])}
    text["tokenizer"] = config["text_cfg"].get("hf_tokenizer_name", "open_clip")
    return {"joint_dim": config["embed_dim"], "image": image, "text": text}


def _side(vision: Mapping[str, Any]) -> int:
    """Of the views that an architecture is for, in pixels."""
    import timm

    own = vision.get("image_size")
    if own is None and vision.get("timm_model_name"):
        found: Any = timm.get_pretrained_cfg(vision["timm_model_name"])
        own = found.input_size[-1] if found else None
    return int(own[0] if isinstance(own, list | tuple) else own or 224)


def _check_text(config: Mapping[str, Any]) -> None:
    """A text tower must be one that cloc trains; without one there is nothing to compare boxes with."""
    text, other = config.get("text_cfg") or {}, "take a CLIP with open_clip's own text transformer, such as "
    if not text:
        raise ConfigError(f"it has no text tower, which phrases need; {other}open_clip:ViT-B-16:laion2b_s34b_b88k")
    if text.get("hf_model_name"):
        raise ConfigError(
            f"its text tower is transformers' {text['hf_model_name']!r}, whose weights lie in no tower of cloc's; "
            f"{other}open_clip:ViT-B-16:laion2b_s34b_b88k"
        )
    if "multimodal_cfg" in config:
        raise ConfigError(
            "its text tower (CoCa's) has a class token behind its padding and is not trained here; take a CLIP, or "
            "give its weight file as model.image.pretrained with another model.text"
        )


def _of_folder(folder: Path) -> dict[str, Any]:
    """Nodes of a folder of open_clip or of a Hugging Face CLIP or SigLIP; it must hold both towers."""
    file = folder / (OPEN_CLIP_CONFIG if (folder / OPEN_CLIP_CONFIG).is_file() else HF_CONFIG)
    if not file.is_file():
        raise ConfigError(
            f"no {OPEN_CLIP_CONFIG} and no {HF_CONFIG} there; give a folder of open_clip or of a Hugging Face CLIP or "
            "SigLIP"
        )
    stored = read_json(file)
    if file.name == OPEN_CLIP_CONFIG:
        config = stored.get("model_cfg") or {}
        check_open_clip(config, file)
        _check_text(config)
    else:
        _check_whole(stored, folder)
    (image, _), (text, width) = (describe_folder(folder, part) for part in TOWERS)
    nodes = {"image": image["_target_"], "text": text["_target_"]}
    return {"joint_dim": width, **{part: {"_target_": nodes[part], "pretrained": str(folder)} for part in TOWERS}}


def _check_whole(stored: Mapping[str, Any], folder: Path) -> None:
    kind = str(stored.get("model_type", "timm" if "architecture" in stored else "none"))
    alone = {"clip_vision_model": "text", "siglip_vision_model": "text", "clip_text_model": "image"}
    lacking = "text" if "architecture" in stored else alone.get(kind, "image" if kind == "siglip_text_model" else None)
    if lacking == "text":
        raise ConfigError(
            f"its {lacking} tower is missing ({HF_CONFIG}: {kind}); give the folder of the whole model, or start the "
            f"image tower alone: model=vit_b16 model.image.pretrained={folder}, with a model.text of its own"
        )
    if lacking:
        raise ConfigError(f"its {lacking} tower is missing ({HF_CONFIG}: {kind}); give the folder of the whole model")
    if kind not in ("clip", "siglip"):
        raise ConfigError(f"model_type={kind!r} of {HF_CONFIG} is no CLIP; give a folder of a CLIPModel or SiglipModel")


def _scalars(name: str, place: Path | None) -> dict[str, Tensor]:
    """Logarithm of the inverse temperature, and the bias where the logits have one."""
    if place is not None:
        files = OPEN_CLIP_FILES if (place / OPEN_CLIP_CONFIG).is_file() else HF_FILES
        state = read_first(place, files)
        return {key: state[key].reshape(()) for key in SCALES if key in state}
    import open_clip

    architecture, _, weights = name.removeprefix(PREFIX).partition(":")
    with open_clip_weights(architecture, weights):
        model = open_clip.create_model(architecture, pretrained=weights, weights_only=True)
    found = {key: getattr(model, key, None) for key in SCALES}
    return {key: value.detach().reshape(()) for key, value in found.items() if value is not None}


def bias_of(name: str) -> float | None:
    """Start of the logits' bias that a model of others brings (SigLIP's); None for one without, a CLIP."""
    import open_clip

    place = _folder(name, DESCRIBING)
    if place is None:
        config: Mapping[str, Any] = open_clip.get_model_config(name.removeprefix(PREFIX).partition(":")[0]) or {}
    elif (place / OPEN_CLIP_CONFIG).is_file():
        config = read_json(place / OPEN_CLIP_CONFIG).get("model_cfg") or {}
    else:
        config = {"init_logit_bias": -10} if read_json(place / HF_CONFIG).get("model_type") == "siglip" else {}
    bias = config.get("init_logit_bias")
    return None if bias is None else float(bias)
