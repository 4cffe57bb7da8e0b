"""One tower of an open_clip architecture, with or without weights (serves ``image`` and ``text``)."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from cloc.config.domains import ConfigError
from cloc.models.open_clip_visual import TIMM_TOWER, bring_to
from cloc.models.positions.resizing import stretch_positions
from cloc.models.protocols import CLIP_MEAN, CLIP_STD
from cloc.models.weights.digests import check_file
from cloc.models.weights.downloads import open_clip_weights
from cloc.models.weights.exported import TIMM_OPTIONS
from cloc.models.weights.files import TEXT_LENGTH, fit_state, read_state
from cloc.usage import meant

TEXT_TABLES = ("text.positional_embedding", "positional_embedding")  # in open_clip's two layouts of a whole model


SECTIONS = {"visual": "vision_cfg", "text": "text_cfg"}
HF_TEXT = "cloc.models.text.HuggingFaceText"


def architecture(name: str, part: str = "image") -> dict[str, Any]:
    """Configuration of an architecture that open_clip knows.

    Args:
        name: ``ViT-B-16``.
        part: whose ``name`` it is, for the message.

    Raises:
        ConfigError: no such architecture; names those that look like it, or the tower that takes it.
    """
    import open_clip
    import timm

    config: dict[str, Any] | None = open_clip.get_model_config(name)
    if config is not None:
        return config
    known = {known.lower(): known for known in open_clip.list_models()}
    close = [known[one] for one in difflib.get_close_matches(name.lower(), known, 3)]
    hint = f"did you mean {' or '.join(close)}?" if close else "open_clip.list_models() names them all"
    if part == "image" and timm.is_model(name):
        hint = f"it is a backbone of timm: set model.image._target_={TIMM_TOWER}"
    elif part == "image" and "naflex" in name.lower():  # of later releases, upon this backbone
        hint = f"set model.image._target_={TIMM_TOWER} and model.image.name=naflexvit_base_patch16_siglip"
    raise ConfigError(
        f"model.{part}.name={name!r}: {name!r} is not an open_clip architecture of {open_clip.__version__}; {hint}"
    )


def vision_config(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """``vision_cfg`` of an architecture with the options of a configuration.

    Raises:
        ConfigError: an unknown architecture, or an option that its tower does not have.
    """
    return _fields("visual", architecture(name), name, options)


def _fields(part: str, config: Mapping[str, Any], name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's section of an architecture, with options; none of them is passed over in silence."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    cls, key = (CLIPVisionCfg, "model.image") if part == "visual" else (CLIPTextCfg, "model.text")
    known = [field.name for field in dataclasses.fields(cls)]
    fields: dict[str, Any] = {**config[SECTIONS[part]], **options}
    if part == "visual" and fields.get("timm_model_name"):
        known = [one for one in known if one.startswith(TIMM_OPTIONS)]
        fields = {one: value for one, value in fields.items() if one in known or one in options}
    wrong = next((option for option in options if option not in known), None)
    if wrong is not None:
        hint = meant(wrong, known) or f"; it takes {', '.join(known)}"
        raise ConfigError(f"{key}.options.{wrong}: {name} has no such option{hint}")
    return fields


def pixel_statistics(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of the pixels that an architecture's published weights were trained on; else CLIP's."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    known = {
        tuple(tuple(cfg.get(key) or own) for key, own in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
        for cfg in (open_clip.get_pretrained_cfg(name, tag) for tag in tags)
    }
    mean, std = known.pop() if len(known) == 1 else (CLIP_MEAN, CLIP_STD)
    return mean, std


def text_length(name: str, pretrained: str) -> int:
    """Positions in the text tower of an open_clip tag or weight file."""
    own: int = architecture(name, "text")["text_cfg"].get("context_length", TEXT_LENGTH)
    file = Path(pretrained).expanduser()
    if not file.is_file() or file.suffix in (".npz", ".npy"):  # big_vision's, which open_clip converts
        return own
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as stored:
            shapes = {key: stored.get_slice(key).get_shape() for key in stored.keys()}  # noqa: SIM118
    else:
        shapes = {key.removeprefix("module."): value.shape for key, value in read_state(file).items()}
    found: int = next((shapes[key][0] for key in TEXT_TABLES if key in shapes), own)
    return found


def open_clip_tower(
    part: str,
    name: str,
    joint_dim: int,
    pretrained: str | None,
    quick_gelu: bool,
    image_size: int | None,
    options: dict[str, Any],
    context_length: int | None = None,
) -> Any:
    """Build one tower (``visual`` or ``text``) of an open_clip architecture.

    Args:
        part: ``visual`` or ``text``.
        name: architecture known to open_clip.
        joint_dim: D; a pretrained tower keeps its own and must agree.
        pretrained: None, a tag, a local file, or a folder (see :mod:`cloc.models.weights.pretrained`).
        quick_gelu: CLIP's approximate GELU.
        image_size: side of the view; None for text.
        options: overrides of the tower's configuration.
        context_length: of a text tower; a pretrained one's positions are stretched or cut to it. None for its own.

    Returns:
        A module of open_clip, which has no types.

    Raises:
        ValueError: unknown architecture, or pretrained weights of another joint width.
    """
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, _build_text_tower, _build_vision_tower

    config = architecture(name, {"visual": "image"}.get(part, part))
    fields = _fields(part, config, name, options)
    if fields.get("hf_model_name"):  # open_clip would fetch it by that name
        raise ConfigError(
            f"model.text.name={name!r} with hf_model_name={fields['hf_model_name']!r}: another library's tower; set "
            f"model.text._target_={HF_TEXT} and model.text.name={fields['hf_model_name']}"
        )
    if quick_gelu and fields.get("timm_model_name"):
        raise ConfigError(
            f"model.image.quick_gelu=true: {name} is a backbone of timm, which has its own; set it to false"
        )
    quick_gelu = quick_gelu or config.get("quick_gelu", False)  # some architectures are defined with it
    folder = Path(pretrained).expanduser() if pretrained else None
    if pretrained and folder is not None and not folder.is_dir():
        if options or config["embed_dim"] != joint_dim:
            raise ConfigError(
                f"pretrained {name} has joint width {config['embed_dim']} (model.joint_dim={joint_dim}) and takes no "
                f"options (given: {options}); set model.joint_dim={config['embed_dim']} and remove the options"
            )
        return _with_weights(part, name, pretrained, quick_gelu, image_size, context_length)
    with _telling(part, name, options, image_size):
        if part == "visual":
            cfg = CLIPVisionCfg(**fields | {"image_size": image_size, "timm_model_pretrained": False})
            tower = _build_vision_tower(joint_dim, cfg, quick_gelu)
        else:
            fields = fields | {"context_length": context_length or TEXT_LENGTH}
            tower = _build_text_tower(joint_dim, CLIPTextCfg(**fields), quick_gelu)
    if image_size is not None:
        bring_to(tower, name, image_size)
    if folder is not None:
        from cloc.models.weights.tower_folders import tower_state

        state = tower_state(folder, part)
        if part == "text":
            state["positional_embedding"] = stretch_positions(state["positional_embedding"], tower.context_length)
        fit_state(tower, state, str(folder))
    return tower


@contextmanager
def _telling(part: str, name: str, options: Mapping[str, Any], image_size: int | None) -> Iterator[None]:
    """While open_clip builds a tower: what it happens to run into becomes a line that names what was given."""
    try:
        yield
    except (
        AssertionError,
        AttributeError,
        IndexError,
        RuntimeError,
        TypeError,
        ValueError,
        ZeroDivisionError,
    ) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        key = {"visual": "model.image", "text": "model.text"}[part]
        size = f", image_size={image_size}" if image_size is not None else ""
        raise ConfigError(
            f"{key}.name={name!r}{size}, options={dict(options)}: open_clip builds no such tower ({said}); correct them"
        ) from error


def _with_weights(
    part: str, name: str, pretrained: str, quick_gelu: bool, image_size: int | None, context_length: int | None
) -> nn.Module:
    """One tower of a whole model that open_clip loads: from a tag or a file."""
    import open_clip
    from open_clip.transformer import VisionTransformer

    file = Path(pretrained).expanduser()
    if file.is_file():
        check_file(file)
    vision = open_clip.get_model_config(name)["vision_cfg"]
    own_vit = not vision.get("timm_model_name") and isinstance(vision.get("layers", 12), int)
    with open_clip_weights(name, pretrained):
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            force_quick_gelu=quick_gelu,
            force_image_size=image_size if own_vit else None,  # of others it would not resize, or not say why it cannot
            force_custom_text=True,
            # open_clip would interpolate the whole table, where it is another than the architecture's.
            force_context_length=text_length(name, pretrained) if part == "text" else None,
            weights_only=True,
        )
    tower: Any = getattr(model, part)
    if part == "visual" and image_size is not None and not isinstance(tower, VisionTransformer):
        bring_to(tower, name, image_size)
    if part == "text" and context_length is not None and context_length != tower.context_length:
        _set_length(tower, context_length)
    found: nn.Module = tower
    return found


def _set_length(tower: Any, length: int) -> None:
    """Give a causal text tower of open_clip another number of positions."""
    tower.positional_embedding = nn.Parameter(stretch_positions(tower.positional_embedding.data, length))
    tower.num_pos = tower.context_length = length
    tower.attn_mask = tower.build_causal_mask()
