"""What each metric is called, how it is read, and the comparison of models by it.

Stands after the measurements (``metrics.json``) and before their two readers, the terminal and ``report.py``. It exists
so that both group, name, format and judge the same numbers in the same way::

    rich.print(comparison_table(json.loads(Path("metrics.json").read_text())))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

GROUPS = ("Image–text", "Regions by source", "Grounding", "Relations")
OTHER = "Other measurements"
MISSING = "–"

SOURCES = {"prompter": "Prompter", "roi_align": "RoI-Align", "mask_pool": "Mask pool", "crop": "Crop"}
SOURCE_MEANING = (
    "The rows are ways to turn a box into an embedding. Prompter: the trained prompt module reads the patch tokens. "
    "RoI-Align: tokens interpolated inside the box. Mask pool: the mean of the tokens that the box covers. "
    "Crop: the box is cut out and encoded as a picture of its own."
)
# Family of a metric: metric prefix or suffix → (title, plain-language reading).
FAMILIES = {
    "image_to_text": (
        "Find the caption of an image",
        "Each image ranks all captions of the set. R@K: how often a right caption is among the first K.",
    ),
    "text_to_image": (
        "Find the image of a caption",
        "Each caption ranks all images of the set. R@K: how often the right image is among the first K.",
    ),
    "zero_shot": (
        "Classify an image",
        "The image takes the class whose text is nearest, without training on labels. Top-1: how often that is right.",
    ),
    "top1": ("Name a box", "Each box takes the class whose text is nearest. Top-1: the share of boxes named rightly."),
    "mAcc": (
        "Name a box, classes weighing alike",
        "The same naming, averaged over classes, so that rare classes count as much as common ones.",
    ),
    "region_to_text": (
        "Find the phrase of a region",
        "Each region ranks all phrases of the set. R@K: how often a right phrase is among the first K.",
    ),
    "text_to_region": (
        "Find the region of a phrase",
        "Each phrase ranks all regions of the whole set. R@K: how often a region it describes is among the first K.",
    ),
    "grounding": (
        "From a phrase to its box",
        "The model draws a box for a phrase. IoU is the overlap of two boxes, 0 to 1; acc@0.5 counts an IoU of 0.5 or "
        "more as right. A phrase that owns several boxes is right if it finds any of them, or their union.",
    ),
    "similarity": (
        "Relations by similarity",
        "The image chooses between its caption and captions with the relation exchanged (left of, above, …), by the "
        "similarity of the whole image and text.",
    ),
    "grounded": (
        "Relations by grounding",
        "The same choice, made by where the model grounds the two things that the caption names.",
    ),
}
RELATION_ROWS = {
    "accuracy": ("Single images", "Each image prefers its own caption."),
    "pair": ("Pairs", "Both images of a pair with opposite relations are right."),
    "set4": ("Sets of four", "All four images of a set are right."),
}
GROUNDING_ROWS = {
    "any/acc@0.5": "acc@0.5, any of its boxes",
    "union/acc@0.5": "acc@0.5, union of its boxes",
    "mIoU": "Mean IoU",
}


@dataclass(frozen=True, slots=True)
class Meaning:
    """How one metric is named and read. ``percent`` is False where the value is not a share of right answers."""

    metric: str
    group: str
    family: str
    reading: str
    label: str
    percent: bool
    order: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Cell:
    """One model's value in one row: ``text`` as shown, ``why`` says the reason where ``value`` is missing."""

    model: str
    value: float | None
    text: str
    why: str
    best: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One metric across models; ``difference`` is the first model less the best of the others, as a text."""

    meaning: Meaning
    cells: list[Cell]
    difference: str
    ahead: bool | None


@dataclass(frozen=True, slots=True)
class Family:
    """Rows that share a reading."""

    title: str
    reading: str
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Group:
    """A part of the comparison; ``families`` is empty where nothing of it was measured."""

    title: str
    families: list[Family]


def _depth(rest: str) -> int:
    """K of ``R@K``, for the order of rows; 0 where there is none."""
    digits = rest.rpartition("@")[2]
    return int(digits) if digits.isdigit() else 0


def describe(metric: str) -> Meaning:
    """Names and explains a metric of ``metrics.json``; an unknown one goes to ``OTHER`` under its own name."""
    head, _, rest = metric.partition("/")
    keys, label, depth, group = list(FAMILIES), "", "", -1
    family, percent, minor = "", True, _depth(rest)
    if head == "image_text":
        family, group, label = rest.partition("_R@")[0], 0, f"R@{minor}"
    elif metric == "image/zero_shot_top1":
        family, group, label = "zero_shot", 0, "Top-1"
    elif head == "region":
        source, _, measure = rest.partition("/")
        family, group = measure.partition("_R@")[0], 1
        order = list(SOURCES).index(source) if source in SOURCES else len(SOURCES)
        label, depth, minor = SOURCES.get(source, source), f", R@{minor}" if "R@" in measure else "", minor * 10 + order
    elif head == "grounding" and rest in GROUNDING_ROWS:
        family, group, label, percent = "grounding", 2, GROUNDING_ROWS[rest], rest != "mIoU"
        minor = list(GROUNDING_ROWS).index(rest)
    elif head == "relations":
        family, _, measure = rest.partition("/")
        group, label = (3, RELATION_ROWS[measure][0]) if measure in RELATION_ROWS else (-1, "")
        minor = list(RELATION_ROWS).index(measure) if group == 3 else 0
    if group < 0 or family not in FAMILIES:
        return Meaning(metric, OTHER, "", "Reported as measured.", metric, False, (len(GROUPS), 0, 0))
    title, reading = FAMILIES[family]
    return Meaning(metric, GROUPS[group], title + depth, reading, label, percent, (group, keys.index(family), minor))


def format_value(value: float | None, percent: bool) -> str:
    """``0.9304 → "93.0%"``, or ``"0.930"`` where the metric is no share; a missing or NaN value is ``"–"``."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{100 * value:.1f}%" if percent else f"{value:.3f}"


def finite(metrics: Mapping[str, float], metric: str) -> float | None:
    """The value of a metric, or None where it is absent or not finite."""
    value = metrics.get(metric)
    return None if value is None or not math.isfinite(value) else float(value)


def why_missing(metric: str, metrics: Mapping[str, float]) -> str:
    """Says in words why a model has no value for a metric."""
    if metrics.get(metric) is not None:
        return "Not a number: there was nothing to average, or the model diverged."
    if metric.startswith("region/prompter/") and not any(name.startswith("region/prompter/") for name in metrics):
        return "There is no Prompter: the model was trained on whole images and captions alone."
    grounds = any(name.startswith("grounding/") for name in metrics)
    if metric.startswith(("grounding/", "relations/grounded/")) and not grounds:
        return "There is no grounding head: the model cannot draw a box for a phrase."
    return "Not measured in this run."


def _row(metric: str, models: Mapping[str, Mapping[str, float]]) -> Row:
    meaning = describe(metric)
    values = {model: finite(metrics, metric) for model, metrics in models.items()}
    known = [value for value in values.values() if value is not None]
    best = max(known) if known and len(models) > 1 else None
    cells = [
        Cell(
            model,
            value,
            format_value(value, meaning.percent),
            "" if value is not None else why_missing(metric, models[model]),
            best is not None and value is not None and math.isclose(value, best, abs_tol=5e-5),
        )
        for model, value in values.items()
    ]
    first, *others = values.values()
    rivals = [value for value in others if value is not None]
    if first is None or not rivals:
        return Row(meaning, cells, MISSING, None)
    gap = first - max(rivals)
    text = f"{100 * gap:+.1f}" if meaning.percent else f"{gap:+.3f}"
    level = float(text) == 0
    return Row(meaning, cells, text.lstrip("+-") if level else text.replace("-", "−"), None if level else gap > 0)


def compare(models: Mapping[str, Mapping[str, float]]) -> list[Group]:
    """Groups the metrics of several models, in reading order.

    Args:
        models: model → metric → value; the first model is the one that differences are taken from.

    Returns:
        The four groups, empty ones included, and ``OTHER`` where a metric is unknown.
    """
    names = list(dict.fromkeys(name for metrics in models.values() for name in metrics))
    meanings = sorted(map(describe, names), key=lambda meaning: meaning.order)
    groups: dict[str, dict[str, Family]] = {title: {} for title in GROUPS}
    for meaning in meanings:
        families = groups.setdefault(meaning.group, {})
        family = families.setdefault(meaning.family, Family(meaning.family, meaning.reading, []))
        family.rows.append(_row(meaning.metric, models))
    return [Group(title, list(families.values())) for title, families in groups.items()]


def absences(groups: list[Group]) -> list[str]:
    """Why values are missing, each reason once with its models: ``"clip: There is no Prompter …"``."""
    cells = [cell for group in groups for family in group.families for row in family.rows for cell in row.cells]
    reasons: dict[str, dict[str, None]] = {}
    for cell in cells:
        if cell.why:
            reasons.setdefault(cell.why, {})[cell.model] = None
    return [f"{', '.join(models)}: {why}" for why, models in reasons.items()]


def comparison_table(data: Mapping[str, Any]) -> Table:
    """Builds the comparison of ``metrics.json`` for the terminal.

    Args:
        data: ``{"data": {NAME: {"models": {MODEL: {METRIC: value}}}}}``.

    Returns:
        A table with models as columns, metrics as rows by data set and group, best values bold; it fits 100 columns.

    Raises:
        ValueError: ``data`` has no ``data`` key.
    """
    if "data" not in data:
        raise ValueError(f"metrics hold {sorted(data)} and no 'data'; pass the whole content of metrics.json")
    models = list(dict.fromkeys(model for entry in data["data"].values() for model in entry["models"]))
    gap = 2 if len(models) < 6 else 1
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False, padding=(0, gap, 0, 0))
    table.add_column("", overflow="fold", min_width=18)
    widest = max(7, (100 - 34 - 8) // max(len(models), 1) - gap)  # columns left of 100 beside labels and difference
    for model in models:
        table.add_column(Text(model), justify="right", min_width=6, max_width=widest, overflow="fold")
    if len(models) > 1:
        table.add_column("Δ", justify="right", min_width=6, no_wrap=True)
    for name, entry in data["data"].items():
        if table.row_count:
            table.add_row()
        table.add_row(Text(name, style="bold underline"))
        measured = {model: entry["models"].get(model, {}) for model in models}
        for group in compare(measured) if models else []:
            if group.families:
                _add_group(table, group, len(models) > 1)
    if len(models) > 1:
        table.caption = Text(f"Bold: best of its row.\nΔ: {models[0]} less the best other, in points.", style="dim")
        table.caption_justify = "left"
    return table


def _add_group(table: Table, group: Group, compared: bool) -> None:
    table.add_row()
    table.add_row(Text(group.title, style="bold cyan"))
    for family in group.families:
        if family.title:
            table.add_row(Text(f" {family.title}", style="italic"))
        for row in family.rows:
            values = [Text(cell.text, style="bold" if cell.best else "") for cell in row.cells]
            style = {True: "green", False: "red", None: "dim"}[row.ahead]
            gap = [Text(row.difference, style=style)] if compared else []
            table.add_row(Text(f"   {row.meaning.label}"), *values, *gap)
