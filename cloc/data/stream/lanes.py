"""Deals the global order into C lanes, the fixed streams of ``data.streams``, so that a host reads few shards.

Stands between ``order`` and ``batches``. Position p belongs to lane p mod C and is that lane's sample number p div C.
A lane is a run of a source's samples that never changes, with windows, groups and passes of its own. So the order stays
a pure function of (seed, position), and whoever reads some lanes needs their shards alone. (A ``Stream`` is what one
rank reads.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from cloc.data.stream.mixture import Mixture
from cloc.data.stream.order import GROUP_BYTES, GlobalOrder, Part, dealing_order, rank_share

LEAST_GROUP_BYTES = 1 << 28
"""Bytes that a lane mixes at a time at least: all lanes of a process share what one order takes, down to this."""
NEAR = 8
"""Substitutes that are looked for in a position's own lane; a lane of a single shard may be lost as a whole."""


def rank_positions(start: int, batch_size: int, streams: int, rank: int, world: int) -> Sequence[int]:
    """Global positions of one rank's rows of the global batch ``[start, start + batch_size)``.

    The batch is arranged by (lane, position) and split in the order of the ranks: the ranks' rows together are the same
    sequence for every number of ranks, and neighboring ranks read neighboring lanes.
    """
    share = rank_share(batch_size, rank, world)
    if streams == 1:
        return range(start + share.start, start + share.stop)
    positions = np.arange(start, start + batch_size)
    rows: list[int] = positions[np.argsort(positions % streams, kind="stable")][share.start : share.stop].tolist()
    return rows


def lanes_read(batch_size: int, streams: int, world: int) -> np.ndarray:
    """Which lanes each rank (or host) reads in the global batches of a run, which begin at multiples of their size.

    Returns:
        ``[world, streams]`` booleans.
    """
    edges = np.array([rank_share(batch_size, rank, world).start for rank in range(world + 1)])[:, None]
    lanes, found = np.arange(streams), np.zeros((world, streams), dtype=bool)
    for start in range(0, streams, math.gcd(batch_size, streams)):  # lanes in which a batch begins
        ahead = (lanes - start) % streams  # of each lane's first position in the batch
        ends = np.cumsum(np.maximum(0, -(-(batch_size - ahead) // streams)))
        begins = np.concatenate([[0], ends[:-1]])
        found |= (begins < edges[1:]) & (ends > edges[:-1]) & (ends > begins)
    return found


class Deal:
    """Which source stands at a position, in which lane, and how many of its samples came before in that lane.

    Each lane goes through the mixture by itself, from another place on. The places are chosen so that a batch over all
    lanes holds each source's share to within a few samples.

    Args:
        weights: share of each source among the samples drawn, in any unit.
        streams: C, number of lanes.

    Raises:
        ValueError: see :class:`Mixture`.
    """

    def __init__(self, weights: Sequence[float], streams: int = 1) -> None:
        self.mixture, self.streams = Mixture(weights), streams
        gap = _gap(self.mixture.weights, streams) if len(weights) > 1 and streams > 1 else 0
        self._begin = [lane * gap for lane in range(streams)]
        self._before = [self.mixture.counts(begin) for begin in self._begin]

    def locate(self, position: int) -> tuple[int, int, int]:
        """Return (source, lane, number of the source's earlier samples in that lane) of a global position."""
        turn, lane = divmod(position, self.streams)
        source, count = self.mixture.locate(turn + self._begin[lane])
        return source, lane, count - self._before[lane][source]


def _gap(weights: Sequence[int], streams: int) -> int:
    """Places of the mixture between two neighboring lanes.

    A source with share f comes once in 1/f places; where the lanes are in that cycle decides how many of them give it
    at a time. In consecutive places all of them would give a rare source at almost the same time, and then none. So
    the gap is, of some that suit one source each, the one with which the phases of the lanes are spread most evenly,
    summed over the sources.
    """
    total = sum(weights)
    golden = 0.6180339887
    wanted = [round(part * total / (streams * one)) for one in weights for part in range(1, 9)]
    wanted += [round(golden * total / one) for one in weights]
    gaps = [1, 3, 5, 7, *sorted({gap for gap in wanted if gap > 7})]
    even = np.arange(streams) / streams
    cost = np.zeros(len(gaps))
    for one in weights:
        steps = np.array([gap * one % total / total for gap in gaps])
        phases = np.sort((steps[:, None] * np.arange(streams) + 1e-9) % 1.0, axis=1)  # no cycle ends by rounding
        cost += np.maximum(np.abs(phases - even), np.abs(phases - even - 1 / streams)).max(axis=1)
    return gaps[int(np.argmin(np.round(cost, 9)))]


class DealtOrder:
    """Order of one source, dealt into lanes of equally many samples (to within one).

    The shards, permuted once by (seed, source), are cut into C runs; a shard across a cut belongs to both lanes, each
    with its own samples. Lanes are built when they are first asked for. One lane is the order of :class:`GlobalOrder`.

    Args:
        samples: number of samples of each shard.
        sizes: bytes of each shard.
        seed: changes the whole order.
        source: number of the data source.
        streams: C, number of lanes.
        group_bytes: how many bytes a lane mixes at a time; None for 8 GiB that the lanes share.

    Raises:
        ValueError: there are fewer samples than lanes, or none.
    """

    def __init__(
        self,
        samples: Sequence[int] | np.ndarray,
        sizes: Sequence[int] | np.ndarray,
        seed: int,
        source: int = 0,
        streams: int = 1,
        group_bytes: int | None = None,
    ) -> None:
        self.samples, self.sizes = np.asarray(samples, dtype=np.int64), np.asarray(sizes, dtype=np.int64)
        self.length, self.streams, self.seed, self.source = int(self.samples.sum()), streams, seed, source
        self.group_bytes = group_bytes or (
            max(LEAST_GROUP_BYTES, GROUP_BYTES // streams) if streams > 1 else GROUP_BYTES
        )
        self._lanes: dict[int, GlobalOrder] = {}
        if streams == 1:
            self._lanes[0] = GlobalOrder(samples, sizes, seed, self.group_bytes, source)
            return
        if self.length < streams:
            raise ValueError(f"{self.length} samples cannot be dealt into {streams} streams")
        self._dealt = dealing_order(seed, source, len(self.samples))
        self._ends = np.cumsum(self.samples[self._dealt])

    def lane(self, lane: int) -> GlobalOrder:
        """The order within a lane."""
        if lane not in self._lanes:
            part, samples, sizes = self._cut(lane)
            self._lanes[lane] = GlobalOrder(samples, sizes, self.seed, self.group_bytes, self.source, part)
        return self._lanes[lane]

    def locate(self, lane: int, index: int, replacement: int = 0) -> tuple[int, int]:
        """Return (shard, index in the shard) of a lane's sample; ``replacement`` as in :meth:`GlobalOrder.locate`."""
        if replacement > NEAR:  # its lane may be a single shard, which is lost
            lane = (lane + replacement - NEAR) % self.streams
        return self.lane(lane).locate(index, replacement)

    def shards(self, lanes: Iterable[int]) -> np.ndarray:
        """Numbers of the shards that some lanes read from, ascending."""
        if self.streams == 1:
            return np.arange(len(self.samples))
        return np.unique(np.concatenate([self._cut(lane)[0].shards for lane in lanes]))

    def window_shards(self, lane: int) -> int:
        """Shards that a window of a lane mixes, rounded up."""
        order = self.lane(lane)
        return -(-len(order.samples) // order.windows)

    def window_bytes(self, lane: int) -> int:
        """Bytes of the whole shards that a lane reads from at a time: those of its largest window."""
        order = self.lane(lane)
        return order.window_bytes if order.part is None else order.largest_window(self.sizes[order.part.shards])

    def _cut(self, lane: int) -> tuple[Part, np.ndarray, np.ndarray]:
        """Part of a lane, samples of each of its runs, and their share of the shards' bytes."""
        begin, end = self.length * lane // self.streams, self.length * (lane + 1) // self.streams
        places = slice(int(np.searchsorted(self._ends, begin, "right")), int(np.searchsorted(self._ends, end)) + 1)
        shards = self._dealt[places]
        whole = self.samples[shards]
        starts = self._ends[places] - whole
        first = np.maximum(begin - starts, 0)
        count = np.minimum(end - starts, whole) - first
        held = count > 0
        shards, first, count, whole = shards[held], first[held], count[held], whole[held]
        return Part(lane, shards, first), count, self.sizes[shards] * count // whole
