"""Learning curves of runs against samples and against seconds: the pictures of docs/results.md.

    python -m benchmarks.curves runs/curves/cloc_muon runs/curves/cloc_adamw --out docs/images/curves.png

Reads what the runs measured on their way (`evaluation.every`), draws one row of panels a metric, and prints a table of
every metric at the last sample count and at the last second that all runs with that metric have reached (linear
between two measurements). Its last line is one JSON object. Seconds are of training, without measuring.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cloc.usage import Parser, one_line

METRICS = ["region/prompter/top1", "grounding/any/acc@0.5", "image_text/text_to_image_R@1"]
AXES = ("samples", "seconds")
Curve = dict[str, list[float]]


def curve(run: Path, metric: str) -> Curve | None:
    """Samples, seconds and values of a metric in a run's ``metrics.csv``; None where it was not measured.

    Raises:
        FileNotFoundError: no such run.
        ValueError: the metric was measured on more than one set.
    """
    with (run / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    columns = {name for name in rows[0] if name.startswith("val/") and name.split("/", 2)[2] == metric}
    if not columns:
        return None
    if len(columns) > 1:
        raise ValueError(f"{run}: {metric} was measured on several sets: {', '.join(sorted(columns))}")
    column = columns.pop()
    rows = [row for row in rows if row[column]]
    found = {axis: [float(row[axis]) for row in rows] for axis in AXES}
    return found | {"value": [float(row[column]) for row in rows]} if rows else None


def at(curves: dict[str, Curve], axis: str) -> tuple[float, dict[str, float]]:
    """The last place on an axis that all curves reach, and every curve's value there."""
    place = min(one[axis][-1] for one in curves.values())
    return place, {name: float(np.interp(place, one[axis], one["value"])) for name, one in curves.items()}


def draw(found: dict[str, dict[str, Curve]], out: Path) -> None:
    """One row of panels a metric: against samples, against seconds."""
    figure = Figure(figsize=(10, 2.9 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), len(AXES), squeeze=False, sharey="row")
    names = sorted({name for curves in found.values() for name in curves})
    for row, (metric, curves) in zip(panels, found.items(), strict=True):
        for panel, axis in zip(row, AXES, strict=True):
            for name, one in curves.items():
                color = f"C{names.index(name)}"
                panel.plot(one[axis], one["value"], marker="o", markersize=3, label=name, color=color)
            panel.set_xlabel(axis)
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(metric.replace("image_text/", ""))
    shown = [line for row in panels for line in row[0].lines]
    handles = {line.get_label(): line for line in shown}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=min(4, len(handles)), frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m benchmarks.curves")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders; a folder's name is its curve's")
    parser.add_argument("--metrics", nargs="+", default=METRICS)
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    return parser


def main() -> None:
    """Draw, print the table in Markdown, and the JSON line."""
    parser = make_parser()
    options = parser.parse_args()
    found: dict[str, dict[str, Curve]] = {}
    for metric in options.metrics:
        curves = {run.name: one for run in options.runs if (one := curve(run, metric))}
        if curves:
            found[metric] = curves
    if not found:
        parser.error(f"no run measured any of {', '.join(options.metrics)}; set evaluation.every in training")
    draw(found, options.out)
    print("| metric | at equal |" + "".join(f" {run.name} |" for run in options.runs))
    print("|---|---|" + "---|" * len(options.runs))
    result: dict[str, dict[str, dict[str, float]]] = {}
    for metric, curves in found.items():
        for axis in AXES:
            place, values = at(curves, axis)
            result.setdefault(metric, {})[axis] = values
            cells = [f"{values[run.name]:.3f}" if run.name in values else "–" for run in options.runs]
            print(f"| `{metric}` | {place:,.0f} {axis} | {' | '.join(cells)} |")
    print(json.dumps(result))


if __name__ == "__main__":
    one_line(main)
