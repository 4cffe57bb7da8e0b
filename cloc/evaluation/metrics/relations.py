"""Spatial relations, judged two ways: by image-text similarity, as for any CLIP, and by grounding both things.

By grounding, each candidate is scored by how far the two boxes lie as it says: left, right, above and below by the
offset of their centers, in front and behind by how much they overlap sideways, and which of the two by the similarity
of the embedding of their common box to the caption. The best-scored candidate is the answer; a tie is wrong, for the
true caption stands first in the published files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from cloc.evaluation.metrics.grounding import lacks_head
from cloc.evaluation.metrics.metric import RELATIONS, Description, KeyFact, Lack, Lead, Metric, Shown
from cloc.evaluation.metrics.outcome import Outcomes, outcome
from cloc.evaluation.model_outputs import Embedded, ModelOutputs, Placed
from cloc.evaluation.sets.eval_set import EvalSet, Fact, RelationItem
from cloc.evaluation.sets.relation_captions import OPPOSITE

WHOLE = (0.0, 0.0, 1.0, 1.0)
LEARNED = 1e-3  # weight of similarity beside overlap: it decides between in front and behind, which overlap cannot

FAMILIES = {
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
ROWS = {
    "accuracy": "Single images",
    "pair": "Pairs of opposites, both right",
    "set4": "Sets of four, all right",
}
SHOWN = {
    "similarity/accuracy": Shown(
        Lead(130, "chooses the caption with the true relation for {} of the images"),
        overview=140,
        fact=KeyFact(60, "of relations are told apart by similarity"),
    ),
    "grounded/accuracy": Shown(
        Lead(140, "tells {} of the relations rightly by grounding"),
        overview=130,
        fact=KeyFact(20, "of relations are told apart by grounding"),
    ),
}


def fact_score(fact: Fact, placed: Placed, index: int) -> float:
    """How far two boxes lie as a candidate says, in units of their mean size.

    Args:
        fact: what the candidate says.
        placed: where the things are.
        index: of the candidate.
    """
    subject = _pixels(placed.boxes[fact.subject], placed.aspect)
    other = _pixels(placed.boxes[fact.other] if fact.other is not None else WHOLE, placed.aspect)
    size = sum(box[2] - box[0] + box[3] - box[1] for box in (subject, other)) / 4
    right = (subject[0] + subject[2] - other[0] - other[2]) / 2 / max(size, 1e-6)
    down = (subject[1] + subject[3] - other[1] - other[3]) / 2 / max(size, 1e-6)
    if fact.relation in ("front", "behind"):
        shared = min(subject[2], other[2]) - max(subject[0], other[0])
        narrow = min(subject[2] - subject[0], other[2] - other[0])
        learned = float(placed.texts[index] @ placed.common) if placed.common is not None else 0.0
        return max(0.0, shared) / max(narrow, 1e-6) + LEARNED * learned
    return {"left": -right, "right": right, "above": -down, "below": down}[fact.relation]


def _pixels(box: Sequence[float], aspect: float) -> list[float]:
    return [box[0] * aspect, box[1], box[2] * aspect, box[3]]


def prefers(scores: Sequence[float], answer: int) -> bool:
    """Whether the answer's score is above every other's."""
    return all(score < scores[answer] for index, score in enumerate(scores) if index != answer)


def relation_outcomes(
    items: Sequence[RelationItem], images: Tensor, texts: Sequence[Tensor], placed: Sequence[Placed | None] | None
) -> Outcomes:
    """Score a model on relation items.

    Args:
        items: the questions.
        images: ``[I,D]`` embedding of each picture.
        texts: for each item ``[C_i,D]`` its candidates.
        placed: for each item where its things are, None for one that grounding cannot tell; None for a model that does
            not ground.

    Returns:
        ``relations/SCORING/accuracy|pair|set4`` for SCORING ``similarity``, and ``grounded`` where the model grounds.
        ``pair``: both pictures of two opposite relations right; ``set4``: all four of a set right (What'sUp, Sec. 3).
        ``grounded`` is over the items that it can tell.
    """
    rows = [(own @ image).tolist() for own, image in zip(texts, images, strict=True)]
    right = [prefers(scores, item.answer) for scores, item in zip(rows, items, strict=True)]
    found = _summary(items, right, "similarity")
    if placed is not None:
        told = [(item, place) for item, place in zip(items, placed, strict=True) if place is not None]
        scored = [
            prefers([fact_score(f, place, i) for i, f in enumerate(item.facts) if f is not None], item.answer)
            for item, place in told
        ]
        found |= _summary([item for item, _ in told], scored, "grounded")
    return found


def _summary(items: Sequence[RelationItem], right: list[bool], scoring: str) -> Outcomes:
    numbers: dict[str, int] = {}
    group = [numbers.setdefault(item.set, len(numbers)) for item in items]
    sets: dict[str, dict[str, bool]] = defaultdict(dict)
    for item, flag in zip(items, right, strict=True):
        if item.relation is not None:
            sets[item.set][item.relation] = flag
    pairs = [
        (own[relation] and own[OPPOSITE[relation]], numbers[name])
        for name, own in sets.items()
        for relation in ("left", "above", "front")
        if relation in own and OPPOSITE[relation] in own
    ]
    fours = [(all(own.values()), numbers[name]) for name, own in sets.items() if len(own) == 4]
    asked = {"accuracy": list(zip(right, group, strict=True)), "pair": pairs, "set4": fours}
    return {
        f"relations/{scoring}/{name}": outcome(torch.tensor([r for r, _ in rows]), torch.tensor([g for _, g in rows]))
        for name, rows in asked.items()
        if rows
    }


class Relations(Metric):
    """The true caption of a picture against captions with another relation, by similarity and by grounding."""

    needs = ("relations",)
    pattern = "relations/SCORING/MEASURE"

    def applies(self, outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> bool:
        """Where there are relation items."""
        return len(embedded.relation_images) > 0

    def asks(self, data: EvalSet) -> bool:
        """Where there are relation items."""
        return bool(data.relations)

    def names(self, sources: Collection[str]) -> Collection[str]:
        """Both scorings."""
        return [f"relations/{scoring}/{row}" for scoring in FAMILIES for row in ROWS]

    def measure(self, outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> Outcomes:
        """Over all items; by grounding where the model grounds."""
        texts = [outputs.texts(item.candidates).cpu() for item in data.relations]
        return relation_outcomes(data.relations, embedded.relation_images, texts, embedded.placed)

    def describe(self, name: str) -> Description | None:
        """A family for each scoring."""
        head, _, rest = name.partition("/")
        scoring, _, measure = rest.partition("/")
        if head != "relations" or scoring not in FAMILIES or measure not in ROWS:
            return None
        order = list(FAMILIES).index(scoring), list(ROWS).index(measure)
        shown = SHOWN.get(rest, Shown())
        return Description(name, RELATIONS, *FAMILIES[scoring], ROWS[measure], order=order, shown=shown)

    def lacks(self, name: str, measured: Collection[str]) -> Lack | None:
        """A grounding head, by grounding."""
        return lacks_head(measured) if name.startswith("relations/grounded/") else None
