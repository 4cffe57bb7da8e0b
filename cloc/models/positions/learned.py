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

KEPT = 20  # leading positions that stretching leaves as they are: few texts of CLIP's training were longer


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
            rows: Tensor = resample_abs_pos_embed(
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
