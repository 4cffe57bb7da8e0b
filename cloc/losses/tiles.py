"""All pairs of rows and columns, a tile at a time: no matrix of logits is ever held.

Memory is linear in rows and columns. The backward pass computes each tile again. A tile serves both directions of a
softmax contrast: its rows' and its columns' log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

# Pairs in a tile: half of a core's second-level cache on CPUs; elsewhere enough to keep a GPU busy (64 MB in float32).
PAIRS = {"cpu": 1 << 18}
PAIRS_ELSEWHERE = 1 << 24


def tiles(rows: int, columns: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Cut ``rows`` × ``columns`` into about square tiles of bounded size."""
    if not rows or not columns:
        return
    pairs = PAIRS.get(device.type, PAIRS_ELSEWHERE)
    height = min(rows, max(int(pairs**0.5), pairs // columns))
    width = min(columns, max(1, pairs // height))
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))


def floor(dtype: torch.dtype) -> float:
    """Logit of a pair that is left out; finite, so that the gradient of a row without any pair is zero and not NaN."""
    return torch.finfo(dtype).min / 4


@dataclass(slots=True)
class Conflicts:
    """Pairs that are no negatives of each other.

    Attributes:
        own: ``[R]`` the column that holds each row's own text.
        text: ``[K,D]`` text embeddings of the columns, float32, unit norm; None where own texts alone are left out.
        limit: scalar; texts with a cosine above it are left out. There where ``text`` is.
    """

    own: Tensor
    text: Tensor | None = None
    limit: Tensor | None = None

    def hide(self, logits: Tensor, rows: slice, columns: slice) -> Tensor:
        """Put the floor into a tile of logits ``[r,c]``, in place.

        Returns:
            How many pairs the cosine alone left out.
        """
        own = self.own[rows]
        inside = ((own >= columns.start) & (own < columns.stop)).unsqueeze(1)
        # Rows whose own column lies elsewhere write back what they read: a selection of rows would wait for the GPU.
        place = (own - columns.start).clamp(0, columns.stop - columns.start - 1).unsqueeze(1)
        nothing = floor(logits.dtype)
        logits.scatter_(1, place, logits.gather(1, place).masked_fill_(inside, nothing))
        if self.text is None or self.limit is None:
            return own.new_zeros(())
        alike = self.text[own] @ self.text[columns].T > self.limit
        alike.scatter_(1, place, alike.gather(1, place) & ~inside)
        logits.masked_fill_(alike, nothing)
        return alike.count_nonzero()


def log_sum_exp(
    rows: Tensor, columns: Tensor, log_count: Tensor, conflicts: Conflicts | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of ``rows @ columns.T`` over both sides.

    Args:
        rows: ``[R,D]``, already scaled by the inverse temperature.
        columns: ``[K,D]``.
        log_count: ``[K]`` log of how many raw columns each stands for.
        conflicts: pairs to leave out; None for none.

    Returns:
        Over columns, each counted as often as it stands for one, ``[R]``; over rows ``[K]``; and how many pairs the
        cosine rule left out. About −1e38 (float32) where nothing is left.
    """
    found: tuple[Tensor, Tensor, Tensor] = _LogSumExp.apply(rows, columns, log_count, conflicts)
    return found


def sum_softplus(
    rows: Tensor, columns: Tensor, bias: Tensor, count: Tensor, conflicts: Conflicts | None = None
) -> tuple[Tensor, Tensor]:
    """Sum over columns of ``softplus(rows @ columns.T + bias)``.

    Args:
        rows: ``[R,D]``, already scaled by the inverse temperature.
        columns: ``[K,D]``.
        bias: ``[1]``.
        count: ``[K]`` how many raw columns each stands for.
        conflicts: pairs to leave out; None for none.

    Returns:
        ``[R]``, and how many pairs the cosine rule left out.
    """
    found: tuple[Tensor, Tensor] = _SumSoftplus.apply(rows, columns, bias, count, conflicts)
    return found


def _logits(
    rows: Tensor, columns: Tensor, shift: Tensor, conflicts: Conflicts | None, r: slice, c: slice
) -> tuple[Tensor, Tensor | int]:
    found = torch.addmm(shift, rows[r], columns[c].T)
    return found, conflicts.hide(found, r, c) if conflicts is not None else 0


class _LogSumExp(Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, log_count: Tensor, conflicts: Conflicts | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        nothing = floor(rows.dtype)
        over_columns, over_rows = rows.new_full((len(rows),), nothing), rows.new_full((len(columns),), nothing)
        left_out = torch.zeros((), dtype=torch.int64, device=rows.device)
        for r, c in tiles(len(rows), len(columns), rows.device):
            logits, count = _logits(rows, columns, log_count[c], conflicts, r, c)
            left_out += count
            over_columns[r] = torch.logaddexp(over_columns[r], logits.logsumexp(1))
            over_rows[c] = torch.logaddexp(over_rows[c], logits.logsumexp(0))
        ctx.save_for_backward(rows, columns, log_count, over_columns, over_rows)
        ctx.conflicts = conflicts
        ctx.mark_non_differentiable(left_out)
        return over_columns, over_rows - log_count, left_out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_row: Tensor, by_column: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, log_count, over_columns, over_rows = ctx.saved_tensors
        d_rows, d_columns = torch.zeros_like(rows), torch.zeros_like(columns)
        for r, c in tiles(len(rows), len(columns), rows.device):
            logits = _logits(rows, columns, log_count[c], ctx.conflicts, r, c)[0]
            share = (logits - over_columns[r].unsqueeze(1)).exp_().mul_(by_row[r].unsqueeze(1))
            share += logits.sub_(over_rows[c]).exp_().mul_(by_column[c])
            d_rows[r].addmm_(share, columns[c])
            d_columns[c].addmm_(share.T, rows[r])
        return d_rows, d_columns, None, None


class _SumSoftplus(Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, bias: Tensor, count: Tensor, conflicts: Conflicts | None
    ) -> tuple[Tensor, Tensor]:
        summed = rows.new_zeros(len(rows))
        left_out = torch.zeros((), dtype=torch.int64, device=rows.device)
        for r, c in tiles(len(rows), len(columns), rows.device):
            logits, found = _logits(rows, columns, bias, conflicts, r, c)
            left_out += found
            summed[r] -= logsigmoid(logits.neg_()) @ count[c]
        ctx.save_for_backward(rows, columns, bias, count)
        ctx.conflicts = conflicts
        ctx.mark_non_differentiable(left_out)
        return summed, left_out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_row: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, bias, count = ctx.saved_tensors
        d_rows, d_columns, d_bias = torch.zeros_like(rows), torch.zeros_like(columns), torch.zeros_like(bias)
        for r, c in tiles(len(rows), len(columns), rows.device):
            logits = _logits(rows, columns, bias, ctx.conflicts, r, c)[0]
            share = logits.sigmoid_().mul_(by_row[r].unsqueeze(1)).mul_(count[c])
            d_bias += share.sum()
            d_rows[r].addmm_(share, columns[c])
            d_columns[c].addmm_(share.T, rows[r])
        return d_rows, d_columns, d_bias, None, None
