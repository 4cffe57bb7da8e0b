"""Quality against samples and size: a power law for each family and each metric, *what* and *where* apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tournament.power_law import Exponent, Law, Point, fit
from benchmarks.tournament.results import Results
from benchmarks.tournament.table import markdown

MARKS = "os^Dv<>P"


@dataclass
class Curve:
    """One family's errors of one metric.

    Attributes:
        points: of all runs, seeds by themselves.
        perfect: runs without an error, which have no logarithm.
        law: fitted to the points.
    """

    family: str
    label: str
    points: list[Point] = field(default_factory=list)
    perfect: int = 0
    law: Law | None = None


def curves(results: Results) -> list[Curve]:
    """The errors (1 - metric) of every family and every metric that ``fits`` names, and their laws."""
    found = []
    for label, column in results.study.fitted().items():
        for family, methods in results.study.families().items():
            one = Curve(family, label)
            for method in methods:
                row = results.row(method)
                for seed, value in results.values(row, column).items():
                    line = row.records[seed].line
                    if value < 1:
                        one.points.append((float(line["samples"]), float(line["parameters"]), 1 - value))
                    else:
                        one.perfect += 1
            one.law = fit(one.points)
            found.append(one)
    return found


def fit_table(results: Results) -> tuple[str, dict[str, Any]]:
    """The exponents in Markdown, and as numbers."""
    found = curves(results)
    header = [
        "error of",
        "method",
        "runs",
        "samples^-b",
        "parameters^-g",
        "twice the samples",
        "twice the parameters",
        "",
    ]
    lines = [[one.label, one.family, str(len(one.points)), *_exponents(one.law), _told(one)] for one in found]
    notes = "Errors are 1 - metric; `error = a · samples^-b · parameters^-g`, ± is half of Student's 95 % interval."
    numbers = [_numbers(one) for one in found]
    return f"{markdown(header, lines)}\n\n{notes}", {"fits": numbers}


def _exponents(law: Law | None) -> list[str]:
    if law is None:
        return ["–"] * 4
    both = (law.samples, law.parameters)
    return [_exponent(one) for one in both] + [_doubled(one) for one in both]


def _exponent(one: Exponent | None) -> str:
    return f"{one.value:.3f} ± {one.half:.3f}" if one else "–"


def _doubled(one: Exponent | None) -> str:
    if one is None:
        return "–"
    value, low, high = one.doubled()
    return f"error × {value:.2f} ({low:.2f} to {high:.2f})"


def _told(one: Curve) -> str:
    told = []
    if one.law is None:
        told.append("too few runs, or samples and size vary only together")
    elif one.law.bends is not None:
        told.append("falls faster and faster" if one.law.bends > 0 else "levels off")
    if one.perfect:
        told.append(f"{one.perfect} without an error left out")
    return "; ".join(told)


def _numbers(one: Curve) -> dict[str, Any]:
    law = one.law
    found: dict[str, Any] = {"error": one.label, "method": one.family, "runs": len(one.points), "perfect": one.perfect}
    if law:
        for name, exponent in (("samples", law.samples), ("parameters", law.parameters)):
            found[name] = [round(exponent.value, 4), round(exponent.half, 4)] if exponent else None
        found |= {"residual": round(law.residual, 4), "bends": law.bends and round(law.bends, 4)}
    return found


def draw(results: Results, out: Path) -> None:
    """A panel a metric: errors against samples in log axes, a color a family, a mark a size, and the fitted laws."""
    from matplotlib.figure import Figure

    found, labels = curves(results), list(results.study.fitted())
    figure = Figure(figsize=(3.4 * len(labels), 3.4), layout="constrained")
    panels = dict(zip(labels, figure.subplots(1, len(labels), squeeze=False)[0], strict=True))
    families = list(results.study.families())
    sizes = sorted({point[1] for one in found for point in one.points})
    for one in found:
        _draw_curve(panels[one.label], one, f"C{families.index(one.family)}", sizes)
    places = sorted({point[0] for one in found for point in one.points})
    for label, panel in panels.items():
        panel.set(xscale="log", yscale="log", xlabel="samples", title=f"error of {label}")
        panel.set_xticks(places, [f"{place / 1000:,.4g}k" for place in places])
        panel.xaxis.minorticks_off()
        for formatted in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            formatted(lambda value, _: f"{value:.2g}")
        panel.grid(alpha=0.3, which="both")
        panel.spines[["top", "right"]].set_visible(False)
    _legend(figure, families, sizes)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def _draw_curve(panel: Any, one: Curve, color: str, sizes: list[float]) -> None:
    for place, size in enumerate(sizes):
        own = [(samples, error) for samples, parameters, error in one.points if parameters == size]
        if not own:
            continue
        samples, errors = zip(*sorted(own), strict=True)
        panel.plot(samples, errors, MARKS[place % len(MARKS)], color=color, markersize=4, alpha=0.8)
        if one.law:
            along = np.geomspace(min(samples), max(samples), 30)
            panel.plot(along, [one.law.error(float(at), size) for at in along], color=color, linewidth=0.9)


def _legend(figure: Any, families: list[str], sizes: list[float]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=f"C{place}", label=name) for place, name in enumerate(families)]
    handles += [
        Line2D(
            [], [], color="gray", marker=MARKS[place % len(MARKS)], linestyle="", label=f"{size / 1e6:.2g} M parameters"
        )
        for place, size in enumerate(sizes)
    ]
    columns = min(len(handles), max(2, int(2 * len(figure.axes))))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
