"""Tables of positions for another grid or another length of text."""

from __future__ import annotations

import math

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

KEPT = 20  # leading positions that stretching leaves as they are: few texts of CLIP's training were longer


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
