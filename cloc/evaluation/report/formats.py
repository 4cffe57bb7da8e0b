"""Numbers as texts, alike in the terminal's table and in the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

MISSING = "–"


def format_value(value: float | None, percent: bool) -> str:
    """``0.9304 → "93.0%"``, or ``"0.930"`` where the metric is no share; a missing or NaN value is ``"–"``."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{100 * value:.1f}%" if percent else f"{value:.3f}"


def format_gap(value: float, percent: bool, digits: int = 0) -> str:
    """A difference with its sign, in points: ``0.642 → "+64.2"``; what rounds to nothing has none.

    Args:
        value: the difference.
        percent: whether it is one of shares.
        digits: more decimals than usual (see :func:`more_digits`).
    """
    text = f"{100 * value:+.{1 + digits}f}" if percent else f"{value:+.{3 + digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def more_digits(ends: Sequence[float], percent: bool) -> int:
    """So many more decimals as keep each of some numbers from looking like zero; 0 where one of them is zero."""
    smallest = min(map(abs, ends)) * (100 if percent else 1)
    usual = 1 if percent else 3
    return max(0, math.ceil(-math.log10(2 * smallest)) - usual) if smallest > 0 else 0


def format_range(low: float, high: float, percent: bool) -> str:
    """An interval: ``(0.92, 0.94) → "92.0–94.0"``."""
    scale, digits = (100, 1) if percent else (1, 3)
    return f"{scale * low:.{digits}f}–{scale * high:.{digits}f}"


def short_number(value: float) -> str:
    """``80000 → "80k"``, ``1.5e6 → "1.5M"``."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def plain_number(value: str | float) -> str:
    """``80000 → "80,000"``, ``0.004 → "0.004"``; NaN is ``"–"``; a text stays as it is."""
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "–"
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"


def plain_seconds(seconds: float) -> str:
    """``57.14 → "57 s"``, ``7500 → "2.1 h"``; NaN is ``"–"``."""
    if not math.isfinite(seconds):
        return "–"
    for limit, size, unit in ((3 * 3600, 3600, "h"), (300, 60, "min")):
        if seconds > limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
