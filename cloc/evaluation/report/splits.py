"""Where the measured model wins and loses: by class and by box size.

Stands beside ``compare.py``: the same outcomes that its metrics are made of, taken apart. One question is asked of
every box (its class, or its phrase where the set has no classes), of each model by its best source. Which metric asks
it, a metric says of itself (``Breakdown``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cloc.evaluation.metrics.bootstrap import BLOCK, LEVELS, draws
from cloc.evaluation.metrics.catalog import Catalog
from cloc.evaluation.metrics.metric import Breakdown
from cloc.evaluation.metrics.outcome import Outcome, Outcomes, Sampled
from cloc.evaluation.metrics.regions import BEST
from cloc.evaluation.report.dot_plot import Dot, DotRow
from cloc.evaluation.report.formats import format_range, format_value
from cloc.evaluation.report.table import Interval, gap_words, make_gap
from cloc.evaluation.sets.eval_set import EvalSet

ENDS = 8  # classes shown at each end
FEWEST = 5  # boxes that a class needs to be shown
BINS = 5

Best = Mapping[str, Mapping[str, str]]  # model → measure → source
Question = tuple[str, Breakdown]  # a measure of boxes or a metric, with how it is taken apart


@dataclass(frozen=True, slots=True)
class ClassPoint:
    """A class with the first model's value (``y``), the other's (``x``), and how many boxes it has."""

    name: str
    x: float
    y: float
    boxes: int


@dataclass(slots=True)
class Classes:
    """The classes of a set by two models.

    Attributes:
        first: the model on outputs.
        rival: the best other; empty where there is none.
        won: classes at the upper end: of the difference, or of the value where there is no rival.
        lost: classes at the lower end, the lowest first.
        points: every class.
        left_out: classes with too few boxes.
    """

    first: str
    rival: str
    won: list[DotRow] = field(default_factory=list)
    lost: list[DotRow] = field(default_factory=list)
    points: list[ClassPoint] = field(default_factory=list)
    left_out: int = 0

    @property
    def ahead(self) -> int:
        """Classes in which the first model names more."""
        return sum(point.y > point.x for point in self.points)

    @property
    def behind(self) -> int:
        """Classes in which it names fewer."""
        return sum(point.y < point.x for point in self.points)


@dataclass(frozen=True, slots=True)
class Split:
    """One question by box size."""

    title: str
    rows: list[DotRow]


def by_class(
    data: EvalSet,
    outcomes: Mapping[str, Outcomes],
    best: Best,
    catalog: Catalog,
    said: Sequence[str],
    samples: int,
    seed: int,
) -> Classes | None:
    """The classes of a set, best and worst for the first model against the best other.

    Args:
        data: the set.
        outcomes: of each model; the first is the one on outputs.
        best: sources.
        catalog: metrics.
        said: what the first model calls each box that has a class.
        samples: resamples behind the intervals; 0 for none.
        seed: of the draws.

    Returns:
        None where the boxes have no classes.
    """
    asked, model = _asked(data, outcomes, best, catalog), next(iter(outcomes))
    label = asked[model].label if model in asked else None
    if label is None:
        return None
    first, *others = asked
    rival = max(others, key=lambda model: asked[model].value, default="")
    count = torch.bincount(label)
    rates = {model: torch.bincount(label, weights=own.values) / count for model, own in asked.items()}
    shown = [index for index in count.nonzero()[:, 0].tolist() if count[index] >= FEWEST]
    found = Classes(first, rival, left_out=int((count > 0).sum()) - len(shown))
    if rival:
        found.points = [
            ClassPoint(data.categories[i], float(rates[rival][i]), float(rates[first][i]), int(count[i])) for i in shown
        ]
    order = sorted(
        shown, key=lambda i: (-float(rates[first][i] - (rates[rival][i] if rival else 0)), data.categories[i])
    )
    ends = min(ENDS, len(order) // 2) if len(order) > 1 else len(order)
    chosen = {data.categories[i]: label == i for i in [*order[:ends], *reversed(order[len(order) - ends :])]}
    compared = {model: asked[model] for model in ([first, rival] if rival else [first])}
    taken = {name: _taken(name, mask, said) for name, mask in chosen.items()}
    rows = _rows(chosen, taken, compared, samples, seed)
    found.won, found.lost = rows[:ends], rows[ends:]
    return found


def _taken(name: str, mask: Tensor, said: Sequence[str]) -> str:
    """What boxes of a class are called: ``"31 boxes; 4 taken for tomato"``."""
    wrong = Counter(said[i] for i in mask.nonzero()[:, 0].tolist() if said[i] != name)
    most = f"; {wrong.most_common(1)[0][1]} taken for {wrong.most_common(1)[0][0]}" if wrong else ""
    return f"{int(mask.sum())} boxes{most}"


def by_size(
    data: EvalSet, outcomes: Mapping[str, Outcomes], best: Best, catalog: Catalog, samples: int, seed: int
) -> list[Split]:
    """Naming boxes, and finding them, by how large they are in their picture: five parts of equal number."""
    splits = []
    asked = _asked(data, outcomes, best, catalog)
    if asked and (question := _box_question(best, catalog)) is not None:
        boxes = [box for box, classed in _boxes(data) if classed or question[1].asked_of == "boxes"]
        splits.append(Split(question[1].title, _size_rows(_sides(boxes), asked, samples, seed)))
    measured = {name: _breakdown(catalog, name) for own in outcomes.values() for name in own}
    if (question := _first(measured, of_phrases=True)) is not None:
        found = {model: own[question[0]] for model, own in outcomes.items() if question[0] in own}
        owned = [
            max((region.box for region in sample.regions if phrase in region.phrases), key=lambda box: _side(box))
            for sample, phrases in zip(data.samples, data.phrases, strict=True)
            for phrase in phrases
        ]
        splits.append(Split(question[1].title, _size_rows(_sides(owned), found, samples, seed)))
    return splits


def _breakdown(catalog: Catalog, name: str) -> Breakdown | None:
    return catalog.describe(name).shown.breakdown


def box_measure(best: Best, catalog: Catalog) -> str | None:
    """The measure of boxes that is taken apart: the first in place of those that were measured; None for none."""
    question = _box_question(best, catalog)
    return None if question is None else question[0]


def _box_question(best: Best, catalog: Catalog) -> Question | None:
    measured = {measure: _breakdown(catalog, f"{BEST}{measure}") for own in best.values() for measure in own}
    return _first(measured, of_phrases=False)


def _first(measured: Mapping[str, Breakdown | None], of_phrases: bool) -> Question | None:
    asked = [(name, own) for name, own in measured.items() if own and (own.asked_of == "phrases") == of_phrases]
    return min(asked, key=lambda question: question[1].place, default=None)


def _boxes(data: EvalSet) -> list[tuple[Sequence[float], bool]]:
    """Every box of the set, and whether it has a class."""
    named = set(data.categories)
    return [(region.box, region.category in named) for sample in data.samples for region in sample.regions]


def _asked(data: EvalSet, outcomes: Mapping[str, Outcomes], best: Best, catalog: Catalog) -> dict[str, Outcome]:
    """What was asked of every box, of each model by its best source; with the class where there is one."""
    question = _box_question(best, catalog)
    if question is None:
        return {}
    measure, classed = question[0], question[1].asked_of == "classed boxes"
    found = {}
    for model, own in outcomes.items():
        if measure in best[model]:
            one = own[f"region/{best[model][measure]}/{measure}"]
            found[model] = Outcome(one.values, one.group, _labels(data) if classed else None)
    return found


def _labels(data: EvalSet) -> Tensor:
    """``[Q]`` int64: the class of each box that has one."""
    place = {name: i for i, name in enumerate(data.categories)}
    regions = [region for sample in data.samples for region in sample.regions]
    return torch.tensor([place[region.category] for region in regions if region.category in place])


def _side(box: Sequence[float]) -> float:
    side: float = ((box[2] - box[0]) * (box[3] - box[1])) ** 0.5
    return side


def _sides(boxes: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([_side(box) for box in boxes], dtype=torch.float64)


def _size_rows(sides: Tensor, asked: Mapping[str, Sampled], samples: int, seed: int) -> list[DotRow]:
    bounds = np.unique(np.quantile(sides.numpy(), np.linspace(0, 1, BINS + 1)))
    parts, notes = {}, {}
    for place, (low, high) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        mask = (sides >= low) & ((sides < high) if place < len(bounds) - 2 else (sides <= high))
        label = f"side {100 * low:.0f}–{100 * high:.0f}%"
        if mask.any():
            parts[label], notes[label] = mask, f"{int(mask.sum()):,} asked"
    return _rows(parts, notes, asked, samples, seed)


def _rows(
    parts: Mapping[str, Tensor], notes: Mapping[str, str], asked: Mapping[str, Sampled], samples: int, seed: int
) -> list[DotRow]:
    """A row for each part of the questions, with intervals over pictures; all models on the same draws."""
    cut = {
        (label, model): Outcome(own.values[mask], own.group[mask])
        for label, mask in parts.items()
        for model, own in asked.items()
    }
    drawn = _resampled(cut, samples, seed)
    first, *others = asked
    rival = max(others, key=lambda model: asked[model].value, default="")
    rows = []
    for label in parts:
        dots = []
        for model in asked:
            value, interval = cut[label, model].value, _percentiles(drawn.get((label, model)))
            words = format_range(*interval, percent=True) if interval else ""
            dots.append(Dot(model, value, format_value(value, True), interval, words))
        row = DotRow(label, notes[label], dots)
        if rival:
            paired = _percentiles(drawn[label, first] - drawn[label, rival]) if drawn else None
            gap = make_gap(cut[label, first].value - cut[label, rival].value, rival, paired, percent=True)
            row = DotRow(label, notes[label], dots, gap, gap_words(gap, True))
        rows.append(row)
    return rows


def _resampled(cut: Mapping[tuple[str, str], Outcome], samples: int, seed: int) -> dict[tuple[str, str], Tensor]:
    if not cut or not samples:
        return {}
    pictures = max(int(own.group.max()) for own in cut.values()) + 1
    parts: dict[tuple[str, str], list[Tensor]] = {name: [] for name in cut}
    for block, start in enumerate(range(0, samples, BLOCK)):
        weights = draws(pictures, min(BLOCK, samples - start), seed, block)
        for name, own in cut.items():
            parts[name].append(own.resampled(weights))
    return {name: torch.cat(rows) for name, rows in parts.items()}


def _percentiles(rows: Tensor | None) -> Interval | None:
    if rows is None or bool(rows.isnan().all()):
        return None
    low, high = np.nanpercentile(rows.numpy(), LEVELS)
    return float(low), float(high)
