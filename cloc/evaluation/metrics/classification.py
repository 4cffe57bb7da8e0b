"""Zero-shot classification of pictures and of boxes: the nearest class text.

Per question (``top1``, ``top5``) and as a mean over classes (``mAcc``); by box size in COCO's bounds, by how common a
class is in LVIS. Class texts are the mean over templates; a set with templates is also measured by names alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cloc.contracts import Sample
from cloc.data.negatives.phrases import color_and_thing
from cloc.evaluation.metrics.metric import (
    BY_FREQUENCY,
    BY_SIZE,
    IMAGES,
    NAMING,
    Breakdown,
    Chance,
    Description,
    KeyFact,
    Lead,
    Metric,
    Shown,
)
from cloc.evaluation.metrics.outcome import Outcomes, outcome
from cloc.evaluation.metrics.regions import RegionMetric, pictures_of, regions_of
from cloc.evaluation.model_outputs import Embedded, ModelOutputs
from cloc.evaluation.sets.class_names import FREQUENCIES, NAMES_ONLY
from cloc.evaluation.sets.eval_set import EvalSet

SMALL, LARGE = 32**2, 96**2  # pixels of the picture: COCO's bounds
SIZES = ("small", "medium", "large")
CHUNK = 8192
ROWS = {"top1": "Top-1", "top5": "Top-5", "mAcc": "Class mean"}
IMAGE_FAMILY = (
    "Classify an image",
    "The image takes the class whose text is nearest, without training on labels. Class mean: the average over "
    "classes, so that rare ones count as much as common ones.",
)
BOX_FAMILIES = {
    "top1": ("Name a box", "Each box takes the class whose text is nearest. Top-1: the share of boxes named rightly."),
    "top5": ("Name a box in five guesses", "The right class is among the five whose texts are nearest."),
    "mAcc": (
        "Name a box, classes weighing alike",
        "The same naming, averaged over classes, so that rare classes count as much as common ones.",
    ),
}
# Part of the boxes → (section, title, what is in it).
PARTS = {
    "small": (BY_SIZE, "Small boxes", "Boxes of less than 32² pixels of the stored picture (COCO's bound)."),
    "medium": (BY_SIZE, "Medium boxes", "Boxes of 32² to 96² pixels of the stored picture (COCO's bounds)."),
    "large": (BY_SIZE, "Large boxes", "Boxes of 96² pixels of the stored picture or more (COCO's bound)."),
    "rare": (BY_FREQUENCY, "Rare classes", "Classes that LVIS calls rare: in 1 to 10 of its training pictures."),
    "common": (
        BY_FREQUENCY,
        "Common classes",
        "Classes that LVIS calls common: in 11 to 100 of its training pictures.",
    ),
    "frequent": (
        BY_FREQUENCY,
        "Frequent classes",
        "Classes that LVIS calls frequent: in more than 100 of its training pictures.",
    ),
}
# What a class name of a colored thing is made of → (title, what counts).
HALVES = {
    "thing": ("Name a box: the thing right", "The class that is named is of the right thing, whatever its color."),
    "color": ("Name a box: the color right", "The class that is named is of the right color, whatever the thing."),
}
ALONE = (", by names alone", " The class texts are the bare names, without templates.")
NAMES = re.compile(rf"(top1|top5|mAcc)(?:_(names|{'|'.join(PARTS)}))?")
HALF = re.compile(rf"top1_({'|'.join(HALVES)})")
CHANCES = {"top1": Chance(1, "classes"), "top5": Chance(5, "classes"), "mAcc": Chance(1, "classes")}
SHOWN = {
    "zero_shot_top1": Shown(
        Lead(120, "classifies {} of the images rightly without labels"),
        overview=100,
        fact=KeyFact(50, "of images are classified rightly without labels"),
    ),
    "top1": Shown(
        Lead(10, "names {} of the held-out boxes", tells_chance=True),
        overview=10,
        curve_sources=("prompter", "roi_align"),
        breakdown=Breakdown(10, "Name a box", "classed boxes"),
    ),
    "mAcc": Shown(Lead(20, "names {} of the held-out boxes, averaged over classes"), overview=20),
}


def class_texts(encode: Callable[[list[str]], Tensor], names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One embedding a class, ``[Y,D]`` of unit norm: the mean over templates.

    Args:
        encode: texts → ``[T,D]``.
        names: Y classes.
        templates: each with one ``{}``.
    """
    embedded = encode([template.replace("{}", name) for name in names for template in templates])
    return normalize(embedded.unflatten(0, (len(names), len(templates))).mean(1), dim=-1)


def classify(items: Tensor, classes: Tensor) -> Tensor:
    """The nearest classes of each item, best first: ``[K,min(5,Y)]`` int64."""
    depth = min(5, len(classes))
    blocks = [(block @ classes.T).topk(depth, 1).indices for block in items.split(CHUNK)]
    return torch.cat(blocks).cpu() if blocks else torch.zeros(0, depth, dtype=torch.int64)


def classification_outcomes(ranked: Tensor, truth: Tensor, group: Tensor, prefix: str, suffix: str = "") -> Outcomes:
    """``top1``, ``top5`` (share of items) and ``mAcc`` (mean over the classes that occur).

    Args:
        ranked: of :func:`classify`.
        truth: ``[K]`` class index.
        group: ``[K]`` picture of each item.
        prefix: of the metric names.
        suffix: of the metric names.

    Top-5 is absent where there are no more than five classes: it would be 1 whatever the model.
    """
    hit = ranked == truth[:, None]
    found: Outcomes = {
        f"{prefix}top1{suffix}": outcome(hit[:, 0], group),
        f"{prefix}mAcc{suffix}": outcome(hit[:, 0], group, truth),
    }
    if ranked.shape[1] == 5:
        found[f"{prefix}top5{suffix}"] = outcome(hit.any(1), group)
    return found


def split_outcomes(
    ranked: Tensor, truth: Tensor, group: Tensor, which: Sequence[str | None], order: Sequence[str], prefix: str
) -> Outcomes:
    """``top1_NAME`` and ``mAcc_NAME`` of each part of the items that ``which`` names; None belongs to no part."""
    found: Outcomes = {}
    for name in order:
        mask = torch.tensor([own == name for own in which], dtype=torch.bool)
        if mask.any():
            part = classification_outcomes(ranked[mask], truth[mask], group[mask], prefix, f"_{name}")
            found |= {metric: value for metric, value in part.items() if "top5" not in metric}
    return found


def half_outcomes(ranked: Tensor, truth: Tensor, group: Tensor, names: Sequence[str], prefix: str) -> Outcomes:
    """``top1_thing`` and ``top1_color``, where most classes are things in colors ("a red chick"); else nothing.

    Args:
        ranked: of :func:`classify`.
        truth: ``[K]`` class index.
        group: ``[K]`` picture of each item.
        names: of the classes.
        prefix: of the metric names.
    """
    parts = [color_and_thing(name) for name in names]
    colored = sum(bool(color) for color, _ in parts)
    if 2 * colored < len(names) or len({thing for _, thing in parts}) == len(names) or not len(truth):
        return {}
    found: Outcomes = {}
    for name, half in (("color", 0), ("thing", 1)):
        place = {value: index for index, value in enumerate(dict.fromkeys(part[half] for part in parts))}
        own = torch.tensor([place[part[half]] for part in parts])
        found[f"{prefix}top1_{name}"] = outcome(own[ranked[:, 0]] == own[truth], group)
    return found


def box_sizes(samples: Sequence[Sample]) -> list[str]:
    """Small, medium or large of every region, by its area in pixels of the picture (COCO's bounds)."""
    names = []
    for sample in samples:
        for region in sample.regions:
            x0, y0, x1, y1 = region.box
            area = (x1 - x0) * sample.width * (y1 - y0) * sample.height
            names.append(SIZES[(area >= SMALL) + (area >= LARGE)])
    return names


def class_embeddings(outputs: ModelOutputs, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One embedding a class by a model, ``[Y,D]`` of unit norm: the mean over templates."""
    return class_texts(outputs.texts, names, templates) if names else torch.zeros(0, outputs.width)


def class_wordings(data: EvalSet) -> dict[str, list[str]]:
    """Suffix of the metrics → templates: a set with templates is also measured by names alone."""
    alone = {} if data.templates == NAMES_ONLY else {"_names": NAMES_ONLY}
    return {"": data.templates} | alone


class ZeroShot(Metric):
    """Classes of whole pictures."""

    needs = ("classified",)
    pattern = "image/zero_shot_MEASURE"

    def applies(self, outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> bool:
        """Where there are pictures to classify."""
        return len(embedded.classified) > 0

    def asks(self, data: EvalSet) -> bool:
        """Where pictures have classes."""
        return data.images is not None

    def names(self, sources: Collection[str]) -> Collection[str]:
        """By templates and by names alone."""
        return [f"image/zero_shot_{row}{end}" for row in ROWS for end in ("", "_names")]

    def measure(self, outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> Outcomes:
        """Over the pictures that can be decoded, by templates and by names alone."""
        rows, images = embedded.classified, data.images
        assert images is not None  # what `rows` were made of
        usable = ~rows.isnan().any(1)
        truth, group = torch.tensor(images.labels)[usable], torch.arange(len(rows))[usable]
        found: Outcomes = {}
        for suffix, templates in class_wordings(data).items():
            classes = class_embeddings(outputs, images.classes, templates)
            ranked = classify(rows[usable].to(classes.device), classes)
            found |= classification_outcomes(ranked, truth, group, "image/zero_shot_", suffix)
        return found

    def describe(self, name: str) -> Description | None:
        """One family, and one for names alone."""
        head, _, rest = name.partition("/")
        match = NAMES.fullmatch(rest.removeprefix("zero_shot_"))
        if head != "image" or not rest.startswith("zero_shot_") or match is None or match[2] not in (None, "names"):
            return None
        family, protocol = _alone(*IMAGE_FAMILY, match[2] == "names")
        order = 2, match[2] == "names", list(ROWS).index(match[1])  # behind retrieval, which has two families
        return Description(name, IMAGES, family, protocol, ROWS[match[1]], order=order, shown=SHOWN.get(rest, Shown()))


class RegionNaming(RegionMetric):
    """Classes of boxes: of all, by box size, and by frequency of the class."""

    pattern = "region/SOURCE/MEASURE_PART"

    def asks(self, data: EvalSet) -> bool:
        """Where boxes have classes of the set."""
        known = set(data.categories)
        return any(region.category in known for sample in data.samples for region in sample.regions)

    def measures(self) -> Collection[str]:
        """By templates, by names alone, by part, and by thing and color."""
        parts = [f"{row}_{part}" for part in PARTS for row in ("top1", "mAcc")]
        return [*ROWS, *(f"{row}_names" for row in ROWS), *parts, *(f"top1_{half}" for half in HALVES)]

    def measure_rows(self, outputs: ModelOutputs, data: EvalSet, rows: Tensor, prefix: str) -> Outcomes:
        """By templates, with the parts; and by names alone."""
        regions, place = regions_of(data), {name: i for i, name in enumerate(data.categories)}
        known = {i: name for i, region in enumerate(regions) if (name := region.category) is not None and name in place}
        classed, truth = list(known), torch.tensor([place[name] for name in known.values()])
        group = pictures_of([sample.regions for sample in data.samples])[classed]
        sizes = box_sizes(data.samples)
        found: Outcomes = {}
        for suffix, templates in class_wordings(data).items():
            classes = class_embeddings(outputs, data.categories, templates)
            ranked = classify(rows[classed].to(classes.device), classes)
            found |= classification_outcomes(ranked, truth, group, prefix, suffix)
            if suffix:
                continue
            found |= split_outcomes(ranked, truth, group, [sizes[i] for i in classed], SIZES, prefix)
            found |= half_outcomes(ranked, truth, group, data.categories, prefix)
            if data.frequency:
                often = [data.frequency.get(name) for name in known.values()]
                found |= split_outcomes(ranked, truth, group, often, list(FREQUENCIES.values()), prefix)
        return found

    def describe_measure(self, name: str, measure: str, row: str, place: int) -> Description | None:
        """A family for each measure and part."""
        if half := HALF.fullmatch(measure):
            title, counts = HALVES[half[1]]
            order = 2, list(HALVES).index(half[1]), place
            return Description(name, NAMING, title, f"{BOX_FAMILIES['top1'][1]} {counts}", row, order=order)
        match = NAMES.fullmatch(measure)
        if match is None:
            return None
        kind, part = match.groups()
        family, protocol = BOX_FAMILIES[kind]
        kinds = list(BOX_FAMILIES).index(kind)
        if part in PARTS:
            section, title, bounds = PARTS[part]
            title += ", classes weighing alike" if kind == "mAcc" else ""
            protocol, order = f"{protocol} {bounds}", (list(PARTS).index(part), kinds, place)
            return Description(name, section, title, protocol, row, chance=CHANCES[kind], order=order)
        family, protocol = _alone(family, protocol, part == "names")
        order, shown = (part == "names", kinds, place), SHOWN.get(measure, Shown())
        return Description(name, NAMING, family, protocol, row, chance=CHANCES[kind], order=order, shown=shown)


def _alone(family: str, protocol: str, alone: bool) -> tuple[str, str]:
    return (family + ALONE[0], protocol + ALONE[1]) if alone else (family, protocol)
