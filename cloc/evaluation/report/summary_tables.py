"""Tables beside those of all numbers: sets at a glance, cost, runs of several seeds, training.

Stands after ``verdict.py`` and ``exported_tables.py``, before ``page.py``. The page and the files are made of
the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cloc.evaluation.metrics.catalog import ALL, Catalog
from cloc.evaluation.metrics.regions import SOURCES
from cloc.evaluation.report.dot_plot import main_questions
from cloc.evaluation.report.exported_tables import ExportedTable, Line, Value, bounds, file_name, gap_value
from cloc.evaluation.report.formats import MISSING, format_gap, format_value, plain_number
from cloc.evaluation.report.headline import lead_metric
from cloc.evaluation.report.metrics_file import Cost, Entry, Recipe, Spread
from cloc.evaluation.report.table import reading_order
from cloc.evaluation.report.verdict import SetLine, asked_of

NOTHING = Value(MISSING)


def sets_table(first: str, lines: Sequence[SetLine]) -> ExportedTable:
    """Every set by the measure that it is judged by."""
    rows = [
        Line(
            own.name,
            [
                Value(own.question),
                Value(own.value),
                Value(own.other, note=own.gap.rival),
                gap_value(own.gap, own.percent),
                Value(own.said),
            ],
        )
        for own in lines
    ]
    columns = ["Set", "Its own measure", first, "Best other", "Δ", "Verdict"]
    return ExportedTable("sets", "Every set by its own measure", columns, rows)


def cost_table(cost: Mapping[str, Cost]) -> ExportedTable | None:
    """What each model costs; None where nothing was counted."""
    if not cost:
        return None
    sources = list(dict.fromkeys(source for own in cost.values() for source in own.get("boxes_per_second", {})))
    rows: list[tuple[str, str, Sequence[float | None]]] = [
        ("Parameters", "", [own.get("parameters") for own in cost.values()]),
        *(
            (f"of the {word}", "", [own.get("parameters_of", {}).get(part) for own in cost.values()])
            for part, word in PARTS.items()
            if any(part in own.get("parameters_of", {}) for own in cost.values())
        ),
        ("A picture", "ms", [own.get("picture_ms") for own in cost.values()]),
        *(
            (
                f"Boxes a second, {SOURCES.get(source, source)}",
                "",
                [own.get("boxes_per_second", {}).get(source) for own in cost.values()],
            )
            for source in sources
        ),
        ("Phrases a second, grounding", "", [own.get("phrases_per_second") for own in cost.values()]),
    ]
    lines = [
        Line(f"{label} ({unit})" if unit else label, [_number(value) for value in values])
        for label, unit, values in rows
        if any(value is not None for value in values)
    ]
    return ExportedTable("cost", cost_words(cost), ["Cost", *cost], lines)


PARTS = {"image": "image tower", "text": "text tower", "prompter": "Prompter", "grounding": "grounding head"}


def _number(value: float | None) -> Value:
    return NOTHING if value is None else Value(plain_number(value), value)


def cost_words(cost: Mapping[str, Cost]) -> str:
    """On what the models were timed, in a sentence for each machine and count that differs."""
    said: dict[str, list[str]] = {}
    for model, own in cost.items():
        threads = f", {own['threads']} thread{'s' * (own['threads'] != 1)}" if "threads" in own else ""
        words = f"{own.get('device', 'unknown device')}{threads}, {own.get('precision', 'unknown precision')}"
        if "pictures" in own:
            boxes = f" with {own['boxes']} boxes" if own.get("boxes") else ""
            words += f"; warm, median of {own.get('repeats', 1)} passes over {own['pictures']} pictures{boxes}"
            words += f" of {own['data']}" if "data" in own else ""
        said.setdefault(words, []).append(model)
    alike = len(said) == 1
    return " ".join(f"{words}." if alike else f"{', '.join(models)}: {words}." for words, models in said.items())


def cost_line(cost: Mapping[str, Cost]) -> list[str]:
    """Cost beside quality, a sentence a model: ``"cloc: 2.1 ms a picture, 9,800 boxes/s by the Prompter."``."""
    found = []
    for model, own in cost.items():
        parts = [f"{plain_number(own['picture_ms'])} ms a picture"] if "picture_ms" in own else []
        rates = own.get("boxes_per_second", {})
        if rates:
            source = "prompter" if "prompter" in rates else max(rates, key=rates.__getitem__)
            parts.append(f"{plain_number(rates[source])} boxes/s by {SOURCES.get(source, source)}")
        if parts:
            found.append(f"{model}: {', '.join(parts)}.")
    return found


def seeds_table(name: str, entry: Entry, catalog: Catalog = ALL) -> ExportedTable | None:
    """Runs of several seeds: mean and standard error by recipe, and the differences; None where there are none."""
    seeds = entry.get("seeds")
    if seeds is None or not seeds["groups"]:
        return None
    groups, differences = seeds["groups"], seeds["differences"]
    wanted = dict.fromkeys([lead_metric(entry, catalog), *main_questions(entry, catalog)])
    known = dict.fromkeys(metric for own in groups.values() for metric in own["metrics"])
    chosen = [metric for metric in wanted if metric in known]
    rest = sorted(
        (metric for metric in known if metric not in wanted), key=lambda m: reading_order(catalog.describe(m))
    )
    lines = []
    for metric in [*chosen, *rest]:
        own = catalog.describe(metric)
        values = [_spread(group["metrics"].get(metric), group, own.percent) for group in groups.values()]
        values += [_difference(gaps.get(metric), own.percent) for gaps in differences.values()]
        label = asked_of(own) if metric in wanted else own.words
        lines.append(Line(label, values, "Main questions" if metric in wanted else "All measurements", metric))
    columns = ["Metric", *(f"{name} ({len(own['models'])} runs)" for name, own in groups.items())]
    columns += [f"Δ to {other}" for other in differences]
    caption = f"Mean over seeds ± standard error of the mean, on {name}"
    return ExportedTable(file_name(name, "seeds"), caption, columns, lines)


def _spread(found: Spread | None, group: Recipe, percent: bool) -> Value:
    if found is None:
        return NOTHING
    scale, digits = (100, 1) if percent else (1, 3)
    text = f"{format_value(found['mean'], percent)} ± {scale * found['error']:.{digits + 1}f}"
    singles = [format_value(value, percent) for value in found["values"]]
    more = {"standard error": found["error"]}
    more |= {f"seed {seed}": value for seed, value in zip(group["seeds"], found["values"], strict=True)}
    return Value(text, found["mean"], more, " ".join(singles))


def _difference(found: Sequence[float] | None, percent: bool) -> Value:
    if found is None:
        return NOTHING
    value, low, high = found
    span = f"{format_gap(low, percent)} to {format_gap(high, percent)}"
    return Value(format_gap(value, percent), value, bounds((low, high)), span)


def training_table(training: Mapping[str, Mapping[str, str | float]]) -> ExportedTable | None:
    """Facts of the models' training."""
    keys = list(dict.fromkeys(key for facts in training.values() for key in facts))
    lines = [Line(key, [_fact(facts.get(key)) for facts in training.values()]) for key in keys]
    return ExportedTable("training", "Training", ["Fact", *training], lines) if lines else None


def _fact(value: str | float | None) -> Value:
    if isinstance(value, str):
        return Value(value)
    return _number(value if value is None or value == value else None)
