"""What a model costs beside what it is worth: time of a picture, boxes and phrases a second, parameters.

Stands beside ``suite.py``, on the same pictures; ``compare.py`` calls it when all metrics are there. Times are those of
a machine: they are the one part of ``metrics.json`` that two evaluations of the same models do not share.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cloc.contracts import BadSample
from cloc.data.decode import decode_rgb
from cloc.data.inputs import as_pictures
from cloc.encoder import AS_PICTURES, Encoder
from cloc.evaluation.report.metrics_file import Cost
from cloc.evaluation.sets.eval_set import EvalSet

REPEATS = 5  # timed passes of each question, at most
BUDGET = 0.3  # seconds after which no further pass begins: a demo of two models is timed within five seconds
MOST_BOXES, MOST_CROPS = 64, 16  # of all pictures together: each crop is a forward pass of its own


@dataclass(frozen=True, slots=True)
class Probe:
    """What every model is timed on: decoded pictures ``[3,H,W]``, their boxes and distinct phrases; and whose."""

    name: str
    pictures: list[Tensor]
    boxes: list[Tensor]
    phrases: list[list[str]]


def take_probe(data: EvalSet, count: int) -> Probe | None:
    """The first pictures of a set, those with boxes where it has any; None for a set without pictures.

    Args:
        data: the set.
        count: of pictures.
    """
    boxed = [index for index, sample in enumerate(data.samples) if sample.regions]
    chosen = (boxed or list(range(len(data.samples))))[:count]
    if not chosen:
        bare = [picture for picture, _ in zip(_bare_pictures(data), range(count), strict=False)]
        return Probe(data.name, bare, [torch.zeros(0, 4)] * len(bare), [[]] * len(bare)) if bare else None
    every = [torch.tensor([one.box for one in data.samples[index].regions]).reshape(-1, 4) for index in chosen]
    boxes, phrases = first_boxes(every, MOST_BOXES), data.phrases
    return Probe(data.name, data.pictures(chosen), boxes, [phrases[index] for index in chosen])


def better_probe(known: Probe | None, data: EvalSet, count: int) -> Probe | None:
    """The probe of the first set with boxes, or else of the first one with pictures."""
    if known is not None and any(map(len, known.boxes)):
        return known
    found = take_probe(data, count) if count else None
    return known if found is None or (known is not None and not any(map(len, found.boxes))) else found


def first_boxes(boxes: Sequence[Tensor], count: int) -> list[Tensor]:
    """So many boxes ``[K_i,4]`` of all pictures together, the first ones."""
    found = []
    for own in boxes:
        found.append(own[:count])
        count -= len(found[-1])
    return found


def _bare_pictures(data: EvalSet) -> Iterator[Tensor]:
    """Pictures to classify and of relations; what cannot be decoded is counted where it is measured."""
    for index in range(len(data.images.labels) if data.images is not None else 0):
        with suppress(OSError, ValueError, BadSample):
            assert data.images is not None, "it has labels"
            yield as_pictures(data.images.read(index))[0]
    for item in data.relations:
        yield decode_rgb(item.read())


def measure_cost(encoder: Encoder, probe: Probe | None, sources: Sequence[str] = ()) -> Cost:
    """Time a model, warm: each question is asked once before the clock runs, then up to five times; the median counts.

    Pictures are decoded already. A picture's time is that of its view, its transfer and the image tower. Boxes and
    phrases are asked of pictures that the tower has seen, so only what is read as a picture contains passes of it; a
    phrase's embedding is there too.

    Args:
        encoder: the model.
        probe: of :func:`take_probe`; None times nothing and counts parameters alone.
        sources: of boxes, timed beside :attr:`~cloc.encoder.Encoder.sources` where the model has them.
    """
    parts: dict[str, Any] = {"image": encoder.model.image, "text": encoder.model.text}
    parts |= {"prompter": encoder.model.prompter, "grounding": encoder.model.grounding}
    found: Cost = {
        "device": device_name(encoder.device),
        "precision": str(encoder.dtype).removeprefix("torch."),
        "parameters": _count(encoder.model),
        "parameters_of": {name: _count(part) for name, part in parts.items() if part is not None},
    }
    if encoder.device.type == "cpu":
        found["threads"] = torch.get_num_threads()
    return found if probe is None else {**found, **_timed(encoder, probe, sources)}


def _count(part: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


@torch.no_grad()
def _timed(encoder: Encoder, probe: Probe, more: Sequence[str]) -> Cost:
    boxes, phrases = sum(map(len, probe.boxes)), sum(map(len, probe.phrases))
    seconds, repeats = _median(lambda: encoder.see(probe.pictures), encoder.device)
    found: Cost = {
        "data": probe.name,
        "pictures": len(probe.pictures),
        "repeats": repeats,
        "picture_ms": _rounded(1000 * seconds / len(probe.pictures)),
    }
    seen = encoder.see(probe.pictures)
    if boxes:
        found |= {"boxes": boxes, "boxes_per_second": {}}
        asked = (source for source in encoder.every_source if source in encoder.sources or source in more)
        for source in asked:
            own = first_boxes(probe.boxes, MOST_CROPS) if source in AS_PICTURES else probe.boxes
            seconds, _ = _median(partial(encoder.regions, seen, own, source), encoder.device)
            found["boxes_per_second"][source] = _rounded(sum(map(len, own)) / seconds)
    if phrases and encoder.can_ground:
        flat = [text for own in probe.phrases for text in own]
        texts = encoder.encode_text(flat).split([len(own) for own in probe.phrases])
        seconds, _ = _median(lambda: encoder.grounded(seen, texts), encoder.device)
        found |= {"phrases": phrases, "phrases_per_second": _rounded(phrases / seconds)}
    return found


def _median(act: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Seconds of one call, and how many were timed."""
    _clock(act, device)
    seconds = [_clock(act, device)]
    while len(seconds) < REPEATS and sum(seconds) < BUDGET:
        seconds.append(_clock(act, device))
    return statistics.median(seconds), len(seconds)


def _clock(act: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    act()
    _wait(device)
    return max(time.perf_counter() - start, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rounded(value: float) -> float:
    """Four digits: more would tell of the clock alone."""
    return float(f"{value:.4g}")


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine())
