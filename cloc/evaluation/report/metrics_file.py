"""What ``metrics.json`` holds: written by ``compare.py``, read by tables and report, also from older evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict


class Uncertainty(TypedDict, total=False):
    """What resampling the pictures adds to a set; nothing without it.

    Attributes:
        intervals: model → metric → [low, high] of 95 %.
        differences: other model → metric → [first model less the other, low, high].
        best_sources: model → measure of boxes → the source that serves it best.
    """

    intervals: Mapping[str, Mapping[str, Sequence[float]]]
    differences: Mapping[str, Mapping[str, Sequence[float]]]
    best_sources: Mapping[str, Mapping[str, str]]


class Spread(TypedDict):
    """A metric over several runs: its mean, the standard error of that, and the single values."""

    mean: float
    error: float
    values: list[float]


class Recipe(TypedDict):
    """Runs that differ in their seed alone: their ``models`` and ``seeds``, and metric → spread."""

    models: list[str]
    seeds: list[int]
    metrics: dict[str, Spread]


class Seeds(TypedDict):
    """Recipes of several runs on a set.

    Attributes:
        groups: recipe → its runs and their metrics.
        differences: other recipe → metric → [that of the first model less the other, low, high] of 95 %.
    """

    groups: dict[str, Recipe]
    differences: dict[str, dict[str, list[float]]]


class Cost(TypedDict, total=False):
    """What a model costs on one machine; times are medians, warm.

    Attributes:
        device: the GPU or processor; ``threads`` of the latter.
        precision: of the weights.
        parameters: of the model; ``parameters_of`` its parts.
        data: the set that it was timed on; ``pictures``, ``boxes``, ``phrases`` and ``repeats`` say how much of it.
        picture_ms: milliseconds from a decoded picture to its embedding, in a batch of ``pictures``.
        boxes_per_second: source → boxes, of pictures that the tower has seen.
        phrases_per_second: phrases grounded, of the same.
    """

    device: str
    threads: int
    precision: str
    parameters: int
    parameters_of: dict[str, int]
    data: str
    pictures: int
    boxes: int
    phrases: int
    repeats: int
    picture_ms: float
    boxes_per_second: dict[str, float]
    phrases_per_second: float


class Entry(Uncertainty):
    """One set.

    Attributes:
        models: model → metric → value; differences are taken from the first model.
        counts: how much was measured on: images, captions, regions, phrases, classes.
        skipped: samples and boxes left out, by reason.
        notes: what a reader of the result should know of the set.
        lead: the metric of the set's own protocol.
        class_texts: templates.
        seeds: recipes of several runs, where there are any.
    """

    models: Mapping[str, Mapping[str, float]]
    counts: NotRequired[Mapping[str, int]]
    skipped: NotRequired[Mapping[str, int]]
    notes: NotRequired[Sequence[str]]
    lead: NotRequired[str]
    class_texts: NotRequired[Sequence[str]]
    seeds: NotRequired[Seeds]


class MetricsFile(TypedDict):
    """The whole file.

    Attributes:
        data: by name of the set.
        command: that made it.
        bootstrap: ``samples``, ``level`` and ``seed`` of the resampling.
        models: model → fact of its training → value.
        cost: model → what it costs.
    """

    data: dict[str, Entry]
    command: NotRequired[str]
    bootstrap: NotRequired[Mapping[str, float]]
    models: NotRequired[dict[str, dict[str, str | float]]]
    cost: NotRequired[dict[str, Cost]]


def runs_of(entry: Entry, model: str) -> set[str]:
    """A model and the runs of its recipe: none of them is a rival of it."""
    groups = entry["seeds"]["groups"].values() if "seeds" in entry else ()
    return {model, *(run for own in groups if model in own["models"] for run in own["models"])}
