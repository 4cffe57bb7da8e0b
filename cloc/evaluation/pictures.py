"""Drawing for the report: pictures as data URIs, numbered boxes over them, learning curves.

Stands between ``report.py``, which decides what is shown, and its template, which places it. Everything but the pixels
is hand-written SVG: it stays crisp at any size, takes its colors from the page in light and dark, and weighs little.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from PIL import Image

Box = tuple[float, float, float, float]
Point = tuple[float, float]

SMALL = 128  # pixels; pictures up to this long side are kept exact and enlarged without smoothing
CANVAS = 400.0  # long side of an overlay in its own units, about one CSS pixel each
BADGE_HEIGHT = 17.0
DASHES = ("", "9 5", "2.5 4", "14 4 3 4")  # truth, then one pattern per model
CURVE_DASHES = ("", "7 4", "2 3.5", "11 3 2 3", "4 2", "1 5")
CHART = (420.0, 270.0)
MARGIN_LEFT, MARGIN_TOP, MARGIN_BOTTOM = 46.0, 14.0, 42.0


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture ready for a page: ``uri`` is a data URI; ``pixelated`` asks for enlargement without smoothing."""

    uri: str
    width: int
    height: int
    pixelated: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """A box over a picture: ``number`` names it, ``pattern`` is 0 for truth and 1, 2, … for the models' boxes.

    ``badge`` is False where the box lies so near to its truth that a second number would only hide the picture.
    """

    number: int
    box: Box
    pattern: int = 0
    badge: bool = True


@dataclass(frozen=True, slots=True)
class Line:
    """A curve to draw: ``style`` picks color and dashes, so that a model looks alike in every chart."""

    label: str
    style: int
    x: Sequence[float]
    y: Sequence[float]


def encode_picture(image: Image.Image, long_side: int = 640, quality: int = 82) -> Encoded:
    """Encodes a picture as a data URI.

    Small pictures (up to 128 px) become lossless PNG in their own size; larger ones JPEG of at most ``long_side`` px.
    Transparency is laid on white.
    """
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    image = image.convert("RGB")
    small = max(image.size) <= SMALL
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
    kind = "png" if small else "jpeg"
    return Encoded(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", *image.size, small)


def drawable(box: Box) -> bool:
    """Whether a box has four finite numbers in order."""
    return len(box) == 4 and all(map(math.isfinite, box)) and box[0] <= box[2] and box[1] <= box[3]


def iou(first: Box, second: Box) -> float | None:
    """Intersection over union of two boxes; None where one of them cannot be drawn."""
    if not (drawable(first) and drawable(second)):
        return None
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    total = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - shared
    return shared / total if total > 0 else 0.0


def _place_badge(box: Box, width: float, canvas: Point, taken: list[Box]) -> Box:
    """The first place around the box's corners where the badge covers no other badge."""
    x0, y0, x1, y1 = box
    places = [
        (x0, y0 - BADGE_HEIGHT), (x0, y0), (x1 - width, y0 - BADGE_HEIGHT), (x1 - width, y0),
        (x0, y1), (x1 - width, y1), (x0, y1 - BADGE_HEIGHT), (x1 - width, y1 - BADGE_HEIGHT),
    ]  # fmt: skip
    fitted = []
    for x, y in places:
        left = min(max(x, 0.0), canvas[0] - width)
        top = min(max(y, 0.0), canvas[1] - BADGE_HEIGHT)
        fitted.append((left, top, left + width, top + BADGE_HEIGHT))
    free = [place for place in fitted if not any(iou(place, other) for other in taken)]
    return (free or fitted)[0]


def overlay(shapes: Sequence[Shape], width: int, height: int) -> Markup:
    """Draws numbered boxes as an SVG to lay over a picture of ``width`` × ``height`` pixels.

    Each box has a dark halo, so that it shows on any picture; what cannot be drawn (NaN, inverted) is left out.
    """
    unit = CANVAS / max(width, height)
    canvas = (width * unit, height * unit)
    boxes, badges, taken = Markup(""), Markup(""), []
    for shape in shapes:
        if not drawable(shape.box):
            continue
        edges = [min(max(value, 0.0), 1.0) * canvas[axis % 2] for axis, value in enumerate(shape.box)]
        x0, y0, x1, y1 = (min(max(edge, 1.5), canvas[axis % 2] - 1.5) for axis, edge in enumerate(edges))
        rect = Markup('x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"').format(x0, y0, x1 - x0, y1 - y0)
        dash = DASHES[shape.pattern % len(DASHES)]
        boxes += Markup(
            '<g class="b b{}" data-n="{}"><rect class="halo" {}/><rect class="edge" {} stroke-dasharray="{}"/></g>'
        ).format((shape.number - 1) % 8, shape.number, rect, rect, dash or "none")
        if not shape.badge:
            continue
        wide = 9.0 + 8.0 * len(str(shape.number))
        place = _place_badge((x0, y0, x1, y1), wide, canvas, taken)
        taken.append(place)
        badges += Markup(
            '<g class="badge b{}{}" data-n="{}"><rect x="{:.1f}" y="{:.1f}" width="{}" height="{}" rx="3"/>'
            '<text x="{:.1f}" y="{:.1f}">{}</text></g>'
        ).format(
            (shape.number - 1) % 8, " said" if shape.pattern else "", shape.number, place[0], place[1], wide,
            BADGE_HEIGHT, place[0] + wide / 2, place[1] + 13, shape.number,
        )  # fmt: skip
    opening = Markup('<svg class="overlay" viewBox="0 0 {:.1f} {:.1f}" aria-hidden="true">').format(*canvas)
    return opening + boxes + badges + Markup("</svg>")


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span ``low`` to ``high``, about ``count`` of them."""
    span = high - low if high > low else abs(high) or 1.0
    raw = span / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if raw <= power * factor * 1.0001)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def short_number(value: float) -> str:
    """``80000 → "80k"``, ``1.5e6 → "1.5M"``."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


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
