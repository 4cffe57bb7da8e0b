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


class Entry(Uncertainty):
    """One set.

    Attributes:
        models: model → metric → value; differences are taken from the first model.
        counts: how much was measured on: images, captions, regions, phrases, classes.
        skipped: samples and boxes left out, by reason.
        notes: what a reader of the result should know of the set.
        lead: the metric of the set's own protocol.
        class_texts: templates.
    """

    models: Mapping[str, Mapping[str, float]]
    counts: NotRequired[Mapping[str, int]]
    skipped: NotRequired[Mapping[str, int]]
    notes: NotRequired[Sequence[str]]
    lead: NotRequired[str]
    class_texts: NotRequired[Sequence[str]]


class MetricsFile(TypedDict):
    """The whole file.

    Attributes:
        data: by name of the set.
        command: that made it.
        bootstrap: ``samples``, ``level`` and ``seed`` of the resampling.
        models: model → fact of its training → value.
    """

    data: dict[str, Entry]
    command: NotRequired[str]
    bootstrap: NotRequired[Mapping[str, float]]
    models: NotRequired[dict[str, dict[str, str | float]]]
