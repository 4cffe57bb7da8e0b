"""Models side by side by every metric, with intervals: the rows of the terminal's table and of the report.

Stands after the metrics, which say of themselves what they are called and how they are read, and before two readers::

    rich.print(comparison_table(json.loads(Path("metrics.json").read_text())))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group as Tables
from rich.table import Table
from rich.text import Text

from cloc.console import WIDTH, fit
from cloc.evaluation.metrics.catalog import ALL, Catalog, finite
from cloc.evaluation.metrics.metric import OTHER, Description
from cloc.evaluation.metrics.regions import BEST, SOURCES, region_name
from cloc.evaluation.report.formats import MISSING, format_gap, format_range, format_value, more_digits
from cloc.evaluation.report.metrics_file import Entry, MetricsFile, runs_of

Interval = tuple[float, float]
WITH_INTERVALS = 3  # models up to which the terminal has room for intervals


@dataclass(frozen=True, slots=True)
class Cell:
    """One model's value in one row.

    Attributes:
        model: whose.
        value: None where there is none.
        text: as shown.
        why: the reason where ``value`` is missing.
        best: whether no model does better.
        interval: 95 %, or None where none was computed.
        note: the source behind a "best source" row.
    """

    model: str
    value: float | None
    text: str
    why: str
    best: bool
    interval: Interval | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Gap:
    """The first model less the best of the others.

    Attributes:
        value: None where one of them has no value.
        text: as shown, in points.
        rival: the best of the others.
        interval: 95 % of the paired difference, or None.
        ahead: whether the first model is ahead; None where the interval includes 0, or the two are level.
        digits: decimals beyond the usual, so that an interval that leaves out zero does not look as if it held it.
    """

    value: float | None = None
    text: str = MISSING
    rival: str = ""
    interval: Interval | None = None
    ahead: bool | None = None
    digits: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One metric across models."""

    description: Description
    cells: list[Cell]
    gap: Gap


@dataclass(frozen=True, slots=True)
class Family:
    """Rows that share a protocol."""

    title: str
    protocol: str
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Group:
    """A section of the comparison: ``folded`` where the page folds it away, ``sources`` where rows are sources."""

    title: str
    families: list[Family]
    folded: bool = False
    sources: bool = False


def make_gap(value: float, rival: str, interval: Interval | None, percent: bool, higher_is_better: bool = True) -> Gap:
    """A difference with its text and its verdict."""
    if interval is None:
        text = format_gap(value, percent)
        ahead = (value > 0) == higher_is_better if text.startswith(("+", "−")) else None
        return Gap(value, text, rival, None, ahead)
    apart_from_zero = interval[0] > 0 or interval[1] < 0
    ahead = (interval[0] > 0) == higher_is_better if apart_from_zero else None
    digits = 0 if ahead is None else more_digits([value, *interval], percent)
    return Gap(value, format_gap(value, percent, digits), rival, interval, ahead, digits)


def compare(entry: Entry, catalog: Catalog = ALL) -> list[Group]:
    """Groups the metrics of several models, in reading order; sections of which nothing was measured are left out.

    Args:
        entry: of one set in ``metrics.json``: ``models``, and ``intervals`` and ``differences`` where they are known.
            The first model is the one that differences are taken from.
        catalog: metrics that say what they are.
    """
    models = entry["models"]
    names = dict.fromkeys(name for metrics in models.values() for name in metrics)
    best = {model: catalog.best_sources(metrics) for model, metrics in models.items()}
    sources = {found[0] for found in map(region_name, names) if found is not None}
    if len(models) > 1 and len(sources) > 1:
        names |= dict.fromkeys(f"{BEST}{measure}" for own in best.values() for measure in own)
    groups: dict[str, dict[str, Family]] = {}
    described = sorted(map(catalog.describe, names), key=reading_order)
    for own in described:
        families = groups.setdefault(own.section.title, {})
        family = families.setdefault(own.family, Family(own.family, own.protocol, []))
        family.rows.append(make_row(entry, own.metric, best, catalog))
    folded = {own.section.title: own.section.folded for own in described}
    sourced = {own.section.title for own in described if own.section is not OTHER and region_name(own.metric)}
    return [
        Group(title, list(families.values()), folded[title], title in sourced) for title, families in groups.items()
    ]


def reading_order(own: Description) -> tuple[Any, ...]:
    """Key to sort descriptions by: sections by their place, rows as their metric says."""
    return own.section.place, own.section.title, own.order


def make_row(entry: Entry, metric: str, best: Mapping[str, Mapping[str, str]], catalog: Catalog = ALL) -> Row:
    """One metric of a set; ``region/best/MEASURE`` takes each model's best source, which ``best`` names."""
    described, measure, models = catalog.describe(metric), metric.removeprefix(BEST), entry["models"]
    own = {model: metric for model in models}
    if measure != metric:
        own = {model: f"region/{best[model].get(measure, 'best')}/{measure}" for model in models}
    values = {model: finite(metrics, own[model]) for model, metrics in models.items()}
    known = [value for value in values.values() if value is not None]
    top = max(known, key=described.goodness) if known and len(models) > 1 else None
    intervals = entry.get("intervals", {})
    cells = [
        Cell(
            model,
            value,
            format_value(value, described.percent),
            "" if value is not None else catalog.why_missing(own[model], models[model]),
            top is not None and value is not None and math.isclose(value, top, abs_tol=5e-5),
            _interval(intervals.get(model, {}).get(own[model])),
            SOURCES.get(best[model].get(measure, ""), "") if measure != metric else "",
        )
        for model, value in values.items()
    ]
    return Row(described, cells, _row_gap(entry, described, values))


def _row_gap(entry: Entry, own: Description, values: Mapping[str, float | None]) -> Gap:
    """The first model less the best other, with the paired interval where it is known."""
    first = next(iter(values), None)
    own_runs = runs_of(entry, first or "")
    rivals = {model: value for model, value in values.items() if model not in own_runs and value is not None}
    value = None if first is None else values[first]
    if value is None or not rivals:
        return Gap()
    rival = max(rivals, key=lambda model: own.goodness(rivals[model]))
    paired = entry.get("differences", {}).get(rival, {}).get(own.metric)
    interval = _interval(paired[1:]) if paired else None
    return make_gap(value - rivals[rival], rival, interval, own.percent, own.higher_is_better)


def _interval(pair: Sequence[float] | None) -> Interval | None:
    return None if pair is None or not all(map(math.isfinite, pair)) else (float(pair[0]), float(pair[1]))


@dataclass(frozen=True, slots=True)
class Apart:
    """What tells the first model from another: all differences whose interval leaves out zero.

    Attributes:
        first: the model on outputs.
        rival: the other one.
        asked: number of measurements that both have.
        behind: measurement in words, difference, interval in words: where ``first`` does worse.
        ahead: where it does better.
    """

    first: str
    rival: str
    asked: int
    behind: list[tuple[str, str, str]]
    ahead: list[tuple[str, str, str]]


def apart(entry: Entry, catalog: Catalog = ALL) -> list[Apart]:
    """The differences of a set in ``metrics.json`` whose interval leaves out zero, for each other model."""
    found = []
    for rival, differences in entry.get("differences", {}).items():
        sides: dict[bool, list[tuple[str, str, str]]] = {True: [], False: []}
        for own in sorted(map(catalog.describe, differences), key=reading_order):
            value, *ends = differences[own.metric]
            gap = make_gap(value, rival, _interval(ends), own.percent, own.higher_is_better)
            if gap.interval is not None and gap.ahead is not None:
                sides[gap.ahead].append((own.words, gap.text, gap_words(gap, own.percent)))
        found.append(Apart(next(iter(entry["models"])), rival, len(differences), sides[False], sides[True]))
    return found


def absences(groups: list[Group]) -> list[str]:
    """Why values are missing, each reason once with its models: ``"clip: There is no Prompter …"``."""
    cells = [cell for group in groups for family in group.families for row in family.rows for cell in row.cells]
    reasons: dict[str, dict[str, None]] = {}
    for cell in cells:
        if cell.why:
            reasons.setdefault(cell.why, {})[cell.model] = None
    return [f"{', '.join(models)}: {why}" for why, models in reasons.items()]


def comparison_table(data: MetricsFile, catalog: Catalog = ALL, width: int = WIDTH) -> Tables:
    """Builds the comparison of ``metrics.json`` for the terminal.

    Args:
        data: ``{"data": {NAME: {"models": {MODEL: {METRIC: value}}, "intervals", "differences"}}}``.
        catalog: metrics that say what they are.
        width: columns of the terminal.

    Returns:
        A table with models as columns, metrics as rows by data set and group, best values bold; several tables, each
        with some of the models, where one would be wider than the terminal.

    Raises:
        ValueError: ``data`` has no ``data`` key.
    """
    if "data" not in data:
        raise ValueError(f"metrics hold {sorted(data)} and no 'data'; pass the whole content of metrics.json")
    models = list(dict.fromkeys(model for entry in data["data"].values() for model in entry["models"]))
    several, roomy = len(models) > 1, len(models) <= WITH_INTERVALS
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for model in models:
        table.add_column(Text(model), justify="right")
    if several:
        table.add_column("Δ", justify="right")
    for name, entry in data["data"].items():
        if table.row_count:
            table.add_row()
        table.add_row(Text(name, style="bold underline"))
        measured: Entry = {**entry, "models": {model: entry["models"].get(model, {}) for model in models}}
        for group in compare(measured, catalog) if models else []:
            _add_group(table, group, several, roomy)
    table.caption = Text("\n".join(_caption(data, models, roomy)), style="dim")
    table.caption_justify = "left"
    return fit(table, width)


def _caption(data: MetricsFile, models: list[str], roomy: bool) -> list[str]:
    uncertain = any(entry.get("intervals") for entry in data["data"].values())
    lines = ["±: half of the 95 % interval, over pictures."] if uncertain and roomy else []
    if len(models) > 1:
        colored = " Colored where its interval excludes 0." if uncertain else ""
        lines += ["Bold: best of its row.", f"Δ: {models[0]} less the best other, in points.{colored}"]
    return lines


def _add_group(table: Table, group: Group, several: bool, roomy: bool) -> None:
    table.add_row()
    table.add_row(Text(group.title, style="bold cyan"))
    for family in group.families:
        if family.title:
            table.add_row(Text(f" {family.title}", style="italic"))
        for row in family.rows:
            percent = row.description.percent
            values = [_shown(c.text, "bold" if c.best else "", c.interval, percent, roomy) for c in row.cells]
            style = {True: "green", False: "red", None: "dim"}[row.gap.ahead]
            gap = [_shown(row.gap.text, style, row.gap.interval, percent, roomy)] if several else []
            table.add_row(Text(f"   {row.description.label}"), *values, *gap)


def _shown(text: str, style: str, interval: Interval | None, percent: bool, roomy: bool) -> Text:
    shown = Text(text, style=style)
    if interval is not None and roomy:
        half = (interval[1] - interval[0]) / 2
        shown.append(f" ±{100 * half:.1f}" if percent else f" ±{half:.3f}", style="dim")
    return shown


def markdown(data: MetricsFile, catalog: Catalog = ALL) -> str:
    """The comparison of ``metrics.json`` as Markdown, a table for each set: to paste into an issue or a paper.

    Args:
        data: as :func:`comparison_table` takes it.
        catalog: metrics that say what they are.
    """
    lines: list[str] = []
    for name, entry in data["data"].items():
        models = list(entry["models"])
        groups = compare(entry, catalog) if models else []
        rows = [row for group in groups for family in group.families for row in family.rows]
        columns = ["metric", *models, *(["difference"] if len(models) > 1 else [])]
        lines += [f"## {name}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in rows:
            percent = row.description.percent
            cells = [_bracketed(f"**{c.text}**" if c.best else c.text, cell_words(c, percent)) for c in row.cells]
            gap = [_bracketed(row.gap.text, gap_words(row.gap, percent))] if len(models) > 1 else []
            lines.append(f"| {' | '.join([f'`{row.description.metric}`', *cells, *gap])} |")
        lines.append("")
    return "\n".join(lines)


def _bracketed(text: str, interval: str) -> str:
    return f"{text} ({interval})" if interval else text


def gap_words(gap: Gap, percent: bool) -> str:
    """A gap's interval in words: ``"+83.2 to +85.1"``; empty where there is none."""
    if gap.interval is None:
        return ""
    return " to ".join(format_gap(end, percent, gap.digits) for end in gap.interval)


def cell_words(cell: Cell, percent: bool) -> str:
    """A cell's interval: ``"92.0–94.0"``; empty where there is none."""
    return "" if cell.interval is None else format_range(*cell.interval, percent)
