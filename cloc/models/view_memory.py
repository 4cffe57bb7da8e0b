"""Outputs of a frozen backbone, kept by the content of the pictures (used by ``image.py``)."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor


class ViewMemory:
    """Outputs of a frozen function of pictures, by the pictures' content.

    Args:
        limit: how many are kept; the oldest leave first.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._slots: dict[int, int] = {}
        # One block rather than a tensor a picture: thousands of small ones between large temporaries scatter the heap.
        self._kept: Tensor | None = None
        self._weights = torch.zeros(0, dtype=torch.int64)

    @torch.no_grad()
    def __call__(self, images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """``function(images)``, computed for the pictures alone that were not seen before."""
        keys = self._keys(images)
        needed = set(keys)
        new = {key: i for i, key in enumerate(keys) if key not in self._slots}
        if len(needed) > self.limit:
            raise ValueError(f"model.image.remember={self.limit} is less than a batch of {len(keys)} pictures")
        if new:
            rows = function(images[list(new.values())]).cpu()
            if self._kept is None:
                self._kept = rows.new_empty(self.limit, *rows.shape[1:])
            for key, row in zip(new, rows, strict=True):
                self._kept[self._place(key, needed)] = row
        assert self._kept is not None  # made with the first picture
        return self._kept[[self._slots[key] for key in keys]].to(images.device)

    def _place(self, key: int, needed: Collection[int]) -> int:
        """A free row for a picture; where there is none, that of the oldest which this batch does not need."""
        if len(self._slots) < self.limit:
            self._slots[key] = len(self._slots)
        else:
            self._slots[key] = self._slots.pop(next(old for old in self._slots if old not in needed))
        return self._slots[key]

    def _keys(self, images: Tensor) -> list[int]:
        """A 64-bit hash of every picture's bits: a sum with random odd weights, modulo 2^64."""
        words = images.detach().contiguous().flatten(1).view(torch.int32).long()
        if len(self._weights) != words.shape[1]:
            generator = torch.Generator().manual_seed(0)
            self._weights = torch.randint(-(2**62), 2**62, (words.shape[1],), generator=generator) * 2 + 1
        return (words * self._weights.to(words.device)).sum(1).tolist()
