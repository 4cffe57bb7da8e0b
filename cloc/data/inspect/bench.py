"""``data bench``: how fast a folder of shards is read, and where the time goes.

Stands beside ``stream`` at the end of ``shards → Sample → Batch``. Runs the same functions as training: first stage by
stage in this process, then the whole stream as the training process sees it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from cloc.console import Bar, print_line, print_rows, progress, progress_console, working
from cloc.contracts import BadSample, Batch
from cloc.data.decode import decode_rgb
from cloc.data.sample import parse_sample
from cloc.data.shards.index import load_manifest
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.tars import ShardError
from cloc.data.stream.batches import Stream, make_loader
from cloc.data.stream.collate import collate
from cloc.data.stream.order import choices
from cloc.data.stream.region_sampling import Candidate, Chooser
from cloc.data.tokenizer import Tokenizer
from cloc.data.transforms import new_views

STAGES = ("read", "parse", "decode", "view", "choose", "tokenize", "collate")
_WARM = 8
_PREFETCHED = 6  # batches of each worker that may be ready before the clock starts: four in the queue, two in hand


@dataclass(frozen=True, slots=True)
class Bench:
    """What was measured.

    Attributes:
        samples: in each measurement.
        seconds: of each stage in all, on one core.
        stream: samples a second that arrive as whole batches.
        workers: reading processes of the stream; 0 reads in the process that trains.
        skipped: samples that could not be used, in the stages.
    """

    samples: int
    seconds: dict[str, float]
    stream: float
    workers: int
    skipped: int

    @property
    def per_core(self) -> float:
        """Samples a second of one reader."""
        return self.stream / max(1, self.workers)

    @property
    def share_of_decode(self) -> float:
        """Speed of one reader, as a share of decoding alone; 1 cannot be had."""
        return self.per_core * self.seconds["decode"] / self.samples


@dataclass(frozen=True, slots=True)
class StreamRate:
    """How a stream was read.

    Attributes:
        samples: that were read.
        seconds: that took.
        processor: seconds of them that this thread computed; without workers all but waiting for disk or store.
        last: batch.
    """

    samples: int
    seconds: float
    processor: float
    last: Batch


def bench(
    folder: Path | str,
    chooser: Chooser,
    *,
    samples: int = 2048,
    batch_size: int = 64,
    workers: int = 1,
    tokenizer: Tokenizer | None = None,
) -> Bench:
    """Measure.

    Args:
        folder: shards.
        chooser: view and choice.
        samples: how many, in the stages and in the stream each.
        batch_size: B.
        workers: reading processes of the stream.
        tokenizer: of the texts; open_clip's where None.

    Raises:
        FileNotFoundError: there is no such folder, or no shard in it.
        ShardError: no sample can be used.
    """
    manifest, tokenizer = load_manifest(folder), tokenizer or Tokenizer()
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a reading process
    try:
        _stages(manifest, chooser, tokenizer, min(samples, _WARM), batch_size)  # libraries load, the tokenizer too
        with progress(progress_console(), "stage by stage", samples) as bar:
            seconds, skipped = _stages(manifest, chooser, tokenizer, samples, batch_size, bar)
    finally:
        torch.set_num_threads(before)
    stream = Stream(manifest, tokenizer, chooser, batch_size, max_skip_share=1.0)
    rate = stream_rate(stream, workers, samples)
    return Bench(samples, seconds, rate.samples / rate.seconds, workers, skipped)


def print_bench(result: Bench, console: Console | None = None) -> None:
    """Print the table, on standard output where no console is given."""
    console = console or Console()
    total = sum(result.seconds.values())
    parts = {**result.seconds, "all": total}
    each = [
        (stage, f"{part / result.samples * 1e6:>7,.0f} µs a sample {part / total:>4.0%}")
        for stage, part in parts.items()
    ]
    print_rows(console, "one core, stage by stage", each)
    readers = f"{result.workers} worker{'' if result.workers == 1 else 's'}" if result.workers else "no worker"
    print_line(
        console,
        f"stream, {readers}: {result.stream:,.0f} samples/s, {result.per_core:,.0f} a core, "
        f"{result.share_of_decode:.0%} of decoding alone; {result.skipped:,} unusable samples",
    )


class _Clock:
    """Adds up the time that each stage takes."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def __call__(self, stage: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            self.seconds[stage] += time.perf_counter() - start


def _stages(
    manifest: Manifest, chooser: Chooser, tokenizer: Tokenizer, samples: int, batch_size: int, bar: Bar | None = None
) -> tuple[dict[str, float], int]:
    """Seconds of each stage, and how many samples were left out."""
    stream = Stream(manifest, tokenizer, chooser, batch_size)
    reader, clock = ShardReader(manifest), _Clock()
    done, skipped, position = 0, 0, 0
    while done < samples:
        candidates: list[Candidate] = []
        images = new_views(min(batch_size, samples - done), chooser.view.size)
        while len(candidates) < min(batch_size, samples - done):
            candidate = _candidate(stream, reader, position, clock, images[len(candidates)])
            position += 1
            if candidate is not None:
                candidates.append(candidate)
                continue
            skipped += 1
            if not done and not candidates and skipped >= manifest.samples:
                raise ShardError(f"{manifest.folder}: no sample can be used; run python -m cloc data check")
        items = clock("choose", chooser.choose, candidates)
        texts = [text for item in items for text in (item.caption, *item.phrases)]
        clock("tokenize", _encode, tokenizer, texts)
        clock("collate", collate, items, tokenizer, chooser.regions, position, Counter(), chooser.negatives, images)
        done += len(items)
        if bar is not None:
            bar.advance(len(items))
    reader.close()
    return clock.seconds, skipped


def _candidate(stream: Stream, reader: ShardReader, position: int, clock: _Clock, out: Tensor) -> Candidate | None:
    """Take one sample through the stages that are its own; None where it cannot be used."""
    (_, place), rng = stream.locate(position), choices(0, position)
    try:
        key, members = clock("read", lambda: reader.read_members(place, views=True))
        sample, _ = clock("parse", parse_sample, members, key, reader.manifest.folder.name)
        picture = clock("decode", decode_rgb, sample.image)
    except (BadSample, OSError):  # counted by the caller; check says which
        return None
    return stream.chooser.candidate(sample, clock("view", stream.chooser.view, picture, rng, out), rng, picture)


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    for text in texts:
        tokenizer.encode(text)


def stream_rate(stream: Stream, workers: int, samples: int, seconds: float = math.inf) -> StreamRate:
    """Measure a whole stream as the training process sees it.

    Args:
        stream: to be read from its cursor on.
        workers: reading processes; 0 reads in this one.
        samples: how many, at least.
        seconds: longest time, to within a batch; the first batches, which are not measured, come before it.
    """
    with working(progress_console(), "starting the workers" if workers else "reading"):
        batches = iter(make_loader(stream, workers))
        for _ in range(max(1, _PREFETCHED * workers)):
            last = next(batches)
    with progress(progress_console(), "the whole stream", samples) as bar:
        seen, start, busy = 0, time.perf_counter(), time.thread_time()
        while seen < samples and (not seen or time.perf_counter() - start < seconds):
            last = next(batches)
            seen += len(last.images)
            bar.move(min(seen, samples), samples)
        return StreamRate(seen, time.perf_counter() - start, time.thread_time() - busy, last)
