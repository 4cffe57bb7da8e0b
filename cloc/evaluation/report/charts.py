"""Charts of the report: learning curves and classes by both models, as hand-written SVG.

Stands between ``page.py``, which decides what is shown, and its template, which places it. SVG stays crisp at any
size, takes its colors from the page in light and dark, and weighs little.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cloc.evaluation.report.formats import short_number

Point = tuple[float, float]

CURVE_DASHES = ("", "7 4", "2 3.5", "11 3 2 3", "4 2", "1 5")
CHART = (420.0, 270.0)
MARGIN_LEFT, MARGIN_TOP, MARGIN_BOTTOM = 46.0, 14.0, 42.0


@dataclass(frozen=True, slots=True)
class Line:
    """A curve to draw: ``style`` picks color and dashes, so that a model looks alike in every chart."""

    label: str
    style: int
    x: Sequence[float]
    y: Sequence[float]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span ``low`` to ``high``, about ``count`` of them."""
    span = high - low if high > low else abs(high) or 1.0
    raw = span / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if raw <= power * factor * 1.0001)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def time_scale(longest: float) -> tuple[float, str]:
    """The unit of a time axis: its seconds and its name."""
    if longest > 3 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if longest > 5 * 60 else (1.0, "seconds")


def _spread(heights: list[float], gap: float, bottom: float) -> list[float]:
    """Moves label heights apart to at least ``gap`` while keeping their order."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    for before, after in zip(order, order[1:], strict=False):
        placed[after] = max(placed[after], placed[before] + gap)
    over = max([placed[index] - bottom for index in order[-1:]] + [0.0])
    for index in reversed(order):
        placed[index] -= over
        over = max(0.0, over - (placed[index] + over - heights[index]))
    return placed


def _path(points: list[Point | None]) -> str:
    """SVG path through the points; None lifts the pen."""
    parts, down = [], False
    for point in points:
        if point is not None:
            parts.append(f"{'L' if down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        down = point is not None
    return "".join(parts)


def _rule(kind: str, start: Point, end: Point) -> Markup:
    line = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return line.format(kind, *start, *end)


def _text(at: Point, anchor: str, text: str) -> Markup:
    return Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(*at, anchor, text)


def _axes(
    x_ticks: dict[float, str], y_ticks: dict[float, str], title: str, at: Callable[[float, float], Point]
) -> Markup:
    """Grid lines, labeled ticks (value → text) and the title of x."""
    (left, bottom), (right, _) = at(min(x_ticks), min(y_ticks)), at(max(x_ticks), min(y_ticks))
    body = Markup("")
    for tick, text in y_ticks.items():
        y = at(min(x_ticks), tick)[1]
        body += _rule("grid", (left, y), (right, y)) + _text((left - 8, y + 4), "end", text)
    for tick, text in x_ticks.items():
        x = at(tick, min(y_ticks))[0]
        body += _rule("axis", (x, bottom), (x, bottom + 4)) + _text((x, bottom + 17), "middle", text)
    return body + _rule("axis", (left, bottom), (right, bottom)) + _text((right, bottom + 34), "end", title)


def curve_chart(lines: Sequence[Line], x_title: str, describe: str, percent: bool) -> Markup | None:
    """Draws curves over one axis, labeled at their ends.

    Args:
        lines: the curves; points with a value or place that is not finite break the line.
        x_title: ``"samples"`` or ``"seconds"``; long times are shown in minutes or hours.
        describe: text for readers who do not see the chart.
        percent: values are shares, shown in percent on an axis that begins at 0.

    Returns:
        An SVG, or None where no point can be drawn.
    """
    pairs = [
        [point if all(map(math.isfinite, point)) else None for point in zip(line.x, line.y, strict=True)]
        for line in lines
    ]
    known = [point for points in pairs for point in points if point is not None]
    if not known:
        return None
    scale, title = time_scale(max(x for x, _ in known)) if x_title == "seconds" else (1.0, x_title)
    x_ticks = nice_ticks(0.0, max(x for x, _ in known) / scale or 1.0)
    low = 0.0 if percent else min(y for _, y in known)
    y_ticks = nice_ticks(low, max(y for _, y in known) if max(y for _, y in known) > low else low + 1.0)
    names = [line.label if len(line.label) <= 16 else line.label[:15] + "…" for line in lines]
    margin_right = 22.0 + 7.2 * max(map(len, names))
    width, height = CHART[0] - MARGIN_LEFT - margin_right, CHART[1] - MARGIN_TOP - MARGIN_BOTTOM

    def at(x: float, y: float) -> Point:
        right = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return MARGIN_LEFT + width * right, MARGIN_TOP + height * (1 - up)

    y_texts = [f"{100 * tick:g}%" if percent else short_number(tick) for tick in y_ticks]
    body = _axes({x: short_number(x) for x in x_ticks}, dict(zip(y_ticks, y_texts, strict=True)), title, at)
    drawn = [[None if p is None else at(p[0] / scale, p[1]) for p in points] for points in pairs]
    ends = [(index, [p for p in points if p is not None][-1]) for index, points in enumerate(drawn) if any(points)]
    heights = _spread([end[1] for _, end in ends], 16.0, CHART[1] - MARGIN_BOTTOM)
    for (index, end), label_y in zip(ends, heights, strict=True):
        style = lines[index].style
        body += Markup('<g class="curve m{}"><path d="{}" stroke-dasharray="{}"/>').format(
            style % 6, _path(drawn[index]), CURVE_DASHES[style % 6] or "none"
        )
        dots = [p for p in drawn[index] if p is not None] if len(drawn[index]) <= 16 else [end]
        body += Markup("").join(Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(*p) for p in dots)
        body += Markup('<text x="{:.1f}" y="{:.1f}">{}</text></g>').format(end[0] + 9, label_y + 4.5, names[index])
    opening = Markup('<svg class="chart" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">')
    return opening.format(*CHART, describe) + body + Markup("</svg>")


def scatter_chart(x_title: str, y_title: str, points: Sequence[tuple[str, float, float]]) -> Markup | None:
    """Draws classes by the values of two models; above the diagonal the model of y does better.

    Args:
        x_title: the model of x.
        y_title: the model of y.
        points: (name, x, y), both in 0..1; equal places are drawn as one larger dot.

    Returns:
        An SVG, or None where no point can be drawn.
    """
    points = [point for point in points if all(map(math.isfinite, point[1:]))]
    if not points:
        return None
    side, left, top = 300.0, 46.0, 30.0
    ticks = {tick / 4: f"{25 * tick}%" for tick in range(5)}

    def at(x: float, y: float) -> Point:
        return left + side * x, top + side * (1 - y)

    body = _axes(ticks, ticks, x_title, at)
    body += _rule("diagonal", at(0, 0), at(1, 1))
    body += _text((left - 38, 12.0), "start", f"{y_title} ↑")
    places: dict[Point, list[str]] = {}
    for name, x, y in points:
        places.setdefault((round(x, 3), round(y, 3)), []).append(name)
    for (x, y), names in places.items():
        said = f"{', '.join(names)}: {x_title} {100 * x:.0f}%, {y_title} {100 * y:.0f}%"
        body += Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>').format(
            *at(x, y), 3.0 + min(len(names) - 1, 8) ** 0.5, said
        )
    opening = Markup('<svg class="chart scatter" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">')
    said = f"Classes by the share of boxes named rightly, {x_title} across and {y_title} up"
    return opening.format(left + side + 22, top + side + 42, said) + body + Markup("</svg>")
