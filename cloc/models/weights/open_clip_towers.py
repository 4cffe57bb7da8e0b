"""One tower of an open_clip architecture, with or without weights (serves ``image`` and ``text``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from cloc.models.positions.resizing import stretch_positions
from cloc.models.weights.digests import check_file
from cloc.models.weights.downloads import open_clip_weights
from cloc.models.weights.files import TEXT_LENGTH, fit_state, read_state

TEXT_TABLES = ("text.positional_embedding", "positional_embedding")  # in open_clip's two layouts of a whole model


# A tower's section in an open_clip architecture, the key that names another library's model, and what builds that here.
OPEN_CLIP_PARTS = {
    "visual": ("vision_cfg", "timm_model_name", "model.image._target_=cloc.models.image.TimmTower and its name"),
    "text": ("text_cfg", "hf_model_name", "model.text._target_=cloc.models.text.HuggingFaceText and its name"),
}


def text_length(name: str, pretrained: str) -> int:
    """Positions in the text tower of an open_clip tag or weight file."""
    import open_clip

    own: int = open_clip.get_model_config(name)["text_cfg"].get("context_length", TEXT_LENGTH)
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
    import open_clip
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, _build_text_tower, _build_vision_tower

    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"{name!r} is not an open_clip architecture; `open_clip.list_models()` names them")
    section, foreign, ours = OPEN_CLIP_PARTS[part]
    fields = config[section] | options
    if fields.get(foreign):  # open_clip would fetch it by that name
        raise ValueError(f"{name} with {foreign}={fields[foreign]!r}: another library's tower; set {ours} to it")
    quick_gelu = quick_gelu or config.get("quick_gelu", False)  # some architectures are defined with it
    folder = Path(pretrained).expanduser() if pretrained else None
    if pretrained and folder is not None and not folder.is_dir():
        if options or config["embed_dim"] != joint_dim:
            raise ValueError(
                f"pretrained {name} has joint width {config['embed_dim']} (model.joint_dim={joint_dim}) and takes no "
                f"options (given: {options}); set model.joint_dim={config['embed_dim']} and remove the options"
            )
        return _with_weights(part, name, pretrained, quick_gelu, image_size, context_length)
    if part == "visual":
        tower = _build_vision_tower(joint_dim, CLIPVisionCfg(**fields | {"image_size": image_size}), quick_gelu)
    else:
        fields = fields | {"context_length": context_length or TEXT_LENGTH}
        tower = _build_text_tower(joint_dim, CLIPTextCfg(**fields), quick_gelu)
    if folder is not None:
        from cloc.models.weights.tower_folders import tower_state

        state = tower_state(folder, part)
        if part == "text":
            state["positional_embedding"] = stretch_positions(state["positional_embedding"], tower.context_length)
        fit_state(tower, state, str(folder))
    return tower


def _with_weights(
    part: str, name: str, pretrained: str, quick_gelu: bool, image_size: int | None, context_length: int | None
) -> nn.Module:
    """One tower of a whole model that open_clip loads: from a tag or a file."""
    import open_clip

    file = Path(pretrained).expanduser()
    if file.is_file():
        check_file(file)
    with open_clip_weights(name, pretrained):
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            force_quick_gelu=quick_gelu,
            force_image_size=image_size,
            force_custom_text=True,
            # open_clip would interpolate the whole table, where it is another than the architecture's.
            force_context_length=text_length(name, pretrained) if part == "text" else None,
            weights_only=True,
        )
    tower: Any = getattr(model, part)
    if part == "text" and context_length is not None and context_length != tower.context_length:
        _set_length(tower, context_length)
    found: nn.Module = tower
    return found


def _set_length(tower: Any, length: int) -> None:
    """Give a causal text tower of open_clip another number of positions."""
    tower.positional_embedding = nn.Parameter(stretch_positions(tower.positional_embedding.data, length))
    tower.num_pos = tower.context_length = length
    tower.attn_mask = tower.build_causal_mask()
