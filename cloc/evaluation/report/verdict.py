"""The verdict: in a sentence, what the model on trial does better and worse than the others, and what nobody can tell.

Stands after ``table.py`` and ``dot_plot.py``, whose rows it counts, before ``page.py``. A difference is one only where
its 95 % interval leaves out zero; the sentence says so when it speaks against the model, and when nothing was decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloc.evaluation.metrics.catalog import ALL, Catalog
from cloc.evaluation.metrics.metric import Description
from cloc.evaluation.metrics.regions import BEST
from cloc.evaluation.report.dot_plot import main_questions
from cloc.evaluation.report.formats import MISSING, format_gap
from cloc.evaluation.report.headline import lead_metric, name_model
from cloc.evaluation.report.metrics_file import Entry, runs_of
from cloc.evaluation.report.table import Gap, Row, gap_words, make_row


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one set says.

    Attributes:
        first: the model on trial.
        rival: the other one, or how many there are.
        lead: the set's own metric, or the one that opens its page.
        better: main questions in which the first model is ahead of the best other: the set's own one, then the largest
            lead.
        worse: in which it is behind: the set's own one, then the largest loss.
        open: in which the interval holds zero, or no interval was computed.
        alone: which only the first model answers.
        missing: which only others answer.
    """

    first: str
    rival: str
    lead: str
    better: list[Row]
    worse: list[Row]
    open: list[Row]
    alone: list[Row]
    missing: list[Row]

    @property
    def asked(self) -> int:
        """Main questions that both answer."""
        return len(self.better) + len(self.worse) + len(self.open)

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        return _sentence(self)


def asked_of(own: Description) -> str:
    """A main question in words: of boxes, the question alone."""
    return (own.family or own.label) if own.metric.startswith(BEST) else own.words


def verdict(entry: Entry, catalog: Catalog = ALL) -> Verdict:
    """Counts the main questions of a set, and the metric of its own protocol, which is among them.

    Args:
        entry: of one set in ``metrics.json``; runs of the first model's recipe are no rivals of it.
        catalog: metrics.
    """
    models = list(entry["models"])
    first = models[0] if models else ""
    others = [model for model in models if model not in runs_of(entry, first)]
    rows = _rows(entry, catalog)
    sides: dict[str, list[Row]] = {"better": [], "worse": [], "open": [], "alone": [], "missing": []}
    for row in rows:
        sides[_side(row, first, others)].append(row)
    lead = lead_metric(entry, catalog)
    for side in ("better", "worse", "open"):
        sides[side].sort(key=lambda row: (row.description.metric != lead, -abs(row.gap.value or 0.0)))
    rival = name_model(others[0]) if len(others) == 1 else f"the best of {len(others)} others" if others else ""
    return Verdict(name_model(first), rival, lead, **sides)


def _rows(entry: Entry, catalog: Catalog) -> list[Row]:
    lead = [name for name in [lead_metric(entry, catalog)] if name]
    names = dict.fromkeys([*lead, *main_questions(entry, catalog)])
    best = {model: catalog.best_sources(own) for model, own in entry["models"].items()}
    rows = [make_row(entry, name, best, catalog) for name in names]
    return [row for row in rows if any(cell.value is not None for cell in row.cells)]


def _side(row: Row, first: str, others: Sequence[str]) -> str:
    known = {cell.model for cell in row.cells if cell.value is not None}
    if first not in known:
        return "missing"
    if not known & set(others):
        return "alone"
    if row.gap.interval is None or row.gap.ahead is None:
        return "open"
    return "better" if row.gap.ahead else "worse"


def _sentence(own: Verdict) -> str:
    if not own.first or not (own.asked or own.alone or own.missing):
        return "Nothing was measured."
    if not own.rival:
        return f"Only {own.first} was measured: there is nothing to compare it with."
    if not own.asked:
        return f"{own.first} and {own.rival} answer no main question in common."
    if all(row.gap.interval is None for row in own.open) and own.open and not own.better and not own.worse:
        return f"{_lean(own)} No interval was computed, so this decides nothing."
    if not own.better and not own.worse:
        return f"{own.first} and {own.rival} cannot be told apart in {_any_of(own.asked)} ({_named(own.open[0])})."
    sides = {"better": own.better, "worse": own.worse}
    words = [word for word, rows in sides.items() if rows]
    counted = f"{len(sides[words[0]])} of {own.asked} main questions" if own.asked > 1 else "the one main question"
    parts = [f"{words[0]} than {own.rival} in {counted} {_example(own, sides[words[0]])}"]
    parts += [f"{word} in {len(sides[word])} {_example(own, sides[word])}" for word in words[1:]]
    parts += [f"not told apart in {len(own.open)}"] if own.open else []
    return f"{own.first} is {_listed(parts)}."


def _example(own: Verdict, rows: Sequence[Row]) -> str:
    most = "" if len(rows) == 1 or rows[0].description.metric == own.lead else "most in "
    return f"({most}{_named(rows[0])})"


def _lean(own: Verdict) -> str:
    ahead = sum(row.gap.ahead is True for row in own.open)
    return f"{own.first} has the better value in {ahead} of {_questions(own.asked)} that {own.rival} answers too."


def _any_of(count: int) -> str:
    return f"any of {count} main questions" if count > 1 else "the one main question"


def _questions(count: int) -> str:
    return f"{count} main questions" if count > 1 else "1 main question"


def _named(row: Row) -> str:
    """``“Name a box” +64.3 points, 95 % interval +60.0 to +70.0``."""
    percent = row.description.percent
    interval = f", 95 % interval {gap_words(row.gap, percent)}" if row.gap.interval else ""
    return f"“{asked_of(row.description)}” {row.gap.text}{' points' if percent else ''}{interval}"


@dataclass(frozen=True, slots=True)
class SetLine:
    """One set among several, by its own measure.

    Attributes:
        name: of the set.
        question: what its own measure asks.
        value: of the first model, as shown.
        other: of the best other.
        gap: the difference.
        percent: whether it is one of shares.
        said: ``better``, ``worse``, ``not told apart``, or why there is no comparison.
    """

    name: str
    question: str
    value: str
    other: str
    gap: Gap
    percent: bool
    said: str


def set_line(name: str, entry: Entry, catalog: Catalog = ALL) -> SetLine:
    """What a set says by the metric that it is judged by."""
    lead = lead_metric(entry, catalog)
    if not lead:
        return SetLine(name, "", MISSING, MISSING, Gap(), True, "nothing was measured")
    best = {model: catalog.best_sources(own) for model, own in entry["models"].items()}
    row = make_row(entry, lead, best, catalog)
    first, own = row.cells[0], row.description
    rivals = {cell.model: cell.text for cell in row.cells if cell.value is not None}
    said = {True: "better", False: "worse", None: "not told apart"}[row.gap.ahead]
    if row.gap.value is None:
        said = "no other value" if first.value is not None else "no value"
    elif row.gap.interval is None:
        said = "no interval"
    other = rivals.get(row.gap.rival, MISSING)
    return SetLine(name, asked_of(own), first.text, other, row.gap, own.percent, said)


def over_sets(first: str, rival: str, lines: Sequence[SetLine]) -> str:
    """The verdict of several sets: how many speak for the first model, against it, and neither."""
    count = {said: sum(line.said == said for line in lines) for said in ("better", "worse", "not told apart")}
    compared = sum(count.values())
    if not rival:
        return f"Only {first} was measured, on {len(lines)} sets: there is nothing to compare it with."
    if not compared:
        return f"On none of {len(lines)} sets could {first} and {rival} be compared with an interval."
    if not count["better"] and not count["worse"]:
        return f"By each set's own measure, {first} and {rival} cannot be told apart on any of {compared} sets."
    words = [word for word in ("better", "worse") if count[word]]
    parts = [f"{words[0]} than {rival} on {count[words[0]]} of {len(lines)} sets"]
    parts += [f"{word} on {count[word]}" for word in [*words[1:], "not told apart"] if count[word]]
    left = f"; {len(lines) - compared} could not be compared" if len(lines) > compared else ""
    return f"By each set's own measure, {first} is {_listed(parts)}{left}."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def seeds_sentence(entry: Entry, catalog: Catalog = ALL) -> str:
    """What several trainings say, of the first main question that both recipes answer; empty where there are none."""
    seeds = entry.get("seeds")
    if seeds is None:
        return ""
    trial = next((name for name, own in seeds["groups"].items() if next(iter(entry["models"])) in own["models"]), "")
    found = []
    for other, differences in seeds["differences"].items():
        asked = [row.description for row in _rows(entry, catalog) if row.description.metric in differences]
        found += [_over_seeds(trial, other, asked, differences)] if asked else []
    return " ".join(found)


def _over_seeds(
    trial: str, other: str, asked: Sequence[Description], differences: Mapping[str, Sequence[float]]
) -> str:
    sides = {own.metric: _apart(own, differences[own.metric]) for own in asked}
    better, worse = (sum(side is kind for side in sides.values()) for kind in (True, False))
    own = asked[0]
    value, low, high = (format_gap(number, own.percent) for number in differences[own.metric])
    points = " points" if own.percent else ""
    return (
        f"Over the seeds of training, {name_model(trial)} is better than {name_model(other)} in {better} of "
        f"{_questions(len(asked))}, worse in {worse}, and not told apart in {len(asked) - better - worse}: "
        f"“{asked_of(own)}” differs by {value}{points} (95 % interval {low} to {high})."
    )


def _apart(own: Description, difference: Sequence[float]) -> bool | None:
    _, low, high = difference
    if low > 0 or high < 0:
        return (low > 0) == own.higher_is_better
    return None
