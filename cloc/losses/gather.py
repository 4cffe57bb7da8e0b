"""Collectives of the losses: the global batch as every process sees it. Identity on one process.

A step needs few of them: one exchange of counts, one gather of ids, one of embeddings, and for each softmax contrast
the two small reductions of :func:`log_sum_exp_over_ranks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Number of training processes, W."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def exchange(counts: Tensor) -> Tensor:
    """``[n]`` counts of this process → ``[W,n]`` of all."""
    if world_size() == 1:
        return counts.unsqueeze(0)
    found = [torch.empty_like(counts) for _ in range(world_size())]
    dist.all_gather(found, counts)
    return torch.stack(found)


def gather(tensors: Sequence[Tensor], sizes: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """Concatenate the rows of all processes, differentiably; several tensors of one kind in one collective.

    Args:
        tensors: each ``[R,…]``, of this process; they may differ in R, and so may processes.
        sizes: for each process, the R of each tensor; only read where there are several processes.

    Returns:
        Each tensor ``[ΣR,…]``, in the order of the processes. Gradients flow back to the process that owns a row,
        summed over the processes that used it.
    """
    if world_size() == 1 or not any(map(sum, sizes)):
        return tuple(tensors)
    gathered: tuple[Tensor, ...] = _Gather.apply(sizes, *tensors)
    return gathered


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, sizes: Sequence[Sequence[int]], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.sizes = sizes
        own = _padded(torch.cat(tensors), sizes)
        found = [torch.empty_like(own) for _ in sizes]
        dist.all_gather(found, own)
        parts = [rows[: sum(size)].split(list(size)) for rows, size in zip(found, sizes, strict=True)]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        columns = [part.split([size[i] for size in ctx.sizes]) for i, part in enumerate(gradients)]
        parts = [_padded(torch.cat(rows), ctx.sizes) for rows in zip(*columns, strict=True)]
        own, size = torch.empty_like(parts[0]), list(ctx.sizes[rank()])
        dist.reduce_scatter(own, parts)
        return None, *own[: sum(size)].split(size)


def _padded(rows: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
    full = rows.new_zeros(max(map(sum, sizes)), *rows.shape[1:])
    full[: len(rows)] = rows
    return full


def log_sum_exp_over_ranks(partial: Tensor) -> Tensor:
    """Join the log-sum-exps ``[K]`` that each process took over its own rows; differentiable."""
    if world_size() == 1 or not partial.numel():
        return partial
    top = partial.detach().clone()
    dist.all_reduce(top, dist.ReduceOp.MAX)
    summed: Tensor = _Sum.apply((partial - top).exp())
    return top + summed.log()


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed
