"""Reads the endless stream of batches that training takes (``order → decode → views → collate → stream``).

Global batch k is the slice [kB, (k+1)B) of the global order, arranged by lanes, for every number of ranks and workers.
Resuming is one integer, the cursor, which travels in each batch.
"""

from __future__ import annotations

import os
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from cloc.contracts import BadSample, Batch, Sample
from cloc.data.decode import decoder
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.manifest import Manifest, Place
from cloc.data.shards.reader import ShardReader
from cloc.data.stream.collate import collate
from cloc.data.stream.lanes import Deal, DealtOrder, rank_positions
from cloc.data.stream.order import REPLACEMENTS, choices
from cloc.data.stream.prefetch import Prefetcher
from cloc.data.stream.region_sampling import Candidate, Chooser, Item
from cloc.data.stream.shared_buffers import SharedBatch, SharedBuffers
from cloc.data.stream.skip_limits import UNREADABLE_SHARD, SkipLimit
from cloc.data.stream.sources import ShardSource, ShardSources
from cloc.data.stream.workers import Readers, horizons, prefetched, start_server
from cloc.data.tokenizer import Tokenizer
from cloc.data.transforms import new_views

READER_MEMORY = "reader_memory_bytes"
"""Entry of ``Batch.stats`` that is no counter: the most memory that the reading process has had."""

TOGETHER, TOGETHER_DECODED = 64, 8
"""Samples whose encoded pictures a reader holds at a time; and decoded ones, where regions are cut out of them."""


class _ParsedSample(NamedTuple):
    """A sample that was read and parsed, and which substitutes are left should its picture be bad."""

    position: int
    number: int
    sample: Sample
    decode: Callable[[], Tensor]
    counts: Counter[str]
    rng: np.random.Generator
    tries: Iterator[int]


class _Reading:
    """One source as a worker reads it: its order, its files, and what was left out of it so far."""

    def __init__(self, source: ShardSource, order: DealtOrder, cache: ShardCache, max_skip_share: float) -> None:
        self.name, self.manifest, self.order = source.name, source.manifest, order
        self.reader = ShardReader(source.manifest, cache=cache)
        self.skips = SkipLimit(source, max_skip_share)
        self.ahead = Prefetcher(self.reader, order.streams)
        self.windows: dict[int, tuple[int, int]] = {}  # of each lane that is read

    def look_ahead(self, index: int, lane: int = 0) -> None:
        """Fetch the shards of a lane's next window while this one is being read."""
        if not self.manifest.remote:
            return
        order = self.order.lane(lane)
        window, shards = order.window_shards(index)
        if window == self.windows.get(lane):
            return
        self.windows[lane] = window
        start = os.getpid() % len(shards)  # the readers of a host begin with different shards
        self.ahead.want(shards[start:] + shards[:start], order.window_shards(order.next_window(index))[1])


class Stream(IterableDataset[Batch | SharedBatch]):
    """Batches of one rank, for ever.

    Args:
        data: what to read: one manifest, or sources that are mixed by their weights.
        tokenizer: of the model's text tower.
        chooser: sample → item at a position.
        batch_size: **global** batch B.
        seed: of the order and of every random choice.
        rank: of this process.
        world_size: W.
        cursor: global position to start at; 0, or what a checkpoint stored.
        max_skip_share: stop when more than this share of a source's samples, or of its shards, was unusable to this
            worker so far.

    Raises:
        ValueError: the global batch does not divide over the ranks.
    """

    def __init__(
        self,
        data: Manifest | ShardSources,
        tokenizer: Tokenizer,
        chooser: Chooser,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        cursor: int = 0,
        max_skip_share: float = 0.01,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"batch_size={batch_size} does not divide over {world_size} ranks; give a multiple of it")
        if isinstance(data, Manifest):
            data = ShardSources((ShardSource("train", data, 1),), ShardCache())
        self.tokenizer, self.chooser = tokenizer, chooser
        orders = data.orders(seed)
        self.sources = [
            _Reading(part, order, data.cache, max_skip_share) for part, order in zip(data.parts, orders, strict=True)
        ]
        self.streams = data.streams
        self.deal = Deal([part.weight for part in data.parts], data.streams)
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.cursor = cursor
        self.cache, self.damaged = data.cache, 0  # shards of the cache that a batch has counted
        self.horizons: Tensor | None = None  # until when each reading process has a reason to wait, for ``Readers``

    def interrupt(self) -> None:
        """The run is to end: who waits for a store in this process stops waiting. For signal handlers."""
        self.cache.access.traffic.interrupted = True

    def __iter__(self) -> Iterator[Batch | SharedBatch]:
        buffers = SharedBuffers() if get_worker_info() else None
        count, size = self.batch_size // self.world_size * (1 + self.chooser.crops), self.chooser.view.size
        for position in self.positions():
            if buffers is None:
                yield self.batch_at(position)
            else:
                buffer, memory = buffers.take(count * size * size * 3)
                yield buffers.share(self.batch_at(position, new_views(count, size, memory)), buffer)

    def positions(self) -> Iterator[int]:
        """Global positions of the batches that this reading process builds, for ever."""
        worker = get_worker_info()
        step, number = (worker.num_workers, worker.id) if worker else (1, 0)
        if worker and self.horizons is not None:
            self.cache.access.traffic.horizon = self.horizons[number : number + 1]
        while True:
            yield self.cursor + number * self.batch_size
            number += step

    def batch_at(self, position: int, views: Tensor | None = None) -> Batch:
        """Build this rank's part of the global batch that starts at a global position.

        Args:
            position: of the global batch's first sample.
            views: ``[B·(1+K),3,size,size]`` uint8 to write the pictures to, and behind them the K crops of each; a new
                one by default.
        """
        local = self.batch_size // self.world_size
        stats: Counter[str] = Counter()
        places = rank_positions(position, self.batch_size, self.streams, self.rank, self.world_size)
        self._load(places)
        items: list[Item] = []
        images, crops = self._parted(views)
        together = TOGETHER if crops is None else TOGETHER_DECODED
        for start in range(0, local, together):
            # First read, then decode, then choose: between two decodings the code of the rest would leave the
            # processor's cache each time.
            rows = slice(start, start + together)
            parsed = [self._read_usable(place, iter(range(REPLACEMENTS)), stats) for place in places[rows]]
            outs = zip(images[rows], [None] * local if crops is None else crops[rows], strict=False)
            seen = [self._view(one, *out, stats) for one, out in zip(parsed, outs, strict=True)]
            items += self.chooser.choose(seen)
        end = position + self.batch_size
        if damaged := self.cache.damaged - self.damaged:  # read once: shards are fetched ahead meanwhile
            stats["cached_shards_damaged"] += damaged
            self.damaged += damaged
        stats.update(self.cache.access.traffic.take_counts())
        batch = collate(items, self.tokenizer, self.chooser.regions, end, stats, self.chooser.negatives, images, crops)
        batch.stats[READER_MEMORY] = peak_memory()
        return batch

    def _parted(self, views: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Room for the pictures ``[B,3,size,size]``, and ``[B,K,3,size,size]`` for their crops, where there are any."""
        local, crops = self.batch_size // self.world_size, self.chooser.crops
        views = new_views(local * (1 + crops), self.chooser.view.size) if views is None else views
        if not crops:
            return views, None
        return views[:local], views[local:].unflatten(0, (local, crops))

    def read(self, position: int, replacement: int = 0) -> tuple[Sample, Counter[str]]:
        """Read the sample that stands at a global position, or one of its substitutes.

        Returns:
            The sample, its picture a view into the bytes that were read; and what was dropped or mended, by reason.

        Raises:
            BadSample: it cannot be used.
            OSError: its shard cannot be read.
        """
        number, place = self.locate(position, replacement)
        return self.sources[number].reader.read_sample(place, views=True)

    def look_ahead(self, source: _Reading, index: int, lane: int) -> None:
        """Fetch what this process will read next."""
        source.look_ahead(index, lane)

    def decoder_of(self, sample: Sample) -> Callable[[], Tensor]:
        """What decodes a sample's picture.

        Raises:
            BadSample: nothing can.
        """
        return decoder(sample.image)

    def locate(self, position: int, replacement: int = 0) -> tuple[int, Place]:
        """Return the source and place of the sample that stands at a global position, or of one of its substitutes."""
        number, lane, index = self.deal.locate(position)
        return number, self.sources[number].order.locate(lane, index, replacement)

    def _load(self, positions: Sequence[int]) -> None:
        """Ask for the remote samples of a batch all at once."""
        wanted: dict[int, list[Place]] = {}
        for position in positions if any(source.manifest.remote for source in self.sources) else ():
            number, place = self.locate(position)
            wanted.setdefault(number, []).append(place)
        for number, places in wanted.items():
            self.sources[number].reader.load(places)

    def _read_usable(self, position: int, tries: Iterator[int], stats: Counter[str]) -> _ParsedSample:
        """Read the sample of a position, or the next of its substitutes that can be parsed."""
        number, lane, index = self.deal.locate(position)
        source = self.sources[number]
        self.look_ahead(source, index, lane)
        for replacement in tries:
            source.skips.read += 1
            try:
                sample, counts = self.read(position, replacement)
                decode = self.decoder_of(sample)
            except (BadSample, OSError) as error:
                self._leave_out(source, error, stats)
                shard = source.order.locate(lane, index, replacement)[0]
                if not isinstance(error, BadSample) and source.reader.given_up(shard):
                    source.skips.lose_shard(shard, error)
                continue
            finally:
                for shard in source.reader.take_returned():
                    source.skips.take_back(shard)
            return _ParsedSample(position, number, sample, decode, counts, choices(self.seed, position), tries)
        raise source.skips.no_substitute(position, REPLACEMENTS)

    def _view(self, parsed: _ParsedSample, out: Tensor, crops: Tensor | None, stats: Counter[str]) -> Candidate:
        """Decode and transform the picture, or that of the next substitute, into its row of the batch."""
        source = self.sources[parsed.number]
        while True:
            try:
                candidate = self.chooser(parsed.sample, parsed.rng, out, parsed.decode, crops)
            except BadSample as error:
                self._leave_out(source, error, stats)
                parsed = self._read_usable(parsed.position, parsed.tries, stats)
                continue
            candidate.source = parsed.number
            if len(self.sources) > 1:
                stats[f"samples_from/{source.name}"] += 1
            stats.update({f"regions/{name}": count for name, count in parsed.counts.items()})
            return candidate

    def _leave_out(self, source: _Reading, error: Exception, stats: Counter[str]) -> None:
        reason = error.reason if isinstance(error, BadSample) else UNREADABLE_SHARD
        stats[f"skipped/{reason}"] += 1
        if len(self.sources) > 1:
            stats[f"skipped_from/{source.name}"] += 1
        source.skips.leave_out(reason, error)


def peak_memory() -> int:
    """The most memory that this program has had, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage of Linux counts what the process was before it became this program
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        if line is not None:
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def make_loader(stream: Stream, workers: int, timeout: float = 0, **options: Any) -> Readers:
    """Wrap a stream in a loader that passes whole batches through.

    Args:
        stream: builds whole batches itself.
        workers: reading processes of this rank; 0 reads in the training process.
        timeout: seconds that a batch may take; 0 waits for ever.
        options: further arguments of the DataLoader (for instance ``pin_memory``).
    """
    if workers:
        context = {"multiprocessing_context": "forkserver", "persistent_workers": True}
        options = {"prefetch_factor": prefetched(workers)} | context | options
        stream.horizons = horizons(workers)
        if options["multiprocessing_context"] == "forkserver":
            start_server()
    return Readers(stream, workers, timeout, **options)
