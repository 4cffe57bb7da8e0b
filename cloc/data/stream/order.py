"""Decides which sample stands at which position of the endless stream: the global order.

First step of reading (``order → decode → views → collate → stream``). The order is a pure function of (seed, position):
neither ranks nor workers nor resuming can change it, they only decide who reads which part.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

Made = TypeVar("Made")

REPLACEMENTS = 64
"""How many substitutes are tried for one unreadable position before the run stops."""
WINDOW_SHARDS = 32
"""Shards that a window mixes at least, where there are so many."""
GROUP_PIECES = 256
"""Pieces of shards whose samples are permuted together."""
GROUP_BYTES = 1 << 33
"""About the bytes of these pieces."""

# What random numbers are for: streams of different purposes never meet.
_SHARDS, _PIECES, _SAMPLES, _CHOICES = range(4)


def rank_share(count: int, rank: int, world: int) -> range:
    """Places of one rank when ``count`` samples are split: each on exactly one rank, shares equal to within one."""
    return range(count * rank // world, count * (rank + 1) // world)


def choices(seed: int, position: int) -> np.random.Generator:
    """Random numbers for whatever is drawn at a global position: crop, regions, phrases, caption."""
    return _generator(seed, 0, _CHOICES, position)


def _generator(seed: int, source: int, purpose: int, first: int, second: int = 0) -> np.random.Generator:
    """A stream of its own for every argument: Philox counts in the first word, the others are its name."""
    return np.random.Generator(np.random.Philox(key=[seed, source], counter=[0, first, second, purpose]))


class _Recent(Generic[Made]):
    """The last few results of a function."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept: OrderedDict[Hashable, Made] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Made]) -> Made:
        if key in self.kept:
            self.kept.move_to_end(key)
        else:
            self.kept[key] = make()
            if len(self.kept) > self.size:
                self.kept.popitem(last=False)
        return self.kept[key]


@dataclass(frozen=True, slots=True)
class _Pass:
    """Shards in the order of a pass, first slot of each window (plus the end), samples up to each window's end."""

    shards: np.ndarray
    edges: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True, slots=True)
class _Window:
    """Pieces (shard, first sample, number of samples), first piece of each group, samples up to each group's end."""

    shard: np.ndarray
    first: np.ndarray
    count: np.ndarray
    edges: np.ndarray
    ends: np.ndarray


class GlobalOrder:
    """Endless shuffled sequence over the samples of some shards.

    In every pass the shards are permuted and cut into windows of at least 32 shards and about ``group_bytes`` or more.
    Inside a window, shards are cut into pieces of at most ``group_bytes / 256``, the pieces are permuted and cut into
    groups of about ``group_bytes``, and the samples of a group are permuted. So a group mixes 256 pieces or more
    however large the shards, a shard is read within one window, and memory is two integers a sample of a few groups.
    Pass follows pass without a seam, and every sample appears exactly once a pass.

    Args:
        samples: number of samples of each shard.
        sizes: bytes of each shard.
        seed: changes the whole order.
        group_bytes: how many bytes are mixed at a time; larger mixes better, smaller reads more locally.
        source: number of the data source; each has an order of its own.

    Raises:
        ValueError: there is no sample at all.
    """

    def __init__(
        self,
        samples: Sequence[int] | np.ndarray,
        sizes: Sequence[int] | np.ndarray,
        seed: int,
        group_bytes: int = GROUP_BYTES,
        source: int = 0,
    ) -> None:
        self.samples = np.asarray(samples, dtype=np.int64)
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.length = int(self.samples.sum())
        if self.length == 0:
            raise ValueError(f"{len(self.samples)} shards hold no sample: there is nothing to put in order")
        self.seed, self.group_bytes, self.source = seed, group_bytes, source
        self.windows = max(1, min(len(self.samples) // WINDOW_SHARDS, int(self.sizes.sum()) // group_bytes))
        self._stride = 7919 if self.length % 7919 else 7907  # primes: substitutes never come back to the first sample
        self._passes: _Recent[_Pass] = _Recent(2)
        self._windows: _Recent[_Window] = _Recent(3)
        self._groups: _Recent[tuple[np.ndarray, np.ndarray]] = _Recent(4)

    def locate(self, position: int, replacement: int = 0) -> tuple[int, int]:
        """Return (shard, index in the shard) of a position of the endless sequence.

        ``replacement`` > 0 names the substitutes for a sample that could not be read: fixed functions of the position,
        so that every layout of ranks and workers takes the same one.
        """
        number, within = divmod(position, self.length)
        if replacement:
            within = (within + replacement * self._stride) % self.length
        place, within = _bucket(self._pass(number).ends, within)
        window = self._window(number, place)
        group, within = _bucket(window.ends, within)
        shards, indices = self._groups.get((number, place, group), lambda: self._group(number, place, group))
        return int(shards[within]), int(indices[within])

    def window_shards(self, position: int) -> tuple[tuple[int, int], list[int]]:
        """Return the window (pass and number) that a position lies in, and its shards."""
        number, within = divmod(position, self.length)
        found = self._pass(number)
        place, _ = _bucket(found.ends, within)
        return (number, place), found.shards[found.edges[place] : found.edges[place + 1]].tolist()

    def next_window(self, position: int) -> int:
        """Return the first position behind the window that a position lies in."""
        number, within = divmod(position, self.length)
        ends = self._pass(number).ends
        return number * self.length + int(ends[_bucket(ends, within)[0]])

    @property
    def window_bytes(self) -> int:
        """Bytes of the shards that are read at a time: those of the largest window of the first pass."""
        found = self._pass(0)
        return int(np.add.reduceat(self.sizes[found.shards], found.edges[:-1]).max())

    def _pass(self, number: int) -> _Pass:
        def make() -> _Pass:
            shards = _generator(self.seed, self.source, _SHARDS, number).permutation(len(self.samples))
            edges = np.arange(self.windows + 1) * len(shards) // self.windows
            return _Pass(shards, edges, np.cumsum(self.samples[shards])[edges[1:] - 1])

        return self._passes.get(number, make)

    def _window(self, number: int, place: int) -> _Window:
        def make() -> _Window:
            whole = self._pass(number)
            shards = whole.shards[whole.edges[place] : whole.edges[place + 1]]
            shards = shards[self.samples[shards] > 0]
            size = self.samples[shards]
            cuts = np.clip(-(-self.sizes[shards] * GROUP_PIECES // self.group_bytes), 1, size)
            shard, total = np.repeat(shards, cuts), np.repeat(size, cuts)
            number_in_shard = np.arange(len(shard)) - np.repeat(np.cumsum(cuts) - cuts, cuts)
            first = number_in_shard * total // np.repeat(cuts, cuts)
            count = (number_in_shard + 1) * total // np.repeat(cuts, cuts) - first
            order = _generator(self.seed, self.source, _PIECES, number, place).permutation(len(shard))
            shard, first, count = shard[order], first[order], count[order]
            groups = min(max(1, round(int(self.sizes[shards].sum()) / self.group_bytes)), len(shard))
            edges = np.arange(groups + 1) * len(shard) // groups
            return _Window(shard, first, count, edges, np.cumsum(count)[edges[1:] - 1])

        return self._windows.get((number, place), make)

    def _group(self, number: int, place: int, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Shard and index of each sample of a group, in its order."""
        window = self._window(number, place)
        pieces = slice(window.edges[group], window.edges[group + 1])
        count = window.count[pieces]
        shards = np.repeat(window.shard[pieces].astype(np.int32), count)
        starts = window.first[pieces] - (np.cumsum(count) - count)
        indices = (np.arange(len(shards)) + np.repeat(starts, count)).astype(np.int32)
        order = _generator(self.seed, self.source, _SAMPLES, number, (place << 32) + group).permutation(len(shards))
        return shards[order], indices[order]


def _bucket(ends: np.ndarray, value: int) -> tuple[int, int]:
    """Bucket that a value falls into, and its place in the bucket."""
    bucket = int(np.searchsorted(ends, value, side="right"))
    return bucket, value - (int(ends[bucket - 1]) if bucket else 0)
