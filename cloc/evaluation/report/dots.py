"""Dot-and-interval charts: a row for each question, a dot for each model, its 95 % interval as a line.

Stands after ``table.py`` (what is compared) and ``splits.py`` (where one wins), before the report's template, which
draws them as HTML, so that they read on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloc.evaluation.report.charts import nice_ticks
from cloc.evaluation.report.meaning import best_sources
from cloc.evaluation.report.table import Gap, Interval, cell_words, compare, gap_words, make_row

# What the opening chart asks, in reading order; one that was not measured is left out.
OVERVIEW = (
    "region/best/top1",
    "region/best/mAcc",
    "region/best/comprehension",
    "region/best/hard_negatives",
    "region/best/region_to_text_R@10",
    "region/best/text_to_region_R@10",
    "grounding/any/acc@0.5",
    "grounding/pointing",
    "grounding/AP50",
    "image/zero_shot_top1",
    "image_text/image_to_text_R@1",
    "image_text/text_to_image_R@1",
    "relations/grounded/accuracy",
    "relations/similarity/accuracy",
)


@dataclass(frozen=True, slots=True)
class Dot:
    """One model's value: ``text`` as shown, ``range`` its interval in words, ``note`` how it was had."""

    model: str
    value: float
    text: str
    interval: Interval | None = None
    range: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class DotRow:
    """One question: ``note`` stands below its label, ``gap_range`` is the difference's interval in words."""

    label: str
    note: str
    dots: list[Dot]
    gap: Gap = Gap()
    gap_range: str = ""


@dataclass(frozen=True, slots=True)
class DotChart:
    """Rows over one axis from 0 to the last tick: ``ticks`` are places in percent of its length, with their texts."""

    rows: list[DotRow]
    ticks: list[tuple[float, str]]
    top: float

    def place(self, value: float) -> float:
        """Where a value stands, in percent of the axis."""
        return round(100 * min(max(value / self.top, 0.0), 1.0), 2)

    @property
    def step(self) -> float:
        """Distance of the grid lines, in percent of the axis."""
        return round(100 / (len(self.ticks) - 1), 4)


def dot_chart(rows: Sequence[DotRow]) -> DotChart | None:
    """The axis of some rows; None where there is nothing to draw."""
    kept = [row for row in rows if row.dots]
    if not kept:
        return None
    ends = [max(dot.value, dot.interval[1] if dot.interval else 0.0) for row in kept for dot in row.dots]
    ticks = nice_ticks(0.0, min(max(max(ends), 0.01), 1.0))
    return DotChart(kept, [(100 * tick / ticks[-1], f"{100 * tick:g}%") for tick in ticks], ticks[-1])


def overview(entry: Mapping[str, Any]) -> list[DotRow]:
    """The main questions of a set: every model by its best source; all that was asked where none of them was.

    Args:
        entry: of one set in ``metrics.json``.
    """
    asked = [row.meaning.metric for group in compare(entry) for family in group.families for row in family.rows]
    return _rows(entry, OVERVIEW) or _rows(entry, asked)


def _rows(entry: Mapping[str, Any], metrics: Sequence[str]) -> list[DotRow]:
    best = {model: best_sources(own) for model, own in entry["models"].items()}
    rows = []
    for metric in metrics:
        row = make_row(entry, metric, best)
        dots = [
            Dot(cell.model, cell.value, cell.text, cell.interval, cell_words(cell, True), cell.note)
            for cell in row.cells
            if cell.value is not None and math.isfinite(cell.value)
        ]
        if dots:
            label = row.meaning.family or row.meaning.label
            if row.meaning.family and not metric.startswith("region/best/"):
                label = f"{label}: {row.meaning.label}"
            rows.append(DotRow(label, _first_sentence(row.meaning.reading), dots, row.gap, gap_words(row.gap, True)))
    return rows


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".") + "."
