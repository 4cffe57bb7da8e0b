"""Ranks share the work of evaluation: who takes which part, and how the parts come together.

The only place of ``evaluation`` with collectives. Work is shared in whole batches, so that every number is computed
from the same batch whatever the number of ranks: results are equal to the last digit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cloc.data.stream.order import rank_share

T = TypeVar("T")
PATIENCE = timedelta(hours=12)  # one rank may write and read long while the others wait


class Ranks:
    """This process among those that evaluate together; alone where none were started."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def batches(self, count: int, batch_size: int) -> list[range]:
        """This rank's share of ``count`` items, in whole batches, in order."""
        starts = range(0, count, batch_size)
        mine = rank_share(len(starts), self.rank, self.size)
        return [range(starts[i], min(starts[i] + batch_size, count)) for i in mine]

    def join(self, parts: Sequence[Tensor], empty: Tensor) -> Tensor:
        """Concatenate the parts of all ranks, in the order of ranks.

        Args:
            parts: ``[K_i,...]`` of this rank; may be none.
            empty: ``[0,...]``: shape of the rest and type, for a rank without a part.

        Returns:
            On every rank, where ``empty`` is.
        """
        own = torch.cat([empty, *(part.to(empty.device, empty.dtype) for part in parts)])
        if self.size == 1:
            return own
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        own = own.to(device).contiguous()
        lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(own)], device=device))
        longest = int(max(lengths))
        padded = torch.cat([own, own.new_zeros(longest - len(own), *own.shape[1:])])
        found = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(found, padded)
        return torch.cat([rows[: int(n)] for rows, n in zip(found, lengths, strict=True)]).to(empty.device)

    def collect(self, value: T) -> list[T]:
        """A small object of every rank, on every rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def all(self, flag: bool) -> bool:
        """Whether the flag is set on every rank: they take the same way."""
        return all(self.collect(flag))


@contextmanager
def together() -> Iterator[Ranks]:
    """Connect the processes that torchrun started, over Gloo; a plain process is alone."""
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if started:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks()
    finally:
        if started:
            dist.destroy_process_group()
