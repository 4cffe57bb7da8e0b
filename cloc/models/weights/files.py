"""Reading weight files into modules: never unpickled freely, every name accounted for, positions resized.

What initial weights bring with them beside numbers (architecture, activation, pixel statistics) is in ``pretrained``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from cloc.models.weights.digests import check_file

TEXT_LENGTH = 77  # CLIP's, of a text tower that starts without weights
KEPT = 20  # leading positions that stretching leaves as they are: few texts of CLIP's training were longer


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
