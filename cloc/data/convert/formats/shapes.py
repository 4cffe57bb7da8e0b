"""Boxes around what other people's tools draw: polygons, ellipses, turned rectangles."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]


def box_around(points: Sequence[Point]) -> list[float] | None:
    """Return xyxy of the box around points; None where there is none."""
    if not points:
        return None
    across, down = [point[0] for point in points], [point[1] for point in points]
    return [min(across), min(down), max(across), max(down)]


def turned(corners: Sequence[float], degrees: float, pivot: Point | None = None) -> list[float]:
    """Return the box around a rectangle that was turned.

    Args:
        corners: xyxy of the rectangle before it, in pixels (in other units a turn changes its shape).
        degrees: clockwise, as y points down.
        pivot: the point around which; the middle where None.
    """
    x0, y0, x1, y1 = corners
    px, py = pivot or ((x0 + x1) / 2, (y0 + y1) / 2)
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    offsets = [(x - px, y - py) for x in (x0, x1) for y in (y0, y1)]
    moved = [(px + x * cosine - y * sine, py + x * sine + y * cosine) for x, y in offsets]
    return box_around(moved) or []
