"""Dot-and-interval charts: a row for each question, a dot for each model, its 95 % interval as a line.

Stands after ``table.py`` (what is compared) and ``splits.py`` (where one wins), before the report's template, which
draws them as HTML, so that they read on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cloc.evaluation.metrics.catalog import ALL, Catalog
from cloc.evaluation.metrics.regions import BEST, region_name
from cloc.evaluation.report.charts import nice_ticks
from cloc.evaluation.report.metrics_file import Entry
from cloc.evaluation.report.table import Gap, Interval, cell_words, compare, gap_words, make_row


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


def overview(entry: Entry, catalog: Catalog = ALL) -> list[DotRow]:
    """The main questions of a set: every model by its best source; all that was asked where none of them was.

    Args:
        entry: of one set in ``metrics.json``.
        catalog: metrics, which say their place among the main questions.
    """
    groups = compare(entry, catalog)
    asked = [row.description.metric for group in groups for family in group.families for row in family.rows]
    return _rows(entry, main_questions(entry, catalog), catalog) or _rows(entry, asked, catalog)


def main_questions(entry: Entry, catalog: Catalog) -> list[str]:
    """What was measured of the main questions, in order; of boxes by each model's best source."""
    names = dict.fromkeys(name for metrics in entry["models"].values() for name in metrics)
    regions = {name: region_name(name) for name in names}
    whole = dict.fromkeys(f"{BEST}{found[1]}" if (found := regions[name]) else name for name in names)
    places = {name: place for name in whole if (place := catalog.describe(name).shown.overview) is not None}
    return sorted(places, key=places.__getitem__)


def _rows(entry: Entry, metrics: Sequence[str], catalog: Catalog) -> list[DotRow]:
    best = {model: catalog.best_sources(own) for model, own in entry["models"].items()}
    rows = []
    for metric in metrics:
        row = make_row(entry, metric, best, catalog)
        own = row.description
        dots = [
            Dot(cell.model, cell.value, cell.text, cell.interval, cell_words(cell, True), cell.note)
            for cell in row.cells
            if cell.value is not None and math.isfinite(cell.value)
        ]
        if dots:
            label = (own.family or own.label) if metric.startswith(BEST) else own.words
            rows.append(DotRow(label, _first_sentence(own.protocol), dots, row.gap, gap_words(row.gap, True)))
    return rows


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".") + "."
