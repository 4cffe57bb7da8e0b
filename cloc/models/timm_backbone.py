"""timm's backbones: what they need to be built, what their maps hold, and a stem of ours (for ``image.py``)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from cloc.config.domains import ConfigError
from cloc.models.weights.downloads import timm_weights
from cloc.models.weights.files import fit_state, read_state


class ConvStem(nn.Module):
    """Patch embedding by three stride-2 3×3 convolutions and a projection, in place of one large-stride one.

    Trains faster than a plain patch projection on small data ("Early Convolutions Help Transformers See Better",
    arXiv 2106.14881), here without batch norm. Signature and attributes are those of timm's ``PatchEmbed``.
    """

    def __init__(
        self, img_size: int = 64, patch_size: int = 8, in_chans: int = 3, embed_dim: int = 128, **unused: Any
    ) -> None:
        super().__init__()
        if img_size % patch_size:
            raise ConfigError(f"model.image.image_size={img_size}: a convolution stem needs a multiple of {patch_size}")
        strides = patch_size.bit_length() - 1
        if 2**strides != patch_size:
            raise ValueError(f"model.image.patch_size={patch_size}: a convolution stem needs a power of two")
        widths = [in_chans, *(max(16, embed_dim // 2**i) for i in reversed(range(1, strides + 1)))]
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU()]
        self.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))
        self.img_size = (img_size, img_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, images: Tensor) -> Tensor:
        """``[B,3,H,W]`` → ``[B,N,C]``."""
        maps: Tensor = self.proj(images)
        return maps.flatten(2).transpose(1, 2)


@cache
def built_for_one_size(name: str) -> bool:
    """Whether a timm model must be told ``img_size``: its class takes it, and has a size by default.

    A class whose default is None computes any size; the same names then hold the same weights.

    Args:
        name: of the model.
    """
    # Whatever is drawn here, the weights that follow stay the same.
    with torch.random.fork_rng(devices=[]), timm_weights(name, False):
        try:
            with torch.device("meta"):
                found = type(timm.create_model(name, num_classes=0))
        except (RuntimeError, NotImplementedError):  # a class that reads values while it is built
            found = type(timm.create_model(name, num_classes=0))
    for cls in found.__mro__:
        taken = inspect.signature(cls.__init__).parameters  # type: ignore[misc]  # of this very class, not of its kin
        if "img_size" in taken:
            return taken["img_size"].default is not None
        if not any(argument.kind is argument.VAR_KEYWORD for argument in taken.values()):
            return False
    return False


def create_trunk(name: str, pretrained: bool, options: Mapping[str, Any]) -> Any:
    """Build a timm backbone without its classifier; each class of timm has attributes of its own.

    Raises:
        ConfigError: it does not take an option, or not that value; one line, not a trace through the library.
    """
    try:
        with timm_weights(name, pretrained):
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (TypeError, AssertionError) as error:
        said = " ".join(str(error).split()) or "a value that it does not allow"
        raise ConfigError(f"model.image.options={dict(options)}: {name}: {said}; correct or remove it") from error


def tokens_of(trunk: Any, maps: Tensor) -> Tensor:
    """Patch tokens ``[B,N,C]`` of what ``forward_features`` returns, whichever layout it has."""
    if maps.ndim == 3:
        return maps[:, getattr(trunk, "num_prefix_tokens", 0) :]
    if maps.shape[1] != trunk.num_features:  # channels last, as Swin's
        return maps.flatten(1, 2)
    return maps.flatten(2).transpose(1, 2)


@torch.no_grad()
def probe(trunk: Any, name: str, size: int, pools: bool) -> tuple[tuple[int, int], int, int]:
    """Show a backbone an empty picture.

    Args:
        trunk: of timm.
        name: its own, for messages.
        size: side of the picture.
        pools: ask its head too.

    Returns:
        Rows and columns of its patch tokens, their width C, and the width of what it pools; 0 where that is not asked.

    Raises:
        ConfigError: it does not take pictures of this size, or has no dense square map.
    """
    mode = trunk.training
    trunk.eval()
    try:
        maps = trunk.forward_features(torch.zeros(1, 3, size, size))
        pooled_width = trunk.forward_head(maps, pre_logits=True).shape[-1] if pools else 0
    except (AssertionError, RuntimeError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"model.image.name={name!r}, model.image.image_size={size}: timm's {type(trunk).__name__} does not compute "
            f"it ({str(error).splitlines()[0] if str(error) else type(error).__name__}); give its own size, "
            f"{trunk.pretrained_cfg['input_size'][-1]}, or another backbone"
        ) from error
    trunk.train(mode)
    if not torch.is_tensor(maps):
        raise ConfigError(
            f"model.image.name={name!r}: timm's {type(trunk).__name__} has {len(maps)} maps and no dense one; give "
            "another backbone"
        )
    tokens = tokens_of(trunk, maps)
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise ValueError(f"{tokens.shape[1]} patch tokens are not a square grid: not a backbone with a dense map")
    return (side, side), tokens.shape[2], pooled_width


def without_part(trunk: Any, size: int) -> list[nn.Parameter]:
    """Parameters of a backbone that its map of tokens does not depend on: those of its head."""
    parameters = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    mode = trunk.training
    with torch.enable_grad():
        maps = trunk.eval().forward_features(torch.zeros(1, 3, size, size))
        found = torch.autograd.grad(maps.sum(), parameters, allow_unused=True)
    trunk.train(mode)
    return [parameter for parameter, gradient in zip(parameters, found, strict=True) if gradient is None]


def trunk_stride(trunk: nn.Module) -> int:
    """Pixels from a token of a timm backbone to the next; 0 where it does not say."""
    info = getattr(trunk, "feature_info", None)
    return int(info[-1]["reduction"]) if info else 0


def load_trunk(trunk: Any, path: Path) -> Tensor | None:
    """Load a file or folder into a backbone without its classifier; returns the folder's projection, if it has one."""
    from cloc.models.weights.tower_folders import tower_state

    state = tower_state(path, "trunk") if path.is_dir() else read_state(path)
    projection = state.pop("proj.weight", None)
    heads = trunk.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ([heads] if isinstance(heads, str) else heads))
    fit_state(trunk, {name: value for name, value in state.items() if not name.startswith(heads)}, str(path))
    return projection
