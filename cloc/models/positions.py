"""Fourier encoding of coordinates, one for token grids and for box prompts: where a prompt points, keys answer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

OCTAVES = 5.0  # finest wave: 32 half-periods across the picture


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


def token_centers(grid: tuple[int, int]) -> Tensor:
    """Centers of a token grid in reading order: ``[N,2]``, x then y, in 0..1."""
    rows, columns = ((torch.arange(count) + 0.5) / count for count in grid)
    return torch.stack([columns.repeat(grid[0]), rows.repeat_interleave(grid[1])], -1)


def grid_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Encoded token centers ``[N,dim]``; ``dim`` must be a multiple of 4."""
    return fourier(token_centers(grid), dim // 2)
