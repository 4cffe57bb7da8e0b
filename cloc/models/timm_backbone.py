"""timm's backbones: what they need to be built, what their maps hold, and a stem of ours (for ``image.py``)."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from cloc.config.domains import ConfigError
from cloc.models.weights.downloads import timm_weights
from cloc.models.weights.files import fit_state, read_state

SUGGESTED = "vit_tiny_patch16_224, convnext_atto or swin_tiny_patch4_window7_224"
STEPS = (8, 14, 16, 32, 64, 128, 224, 256)  # patches, strides and windows of what timm has
# How classes of timm refuse an option or a size that they were not written for.
REFUSALS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
TRIES = 4  # sizes on either side that a message tries


@cache
def open_clip_names() -> Collection[str]:
    """Architectures of open_clip."""
    import open_clip

    return frozenset(open_clip.list_models())


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


def create_trunk(name: str, pretrained: bool, options: Mapping[str, Any], size: int) -> Any:
    """Build a timm backbone without its classifier; each class of timm has attributes of its own.

    Args:
        name: of the model, checked.
        pretrained: with timm's own weights.
        options: further arguments; ``img_size`` among them where the class must be told.
        size: side of the view, for messages.

    Raises:
        ConfigError: it does not take an option, or not that value; one line, not a trace through the library.
    """
    try:
        with timm_weights(name, pretrained):
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (OSError, ConfigError):  # of a download
        raise
    except REFUSALS as error:
        said = " ".join(str(error).split())[:200] or "a value that it does not allow"
        own = {key: value for key, value in options.items() if key != "img_size" or value != size}
        if len(own) < len(options) and not own and not pretrained:
            fitting = sizes_that_fit(name, size)
            remedy = f"give {' or '.join(map(str, fitting))}" if fitting else "give its own size"
            raise ConfigError(
                f"model.image.image_size={size}: {name} is not built for it ({said}); {remedy}"
            ) from error
        weights = ", model.image.pretrained=true" if pretrained else ""
        raise ConfigError(f"model.image.options={own}{weights}: {name}: {said}; correct or remove it") from error


def check_name(name: str) -> None:
    """Refuse a name that timm does not know; one with a colon (``hf-hub:…``) is a hub's or a folder's, as timm has it.

    Raises:
        ConfigError: names the models that look like it.
    """
    if ":" in name or timm.is_model(name):
        return
    architecture = name.partition(".")[0]
    close = difflib.get_close_matches(architecture, timm.list_models(), 3)
    hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() names them all"
    if architecture in open_clip_names():
        hint = "it is one of open_clip: set model.image._target_=cloc.models.image.OpenClipTower"
    raise ConfigError(f"model.image.name={name!r}: timm {timm.__version__} has no such model; {hint}")


def tokens_of(trunk: Any, maps: Tensor) -> Tensor:
    """Patch tokens ``[B,N,C]`` of what ``forward_features`` returns for square views, whichever layout it has."""
    if maps.ndim == 3:
        return maps[:, prefix_of(trunk) :]
    return maps.flatten(1, 2) if is_channels_last(trunk, maps) else maps.flatten(2).transpose(1, 2)


def is_channels_last(trunk: Any, maps: Tensor) -> bool:
    """Whether a map of a square view is ``[B,S,S,C]``, as Swin's, and not ``[B,C,S,S]``."""
    _, first, second, third = maps.shape
    if first == second == third:
        return bool(first != trunk.num_features)
    return first == second


def prefix_of(trunk: nn.Module) -> int:
    """Class and register tokens before the patch tokens; what does not count them has one, if it has a class token."""
    counted = getattr(trunk, "num_prefix_tokens", None)
    if counted is not None:
        return int(counted)
    return int(any(name.startswith("cls_token") for name, _ in trunk.named_parameters(recurse=False)))


def as_maps(tokens: Tensor, sequence: bool, prefix: int, last: bool) -> Tensor:
    """Tokens ``[T,C]`` as what ``forward_features`` returns of T pictures of one token, for the head to pool.

    Args:
        tokens: ``[T,C]``.
        sequence: of tokens, and not maps.
        prefix: tokens before the patches; they are the token too, so whatever the head pools, it is this token.
        last: whether the maps' channels are last.
    """
    if sequence:
        return tokens.unsqueeze(1).expand(-1, prefix + 1, -1)
    return tokens[:, None, None] if last else tokens[..., None, None]


class Probed(NamedTuple):
    """What a backbone makes of an empty picture.

    Attributes:
        grid: rows and columns of its patch tokens.
        width: C of them.
        pooled: width of what it pools; 0 where that is not asked.
        maps: what ``forward_features`` returned.
    """

    grid: tuple[int, int]
    width: int
    pooled: int
    maps: Tensor


@torch.no_grad()
def probe(trunk: Any, name: str, size: int, pools: bool) -> Probed:
    """Show a backbone an empty picture.

    Args:
        trunk: of timm.
        name: its own, for messages.
        size: side of the picture.
        pools: ask its head too.

    Raises:
        ConfigError: it does not take pictures of this size, or has no dense square map.
    """
    mode = trunk.training
    trunk.eval()
    try:
        maps = trunk.forward_features(torch.zeros(1, 3, size, size))
        pools = pools and "pre_logits" in inspect.signature(trunk.forward_head).parameters
        pooled_width = trunk.forward_head(maps, pre_logits=True).shape[-1] if pools else 0
    except REFUSALS as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"model.image.name={name!r}, model.image.image_size={size}: timm's {type(trunk).__name__} does not compute "
            f"it ({said}); {other_sizes(trunk, name, size)}"
        ) from error
    trunk.train(mode)
    tokens = tokens_of(trunk, maps) if torch.is_tensor(maps) and maps.ndim in (3, 4) else None
    side = round(tokens.shape[1] ** 0.5) if tokens is not None else 0
    if tokens is None or side == 0 or side * side != tokens.shape[1]:
        found = f"{len(maps)} maps" if tokens is None else f"{tokens.shape[1]} patch tokens"
        raise ConfigError(
            f"model.image.name={name!r}: timm's {type(trunk).__name__} returns {found} and no dense square map, which "
            f"boxes need; give another backbone, such as {SUGGESTED}"
        )
    return Probed((side, side), tokens.shape[2], pooled_width, maps)


def other_sizes(trunk: Any, name: str, size: int) -> str:
    """The remedy for a size that a backbone does not compute: those around it that it does, if any are found."""
    own = trunk.pretrained_cfg["input_size"][-1]
    fitting = sizes_that_fit(name, size)
    if not fitting:
        return f"give its own size, {own}, or another backbone"
    return f"give {' or '.join(map(str, fitting))}, or another backbone"


def sizes_that_fit(name: str, size: int) -> list[int]:
    """The nearest smaller and larger size that a backbone of timm computes, of multiples of its usual strides.

    Builds the backbone anew for each that is tried: for a message, not for a run.
    """
    found = []
    for sign in (-1, 1):
        near = {(size // step + (sign > 0)) * step for step in STEPS} - {0, size}
        for candidate in sorted(near, key=lambda one: abs(one - size))[:TRIES]:
            if _computes(name, candidate):
                found.append(candidate)
                break
    return found


@torch.no_grad()
def _computes(name: str, size: int) -> bool:
    options: dict[str, Any] = {"img_size": size} if built_for_one_size(name) else {}
    try:
        with torch.random.fork_rng(devices=[]):
            trunk: Any = timm.create_model(name, num_classes=0, **options).eval()
        maps = trunk.forward_features(torch.zeros(1, 3, size, size))
        trunk.forward_head(maps)
    except REFUSALS:
        return False
    return True


def without_part(trunk: Any, size: int) -> list[nn.Parameter]:
    """Parameters of a backbone that its map of tokens does not depend on: those of its head."""
    parameters = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    mode = trunk.training
    with torch.enable_grad():
        maps = trunk.eval().forward_features(torch.zeros(1, 3, size, size))
        found = torch.autograd.grad(maps.sum(), parameters, allow_unused=True)
    trunk.train(mode)
    return [parameter for parameter, gradient in zip(parameters, found, strict=True) if gradient is None]


def as_channels_last(trunk: Any) -> None:
    """Lay out convolutions as they compute faster, on CPU and GPU; a 3-D convolution has no such layout."""
    if all(parameter.ndim < 5 for parameter in trunk.parameters()):
        trunk.to(memory_format=torch.channels_last)


def depth_of_parameters(trunk: Any) -> dict[str, int]:
    """Layer of each parameter as timm groups them for rates that decay with depth; 0 for the stem."""
    if not hasattr(trunk, "group_matcher"):
        return {}
    groups: dict[str, int] = group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True)
    return groups


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
