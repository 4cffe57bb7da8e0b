"""The learned table of positions, one row a token: where a trunk keeps it, and its rows for another number of tokens.

Trunks are the modules of timm, open_clip and transformers inside our towers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn


class Learned:
    """The table as the tower's own library initializes it. A tower without one keeps what it has instead."""

    def install(self, trunk: nn.Module) -> bool:
        """Nothing is to be done."""
        return True


@dataclass(frozen=True)
class Table:
    """A trunk's table of positions.

    Attributes:
        name: of the parameter in the trunk.
        rows: ``[P+N,C]`` or ``[1,P+N,C]``.
        grid: rows and columns of the N patches.
        prefix: P, rows of tokens before the patches (class token).
    """

    name: str
    rows: Tensor
    grid: tuple[int, int]
    prefix: int

    def resized(self, grid: tuple[int, int]) -> Tensor:
        """The rows for another grid, with gradient: bicubic with antialias, as open_clip and timm do."""
        table = self.rows.reshape(1, -1, self.rows.shape[-1])
        made: Tensor = resample_abs_pos_embed(table, list(grid), list(self.grid), num_prefix_tokens=self.prefix)
        return made.reshape(*self.rows.shape[:-2], -1, self.rows.shape[-1])

    def fill(self, values: Tensor) -> None:
        """Start from an encoding ``[N,C]`` of the patches, at half its size; prefix tokens start at zero."""
        with torch.no_grad():
            rows = self.rows.view(-1, self.rows.shape[-1])
            rows.zero_()
            rows[self.prefix :] = values * 0.5


def find_table(trunk: nn.Module) -> Table | None:
    """The table of a ViT's positions; None where there is none."""
    grid: Any
    embedding = getattr(getattr(trunk, "embeddings", None), "position_embedding", None)
    if embedding is not None:  # transformers
        side = math.isqrt(len(embedding.weight))
        rows, name, grid = embedding.weight, "embeddings.position_embedding.weight", (side, side)
    elif hasattr(trunk, "positional_embedding"):  # open_clip
        rows, name, grid = trunk.positional_embedding, "positional_embedding", getattr(trunk, "grid_size", None)
    else:  # timm
        rows, name = getattr(trunk, "pos_embed", None), "pos_embed"
        grid = getattr(getattr(trunk, "patch_embed", None), "grid_size", None)
    if grid is None or not isinstance(rows, nn.Parameter) or rows.ndim not in (2, 3):
        return None
    prefix = rows.shape[-2] - grid[0] * grid[1]
    most = getattr(trunk, "num_prefix_tokens", 1)
    return Table(name, rows, (grid[0], grid[1]), prefix) if 0 <= prefix <= most else None


def is_absolute(trunk: nn.Module) -> bool:
    """Whether a trunk has no rotary and no relative positions, whose sizes are fixed where it is built."""
    if getattr(trunk, "rope", None) is not None:
        return False
    return not any("relative_position" in name or "rel_pos" in name for name, _ in trunk.named_parameters())
