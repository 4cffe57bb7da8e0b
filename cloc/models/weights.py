"""Where initial weights come from: open_clip tags, local files. A weight file is never unpickled freely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from a torch file of plain tensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds more than tensors and plain containers.
    """
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weight file; give a .safetensors or .pt file, or a hub tag")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def load_weights(module: nn.Module, path: Path, ignore: tuple[str, ...] = ()) -> None:
    """Load a file into a module; every key must match but those that start with one of ``ignore``.

    Raises:
        ValueError: keys or shapes differ; names the first few.
    """
    state = {name: value for name, value in read_state(path).items() if not name.startswith(ignore)}
    own = module.state_dict()
    missing = [name for name in own if name not in state and "num_batches_tracked" not in name]
    unexpected = [name for name in state if name not in own]
    shapes = [n for n, value in state.items() if n in own and own[n].shape != value.shape]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{path} does not fit {type(module).__name__}: {len(missing)} missing {missing[:3]}, {len(unexpected)} "
            f"unexpected {unexpected[:3]}, {len(shapes)} of another shape {shapes[:3]}; is it another architecture?"
        )
    module.load_state_dict({name: value.to(own[name].dtype) for name, value in state.items()}, strict=False)


def open_clip_tower(
    part: str,
    name: str,
    joint_dim: int,
    pretrained: str | None,
    quick_gelu: bool,
    image_size: int | None,
    options: dict[str, Any],
) -> nn.Module:
    """Build one tower (``visual`` or ``text``) of an open_clip architecture.

    Args:
        part: ``visual`` or ``text``.
        name: architecture known to open_clip.
        joint_dim: D; a pretrained tower keeps its own and must agree.
        pretrained: None, a tag, or a local file.
        quick_gelu: CLIP's approximate GELU.
        image_size: side of the view; None for text.
        options: overrides of the tower's configuration.

    Raises:
        ValueError: unknown architecture, or pretrained weights of another joint width.
    """
    import open_clip
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, _build_text_tower, _build_vision_tower

    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"{name!r} is not an open_clip architecture; `open_clip.list_models()` names them")
    quick_gelu = quick_gelu or config.get("quick_gelu", False)  # some architectures are defined with it
    if pretrained:
        if options or config["embed_dim"] != joint_dim:
            raise ValueError(
                f"pretrained {name} has joint width {config['embed_dim']} (model.joint_dim={joint_dim}) and takes no "
                f"options (given: {options}); set model.joint_dim={config['embed_dim']} and remove the options"
            )
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            force_quick_gelu=quick_gelu,
            force_image_size=image_size,
            force_custom_text=True,
        )
        return getattr(model, part)
    if part == "visual":
        fields = config["vision_cfg"] | options | {"image_size": image_size}
        return _build_vision_tower(joint_dim, CLIPVisionCfg(**fields), quick_gelu)
    return _build_text_tower(joint_dim, CLIPTextCfg(**(config["text_cfg"] | options)), quick_gelu)
