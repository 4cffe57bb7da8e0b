"""Fourier encoding of coordinates, one for token grids and for box prompts: where a prompt points, keys answer.

Prompts, keys and heads count in 0..1 of what the token grid covers, which is the view but where patches do not divide
it: 27 patches of 14 px cover 378 of SigLIP's 384. :func:`onto_grid` and :func:`onto_view` map boxes between the two.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cloc.config import ConfigError
from cloc.models.positions.learned import find_table
from cloc.models.protocols import Part, declared

OCTAVES = 5.0  # finest wave: 32 half-periods across the picture


class Fourier:
    """The encoding of box prompts as the start of a tower's table: a prompt and the tokens under it agree."""

    def install(self, trunk: nn.Module) -> bool:
        """Fill the trunk's table; returns whether it has one."""
        table = find_table(trunk)
        if table is not None:
            table.fill(grid_positions(table.grid, table.rows.shape[-1]))
        return table is not None


def fourier(coordinates: Tensor, dim: int) -> Tensor:
    """Sine-cosine encoding of coordinates (CLOC, App. B.1).

    Args:
        coordinates: ``[...,K]`` in 0..1.
        dim: width per coordinate, even.

    Returns:
        ``[...,K*dim]``.
    """
    octaves = torch.linspace(0, OCTAVES, dim // 2, device=coordinates.device)
    angles = coordinates.unsqueeze(-1) * (math.pi * 2.0**octaves)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def covered_share(cells: int, stride: int, size: int) -> float:
    """Share of a view's side that a row of tokens covers; above 1 where the last token reaches beyond it.

    Args:
        cells: tokens in a row.
        stride: pixels from a token to the next; 0 where it is not known.
        size: of the view in pixels.
    """
    return cells * stride / size if stride and cells in (size // stride, -(-size // stride)) else 1.0


def check_covered(tower: Part) -> None:
    """Refuse to train a tower that leaves a border of its view unseen.

    Raises:
        ConfigError: its patches do not divide the view; names the sizes beside it.
    """
    covered = getattr(tower, "covered", 1.0)
    if covered < 1:
        size, cells = declared(tower).image_size, declared(tower).grid[0]
        seen = round(covered * size)
        raise ConfigError(
            f"model.image.image_size={size}: patches of {seen // cells} px cover {seen} px, the right and the lower "
            f"border would not be seen; give {seen} or {seen + seen // cells}"
        )


def onto_grid(boxes: Tensor, covered: float, cells: int) -> Tensor:
    """Boxes ``[...,4]`` of the view → of the part that tokens cover; a box outside of it is half a token at its edge.

    Args:
        boxes: xyxy in 0..1 of the view.
        covered: share of the view's side under tokens, from its upper left corner on.
        cells: tokens in a row.
    """
    if covered == 1:
        return boxes
    low, high = (boxes / covered).clamp(0, 1).split(2, -1)
    return torch.cat([low.clamp(max=1 - 0.5 / cells), high], -1)


def onto_view(boxes: Tensor, covered: float) -> Tensor:
    """Boxes of the part that tokens cover → of the view: the inverse of :func:`onto_grid`."""
    return boxes if covered == 1 else boxes * covered


def token_centers(grid: tuple[int, int]) -> Tensor:
    """Centers of a token grid in reading order: ``[N,2]``, x then y, in 0..1."""
    rows, columns = ((torch.arange(count) + 0.5) / count for count in grid)
    return torch.stack([columns.repeat(grid[0]), rows.repeat_interleave(grid[1])], -1)


def grid_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Encoded token centers ``[N,dim]``.

    Raises:
        ConfigError: ``dim`` is no multiple of 4.
    """
    if dim % 4:
        raise ConfigError(
            f"positions of tokens {dim} wide: a multiple of 4 is needed; set model.image.adapter_depth=1 for blocks of "
            "model.image.adapter_width upon a TimmTower"
        )
    return fourier(token_centers(grid), dim // 2)
