"""Small shards and streams over them, and what two streams are compared by."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from cloc.contracts import Batch, Region, Sample
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.index import load_manifest
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.writer import write_shards
from cloc.data.stream import batches as stream_module
from cloc.data.stream.batches import Stream
from cloc.data.stream.region_sampling import Chooser
from cloc.data.stream.sources import ShardSource, ShardSources
from cloc.data.tokenizer import Tokenizer
from cloc.data.transforms import View

COUNT = 23  # samples in shards of 5: the last one is smaller, and a global batch of 8 crosses the seam of a pass
TOKENIZER = Tokenizer("open_clip", 16)
CHOOSER = Chooser(View(16, crop=0.5, min_visible=0.3), regions=3)


def picture(number: int) -> bytes:
    image = Image.new("RGB", (20 + number % 5, 14 + number % 7), (number * 9 % 256, 40, 200))
    image.paste((255, number * 5 % 256, 0), (3, 3, 12, 9))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def make_sample(number: int, broken: bool = False) -> Sample:
    things = ("a chick", "a cup of tea", "the thing", f"thing {number}")
    regions = tuple(
        Region((0.1 * i, 0.05 * i, 0.5 + 0.1 * i, 0.6 + 0.05 * i), (things[(number + i) % 4], things[2]))
        for i in range(number % 6)
    )
    data = picture(number)
    captions = (f"picture {number}", "a picture", f"many things, {number % 3} of them")
    return Sample(f"s{number:03d}", data[: len(data) // 2] if broken else data, "png", captions, regions)


def make_manifest(folder: Path, broken: tuple[int, ...] = (), count: int = COUNT, shards: int = 5) -> Manifest:
    per_shard = -(-count // shards)
    write_shards([make_sample(i, i in broken) for i in range(count)], folder, samples_per_shard=per_shard)
    return load_manifest(folder)


def make_stream(
    data: Manifest | ShardSources, rank: int = 0, world: int = 1, streams: int = 1, **options: Any
) -> Stream:
    if isinstance(data, Manifest):
        data = ShardSources((ShardSource("train", data, 1),), ShardCache())
    data = replace(data, streams=streams)
    return Stream(data, TOKENIZER, CHOOSER, options.pop("batch_size", 8), 3, rank, world, **options)


def digest(*tensors: Tensor) -> str:
    return hashlib.sha256(
        b"".join(tensor.numpy().tobytes() + str(tensor.shape).encode() for tensor in tensors)
    ).hexdigest()


def contents(batch: Batch) -> list[tuple[Any, ...]]:
    """All that a batch says of each of its samples, without what depends on how many are stacked (P, L)."""
    found = []
    for row, key in enumerate(batch.keys):
        own = digest(batch.images[row], batch.content[row], batch.boxes[row], batch.target_boxes[row])
        flags = digest(batch.region_valid[row], batch.phrase_is_shared[row], batch.source[row], batch.caption_id[row])
        phrases = [
            (tuple(filter(None, batch.phrases[phrase].tolist())), int(batch.phrase_id[phrase]))
            for phrase in batch.region_phrase[row][batch.region_valid[row]].tolist()
        ]
        found.append((key, own, flags, tuple(filter(None, batch.captions[row].tolist())), phrases))
    return found


def worker_batches(stream: Stream, workers: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Batch]:
    """What a DataLoader with so many workers yields: their batches in turn."""
    iterators = [iter(stream) for _ in range(max(1, workers))]
    number = 0
    while True:
        info = SimpleNamespace(num_workers=workers, id=number % workers) if workers else None
        monkeypatch.setattr(stream_module, "get_worker_info", lambda info=info: info)
        found = next(iterators[number % len(iterators)])
        yield found.batch if workers else found
        number += 1


def global_batches(parts: list[Iterator[Batch]], count: int) -> list[tuple[int, list[tuple[Any, ...]]]]:
    found = []
    for _ in range(count):
        batches = [next(part) for part in parts]
        assert len({batch.cursor for batch in batches}) == 1
        found.append((batches[0].cursor, [row for batch in batches for row in contents(batch)]))
    return found
