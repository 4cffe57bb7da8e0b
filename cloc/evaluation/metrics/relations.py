"""Spatial relations, judged two ways: by image-text similarity, as for any CLIP, and by grounding both things.

By grounding, each candidate is scored by how far the two boxes lie as it says: left, right, above and below by the
offset of their centers, in front and behind by how much they overlap sideways, and which of the two by the similarity
of the embedding of their common box to the caption. The best-scored candidate is the answer; a tie is wrong, for the
true caption stands first in the published files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cloc.evaluation.metrics.outcome import Outcomes, outcome
from cloc.evaluation.sets.relations import OPPOSITE, Fact, RelationItem

WHOLE = (0.0, 0.0, 1.0, 1.0)
LEARNED = 1e-3  # weight of similarity beside overlap: it decides between in front and behind, which overlap cannot


@dataclass(slots=True)
class Placed:
    """Where a model sees the things of one item.

    Attributes:
        boxes: phrase → xyxy box.
        aspect: width over height of the picture.
        common: ``[D]`` embedding of the box around the first candidate's things; None where no candidate needs it.
        texts: ``[C,D]`` embedding of each candidate.
    """

    boxes: dict[str, Sequence[float]]
    aspect: float
    common: Tensor | None = None
    texts: Tensor = field(default_factory=lambda: torch.zeros(0, 0))


def phrases_of(item: RelationItem) -> list[str]:
    """The distinct things that an item's candidates name, in order; none where grounding cannot tell them apart."""
    if not item.can_ground:
        return []
    facts = [fact for fact in item.facts if fact is not None]
    return list(dict.fromkeys(p for fact in facts for p in (fact.subject, fact.other) if p is not None))


def needs_common(item: RelationItem) -> bool:
    """Whether a candidate says in front or behind."""
    return item.can_ground and any(fact is not None and fact.relation in ("front", "behind") for fact in item.facts)


def common_box(item: RelationItem, boxes: dict[str, Sequence[float]]) -> list[float]:
    """The box around all things of an item."""
    corners = torch.tensor([list(boxes[phrase]) for phrase in phrases_of(item)])
    return [*corners[:, :2].amin(0).tolist(), *corners[:, 2:].amax(0).tolist()]


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
