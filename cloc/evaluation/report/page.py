"""The evaluation report: one self-contained page from metrics, curves and held-out pictures.

The last step of ``evaluation``: ``compare.py`` gathers a ``ReportData`` and calls ``write_report``. The page exists for
two readers: the researcher who compares numbers, and the newcomer who wants to see what a model says about a picture.
It needs no network, no script and no other file; its tables also lie beside it, as CSV and LaTeX::

    write_report(ReportData(title="CLOC and CLIP on OpenMoji scenes", …), Path("runs/demo/report"))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cloc.evaluation.metrics.catalog import Catalog
from cloc.evaluation.metrics.regions import SOURCE_MEANING, SOURCES
from cloc.evaluation.report import headline
from cloc.evaluation.report.charts import Line, curve_chart, scatter_chart
from cloc.evaluation.report.dot_plot import dot_chart, overview
from cloc.evaluation.report.exported_tables import ExportedTable, comparison, file_name, unique
from cloc.evaluation.report.formats import format_value, plain_number, plain_seconds
from cloc.evaluation.report.picture_drawing import (
    DASHES,
    Box,
    Encoded,
    Shape,
    encode_picture,
    heat_picture,
    iou,
    overlay,
)
from cloc.evaluation.report.report_data import Case, DatasetReport, Heat, ReportData
from cloc.evaluation.report.summary_tables import (
    cost_line,
    cost_table,
    cost_words,
    seeds_table,
    sets_table,
    training_table,
)
from cloc.evaluation.report.table import Group, absences, apart, cell_words, compare, gap_words
from cloc.evaluation.report.terms import Explainer
from cloc.evaluation.report.verdict import SetLine, Verdict, over_sets, seeds_sentence, set_line, verdict
from cloc.files import make_folder, write_file

TEMPLATES = Path(__file__).parent / "templates"
PICTURE_BUDGET = 2_100_000  # characters of data URIs; leaves room for heat maps, tables, text and SVG below 3 MB
PICTURE_STEPS = ((560, 80), (460, 76), (380, 70), (300, 60))  # (long side in pixels, JPEG quality), tried in order


def _owner(label: str) -> str:
    """The model in a label such as ``"cloc · prompter"``."""
    return label.partition(" · ")[0]


def _how(label: str) -> str:
    """A label with the source's full name: ``"cloc · Prompter"``."""
    owner, _, source = label.partition(" · ")
    return f"{owner} · {SOURCES.get(source, source)}" if source else owner


def _cases(entry: DatasetReport) -> Iterator[Case]:
    """Every picture of a set, those that stand in several places as often."""
    if entry.typical is not None:
        yield entry.typical
    for gallery in entry.galleries:
        yield from gallery.cases


def _styles(data: ReportData) -> dict[str, int]:
    """Model → number of its color and dashes, alike over the whole page."""
    names = [model for entry in data.data for model in entry.models]
    names += [curve.model for curve in data.curves]
    labels = [label for entry in data.data for case in _cases(entry) for label in (*case.named, *case.grounded)]
    names += map(_owner, labels)
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _listing(case: Case) -> str:
    return ", ".join(f"{number} {phrase}" for number, phrase in enumerate(case.phrases, 1)) or "no box"


def _overlap(case: Case, index: int, predicted: Box) -> float | None:
    """IoU of a prediction with the best of the boxes that the phrase owns."""
    owned = [box for box, phrase in zip(case.boxes, case.phrases, strict=True) if phrase == case.phrases[index]]
    overlaps = [value for box in owned if (value := iou(box, predicted)) is not None]
    return max(overlaps, default=None)


def _card(case: Case, picture: Encoded) -> dict[str, Any]:
    """A picture with its boxes, and for each box what every model calls it and how well it finds its phrase."""
    given = {label: boxes for label, boxes in case.grounded.items() if boxes}
    shapes = [Shape(number, box) for number, box in enumerate(case.boxes, 1)]
    for pattern, boxes in enumerate(given.values(), 1):
        near = [(iou(box, truth) or 0) >= 0.5 for box, truth in zip(boxes, case.boxes, strict=True)]
        shapes += [Shape(n, box, pattern, not hit) for n, (box, hit) in enumerate(zip(boxes, near, strict=True), 1)]
    rows = []
    for index, phrase in enumerate(case.phrases):
        names = [(_owner(label), *answers[index]) for label, answers in case.named.items()]
        found = [(label, _overlap(case, index, boxes[index])) for label, boxes in given.items()]
        rows.append((index + 1, phrase, names, found))
    return {
        "key": case.key,
        "picture": picture,
        "overlay": overlay(shapes, *case.image.size),
        "alt": f"Picture {case.key} with numbered boxes: {_listing(case)}",
        "rows": rows,
        "more": case.more,
    }


def _legend(entry: DatasetReport) -> dict[str, Any]:
    """Which source named boxes, and whose boxes are dashed how."""
    cases = list(_cases(entry))
    grounded = dict.fromkeys(label for case in cases for label, boxes in case.grounded.items() if boxes)
    return {
        "named": list(dict.fromkeys(label for case in cases for label in case.named)),
        "grounded": [(label, DASHES[number % len(DASHES)]) for number, label in enumerate(grounded, 1)],
    }


def _heat(heat: Heat) -> dict[str, Any]:
    """One phrase over one picture: the picture with the true boxes, and each model's map of it."""
    picture = encode_picture(heat.image, 256, 76)
    boxes = overlay([Shape(1, box, badge=False) for box in heat.boxes], *heat.image.size)
    panels = [
        (label, heat_picture(heat.image, cosines), f"{cosines.min():.2f} to {cosines.max():.2f}".replace("-", "−"))
        for label, cosines in heat.maps.items()
    ]
    return {"phrase": heat.phrase, "key": heat.key, "picture": picture, "overlay": boxes, "panels": panels}


def _encode(cases: list[Case], budget: int) -> dict[int, Encoded]:
    """Encodes the cases within a budget of characters, smaller and smaller before any is left out.

    Returns:
        By ``id`` of the case; a picture that stands in several places counts as often.
    """
    encoded: dict[int, Encoded] = {}
    for long_side, quality in PICTURE_STEPS:
        encoded = {id(case): encode_picture(case.image, long_side, quality) for case in cases}
        if sum(len(encoded[id(case)].uri) for case in cases) <= budget:
            return encoded
    kept, spent = {}, 0
    for case in cases:
        spent += len(encoded[id(case)].uri)
        if spent > budget:
            break
        kept[id(case)] = encoded[id(case)]
    return kept


def _dataset(entry: DatasetReport, budget: int, catalog: Catalog) -> dict[str, Any]:
    """Everything of one set, ready for the template."""
    cases = list(_cases(entry))
    encoded = _encode(cases, budget)
    groups = compare(entry.entry, catalog)
    classes = entry.classes
    tables = [
        comparison(
            file_name(entry.name, group.title), f"{group.title}, {entry.name}", list(entry.models), group.families
        )
        for group in groups
    ]
    return {
        "entry": entry,
        "models": list(entry.models),
        "overview": dot_chart(overview(entry.entry, catalog)),
        "groups": groups,
        "tables": tables,
        "seeds": seeds_table(entry.name, entry.entry, catalog),
        "apart": apart(entry.entry, catalog),
        "absences": absences(groups),
        "typical": _card(entry.typical, encoded[id(entry.typical)]) if entry.typical and encoded else None,
        "legend": _legend(entry),
        "galleries": [
            {
                "title": own.title,
                "chosen": own.chosen,
                "cards": [_card(case, encoded[id(case)]) for case in own.cases if id(case) in encoded],
                "left_out": sum(id(case) not in encoded for case in own.cases),
            }
            for own in entry.galleries
        ],
        "heats": [_heat(heat) for heat in entry.heats],
        "classes": classes,
        "scatter": _scatter(entry),
        "class_ends": _class_ends(entry),
        "verdict": verdict(entry.entry, catalog).sentence,
        "seeds_said": seeds_sentence(entry.entry, catalog),
        "sizes": [(split.title, chart) for split in entry.sizes if (chart := dot_chart(split.rows)) is not None],
    }


def _decides(group: Group) -> bool:
    """Whether a part of the comparison holds a difference whose interval leaves out zero."""
    rows = [row for family in group.families for row in family.rows]
    return any(row.gap.interval is not None and row.gap.ahead is not None for row in rows)


def _scatter(entry: DatasetReport) -> Markup | None:
    classes = entry.classes
    if classes is None:
        return None
    return scatter_chart(classes.rival, classes.first, [(point.name, point.x, point.y) for point in classes.points])


def _class_ends(entry: DatasetReport) -> list[tuple[str, Any]]:
    """Both ends of the classes, each with its title, over one axis."""
    classes = entry.classes
    if classes is None:
        return []
    behind = any(row.gap.value is not None and row.gap.value < 0 for row in classes.lost)
    titles = ["Largest leads", "Largest losses" if behind else "Smallest leads"] if classes.rival else ["Best", "Worst"]
    whole = dot_chart([*classes.won, *classes.lost])
    return [
        (title, type(whole)(drawn, whole.ticks, whole.top))
        for title, rows in zip(titles, (classes.won, classes.lost), strict=True)
        if whole is not None and (drawn := [row for row in rows if row.dots])
    ]


def _curves(data: ReportData, styles: dict[str, int]) -> list[dict[str, Any]]:
    """One entry per metric: its charts over samples and seconds, and the last values in words; losses come last."""
    charts = []
    for metric in dict.fromkeys(curve.metric for curve in data.curves):
        own = data.catalog.describe(metric)
        curves = [curve for curve in data.curves if curve.metric == metric]
        drawn: list[Markup] = []
        for axis in ("samples", "seconds"):
            lines = [Line(curve.model, styles[curve.model], getattr(curve, axis), curve.values) for curve in curves]
            chart = curve_chart(lines, axis, f"{metric} over {axis} of training", own.percent)
            drawn += [] if chart is None else [chart]
        last = [
            f"{curve.model} {format_value(curve.values[-1], own.percent)} after "
            f"{plain_number(curve.samples[-1])} samples, {plain_seconds(curve.seconds[-1])}"
            for curve in curves
            if curve.values
        ]
        title = f"{own.family} · {own.label}" if own.family else metric
        loss = metric.partition("/")[0] == "loss"
        charts.append({"title": title, "protocol": own.protocol, "charts": drawn, "last": last, "loss": loss})
    return sorted(charts, key=lambda chart: chart["loss"])


def _opening(data: ReportData) -> tuple[str, list[SetLine]]:
    """The verdict over all sets, and what each of several says by its own measure."""
    found: list[Verdict] = [verdict(entry.entry, data.catalog) for entry in data.data]
    if not found:
        return "Nothing was measured.", []
    if len(found) == 1:
        return found[0].sentence, []
    lines = [set_line(entry.name, entry.entry, data.catalog) for entry in data.data]
    return over_sets(found[0].first, next((own.rival for own in found if own.rival), ""), lines), lines


@dataclass(frozen=True, slots=True)
class Page:
    """A rendered page, and the tables that it shows."""

    text: str
    tables: list[ExportedTable]


def render(data: ReportData) -> str:
    """Renders the page as HTML text."""
    return lay_out(data).text


def lay_out(data: ReportData) -> Page:
    """Renders the page and gathers its tables."""
    styles = _styles(data)
    explain = Explainer()
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["explain"] = explain
    environment.globals |= {
        "style": lambda label: styles.get(_owner(label), 0) % 6,
        "how": _how,
        "owner": _owner,
        "number": plain_number,
        "cell_words": cell_words,
        "gap_words": gap_words,
        "source_meaning": SOURCE_MEANING,
        "decides": _decides,
        "glossary": explain.glossary,
    }
    first = data.data[0] if data.data else None
    said, lines = _opening(data)
    parts = _parts(data, styles, lines)
    measured = {name for entry in data.data for own in entry.models.values() for name in own}
    text = environment.get_template("report.html.j2").render(
        report=data,
        verdict=said,
        headlines=[headline.headline(entry.entry, data.catalog) for entry in data.data],
        facts=headline.key_facts(first.entry, data.catalog) if first else [],
        trained=headline.trained(data.training),
        cost_said=cost_line(data.cost),
        cost_words=cost_words(data.cost),
        prompted=any(name.startswith("region/prompter/") for name in measured),
        **parts,
    )
    return Page(text, parts["tables"])


def _parts(data: ReportData, styles: dict[str, int], lines: list[SetLine]) -> dict[str, Any]:
    """The parts of the page that hold tables, and all of these with file names that differ."""
    sets = [_dataset(entry, PICTURE_BUDGET // len(data.data), data.catalog) for entry in data.data]
    parts = {
        "sets": sets,
        "glance": sets_table(next(iter(data.data[0].models), ""), lines) if lines else None,
        "cost": cost_table(data.cost),
        "training": training_table(data.training),
        "curves": _curves(data, styles),
    }
    whole = [parts["glance"], parts["cost"], *(own["seeds"] for own in sets), parts["training"]]
    tables = unique([*filter(None, whole), *(table for own in sets for table in own["tables"])])
    named = iter(tables)
    for holder, key in [(parts, "glance"), (parts, "cost"), *((own, "seeds") for own in sets), (parts, "training")]:
        holder[key] = next(named) if holder[key] is not None else None
    for own in sets:
        own["tables"] = [next(named) for _ in own["tables"]]
    return {**parts, "tables": tables}


def write_report(data: ReportData, folder: Path) -> Path:
    """Writes the report as one self-contained page of at most about 3 MB, and its tables beside it.

    Args:
        data: what to show; empty lists are stated on the page.
        folder: where ``index.html`` and the folder ``tables`` go; made where it is missing.

    Returns:
        The path of the page.
    """
    page, found = make_folder(folder.parent, folder.name) / "index.html", lay_out(data)
    tables = make_folder(folder, "tables")
    for table in found.tables:
        write_file(tables / f"{table.name}.csv", table.csv.encode(errors="replace"))
        write_file(tables / f"{table.name}.tex", table.latex.encode(errors="replace"))
    write_file(page, found.text.encode(errors="replace"))
    return page
