"""Pictures of the report: data URIs, numbered boxes over them, heat maps of a phrase.

Stands between ``page.py``, which decides what is shown, and its template, which places it. Boxes are hand-written
SVG: they stay crisp at any size and take their colors from the page.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

Box = tuple[float, float, float, float]
Point = tuple[float, float]

SMALL = 128  # pixels; pictures up to this long side are kept exact and enlarged without smoothing
CANVAS = 400.0  # long side of an overlay in its own units, about one CSS pixel each
BADGE_HEIGHT = 17.0
DASHES = ("", "9 5", "2.5 4", "14 4 3 4")  # truth, then one pattern per model
HEAT_SIDE = 256  # pixels of a heat map's long side
# From cold to hot, even in lightness, so that they also read without color (the ends and middle of "inferno").
HEAT = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], float)


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


def encode_picture(image: Image.Image, long_side: int = 640, quality: int = 82) -> Encoded:
    """Encodes a picture as a data URI.

    Small pictures (up to 128 px) become lossless PNG in their own size; larger ones JPEG of at most ``long_side`` px.
    Transparency is laid on white.
    """
    image = _opaque(image)
    small = max(image.size) <= SMALL
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=True)
    kind = "png" if small else "jpeg"
    return Encoded(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", *image.size, small)


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def heat_picture(image: Image.Image, heat: np.ndarray) -> Encoded:
    """Lays a similarity map over a picture in gray.

    Args:
        image: the picture.
        heat: ``[h,w]`` over the whole of it, any range: its own minimum is the coldest, its maximum the hottest color.

    Returns:
        A JPEG of at most 256 px.
    """
    scale = HEAT_SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    gray = np.asarray(_opaque(image).convert("L").resize((width, height), how), np.float64)[..., None]
    span = heat.max() - heat.min()
    level = (heat - heat.min()) / span if span > 0 else np.zeros_like(heat)
    smooth = Image.fromarray(level.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(smooth, np.float64), 0, 1)
    stops = np.linspace(0, 1, len(HEAT))
    color = np.stack([np.interp(level, stops, HEAT[:, channel]) for channel in range(3)], -1)
    mixed = Image.fromarray((0.4 * gray + 0.6 * color).round().astype(np.uint8))
    buffer = io.BytesIO()
    mixed.save(buffer, "JPEG", quality=80, optimize=True)
    return Encoded(f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", width, height, False)


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
    boxes, badges = Markup(""), Markup("")
    taken: list[Box] = []
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
