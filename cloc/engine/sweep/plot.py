"""The picture of a sweep: region and image metrics against the swept values (part of ``sweep``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloc.engine.sweep.values import is_number, label, order
from cloc.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cloc.engine.sweep.jobs import Row

LABEL = 22  # letters of a value at an axis
INK, LINE, BEST = "#1f2a33", "#2a6f97", "#d1495b"


def plot(
    path: Path,
    title: str,
    keys: Sequence[str],
    rows: Sequence[Row],
    metrics: Sequence[str],
    lower: frozenset[str] = frozenset(),
) -> bool:
    """Draw one panel a metric: a map over two swept keys that form a grid, else one line or scatter a key.

    Args:
        path: PNG to write.
        title: of the picture.
        keys: swept keys.
        rows: values and metrics.
        metrics: to draw, in this order; those without a finite value are left out.
        lower: of which a smaller value is the better one.

    Returns:
        Whether there was anything to draw.
    """
    metrics = [metric for metric in metrics if any(math.isfinite(_value(row, metric)) for row in rows)]
    if not metrics:
        return False
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from cloc.engine.sweep.jobs import short

    grid = len(keys) == 2 and _is_grid(rows)
    down = 1 if grid else max(1, len(keys))
    across = len(metrics)
    wrap = (2 if across in (2, 4) else min(across, 3)) if grid else across
    shape = (math.ceil(across / wrap), wrap) if grid else (down, across)
    figure, axes = plt.subplots(*shape, figsize=(3.6 * shape[1], 3.2 * shape[0]), squeeze=False, layout="constrained")
    figure.suptitle(title, color=INK, fontweight="bold")
    flat = list(axes.flat)
    if grid:
        for axis, metric in zip(flat, metrics, strict=False):
            _map(axis, keys, rows, metric, metric in lower)
            axis.set_title(short(metric, metrics), color=INK, fontsize=10)
        for axis in flat[across:]:
            axis.set_axis_off()
    else:
        for line, key in enumerate(keys or ["job"]):
            for column, metric in enumerate(metrics):
                axis = axes[line][column]
                values = [row.values[line] if keys else row.jobs[0] for row in rows]
                _curve(axis, key, values, rows, metric, metric in lower)
                if line == 0:
                    axis.set_title(short(metric, metrics), color=INK, fontsize=10)
    write_file(path, lambda file: figure.savefig(file, format="png", dpi=150))
    plt.close(figure)
    return True


def _value(row: Row, metric: str) -> float:
    return row.metrics.get(metric, (math.nan,))[0]


def _is_grid(rows: Sequence[Row]) -> bool:
    """Whether every combination of the two keys' values is there, once."""
    places = {tuple(map(label, row.values)) for row in rows}
    across, down = ({place[i] for place in places} for i in (1, 0))
    return len(across) * len(down) == len(places) == len(rows) and len(across) > 1 and len(down) > 1


def _ordered(values: Sequence[Any]) -> list[str]:
    """The distinct values in words, in their order."""
    return list(dict.fromkeys(label(value) for value in sorted(values, key=order)))


def _tick(text: str) -> str:
    """A value at an axis: a node's arguments would leave no room for the chart."""
    return text if len(text) <= LABEL else f"{text[: LABEL - 1]}…"


def _map(axis: Axes, keys: Sequence[str], rows: Sequence[Row], metric: str, lower: bool) -> None:
    down, across = _ordered([row.values[0] for row in rows]), _ordered([row.values[1] for row in rows])
    table = [[math.nan] * len(across) for _ in down]
    for row in rows:
        table[down.index(label(row.values[0]))][across.index(label(row.values[1]))] = _value(row, metric)
    axis.imshow(table, cmap="YlGnBu", origin="lower", aspect="auto")
    present = [value for line in table for value in line if math.isfinite(value)]
    low, high = min(present), max(present)
    best = low if lower else high
    for y, line in enumerate(table):
        for x, value in enumerate(line):
            dark = high > low and (value - low) / (high - low) > 0.6
            weight = "bold" if value == best else "normal"
            text = f"{value:.3f}" if math.isfinite(value) else "–"
            axis.text(x, y, text, ha="center", va="center", color="white" if dark else INK, fontweight=weight)
    axis.set_xticks(range(len(across)), [_tick(text) for text in across])
    axis.set_yticks(range(len(down)), [_tick(text) for text in down])
    axis.set_xlabel(keys[1], color=INK)
    axis.set_ylabel(keys[0], color=INK)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, colors=INK)


def _curve(axis: Axes, key: str, values: Sequence[Any], rows: Sequence[Row], metric: str, lower: bool) -> None:
    numbers = all(map(is_number, values))
    places = _ordered(values)
    points = [
        (float(value) if numbers else places.index(label(value)), *row.metrics[metric])
        for value, row in zip(values, rows, strict=True)
        if math.isfinite(_value(row, metric))
    ]
    points.sort()
    xs, ys, errors = (list(column) for column in zip(*points, strict=True))
    once = len(set(xs)) == len(xs)  # several rows a value: other keys differ too, and a line would mislead
    bars = [0 if math.isnan(error) else error for error in errors]
    axis.errorbar(xs, ys, yerr=bars, fmt="o-" if once and numbers else "o", color=LINE, lw=1.5, ms=5, capsize=3)
    best = (min if lower else max)(range(len(ys)), key=ys.__getitem__)
    axis.plot(xs[best], ys[best], "o", color=BEST, ms=8)
    axis.annotate(
        f"{ys[best]:.3f}", (xs[best], ys[best]), xytext=(0, 8), textcoords="offset points", ha="center", color=BEST
    )
    axis.margins(x=0.1, y=0.2)
    if not numbers:
        axis.set_xticks(range(len(places)), [_tick(text) for text in places])
    elif min(xs) > 0 and max(xs) / min(xs) >= 8:
        axis.set_xscale("log")
    axis.set_xlabel(key, color=INK)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=INK)
