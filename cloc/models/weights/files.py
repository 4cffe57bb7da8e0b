"""Reading weight files into modules: never unpickled freely, every name accounted for, positions resized.

What initial weights bring with them beside numbers (architecture, activation, pixel statistics) is in ``pretrained``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from cloc.models.positions.resizing import resize_positions
from cloc.models.weights.digests import check_file

TEXT_LENGTH = 77  # CLIP's, of a text tower that starts without weights


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
    found: dict[str, Tensor] = state.get("state_dict", state)
    return found


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
