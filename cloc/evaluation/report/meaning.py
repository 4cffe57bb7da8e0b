"""What each metric is called and how it is read: the words of the terminal's table and of the report.

Stands after the measurements (``metrics.json``) and before ``table.py`` and ``headline.py``, so that both group, name
and format the same numbers in the same way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

GROUPS = (
    "Whole images",
    "Naming boxes",
    "Boxes and phrases",
    "Grounding",
    "Relations",
    "Naming boxes, by size",
    "Naming boxes, by frequency of the class",
)
OTHER = "Other measurements"

SOURCES = {
    "best": "Best source of each",
    "prompter": "Prompter",
    "roi_align": "RoI-Align",
    "mask_pool": "Mask pool",
    "crop": "Crop",
}
SOURCE_MEANING = (
    "The rows are ways to turn a box into an embedding. Prompter: the trained prompt module reads the patch tokens. "
    "RoI-Align: tokens interpolated inside the box. Mask pool: the mean of the tokens that the box covers. "
    "Crop: the box is cut out and encoded as a picture of its own. Best source of each: every model by the one that "
    "serves it best."
)
# Families of a group in reading order: key → (title, plain-language reading).
FAMILIES: dict[str, tuple[str, str]] = {
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
        "The image takes the class whose text is nearest, without training on labels. Class mean: the average over "
        "classes, so that rare ones count as much as common ones.",
    ),
    "top1": ("Name a box", "Each box takes the class whose text is nearest. Top-1: the share of boxes named rightly."),
    "top5": ("Name a box in five guesses", "The right class is among the five whose texts are nearest."),
    "mAcc": (
        "Name a box, classes weighing alike",
        "The same naming, averaged over classes, so that rare classes count as much as common ones.",
    ),
    "comprehension": (
        "Choose the box of a phrase",
        "Each phrase chooses among the given boxes of its own picture (RefCOCO's question, with true boxes).",
    ),
    "hard_negatives": (
        "Tell a phrase from look-alikes",
        "The box's own phrase must beat phrases that differ from it in a word (FG-OVD's question).",
    ),
    "region_to_text": (
        "Find the phrase of a box",
        "Each box ranks all phrases of the set. R@K: how often a right phrase is among the first K.",
    ),
    "text_to_region": (
        "Find the box of a phrase in the whole set",
        "Each phrase ranks all boxes of all pictures. R@K: how often a box that it describes is among the first K.",
    ),
    "grounding": (
        "From a phrase to its box",
        "The model draws a box for a phrase. IoU is the overlap of two boxes, 0 to 1; acc@0.5 counts an IoU of 0.5 or "
        "more as right. A phrase that owns several boxes is right if it finds any of them, or their union. Pointing "
        "game: the center of the drawn box lies in a box of the phrase.",
    ),
    "precision": (
        "Average precision of the drawn boxes",
        "COCO's AP: whether the score of a drawn box, its similarity to the phrase, tells right boxes from wrong ones. "
        "AP is the mean over IoU thresholds of 0.5 to 0.95. One box is drawn for a phrase, so a phrase that owns two "
        "cannot find both.",
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
ZERO_SHOT_ROWS = {"top1": "Top-1", "top5": "Top-5", "mAcc": "Class mean"}
GROUNDING_ROWS = {
    "any/acc@0.5": "acc@0.5, any of its boxes",
    "union/acc@0.5": "acc@0.5, union of its boxes",
    "pointing": "Pointing game",
    "mIoU": "Mean IoU",
}
PRECISION_ROWS = {"AP": "AP", "AP50": "AP at IoU 0.5", "AP75": "AP at IoU 0.75"}
RELATION_ROWS = {
    "accuracy": "Single images",
    "pair": "Pairs of opposites, both right",
    "set4": "Sets of four, all right",
}
# Suffix of a naming metric → (group, title, reading).
PARTS = {
    "small": (5, "Small boxes", "Boxes of less than 32² pixels of the stored picture (COCO's bound)."),
    "medium": (5, "Medium boxes", "Boxes of 32² to 96² pixels of the stored picture (COCO's bounds)."),
    "large": (5, "Large boxes", "Boxes of 96² pixels of the stored picture or more (COCO's bound)."),
    "rare": (6, "Rare classes", "Classes that LVIS calls rare: in 1 to 10 of its training pictures."),
    "common": (6, "Common classes", "Classes that LVIS calls common: in 11 to 100 of its training pictures."),
    "frequent": (6, "Frequent classes", "Classes that LVIS calls frequent: in more than 100 of its training pictures."),
}
ALONE = (", by names alone", " The class texts are the bare names, without templates.")
FRACTIONS = ("grounding/mIoU", *(f"grounding/{name}" for name in PRECISION_ROWS))  # by custom no percentages

NAMING = re.compile(rf"(top1|top5|mAcc)(?:_(names|{'|'.join(PARTS)}))?")
RECALL = re.compile(r"(\w+)_R@(\d+)")


@dataclass(frozen=True, slots=True)
class Meaning:
    """How one metric is named and read. ``percent`` is False where the value is not a share of right answers."""

    metric: str
    group: str
    family: str
    reading: str
    label: str
    percent: bool
    order: tuple[int, ...]


def describe(metric: str) -> Meaning:
    """Names and explains a metric of ``metrics.json``; an unknown one goes to ``OTHER`` under its own name."""
    head, _, rest = metric.partition("/")
    readers = {"image_text": _image_text, "image": _image, "region": _region}
    readers |= {"grounding": _grounding, "relations": _relation}
    found = readers[head](rest) if head in readers else None
    if found is None:
        return Meaning(metric, OTHER, "", "Reported as measured.", metric, False, (len(GROUPS),))
    group, title, reading, label, order = found
    return Meaning(metric, GROUPS[group], title, reading, label, metric not in FRACTIONS, (group, *order))


# Each of these reads what follows the head: (group, family title, reading, row label, order), or None.
_Found = tuple[int, str, str, str, tuple[int, ...]] | None


def _place(key: str) -> int:
    return list(FAMILIES).index(key)


def _image_text(rest: str) -> _Found:
    match = RECALL.fullmatch(rest)
    if match is None or match[1] not in ("image_to_text", "text_to_image"):
        return None
    return 0, *FAMILIES[match[1]], f"R@{match[2]}", (_place(match[1]), int(match[2]))


def _image(rest: str) -> _Found:
    match = NAMING.fullmatch(rest.removeprefix("zero_shot_"))
    if match is None or not rest.startswith("zero_shot_") or match[2] not in (None, "names"):
        return None
    title, reading = _alone(*FAMILIES["zero_shot"], match[2] == "names")
    order = (_place("zero_shot"), match[2] == "names", list(ZERO_SHOT_ROWS).index(match[1]))
    return 0, title, reading, ZERO_SHOT_ROWS[match[1]], order


def _region(rest: str) -> _Found:
    source, _, measure = rest.partition("/")
    label, row = SOURCES.get(source, source), list(SOURCES).index(source) if source in SOURCES else len(SOURCES)
    if match := NAMING.fullmatch(measure):
        kind, part = match.groups()
        title, reading = FAMILIES[kind]
        if part in PARTS:
            group, own, bounds = PARTS[part]
            title = own + (", classes weighing alike" if kind == "mAcc" else "")
            return group, title, f"{reading} {bounds}", label, (list(PARTS).index(part), _place(kind), row)
        title, reading = _alone(title, reading, part == "names")
        return 1, title, reading, label, (part == "names", _place(kind), row)
    if (match := RECALL.fullmatch(measure)) and match[1] in ("region_to_text", "text_to_region"):
        title, reading = FAMILIES[match[1]]
        return 2, f"{title}, R@{match[2]}", reading, label, (_place(match[1]), int(match[2]), row)
    if measure in ("comprehension", "hard_negatives"):
        return 2, *FAMILIES[measure], label, (_place(measure), 0, row)
    return None


def _grounding(rest: str) -> _Found:
    for family, rows in (("grounding", GROUNDING_ROWS), ("precision", PRECISION_ROWS)):
        if rest in rows:
            return 3, *FAMILIES[family], rows[rest], (_place(family), list(rows).index(rest))
    return None


def _relation(rest: str) -> _Found:
    scoring, _, measure = rest.partition("/")
    if scoring not in ("similarity", "grounded") or measure not in RELATION_ROWS:
        return None
    return 4, *FAMILIES[scoring], RELATION_ROWS[measure], (_place(scoring), list(RELATION_ROWS).index(measure))


def _alone(title: str, reading: str, alone: bool) -> tuple[str, str]:
    return (title + ALONE[0], reading + ALONE[1]) if alone else (title, reading)


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


def best_sources(metrics: Mapping[str, float]) -> dict[str, str]:
    """Region measure → the source that does best by it."""
    found: dict[str, tuple[float, str]] = {}
    for name in metrics:
        head, _, rest = name.partition("/")
        source, _, measure = rest.partition("/")
        value = finite(metrics, name)
        if head == "region" and value is not None and value > found.get(measure, (-1.0, ""))[0]:
            found[measure] = (value, source)
    return {measure: source for measure, (_, source) in found.items()}
