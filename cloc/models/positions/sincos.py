"""The sine-cosine table of MAE and of MoCo v3 as the start of a learned one."""

from __future__ import annotations

from timm.layers import build_sincos2d_pos_embed
from torch import nn

from cloc.models.positions.learned import find_table


class SinCos:
    """Sines and cosines of a patch's row and column, by falling frequencies (arXiv 2104.02057, Sec. 5)."""

    def install(self, trunk: nn.Module) -> bool:
        """Fill the trunk's table; returns whether it has one."""
        table = find_table(trunk)
        if table is not None:
            table.fill(build_sincos2d_pos_embed(list(table.grid), dim=table.rows.shape[-1]))
        return table is not None
