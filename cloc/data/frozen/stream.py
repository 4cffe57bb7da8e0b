"""Batches whose pictures frozen towers have seen already: annotations come from the token cache, no picture is read.

The order, every random choice and every skip are those of :class:`cloc.data.stream.batches.Stream`. A batch says where
its samples are; the training process puts their tokens there (``cloc.engine.frozen``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cloc.contracts import Batch, Sample
from cloc.data.frozen.blocks import Blocks, sample_of
from cloc.data.stream.batches import READER_MEMORY, Stream, peak_memory
from cloc.data.stream.collate import collate
from cloc.data.stream.lanes import rank_positions
from cloc.data.stream.order import REPLACEMENTS
from cloc.data.stream.region_sampling import Candidate
from cloc.data.transforms import ViewedPicture


class FrozenStream(Stream):
    """As :class:`Stream`, from blocks of the token cache.

    Args:
        arguments: of :class:`Stream`.
        captions: whether texts of captions are of use; else each is empty.

    Attributes:
        blocks: set before it is read.
    """

    blocks: Blocks | None = None

    def __init__(self, *arguments: Any, captions: bool = True, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.captions = captions

    def __iter__(self) -> Iterator[Batch]:
        for position in self.positions():
            yield self.batch_at(position)

    def batch_at(self, position: int, views: Tensor | None = None) -> Batch:
        """See :meth:`Stream.batch_at`; ``views`` is not written to."""
        stats: Counter[str] = Counter()
        places = rank_positions(position, self.batch_size, self.streams, self.rank, self.world_size)
        candidates, found = [], []
        for place in places:
            candidate, where = self._candidate(place, stats)
            candidates.append(candidate)
            found.append(where)
        items = self.chooser.choose(candidates)
        if not self.captions:
            for item in items:
                item.caption = ""
        none = torch.empty(len(items), 3, 0, 0, dtype=torch.uint8)
        end = position + self.batch_size
        batch = collate(items, self.tokenizer, self.chooser.regions, end, stats, self.chooser.negatives, none)
        batch.places = torch.tensor(found, dtype=torch.int64)
        if crops := self.chooser.crops:
            padded = [item.cut + [-1] * (crops - len(item.cut)) for item in items]
            batch.crop_places = torch.tensor(padded, dtype=torch.int64)
        batch.stats[READER_MEMORY] = peak_memory()
        return batch

    def read(self, position: int, replacement: int = 0) -> tuple[Sample, Counter[str]]:
        """See :meth:`Stream.read`; the sample has no picture."""
        source, place = self.locate(position, replacement)
        block, row = self._held.find(source, place)
        return sample_of(block.record(row))

    def look_ahead(self, source: Any, index: int, lane: int) -> None:
        """No shard is read."""

    def decoder_of(self, sample: Sample) -> Callable[[], Tensor]:
        """None is asked for."""
        return lambda: torch.empty(0)

    @property
    def _held(self) -> Blocks:
        assert self.blocks is not None, "set before it is read"
        return self.blocks

    def _candidate(self, position: int, stats: Counter[str]) -> tuple[Candidate, tuple[int, int, int]]:
        """The sample of a position, or the first of its substitutes that can be used, and where that is."""
        tries = iter(range(REPLACEMENTS))
        counted = _Counted(tries)
        parsed = self._read_usable(position, counted, stats)
        source, (shard, number) = self.locate(position, counted.last)
        block, row = self._held.find(source, (shard, number))
        seen = ViewedPicture(torch.empty(0), np.array(block.content[row].numpy()), False)
        stats.update({f"regions/{name}": count for name, count in parsed.counts.items()})
        if len(self.sources) > 1:
            stats[f"samples_from/{self.sources[source].name}"] += 1
        return Candidate(parsed.sample, seen, parsed.rng, source), (source, shard, number)


class _Counted(Iterator[int]):
    """An iterator that knows what it gave last."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self.numbers, self.last = numbers, 0

    def __next__(self) -> int:
        self.last = next(self.numbers)
        return self.last
