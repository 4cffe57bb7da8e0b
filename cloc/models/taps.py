"""Taps into image towers: tokens of any layer and attention of asked rows, of our towers and of those of others.

Behind the towers (``image``, ``foreign``): an export's proof, dense features, probes and heat maps read them here. The
same call answers for all towers, with gradient, and for views of another size than the tower was trained with: a table
of positions is resized on the way as it is where weights are loaded. Threads may share a tower for views of its own
size.

Layers count as Python counts: 0 is the output of the first block, -1 of the last one (before the last norm), -2 the
penultimate state. Layers of a CNN or hierarchical model are its stages, each with a grid of its own; the blocks of an
adapter follow those of its trunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any, NamedTuple

import torch
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear

from cloc.models.positions.learned import Table
from cloc.models.protocols import Part, declared
from cloc.models.trunks import find_trunk, grid_of, trunk_of

CLASS = "class"


class LayerTokens(NamedTuple):
    """Patch tokens of a layer, in reading order.

    Attributes:
        tokens: ``[B,N,C]``.
        grid: rows and columns, N in all.
    """

    tokens: Tensor
    grid: tuple[int, int]


class LayerAttention(NamedTuple):
    """Attention weights of a layer.

    Attributes:
        weights: ``[B,heads,R,P+N]``; each row sums to 1.
        prefix: P, tokens before the patches: ``weights[..., prefix:]`` is a map of the picture.
        grid: rows and columns of the N patches.
    """

    weights: Tensor
    prefix: int
    grid: tuple[int, int]


def tokens(tower: Part, images: Tensor, layers: Sequence[int] = (-1,)) -> list[LayerTokens]:
    """Patch tokens of layers, without class and register tokens.

    Args:
        tower: an image tower, or a vision model of timm, open_clip or transformers.
        images: ``[B,3,H,W]`` normalized.
        layers: in any order.

    Returns:
        One entry a layer, in the order of ``layers``.

    Raises:
        ValueError: no such layer, a tower whose layers are not known, or a size that it cannot take.
    """
    tap = _Tap(tower)
    asked = tap.indices(layers)
    with _watching(tap.upper) as seen:
        maps, final = tap.run(images, asked)
    found = {index: LayerTokens(one.flatten(2).transpose(1, 2), grid_of(one)) for index, one in maps.items()}
    if final is not None:
        above = enumerate(tap.upper, start=tap.trunk.depth)
        found |= {index: LayerTokens(seen[block].output, grid_of(final)) for index, block in above}
    return [found[index] for index in asked]


def attention(
    tower: Part, images: Tensor, rows: Sequence[int | str] = (CLASS,), layers: Sequence[int] = (-1,)
) -> list[LayerAttention]:
    """Attention weights of asked query rows, from the queries and keys of the blocks themselves.

    Beside the forward pass, R · N weights a head are computed and not N²; dropout plays no part in them.

    Args:
        tower: as for :func:`tokens`; a transformer, or a tower with an adapter of blocks.
        images: ``[B,3,H,W]`` normalized.
        rows: R tokens that look: patches by their number in reading order, or ``class`` for the class token.
        layers: as for :func:`tokens`.

    Returns:
        One entry a layer, in the order of ``layers``.

    Raises:
        ValueError: a layer without attention over all patches, no such row or layer, or a size as for :func:`tokens`.
    """
    tap = _Tap(tower)
    asked = tap.indices(layers)
    modules = {index: tap.attention_module(index) for index in asked}
    with _watching(modules.values()) as seen:
        maps, final = tap.run(images, asked)
    found = {}
    for index, module in modules.items():
        above = index >= tap.trunk.depth
        output = final if above else maps[index]
        assert output is not None  # an adapter's layers are asked for
        grid = grid_of(output)
        prefix = 0 if above else tap.trunk.prefix
        has_class = tap.trunk.has_class and not above
        places = [_place(row, prefix, has_class, grid[0] * grid[1], type(tower).__name__) for row in rows]
        found[index] = LayerAttention(_weights(module, seen[module], places), prefix, grid)
    return [found[index] for index in asked]


def depth(tower: Part) -> int:
    """Number of layers.

    Raises:
        ValueError: a tower whose layers are not known.
    """
    tap = _Tap(tower)
    return tap.trunk.depth + len(tap.upper)


def blocks(tower: Part) -> list[nn.Module]:
    """Transformer blocks over one sequence of tokens, in forward order.

    None for CNNs, for hierarchical models, and for a tower that neither holds a trunk that is known nor declares any.
    """
    if find_trunk(tower) is None:
        return []
    tap = _Tap(tower)
    return [*tap.trunk.blocks, *tap.upper]


@contextmanager
def around_last(tower: Part) -> Iterator[dict[str, Tensor]]:
    """Collect what goes into the last block (``penultimate``) and comes out of it (``last``) while the context is open.

    With prefix tokens, of whatever is called inside; nothing for a tower without :func:`blocks`.
    """
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for block in blocks(tower)[-1:]:
            before = block.register_forward_pre_hook(lambda module, inputs: found.update(penultimate=inputs[0]))
            after = block.register_forward_hook(lambda module, inputs, output: found.update(last=output))
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        yield found


class _Tap:
    """A tower's layers: those of its trunk, then the blocks of its adapter."""

    def __init__(self, tower: Part) -> None:
        self.name, self.trunk = type(tower).__name__, trunk_of(tower)
        adapter: Any = getattr(tower, "adapter", None)
        # Of whatever class, with ``blocks`` and ``pos_embed`` as :class:`cloc.models.image.Adapter` has them.
        self.adapter: Any = adapter if isinstance(adapter, nn.Module) else None
        self.upper: list[nn.Module] = [] if self.adapter is None else list(declared(self.adapter).blocks)

    def indices(self, layers: Sequence[int]) -> list[int]:
        count = self.trunk.depth + len(self.upper)
        for layer in layers:
            if not -count <= layer < count:
                raise ValueError(f"layer {layer} of {self.name}: it has {count}; give {-count} to {count - 1}")
        return [layer % count for layer in layers]

    def run(self, images: Tensor, asked: Sequence[int]) -> tuple[dict[int, Tensor], Tensor | None]:
        """One pass: maps ``[B,C,h,w]`` of the trunk's layers, and what the adapter was given where it was asked."""
        inner = sorted({index for index in asked if index < self.trunk.depth})
        if len(inner) == len(set(asked)):
            return dict(zip(inner, self.trunk.maps(images, inner), strict=True)), None
        maps, final = self.trunk.final(images, inner)
        side = math.isqrt(self.adapter.pos_embed.shape[1])
        table = Table("pos_embed", self.adapter.pos_embed, (side, side), 0)
        states, grid = final.flatten(2).transpose(1, 2), grid_of(final)
        if grid == table.grid:  # as it stands: to put another table in its place would show in other threads
            self.adapter(states)
        else:
            functional_call(self.adapter, {table.name: table.resized(grid)}, (states,))
        return dict(zip(inner, maps, strict=True)), final

    def attention_module(self, index: int) -> nn.Module:
        """The attention of a layer, of a kind whose queries and keys are known."""
        own: Sequence[nn.Module | None] = self.trunk.blocks or [None] * self.trunk.depth
        block = [*own, *self.upper][index]
        module: Any = getattr(block, "attn", None) or getattr(block, "self_attn", None)
        if not isinstance(module, nn.MultiheadAttention) and type(module) not in TIMM and not _is_hugging_face(module):
            kind = type(module or block).__name__ if block is not None else "not a block over one sequence of tokens"
            raise ValueError(f"{self.name} has no attention over all patches in layer {index}, which is {kind}")
        attention: nn.Module = module
        return attention


TIMM = (Attention, AttentionRope, EvaAttention)


def _is_hugging_face(module: Any) -> bool:
    return all(hasattr(module, name) for name in ("q_proj", "k_proj", "num_heads", "out_proj"))


class _Call(NamedTuple):
    """What a module was called with and returned."""

    states: Tensor
    rope: Tensor | None
    output: Any


@contextmanager
def _watching(modules: Any) -> Iterator[dict[nn.Module, _Call]]:
    """Collect this thread's calls of modules while the context is open; others may run the same tower meanwhile."""
    seen: dict[nn.Module, _Call] = {}
    own = get_ident()

    def keep(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if get_ident() != own:
            return
        states = inputs[0] if inputs else named["hidden_states"]
        seen[module] = _Call(states, named.get("rope"), output)

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        yield seen


def _place(row: int | str, prefix: int, has_class: bool, count: int, name: str) -> int:
    """Index of a row among all tokens."""
    if row == CLASS:
        if not has_class:
            raise ValueError(f"rows={row!r}: {name} has no class token there; give numbers of patches")
        return 0
    if not isinstance(row, int) or not 0 <= row < count:
        raise ValueError(f"rows={row!r}: give {CLASS!r} or a patch from 0 to {count - 1}")
    return prefix + row


def _weights(module: Any, called: _Call, places: list[int]) -> Tensor:
    """``[B,heads,R,P+N]`` of the rows at ``places``."""
    if isinstance(module, nn.MultiheadAttention):
        states = called.states if module.batch_first else called.states.transpose(0, 1)
        query, key = _packed(states, module.in_proj_weight, module.in_proj_bias, module.num_heads)
    elif _is_hugging_face(module):
        query, key = (_split(project(called.states), module.num_heads) for project in (module.q_proj, module.k_proj))
    else:
        query, key = _of_timm(module, called)
    query = query[:, :, places] * query.shape[-1] ** -0.5
    weights: Tensor = (query @ key.transpose(-2, -1)).softmax(-1)
    return weights


def _split(states: Tensor, heads: int) -> Tensor:
    """``[B,N,heads·d]`` → ``[B,heads,N,d]``."""
    apart: Tensor = states.unflatten(2, (heads, -1))
    return apart.transpose(1, 2)


def _packed(states: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> list[Tensor]:
    """Queries and keys of a projection that is packed with that of the values, which is left out."""
    rows = len(weight) // 3 * 2
    made = linear(states, weight[:rows], None if bias is None else bias[:rows])
    return [_split(part, heads) for part in made.chunk(2, dim=-1)]


def _of_timm(module: Any, called: _Call) -> list[Tensor]:
    """Queries and keys of timm's attention: normalized and turned by rotary positions where it does so."""
    states, heads = called.states, module.num_heads
    if module.qkv is None:
        pair = [
            _split(module.q_proj(states), heads),
            _split(module.k_proj(states), getattr(module, "num_kv_heads", heads)),
        ]
    else:
        bias = module.qkv.bias
        if getattr(module, "q_bias", None) is not None:
            bias = torch.cat([module.q_bias, module.k_bias, module.v_bias])
        pair = _packed(states, module.qkv.weight, bias, heads)
    pair = [module.q_norm(pair[0]), module.k_norm(pair[1])]
    if called.rope is not None:
        count, half = module.num_prefix_tokens, getattr(module, "rotate_half", False)
        pair = [
            torch.cat([one[:, :, :count], apply_rot_embed_cat(one[:, :, count:], called.rope, half=half)], 2)
            for one in pair
        ]
    return [pair[0], pair[1].repeat_interleave(heads // pair[1].shape[1], 1)]
