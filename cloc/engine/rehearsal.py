"""Whether reading will keep up with the step: both are measured, or calculated, for a dry run (beside ``start``).

Nothing is written, and a remote store is asked for a few dozen samples at most. The reading rate is that of one reader,
taken by ``data bench``'s own measurement on the data of the run.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cloc.config import TrainConfig
from cloc.config.domains import AUTO
from cloc.contracts import Batch
from cloc.data.inspect.bench import StreamRate, stream_rate
from cloc.data.shards.cache import ShardCache
from cloc.data.stream.batches import Stream
from cloc.data.stream.sources import ShardSources
from cloc.engine.accumulation import split
from cloc.engine.machine import precision_of
from cloc.engine.process_group import cluster
from cloc.engine.readers import MOST, host_share, readers
from cloc.engine.start import accelerator_of
from cloc.engine.task import Task
from cloc.models.protocols import view

GPU_PEAK, UTILIZATION = 989e12, 0.4  # H100 SXM: dense bfloat16 FLOP/s; share that is reached
CORE = 25e9  # FLOP/s of a core in float32, to foresee how long a step would take here; never told
READ_SECONDS, READ_SAMPLES, REMOTE_SAMPLES = 3.0, 256, 32
STEP_SECONDS, STEP_BATCH, REPEATS = 3.0, 64, 3
SLOWEST = 4.0  # times slower than foreseen a step may be before it is not repeated


@dataclass(frozen=True, slots=True)
class StepRate:
    """What one training process computes.

    Attributes:
        rate: samples a second; 0 where it is not known.
        how: it is known.
        elsewhere: it is that of a GPU, of which there is none here.
    """

    rate: float
    how: str
    elsewhere: bool = False


def rates(task: Task, config: TrainConfig, data: ShardSources, stream: Stream, world: int) -> dict[str, str]:
    """Lines for the plan: what readers give, what a step takes, and which of the two waits.

    Args:
        task: rehearsed; its model comes back as it was, without gradients.
        config: its own.
        data: of the run.
        stream: of this process.
        world: number of processes.
    """
    local = max(1, config.batch_size // world)
    try:
        read, batch = reading(config, data, stream, local)
        step = step_rate(task, config, batch)
    except (RuntimeError, ValueError, OSError) as error:
        return {"keeps up": f"not measured here: {' '.join(str(error).split())[:300]}"}
    remote = any(part.manifest.remote for part in data.parts)
    one = read.samples / max(1e-9, read.processor if remote else read.seconds)
    how = "decoding and view alone, without waiting for the store" if remote else "measured on this data"
    workers = readers(config)
    if step.elsewhere and config.data.workers == AUTO:
        total, said = f"{one:,.0f} samples/s a reader", elsewhere(one, step.rate)
    elif workers:
        total = f"{workers} × {one:,.0f} = {workers * one:,.0f} samples/s, as if readers scaled linearly over the cores"
        said = verdict(one, workers, step.rate)
    else:
        total, said = f"{one:,.0f} samples/s in the training process", verdict(one, workers, step.rate)
    known = f"{step.rate:,.0f} samples/s a process ({step.how})" if step.rate else step.how
    return {"reading": f"{total} ({how})", "step": known, "keeps up": said}


def verdict(one: float, workers: int, step: float) -> str:
    """Whether a process's readers give what its step takes, in a line.

    Args:
        one: samples a second of one reader.
        workers: readers of a process; 0 reads between two steps.
        step: samples a second of the step; 0 where that is not known.
    """
    if not step:
        return f"not known: a process that takes more than {max(1, workers) * one:,.0f} samples/s waits for data"
    if not workers:
        share = step / (one + step)
        return f"reading takes {share:.0%} of the time, the step waits meanwhile; data.workers=1 reads beside it"
    if workers * one >= step:
        return f"yes, the readers give {workers * one / step:.1f} times the samples that the step takes"
    needed, cores = math.ceil(step / one), host_share().cores
    room = "" if needed < cores else f" on more cores than the {cores:.0f} of a process here, or smaller pictures"
    starved = f"warning: reading starves the step: {workers * one:,.0f} of {step:,.0f} samples/s"
    return f"{starved}; give data.workers={needed}{room}"


def elsewhere(one: float, step: float) -> str:
    """What a GPU needs that is not here, where ``data.workers=auto`` will see its cores; as for :func:`verdict`."""
    needed = math.ceil(step / one)
    given = "data.workers=auto takes them" if needed <= MOST else f"data.workers=auto takes {MOST}: give {needed}"
    return f"such a GPU needs {needed} of these readers, so {needed + 1} cores of its own; {given}"


def reading(config: TrainConfig, data: ShardSources, stream: Stream, local: int) -> tuple[StreamRate, Batch]:
    """Measure one reader for some seconds, in this process; and a batch of what it read."""
    remote = any(part.manifest.remote for part in data.parts)
    if remote:  # by single requests: a dry run fills no cache with whole shards
        data = replace(data, cache=ShardCache(data.cache.folder, 0, data.cache.access))
    size, seed = min(local, 16 if remote else 32), config.seed
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a reading process
    try:
        small = Stream(data, stream.tokenizer, stream.chooser, size, seed=seed, max_skip_share=1.0)
        found = stream_rate(small, 0, REMOTE_SAMPLES if remote else READ_SAMPLES, READ_SECONDS)
        parts = config.trainer.accumulate
        count = max(parts, min(local, size if remote else STEP_BATCH) // parts * parts)
        again = Stream(data, stream.tokenizer, stream.chooser, count, seed=seed, max_skip_share=1.0)
        return found, found.last if count == size else again.batch_at(0)
    finally:
        torch.set_num_threads(before)


def step_rate(task: Task, config: TrainConfig, batch: Batch) -> StepRate:
    """Measure forward and backward of a few micro-batches, or calculate them where that would take too long."""
    options = config.trainer
    kind, passes = accelerator_of(options.accelerator), 4 if options.checkpoint_activations else 3
    passes += options.accumulate > 1
    if kind == "tpu":
        return StepRate(0, "not measured on a TPU")
    cost = forward_flops(task, config, batch) * passes / len(batch.images)
    if kind == "cpu":
        threads = options.threads or torch.get_num_threads()
        fits = int(STEP_SECONDS * CORE * threads / cost / 2)
        if fits < 2 and options.accelerator != "cpu":
            assumed = f"{UTILIZATION:.0%} of an H100's {GPU_PEAK / 1e12:,.0f} TFLOP/s"
            how = f"calculated for a GPU, none is here: about {cost / 1e9:,.0f} GFLOP a sample at {assumed}"
            return StepRate(GPU_PEAK * UTILIZATION / cost, how, True)
        first = _first(batch, fits, options.accumulate)
        if first is None:
            return StepRate(0, f"not measured here: about {cost / 1e9:,.0f} GFLOP a sample take too long on CPUs")
        batch = first
    seconds = _timed(task, config, batch, kind)
    where = "the CPU" if kind == "cpu" else "this GPU"
    told = f"measured on {len(batch.images)} samples on {where}; a batch as if it were linear"
    return StepRate(len(batch.images) / seconds, told)


def forward_flops(task: Task, config: TrainConfig, batch: Batch) -> float:
    """Operations of a forward pass of both towers over a batch, counted on a device that computes nothing.

    Where a tower's code cannot run there: two for each weight and place of a sequence.
    """
    reads_phrases = config.model.prompter is not None or batch.has_crops
    texts = [batch.captions] + [batch.phrases] * reads_phrases
    count = len(batch.images) + int(batch.crop_valid.sum())
    try:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model: Any = type(task).blank_model(task.resolved)
            side = view(model.image).size
            model.eval().image(torch.zeros(count, 3, side, side))
            for tokens in texts:
                model.text(torch.zeros(tokens.shape, dtype=torch.int64))
        return max(1.0, float(counter.get_total_flops()))
    except (RuntimeError, NotImplementedError, ValueError):
        weights = sum(parameter.numel() for parameter in task.model.parameters())
        places = count * math.prod(getattr(task.model, "grid", (1, 1)))
        return 2.0 * weights * (places + sum(tokens.numel() for tokens in texts))


def _first(batch: Batch, most: int, parts: int) -> Batch | None:
    """The first pictures of a batch with what belongs to them, as many as may be; None where that are too few."""
    size = len(batch.images)
    fitting = (count for count in range(min(most, size), 0, -1) if size % count == 0 and count % parts == 0)
    count = next(fitting, None)
    return None if count is None else split(batch, size // count)[0][0]


def _timed(task: Task, config: TrainConfig, batch: Batch, kind: str) -> float:
    """Seconds of forward and backward: the median of some, after one to warm up."""
    found = cluster()
    device = torch.device(f"cuda:{found.local_rank()}" if found and kind == "cuda" else kind)
    precision = precision_of(config.trainer.precision, config.trainer.accelerator)
    dtype = torch.float16 if precision.startswith("16") else torch.bfloat16
    threads = torch.get_num_threads()
    if kind == "cpu" and config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    before, times = task.device, []
    try:
        task.to(device).train()
        here = batch.to(device)
        for _ in range(1 + REPEATS):
            start = time.perf_counter()
            with torch.compiler.set_stance("force_eager"), torch.autocast(kind, dtype, enabled="32" not in precision):
                total = task.step(here).total
            total.backward()
            task.zero_grad(set_to_none=True)
            total.item()  # waits for the device
            times.append(time.perf_counter() - start)
            if sum(times) > STEP_SECONDS * SLOWEST:
                break
    finally:
        task.to(before)
        torch.set_num_threads(threads)
    times = sorted(times[1:] or times)
    return times[len(times) // 2]
