"""The endless stream of batches that training reads (``order → decode → views → collate → stream``).

Global batch k is the slice [kB, (k+1)B) of the global order, for every number of ranks and workers. Resuming is one
integer, the cursor, which travels in each batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cloc.contracts import BadSample, Batch, Sample
from cloc.data.collate import Chooser, Item, collate
from cloc.data.order import REPLACEMENTS, GlobalOrder
from cloc.data.schema import parse_sample
from cloc.data.shards import Manifest, ShardReader, read_sample_members
from cloc.data.text import Tokenizer


class SkipLimitError(RuntimeError):
    """More samples were left out than the configuration allows."""


class Stream(IterableDataset):
    """Batches of one rank, for ever.

    Args:
        manifest: the shards.
        tokenizer: of the model's text tower.
        chooser: sample → item at a position.
        batch_size: **global** batch B.
        seed: of the order and of every random choice.
        rank: of this process.
        world_size: W.
        cursor: global position to start at; 0, or what a checkpoint stored.
        max_skip_share: stop when more than this share of the samples read so far by this worker was unusable.

    Raises:
        ValueError: the global batch does not divide over the ranks.
    """

    def __init__(
        self,
        manifest: Manifest,
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
        self.tokenizer, self.chooser, self.manifest = tokenizer, chooser, manifest
        self.reader = ShardReader(manifest)
        shards = manifest.shards
        self.order = GlobalOrder([shard.samples for shard in shards], [shard.bytes for shard in shards], seed)
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.cursor, self.max_skip_share = cursor, max_skip_share
        self._read, self._skipped = 0, Counter()

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        step, number = (worker.num_workers, worker.id) if worker else (1, 0)
        while True:
            yield self.batch_at(self.cursor + number * self.batch_size)
            number += step

    def batch_at(self, position: int) -> Batch:
        """Build this rank's part of the global batch that starts at a global position."""
        local = self.batch_size // self.world_size
        first = position + self.rank * local
        stats: Counter[str] = Counter()
        items = [self._item(place, stats) for place in range(first, first + local)]
        return collate(items, self.tokenizer, self.chooser.regions, position + self.batch_size, stats)

    def read(self, position: int, replacement: int = 0) -> tuple[Sample, Counter[str]]:
        """Read the sample that stands at a global position.

        Raises:
            BadSample: it cannot be used.
            OSError: its shard cannot be read.
        """
        shard, index = self.order.locate(position, replacement)
        key, members = read_sample_members(self.reader.read(shard, index))
        return parse_sample(members, key, self.manifest.folder.name)

    def _item(self, position: int, stats: Counter[str]) -> Item:
        for replacement in range(REPLACEMENTS):
            self._read += 1
            try:
                sample, counts = self.read(position, replacement)
                rng = np.random.Generator(np.random.Philox(key=[self.seed, position]))
                item = self.chooser(sample, rng)
            except (BadSample, OSError) as error:
                reason = error.reason if isinstance(error, BadSample) else "unreadable_shard"
                stats[f"skipped/{reason}"] += 1
                self._skipped[reason] += 1
                self._check_skips(str(error))
                continue
            stats.update({f"regions/{name}": count for name, count in counts.items()})
            return item
        raise SkipLimitError(f"position {position}: {REPLACEMENTS} samples in a row unusable ({dict(self._skipped)})")

    def _check_skips(self, last: str) -> None:
        skipped = sum(self._skipped.values())
        # A single bad sample among the first few hundred is no share worth stopping for.
        if skipped > max(3, self.max_skip_share * max(self._read, 500)):
            raise SkipLimitError(
                f"{self.manifest.folder}: {skipped} of {self._read} samples left out ({dict(self._skipped)}), more "
                f"than data.max_skip_share={self.max_skip_share}; last: {last}. Run `python -m cloc data check "
                f"{self.manifest.folder}`, or raise data.max_skip_share."
            )


def make_loader(stream: Stream, workers: int, **options: Any) -> DataLoader:
    """Wrap a stream in a DataLoader that passes whole batches through.

    Args:
        stream: builds whole batches itself.
        workers: reading processes of this rank; 0 reads in the training process.
        options: further arguments of the DataLoader (for instance ``pin_memory``).
    """
    if workers:
        options = {"prefetch_factor": 4, "multiprocessing_context": "forkserver", "persistent_workers": True} | options
    return DataLoader(stream, batch_size=None, num_workers=workers, **options)
