"""The trunks inside image towers, asked alike: layers of timm, open_clip and transformers as maps ``[B,C,h,w]``.

Serves ``taps`` alone, which knows a tower by the module of another library that it holds. A tower that holds none is
asked by what it declares (``block_modules``, ``prefix_tokens``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cloc.models.positions.learned import find_table, is_absolute
from cloc.models.protocols import Part, as_module

INSIDE = ("trunk", "visual", "tower", "vision_model")  # where towers and models of others hold the trunk


class Trunk:
    """A trunk's layers.

    Args:
        module: of the library.
        depth: number of layers.
        blocks: transformer blocks over one sequence of tokens, one a layer; none for CNNs and hierarchical models.
        prefix: P, tokens before the patches in what blocks pass on.
        has_class: whether the first of them is a class token.
    """

    def __init__(
        self, module: nn.Module, depth: int, blocks: Sequence[nn.Module] = (), prefix: int = 0, has_class: bool = False
    ) -> None:
        self.module: Any = module  # each library's have attributes of their own
        self.depth, self.blocks = depth, list(blocks)
        self.prefix, self.has_class = prefix, has_class

    def maps(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Run up to the last of the layers.

        Args:
            images: ``[B,3,H,W]`` normalized.
            layers: indices from 0, rising.

        Returns:
            ``[B,C,h,w]`` of each, before the last norm.
        """
        raise NotImplementedError

    def final(self, images: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """As :meth:`maps`, and in the same pass what an adapter gets: the map ``[B,C,h,w]`` behind the last norm."""
        raise ValueError(f"{type(self.module).__name__}: no adapter stands upon such a trunk")

    @staticmethod
    def _as_maps(patches: Tensor, grid: tuple[int, int]) -> Tensor:
        maps: Tensor = patches.transpose(1, 2).unflatten(2, grid)  # PyTorch leaves unflatten without a type
        return maps


class TimmTrunk(Trunk):
    """Any backbone of timm: a ViT's layers are its blocks, others' are the stages of its ``feature_info``."""

    def __init__(self, module: Any) -> None:
        vit = is_vit(module)
        super().__init__(
            module,
            len(module.feature_info),
            module.blocks if vit else (),
            module.num_prefix_tokens if vit else 0,
            getattr(module, "cls_token", None) is not None,
        )
        patches = getattr(module, "patch_embed", None)
        known = hasattr(patches, "dynamic_feat_size") or not isinstance(getattr(patches, "patch_size", None), tuple)
        self.flat = vit and not known  # a patch embedding that cannot tell timm the grid of a view, as our ConvStem

    def maps(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """As :meth:`Trunk.maps`."""
        states = self._run(images, indices=list(layers), intermediates_only=True, stop_early=True)
        return self._maps(states, images)

    def final(self, images: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """As :meth:`Trunk.final`."""
        last = self.depth - 1
        states, found = self._run(images, indices=sorted({*layers, last}))
        maps = self._maps(found, images)
        if states.ndim == 3:
            final = self._as_maps(states[:, self.prefix :], grid_of(maps[-1]))
        else:  # channels first, or last as Swin's
            final = states if states.shape[1] == self.module.num_features else states.permute(0, 3, 1, 2)
        return maps if last in layers else maps[:-1], final

    def _maps(self, found: Sequence[Tensor], images: Tensor) -> list[Tensor]:
        if not self.flat:
            return list(found)
        rows, columns = self.module.patch_embed.patch_size
        grid = (images.shape[2] // rows, images.shape[3] // columns)
        return [self._as_maps(states, grid) for states in found]

    def _run(self, images: Tensor, **asked: Any) -> Any:
        asked["output_fmt"] = "NLC" if self.flat else "NCHW"
        patches = getattr(self.module, "patch_embed", None)
        size = getattr(patches, "img_size", None)
        if size is None and hasattr(self.module, "pos_embed"):  # Hiera's patches are of any size, its positions not
            size = self.module.pretrained_cfg["input_size"][1:]
        if size is None or tuple(size) == tuple(images.shape[-2:]):
            return self.module.forward_intermediates(images, **asked)
        try:
            return self._resized(images, patches, **asked)
        except (AssertionError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise _bound(self.module, images, size, " ".join(str(error).split())) from error

    def _resized(self, images: Tensor, patches: Any, **asked: Any) -> Any:
        """At another size than the backbone was built for."""
        table = find_table(self.module) if self.blocks and is_absolute(self.module) else None
        strict = getattr(patches, "strict_img_size", False)
        if getattr(self.module, "dynamic_img_size", False) or (table is None and _has_positions(self.module)):
            return self.module.forward_intermediates(images, **asked)
        own = table_for(self.module, patches.patch_size, images) if table is not None else {}
        patches.strict_img_size = False
        try:
            return call(self.module, "forward_intermediates", own, images, **asked)
        finally:
            patches.strict_img_size = strict


class OpenClipTrunk(Trunk):
    """The ViT and the ResNet that are open_clip's own."""

    def __init__(self, module: Any) -> None:
        if hasattr(module, "transformer"):
            blocks = module.transformer.resblocks
            super().__init__(module, len(blocks), blocks, prefix=1, has_class=True)
        else:
            super().__init__(module, depth=5)  # the stem and four stages

    def maps(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """As :meth:`Trunk.maps`."""
        asked = {"indices": list(layers), "stop_early": True, "intermediates_only": True}
        own: dict[str, Tensor] = {}
        if self.blocks and tuple(self.module.image_size) != tuple(images.shape[-2:]):
            own = table_for(self.module, self.module.patch_size, images)
        found: list[Tensor] = call(self.module, "forward_intermediates", own, images, **asked)["image_intermediates"]
        return found


class HuggingFaceTrunk(Trunk):
    """The vision half of a CLIP or SigLIP of transformers."""

    def __init__(self, module: Any) -> None:
        self.has_class = hasattr(module.embeddings, "class_embedding")
        blocks = module.encoder.layers
        super().__init__(module, len(blocks), blocks, int(self.has_class), self.has_class)

    def maps(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """As :meth:`Trunk.maps`."""
        states, grid = self._embed(images)
        found = []
        for index, block in enumerate(self.blocks[: max(layers) + 1]):
            output = block(states, None)
            states = output[0] if isinstance(output, tuple) else output
            if index in layers:
                found.append(self._as_maps(states[:, self.prefix :], grid))
        return found

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Its own embeddings refuse another size, or resize by another filter than ours."""
        parts = self.module.embeddings
        rows = parts.position_embedding.weight
        if tuple(images.shape[-2:]) != (parts.image_size, parts.image_size):
            (rows,) = table_for(self.module, (parts.patch_size, parts.patch_size), images).values()
        patches = parts.patch_embedding(images.to(parts.patch_embedding.weight.dtype))
        states = patches.flatten(2).transpose(1, 2)
        if self.has_class:
            states = torch.cat([parts.class_embedding.expand(len(images), 1, -1), states], 1)
        states = states + rows
        return (self.module.pre_layrnorm(states) if self.has_class else states), grid_of(patches)


class DeclaredTrunk(Trunk):
    """A tower of the user's own that declares its blocks, each ``[B,P+N,C]`` → the same."""

    def __init__(self, module: Any) -> None:
        blocks = list(module.block_modules())
        super().__init__(module, len(blocks), blocks, getattr(module, "prefix_tokens", 0))
        self.has_class = self.prefix > 0

    def maps(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """As :meth:`Trunk.maps`."""
        found: list[Tensor] = []
        own = get_ident()

        def keep(block: nn.Module, inputs: Any, output: Tensor) -> None:
            if get_ident() == own:  # not what another thread asks of the same tower
                found.append(output)

        hooks = [self.blocks[index].register_forward_hook(keep) for index in layers]
        try:
            self.module(images)
        finally:
            for hook in hooks:
                hook.remove()
        found = [states[:, self.prefix :] for states in found]
        return [self._as_maps(patches, self._grid(patches.shape[1])) for patches in found]

    def _grid(self, count: int) -> tuple[int, int]:
        rows, columns = self.module.grid
        return (rows, columns) if rows * columns == count else (math.isqrt(count), math.isqrt(count))


def trunk_of(tower: Part) -> Trunk:
    """The trunk of an image tower, or of a vision model of timm, open_clip or transformers.

    Raises:
        ValueError: a tower that holds none and declares no blocks.
    """
    found = find_trunk(tower)
    if found is None:
        raise ValueError(
            f"{type(tower).__name__}: its layers are not known; it holds no trunk of timm, open_clip or transformers, "
            "and declares no block_modules()"
        )
    return found


def find_trunk(tower: Part) -> Trunk | None:
    """As :func:`trunk_of`; None where there is none."""
    inside = as_module(tower)
    while (held := _held(inside)) is not None:
        inside = held
    if hasattr(inside, "embeddings") and hasattr(getattr(inside, "encoder", None), "layers"):
        return HuggingFaceTrunk(inside)
    if hasattr(inside, "forward_intermediates"):
        return TimmTrunk(inside) if getattr(inside, "feature_info", None) is not None else OpenClipTrunk(inside)
    return DeclaredTrunk(tower) if hasattr(tower, "block_modules") else None


def _held(module: nn.Module) -> nn.Module | None:
    found = (getattr(module, name, None) for name in INSIDE)
    return next((child for child in found if isinstance(child, nn.Module)), None)


def is_vit(module: nn.Module) -> bool:
    """Whether a timm model is a transformer with a sequence of tokens."""
    return hasattr(module, "blocks") and hasattr(module, "num_prefix_tokens")


def grid_of(maps: Tensor) -> tuple[int, int]:
    """Rows and columns of ``[B,C,h,w]``."""
    return maps.shape[2], maps.shape[3]


def table_for(module: nn.Module, patch: Sequence[int], images: Tensor) -> dict[str, Tensor]:
    """A trunk's table of positions by its name, for views of another size.

    Raises:
        ValueError: the patches do not divide the size.
    """
    height, width = images.shape[-2:]
    if height % patch[0] or width % patch[1]:
        raise ValueError(
            f"images of {height} × {width} px: patches of {patch[0]} px do not divide that; give a multiple of them"
        )
    table = find_table(module)
    if table is None:
        raise _bound(module, images, getattr(module, "image_size", ()), "it has no table of positions")
    return {table.name: table.resized((height // patch[0], width // patch[1]))}


def call(module: nn.Module, method: str, own: dict[str, Tensor], *inputs: Any, **named: Any) -> Any:
    """A method of a module with other tensors in the place of some parameters; gradients flow through them."""
    if not own:
        return getattr(module, method)(*inputs, **named)
    values = {f"module.{name}": value for name, value in own.items()}
    return functional_call(_Method(module, method), values, inputs, named)


class _Method(nn.Module):
    """A method as a module of its own, which ``functional_call`` asks for."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return getattr(self.module, self.method)(*inputs, **named)


def _has_positions(module: nn.Module) -> bool:
    return not is_vit(module) or not is_absolute(module) or getattr(module, "pos_embed", None) is not None


def _bound(module: nn.Module, images: Tensor, size: Sequence[int], reason: str) -> ValueError:
    height, width = images.shape[-2:]
    built = " × ".join(str(side) for side in size) or "one size"
    return ValueError(
        f"images of {height} × {width} px: {type(module).__name__} is bound to {built} px ({reason}); give that size"
    )
