"""Tables in Markdown from a ledger alone: means over seeds, differences to the baseline, the search of each method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from benchmarks.tournament.plan import Search, Trial, search
from benchmarks.tournament.results import Results, Row, mean
from benchmarks.tournament.spread import Estimate, difference, estimate, holm
from benchmarks.tournament.study import COSTS, Study, Table
from cloc.config import ConfigError

NONE = "–"


@dataclass
class Comparison:
    """A cell of the second table: a method's column less the baseline's."""

    method: str
    label: str
    estimate: Estimate
    is_clear: bool = False


def table(results: Results, name: str = "", dataset: str = "") -> tuple[str, dict[str, Any]]:
    """The tables of a study: values, then differences to the baseline.

    Args:
        results: a study and its ledger.
        name: of one of the study's tables; of all methods unless given.
        dataset: set that columns which name none are of; the first test set unless given.

    Returns:
        Markdown, and the same as numbers.
    """
    study = results.study
    wanted = _of_set(study, study.table(name), dataset)
    rows = [results.row(method) for method in wanted.methods or study.in_order()]
    parts = [_values(results, wanted, rows)]
    baseline = wanted.baseline or study.baseline
    compared = _compare(results, wanted, rows, baseline) if baseline else []
    if compared:
        parts.append(_differences(study, wanted, rows, compared, baseline))
    parts.append(_notes(results, rows, compared, baseline))
    return "\n\n".join(parts), {"rows": _numbers(results, wanted, rows), "comparisons": len(compared)}


def _of_set(study: Study, wanted: Table, dataset: str) -> Table:
    if not dataset:
        return wanted
    if dataset not in study.test:
        raise ConfigError(f"--set {dataset}: no test set of {study.name}; known are {', '.join(study.test)}")
    named = {
        label: one if one in COSTS or study.place(one)[1] != one else f"{dataset}:{one}"
        for label, one in wanted.columns.items()
    }
    return Table(named, wanted.methods, wanted.baseline)


def _values(results: Results, wanted: Table, rows: list[Row]) -> str:
    lines = [
        [
            label_of(results.study, row.method),
            _inline(row.n),
            *(_cell(results, row, one) for one in wanted.columns.values()),
        ]
        for row in rows
    ]
    return markdown(["", "n", *wanted.columns], lines)


def _cell(results: Results, row: Row, column: str) -> str:
    values = results.values(row, column)
    if not values:
        return NONE
    if column == "parameters":
        return f"{(mean(values) or 0) / 1e6:.2f} M"
    if column in COSTS:
        return f"{mean(values):,.0f}"
    found = estimate(list(values.values()))
    few = f" (n={found.n})" if found.n < len(row.records) else ""
    return with_half(found) + few


def with_half(found: Estimate, sign: str = "") -> str:
    """``0.924 ± 0.003``; without an interval where there is one value."""
    half = f" ± {found.half:.3f}" if math.isfinite(found.half) else ""
    return f"{found.mean:{sign}.3f}{half}"


def _compare(results: Results, wanted: Table, rows: list[Row], baseline: str) -> list[Comparison]:
    base, found = results.row(baseline), []
    for row in rows:
        for label, column in wanted.columns.items():
            if row.method == baseline or column in COSTS:
                continue
            less = difference(results.values(row, column), results.values(base, column))
            if less is not None:
                found.append(Comparison(row.method, label, less))
    tested = [one for one in found if one.estimate.n > 1]
    for one, is_clear in zip(tested, holm([one.estimate.p for one in tested]), strict=True):
        one.is_clear = is_clear
    return found


def _differences(study: Study, wanted: Table, rows: list[Row], compared: list[Comparison], baseline: str) -> str:
    cells = {(one.method, one.label): _marked(one) for one in compared}
    labels = [label for label in wanted.columns if any(one.label == label for one in compared)]
    lines = [
        [label_of(study, row.method), *(cells.get((row.method, label), NONE) for label in labels)]
        for row in rows
        if row.method != baseline
    ]
    return markdown([f"less {label_of(study, baseline)}", *labels], lines)


def _marked(one: Comparison) -> str:
    mark = "**" if one.is_clear else ""
    return f"{mark}{with_half(one.estimate, '+')}{mark}"


def _notes(results: Results, rows: list[Row], compared: list[Comparison], baseline: str) -> str:
    notes = ["Mean ± half of Student's 95 % interval over n seeds."]
    if compared:
        tested = [one for one in compared if one.estimate.n > 1]
        alone = sum(abs(one.estimate.mean) > one.estimate.half for one in tested)
        kept = sum(one.is_clear for one in tested)
        notes.append(
            f"Differences are paired by seed: {len(tested)} comparisons, {alone} whose own interval leaves out zero, "
            f"{kept} bold: they still do after Holm's correction over all of them."
        )
    if failed := sum(len(row.failed) for row in rows):
        notes.append(f"Failed runs: {failed}.")
    if lost := sum(results.failed_trials(row.method) for row in rows):
        notes.append(f"{lost} runs of the search failed and were no candidates: `search` has their reasons.")
    if old := sum(results.remeasured(row) for row in rows):
        notes.append(
            f"{old} runs were measured with other overrides than the study has now; `run` measures them again."
        )
    return " ".join(notes)


def _numbers(results: Results, wanted: Table, rows: list[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in rows:
        means = {label: mean(results.values(row, one)) for label, one in wanted.columns.items()}
        found[row.method] = {"n": row.n, **{label: round(one, 5) for label, one in means.items() if one is not None}}
    return found


def search_table(results: Results) -> tuple[str, dict[str, Any]]:
    """Every setting that was tried, the criterion's value, which was chosen, and what lies at the edge of its grid."""
    study, lines, numbers = results.study, [], {}
    for method in study.in_order():
        found = search(study, results.book, method)
        numbers[method] = {"settings": found.settings, "edges": found.edges, "done": found.is_done}
        lines += [_tried(study, found, method, trial) for trial in found.trials] or [_untried(study, found, method)]
    text = markdown(["", "searched", "setting", "criterion", ""], lines)
    seed = f"Seed {study.search_seed} on `{study.validation}`; the criterion is the mean of a method's metrics."
    return f"{text}\n\n{seed}", {"chosen": numbers}


def _tried(study: Study, found: Search, method: str, trial: Trial) -> list[str]:
    settings = dict(trial.job.settings)
    value = settings.get(trial.axis, study.axes[trial.axis].default)
    shown = "; ".join(f"{key}={one}" for key, one in {**settings, trial.axis: value}.items())
    is_chosen = found.settings.get(trial.axis) == value
    mark = "**chosen**" if is_chosen else ""
    if is_chosen and trial.axis in found.edges:
        mark += ", at the edge of its grid"
    criterion = (
        f"{trial.value:.3f}" if trial.value is not None else f"failed: {trial.failed}" if trial.failed else "not run"
    )
    return [label_of(study, method), f"`{trial.axis}`", f"`{shown}`", _inline(criterion), mark]


def _untried(study: Study, found: Search, method: str) -> list[str]:
    own = study.methods[method]
    told = (
        f"waits for {found.waits_for}"
        if found.waits_for
        else f"inherits from {own.inherits}"
        if own.inherits
        else "no search"
    )
    shown = "; ".join(f"`{key}={value}`" for key, value in found.settings.items())
    return [label_of(study, method), NONE, shown or NONE, NONE, told]


def label_of(study: Study, method: str) -> str:
    """What a method is called in tables."""
    return study.methods[method].label or method


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _inline(text: str) -> str:
    """A reason within a cell: what it says of programs breaks no table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
