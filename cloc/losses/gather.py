"""Collectives of the losses: the global batch as every rank sees it. Identity on one process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def world_size() -> int:
    """Number of training processes, W."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(rows: Tensor) -> tuple[Tensor, int]:
    """Concatenate the rows of all ranks, differentiably; ranks may hold different numbers of rows.

    Args:
        rows: ``[R,…]`` of this rank.

    Returns:
        ``[ΣR,…]``, and the index of this rank's first row in it. Gradients flow back to the rank that owns a row,
        summed over the ranks that used it.
    """
    if world_size() == 1:
        return rows, 0
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    sizes = [int(count) for count in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    if rows.is_floating_point():
        parts = all_gather(padded.contiguous())
    else:
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]), sum(sizes[: rank()])


def total(value: Tensor) -> Tensor:
    """Sum a tensor over all ranks, without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value
