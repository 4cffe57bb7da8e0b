"""Reading weight files into modules: never unpickled freely, every name accounted for, positions resized.

What initial weights bring with them beside numbers (architecture, activation, pixel statistics) is in ``pretrained``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from cloc.models.checksums import check_file

TEXT_LENGTH = 77  # CLIP's, of a text tower that starts without weights
KEPT = 20  # leading positions that stretching leaves as they are: few texts of CLIP's training were longer
TEXT_TABLES = ("text.positional_embedding", "positional_embedding")  # in open_clip's two layouts of a whole model
# A tower's section in an open_clip architecture, the key that names another library's model, and what builds that here.
OPEN_CLIP_PARTS = {
    "visual": ("vision_cfg", "timm_model_name", "model.image._target_=cloc.models.image.TimmTower and its name"),
    "text": ("text_cfg", "hf_model_name", "model.text._target_=cloc.models.text.HuggingFaceText and its name"),
}


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a torch file of plain tensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or holds more than tensors and plain containers.
    """
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weight file; give a .safetensors or .pt file, or a hub tag")
    check_file(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError) as error:
        # PyTorch's own message goes on to recommend unpickling without a check.
        reason = (
            "it would run code" if isinstance(error, UnpicklingError) else "it is damaged, or a TorchScript archive"
        )
        raise ValueError(f"{path} cannot be loaded: {reason}; give a safetensors file") from error
    return state.get("state_dict", state)


def fit_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict, its table of positions resized to the module's grid.

    Args:
        module: a tower.
        state: names and shapes of its weights.
        source: for messages.

    Raises:
        ValueError: keys or shapes differ; names the first few.
    """
    own = module.state_dict()
    state = {name: resize_positions(value, own[name]) if name in own else value for name, value in state.items()}
    missing = [name for name in own if name not in state and "num_batches_tracked" not in name]
    unexpected = [name for name in state if name not in own]
    shapes = [n for n, value in state.items() if n in own and own[n].shape != value.shape]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{source} does not fit {type(module).__name__}: {len(missing)} missing {missing[:3]}, {len(unexpected)} "
            f"unexpected {unexpected[:3]}, {len(shapes)} of another shape {shapes[:3]}; is it another architecture?"
        )
    module.load_state_dict({name: value.to(own[name].dtype) for name, value in state.items()}, strict=False)


def resize_positions(table: Tensor, wanted: Tensor) -> Tensor:
    """Resize a table of positions of a square grid, bicubic with antialias, as open_clip and timm do.

    Args:
        table: ``[P+N,C]`` or ``[1,P+N,C]`` with P ≤ 1 prefix tokens (class token); anything else passes untouched.
        wanted: a tensor of the shape to reach.
    """
    if table.shape == wanted.shape or table.ndim not in (2, 3) or table.shape[-1] != wanted.shape[-1]:
        return table
    if table.ndim == 3 and table.shape[0] != 1:
        return table
    count, new = table.shape[-2], wanted.shape[-2]
    for prefix in (0, 1):
        old_side, side = math.isqrt(count - prefix), math.isqrt(new - prefix)
        if old_side**2 == count - prefix and side**2 == new - prefix:
            rows = resample_abs_pos_embed(
                table.reshape(1, count, -1), [side, side], [old_side, old_side], num_prefix_tokens=prefix
            )
            return rows.reshape(wanted.shape)
    return table


def stretch_positions(table: Tensor, length: int) -> Tensor:
    """Positions of a causal text tower for texts of another length, as Long-CLIP stretches them (2403.15378, Sec. 3.2).

    The first 20 stay, those behind them are interpolated; of CLIP's 77, 248 are made by a factor of four. For shorter
    texts the table is cut, which changes nothing for a text that fits.

    Args:
        table: ``[L,C]``.
        length: to reach.
    """
    own = len(table)
    if length <= own:
        return table[:length].clone()
    kept = min(KEPT, own // 2)
    place = torch.arange(length - kept, dtype=torch.float64) * (own - kept) / (length - kept) + kept
    before = place.long().clamp(max=own - 2)
    share = (place - before).to(table).unsqueeze(1)  # above 1 behind the last position, which is extrapolated
    return torch.cat([table[:kept], table[before] * (1 - share) + table[before + 1] * share])


def text_length(name: str, pretrained: str) -> int:
    """Positions in the text tower of an open_clip tag or weight file."""
    import open_clip

    own = open_clip.get_model_config(name)["text_cfg"].get("context_length", TEXT_LENGTH)
    file = Path(pretrained).expanduser()
    if not file.is_file() or file.suffix in (".npz", ".npy"):  # big_vision's, which open_clip converts
        return own
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as stored:
            shapes = {key: stored.get_slice(key).get_shape() for key in stored.keys()}  # noqa: SIM118
    else:
        shapes = {key.removeprefix("module."): value.shape for key, value in read_state(file).items()}
    return next((shapes[key][0] for key in TEXT_TABLES if key in shapes), own)


def open_clip_tower(
    part: str,
    name: str,
    joint_dim: int,
    pretrained: str | None,
    quick_gelu: bool,
    image_size: int | None,
    options: dict[str, Any],
    context_length: int | None = None,
) -> nn.Module:
    """Build one tower (``visual`` or ``text``) of an open_clip architecture.

    Args:
        part: ``visual`` or ``text``.
        name: architecture known to open_clip.
        joint_dim: D; a pretrained tower keeps its own and must agree.
        pretrained: None, a tag, a local file, or a folder (see :mod:`cloc.models.pretrained`).
        quick_gelu: CLIP's approximate GELU.
        image_size: side of the view; None for text.
        options: overrides of the tower's configuration.
        context_length: of a text tower; a pretrained one's positions are stretched or cut to it. None for its own.

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
    if pretrained and not folder.is_dir():
        if options or config["embed_dim"] != joint_dim:
            raise ValueError(
                f"pretrained {name} has joint width {config['embed_dim']} (model.joint_dim={joint_dim}) and takes no "
                f"options (given: {options}); set model.joint_dim={config['embed_dim']} and remove the options"
            )
        if folder.is_file():
            check_file(folder)
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
        tower = getattr(model, part)
        if part == "text" and context_length not in (None, tower.context_length):
            _set_length(tower, context_length)
        return tower
    if part == "visual":
        tower = _build_vision_tower(joint_dim, CLIPVisionCfg(**fields | {"image_size": image_size}), quick_gelu)
    else:
        fields = fields | {"context_length": context_length or TEXT_LENGTH}
        tower = _build_text_tower(joint_dim, CLIPTextCfg(**fields), quick_gelu)
    if pretrained:
        from cloc.models.pretrained import tower_state

        state = tower_state(folder, part)
        if part == "text":
            state["positional_embedding"] = stretch_positions(state["positional_embedding"], tower.context_length)
        fit_state(tower, state, str(folder))
    return tower


def _set_length(tower: nn.Module, length: int) -> None:
    """Give a causal text tower of open_clip another number of positions."""
    tower.positional_embedding = nn.Parameter(stretch_positions(tower.positional_embedding.data, length))
    tower.num_pos = tower.context_length = length
    tower.attn_mask = tower.build_causal_mask()
