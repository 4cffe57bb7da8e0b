"""The global order: which sample stands at which position of the endless stream.

First step of reading (``order → decode → views → collate → stream``). The order is a pure function of (seed, pass):
neither ranks nor workers nor resuming can change it, they only decide who reads which part.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

REPLACEMENTS = 64  # how many substitutes are tried for one unreadable position before the run stops


class GlobalOrder:
    """Endless shuffled sequence over the samples of some shards.

    In every pass the shards are permuted, cut into groups of about ``group_bytes`` (a bounded memory of one integer a
    sample of a group), and the samples are permuted inside each group. Pass follows pass without a seam, and every
    sample appears exactly once a pass.

    Args:
        samples: number of samples of each shard.
        sizes: bytes of each shard.
        seed: changes the whole order.
        group_bytes: how many bytes of neighboring shards are mixed; larger mixes better, smaller reads more locally.
        shuffle: False gives the stored order, pass after pass (for evaluation and debugging).

    Raises:
        ValueError: there is no sample at all.
    """

    def __init__(
        self,
        samples: Sequence[int],
        sizes: Sequence[int],
        seed: int,
        group_bytes: int = 1 << 28,
        shuffle: bool = True,
    ) -> None:
        self.samples = np.asarray(samples, dtype=np.int64)
        self.sizes = np.asarray(sizes, dtype=np.int64)
        if self.samples.sum() == 0:
            raise ValueError(f"{len(self.samples)} shards hold no sample: there is nothing to put in order")
        self.seed, self.group_bytes, self.shuffle = seed, group_bytes, shuffle
        self.length = int(self.samples.sum())
        self._stride = 7919 if self.length % 7919 else 7907  # primes: substitutes never come back to the first sample
        self._passes: OrderedDict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def locate(self, position: int, replacement: int = 0) -> tuple[int, int]:
        """Return (shard, index in the shard) of a position of the endless sequence.

        ``replacement`` > 0 names the substitutes for a sample that could not be read: fixed functions of the position,
        so that every layout of ranks and workers takes the same one.
        """
        number, within = divmod(position, self.length)
        if replacement:
            within = (within + replacement * self._stride) % self.length
        shards, ends, group_first = self._pass(number)
        group = int(np.searchsorted(ends[group_first[1:] - 1], within, side="right"))
        first = int(group_first[group])
        start = int(ends[first - 1]) if first else 0
        in_group = int(self._permutation(number, group, first, int(group_first[group + 1]), start)[within - start])
        slot = int(np.searchsorted(ends, start + in_group, side="right"))
        shard = int(shards[slot])
        return shard, start + in_group - (int(ends[slot]) - int(self.samples[shard]))

    def _pass(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shard permutation, cumulative sample ends, and the first slot of each group (plus the end)."""
        if number not in self._passes:
            shards = np.arange(len(self.samples))
            if self.shuffle:
                shards = np.random.Generator(np.random.Philox(key=[self.seed, 2 * number])).permutation(shards)
            ends = np.cumsum(self.samples[shards])
            byte_group = (np.cumsum(self.sizes[shards]) - self.sizes[shards]) // self.group_bytes
            first = np.flatnonzero(np.diff(byte_group, prepend=-1))
            self._passes[number] = shards, ends, np.append(first, len(shards))
            while len(self._passes) > 2:
                self._passes.popitem(last=False)
        return self._passes[number]

    def _permutation(self, number: int, group: int, first: int, last: int, start: int) -> np.ndarray:
        key = (number, group)
        if key not in self._groups:
            shards, ends, _ = self._passes[number]
            size = int(ends[last - 1]) - start
            indices = np.arange(size)
            if self.shuffle:
                indices = np.random.Generator(
                    np.random.Philox(key=[self.seed, 2 * number + 1 + (group << 32)])
                ).permutation(indices)
            self._groups[key] = indices
            while len(self._groups) > 4:
                self._groups.popitem(last=False)
        return self._groups[key]
