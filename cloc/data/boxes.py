"""Converts boxes of any order and unit to xyxy in 0..1, and tells from many of them which order and unit they have.

Stands below ``sample`` at the start of ``data → models → losses → evaluation → engine``. Shards hold
``xyxy_normalized`` and nothing else, so a reader never guesses. A converter is told the kind of its source's boxes, and
the evidence that :func:`observe` gathers over all of them says whether that can be right, and what fits better.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

PIXEL_BOX = 1.5
"""A coordinate beyond this cannot be a rounding error of 0..1: the box is in pixels."""
BOX_DECIMALS = 6
"""Of a coordinate in 0..1, here and in the JSON: a box is the same before and after it is written."""
NORMALIZED = "xyxy_normalized"
"""What shards hold: x0, y0, x1, y1 in 0..1 of the picture."""

Corners = tuple[float, float, float, float]

_LAYOUTS: Mapping[str, Callable[[float, float, float, float], Corners]] = {
    "xyxy": lambda x0, y0, x1, y1: (x0, y0, x1, y1),
    "xywh": lambda x, y, width, height: (x, y, x + width, y + height),
    "cxcywh": lambda x, y, width, height: (x - width / 2, y - height / 2, x + width / 2, y + height / 2),
    "yxyx": lambda y0, x0, y1, x1: (x0, y0, x1, y1),
}
_UNITS: Mapping[str, float | None] = {"normalized": 1.0, "percent": 100.0, "thousand": 1000.0, "pixels": None}
_KINDS = {f"{layout}_{unit}": (layout, unit) for layout in _LAYOUTS for unit in _UNITS}
BOX_KINDS = tuple(_KINDS)
"""Orders of the four numbers × their units: ``xywh_pixels`` is COCO's, ``cxcywh_normalized`` YOLO's."""

_FOUR_FLOATS = [float] * 4
_TOLERANCE = 0.02  # of the picture, beside a pixel: what rounding and hasty annotators reach beyond it
_LEAST_SIDE = 0.9  # pixels; what is smaller was divided once too often
_FITS = 0.98  # share of the boxes that must fit a kind before it is named
_ENOUGH = 10  # boxes, before what fits better is held against what most of them fit
_SEEN, _SMALL, _FAR = "boxes", "below_a_pixel", "far"  # entries of the evidence beside the kinds
_REACH, _CLOSE = " reach", " close"  # behind the name of a kind


def check_kind(kind: str) -> str:
    """Return the kind.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in _KINDS:
        raise ValueError(f"boxes={kind!r}: there is no such kind of box; the kinds are {', '.join(BOX_KINDS)}")
    return kind


def normalize_box(values: Any, kind: str, size: tuple[float, float]) -> Any:
    """Turn four numbers into xyxy in 0..1.

    Args:
        values: what a source holds for a box.
        kind: one of ``BOX_KINDS``.
        size: (width, height) of the picture that the box was drawn on, in pixels, both above 0.

    Returns:
        ``[x0, y0, x1, y1]``, wherever these lie; what is not four numbers as it is, for ``parse_box`` to count.
    """
    if kind == NORMALIZED or not is_box(values):
        return values
    layout, unit = _KINDS[kind]
    scale = _UNITS[unit]
    across, down = (scale, scale) if scale else size
    x0, y0, x1, y1 = _LAYOUTS[layout](*map(to_float, values))
    return [x0 / across, y0 / down, x1 / across, y1 / down]


def parse_box(values: Any, counts: Counter[str]) -> Corners | None:
    """Read one xyxy box in 0..1, clipped to the picture.

    Args:
        values: what the JSON holds under ``box``.
        counts: receives the reason for dropping the box, or ``box_clipped``.

    Returns:
        The box, or None where it cannot be used.
    """
    if type(values) is list and [*map(type, values)] == _FOUR_FLOATS:
        x0, y0, x1, y1 = box = tuple([round(value, BOX_DECIMALS) for value in values])
        if 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1:  # nearly every box; the rest is looked at closely
            return box
    if not is_box(values):
        counts["box_malformed"] += 1
        return None
    x0, y0, x1, y1 = box = tuple(round(to_float(value), BOX_DECIMALS) for value in values)
    reason = _fault(x0, y0, x1, y1)
    if reason:
        counts[reason] += 1
        return None
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0))
    if clipped != box:
        counts["box_clipped"] += 1
    return clipped


def observe(boxes: Iterable[Any], size: tuple[float, float], kind: str, seen: Counter[str]) -> None:
    """Count which kinds the boxes of one picture can be.

    Args:
        boxes: what the source holds, before anything is made of it.
        size: (width, height) of the picture in pixels, both above 0.
        kind: what they are said to be.
        seen: the evidence; counters add up over pictures and processes.
    """
    for values in boxes:
        if not is_box(values) or not all(map(math.isfinite, numbers := [*map(to_float, values)])):
            continue
        seen[_SEEN] += 1
        for layout, corners in _LAYOUTS.items():
            box = corners(*numbers)
            for unit, scale in _UNITS.items():
                name = f"{layout}_{unit}"
                fits, small, reach = _fit(box, (scale, scale) if scale else size, size)
                seen[name] += fits
                seen[name + _REACH] += round(100 * reach)
                seen[name + _CLOSE] += reach > 0.9
                if name == kind:
                    seen[_SMALL] += small
                    seen[_FAR] += reach > 0.5


def fit(seen: Mapping[str, int], kind: str) -> float:
    """Return the share of the observed boxes that can be of a kind; 1 where there is none."""
    return seen.get(kind, 0) / seen[_SEEN] if seen.get(_SEEN) else 1.0


def misfits(seen: Mapping[str, int], kind: str) -> tuple[int, int]:
    """Return how many boxes cannot be of the kind that they are said to be: not in their picture, below a pixel."""
    small = seen.get(_SMALL, 0)
    return seen.get(_SEEN, 0) - seen.get(kind, 0) - small, small


def likely_kinds(seen: Mapping[str, int], kind: str) -> tuple[str, ...]:
    """Name the kinds that nearly all observed boxes can be, the likeliest first.

    Args:
        seen: the evidence of :func:`observe`.
        kind: what they are said to be; never named.

    Returns:
        At most two, of the unit in which the boxes fill their pictures most: what is in pixels of a picture of 400 px
        could be in 0..1000 as well. Of two orders that fit, the one that was said comes first.
    """
    fitting = [name for name in _KINDS if name != kind and seen.get(_SEEN) and fit(seen, name) >= _FITS]
    if not fitting:
        return ()
    layout, unit = _KINDS[kind][0], _KINDS[max(fitting, key=lambda name: seen.get(name + _REACH, 0))][1]
    fitting = [name for name in fitting if _KINDS[name][1] == unit]
    return tuple(sorted(fitting, key=lambda name: _KINDS[name][0] != layout)[:2])  # stable: else in the order of _KINDS


def is_likely(seen: Mapping[str, int], kind: str, other: str) -> bool:
    """Tell whether enough boxes are likelier of another kind than of what they are said to be.

    Args:
        seen: the evidence of :func:`observe`.
        kind: what they are said to be.
        other: the first of ``likely_kinds``. Rows before columns (``yxyx``) fit most of what other orders do, and prove
            nothing.
    """
    return seen.get(_SEEN, 0) >= _ENOUGH and not other.startswith("yxyx")


def in_a_corner(seen: Mapping[str, int], kind: str) -> tuple[str, ...]:
    """Name the likely kinds of boxes that fit and all keep to the upper left, as 0..100 does in a large picture.

    Args:
        seen: the evidence of :func:`observe`.
        kind: what they are said to be.

    Returns:
        As ``likely_kinds``, in a unit in which boxes come close to the far sides; empty where nothing speaks for one.
    """
    others = likely_kinds(seen, kind)
    if not others or seen.get(_FAR) or not seen.get(others[0] + _CLOSE) or _KINDS[others[0]][1] == _KINDS[kind][1]:
        return ()
    return others if is_likely(seen, kind, others[0]) else ()


def to_float(value: float) -> float:
    """Return the number as float64; infinite where it is beyond that, for JSON's integers have no bound."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def is_number(value: Any) -> bool:
    """Tell whether JSON held a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_box(values: Any) -> bool:
    """Tell whether JSON held four numbers."""
    return isinstance(values, list | tuple) and len(values) == 4 and all(map(is_number, values))


def _fault(x0: float, y0: float, x1: float, y1: float) -> str | None:
    """Name what makes a box unusable; the most telling reason first."""
    corners = (x0, y0, x1, y1)
    if not all(math.isfinite(value) for value in corners):
        return "box_not_finite"
    if max(abs(value) for value in corners) > PIXEL_BOX:
        return "box_in_pixels"
    if x1 < x0 or y1 < y0:
        return "box_inverted"
    if x0 >= 1 or y0 >= 1 or x1 <= 0 or y1 <= 0:
        return "box_outside"
    return "box_empty" if x1 == x0 or y1 == y0 else None


def _fit(box: Corners, scales: tuple[float, float], size: tuple[float, float]) -> tuple[bool, bool, float]:
    """Whether the box fits the picture; whether it is smaller than a pixel; how far it reaches, 0..1."""
    across = _along(box[0] / scales[0], box[2] / scales[0], size[0])
    down = _along(box[1] / scales[1], box[3] / scales[1], size[1])
    small = across[1] or down[1]
    return across[0] and down[0] and not small, small, min(max(across[2], down[2], 0.0), 1.0)


def _along(low: float, high: float, pixels: float) -> tuple[bool, bool, float]:
    """The same along one side of the picture, in shares of it."""
    tolerance = _TOLERANCE + 1 / pixels
    inside = low < high and low >= -tolerance and high <= 1 + tolerance
    return inside, 0 <= (high - low) * pixels < _LEAST_SIDE, high
