"""What may truly be said of a scene: relations between its things, and captions built from them.

Serves ``openmoji`` at the start of ``data → models → losses → evaluation → engine``. Only relations that no viewer
would dispute are named, so that a model that answers otherwise is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PHRASINGS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under"),
    "front": ("in front of",),
    "behind": ("behind",),
}
"""How captions word each relation of a subject to an object; the first is the plain form."""

CAPTIONS = 4
"""Captions per scene, at most: equal ones are told once."""

_DOMINANCE = 1.5
_LISTS = ("{}", "{}", "a picture of {}", "there is {}", "{} in one picture")
_JOINTS = (", and ", ", ", " and ")


@dataclass(frozen=True, slots=True)
class Fact:
    """One true relation: the subject is ``relation`` the object. Both are indices of things."""

    subject: int
    relation: str
    object: int


def directional_relation(subject: Sequence[float], other: Sequence[float]) -> str | None:
    """Say on which side of another box a box clearly is.

    Args:
        subject: xyxy box, in any unit.
        other: xyxy box in the same unit.

    Returns:
        ``left``, ``right``, ``above`` or ``below`` where the offset of the centers along one axis is more than 1.5
        times that along the other and the boxes do not overlap along it; else None.
    """
    dx = (subject[0] + subject[2] - other[0] - other[2]) / 2
    dy = (subject[1] + subject[3] - other[1] - other[3]) / 2
    half_widths = (subject[2] - subject[0] + other[2] - other[0]) / 2
    half_heights = (subject[3] - subject[1] + other[3] - other[1]) / 2
    if abs(dx) > _DOMINANCE * abs(dy) and abs(dx) > half_widths:
        return "left" if dx < 0 else "right"
    if abs(dy) > _DOMINANCE * abs(dx) and abs(dy) > half_heights:
        return "above" if dy < 0 else "below"
    return None


def facts(boxes: Sequence[Sequence[float]], covers: Sequence[tuple[int, int]]) -> list[Fact]:
    """List every relation that clearly holds, in both directions.

    Args:
        boxes: xyxy box of each thing.
        covers: pairs (front, behind) of things of which the first hides part of the second.
    """
    listed = []
    for subject, box in enumerate(boxes):
        for other, other_box in enumerate(boxes):
            relation = directional_relation(box, other_box) if subject != other else None
            if relation:
                listed.append(Fact(subject, relation, other))
    for front, behind in covers:
        listed += [Fact(front, "front", behind), Fact(behind, "behind", front)]
    return listed


def captions(names: Sequence[str], known: Sequence[Fact], rng: np.random.Generator) -> tuple[str, ...]:
    """Write up to ``CAPTIONS`` distinct true captions, each naming two or more things.

    Args:
        names: phrase of each thing, with its article ("a chick").
        known: facts about them.
        rng: random state that is used up.
    """
    written = [_list_caption(names, len(names), rng)]
    if known:
        order = _by_rarity(known, rng)
        written.append(_relation(names, order[0], rng))
        written.append(_two_relations(names, order[1:] + order[:1], rng))
        written.append(_relation_with_rest(names, order[-1], rng))
    else:
        written += [_list_caption(names, int(rng.integers(2, len(names) + 1)), rng) for _ in range(CAPTIONS - 1)]
    return tuple(dict.fromkeys(written))


def _by_rarity(known: Sequence[Fact], rng: np.random.Generator) -> list[Fact]:
    """Shuffle the facts, with those of overlaps, which are few, twice as likely to come early."""
    weights = np.array([2.0 if fact.relation in ("front", "behind") else 1.0 for fact in known])
    return [known[index] for index in np.argsort(rng.exponential(size=len(known)) / weights)]


def _join(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _list_caption(names: Sequence[str], count: int, rng: np.random.Generator) -> str:
    chosen = [names[index] for index in rng.permutation(len(names))[:count]]
    return _LISTS[rng.integers(len(_LISTS))].format(_join(chosen))


def _predicate(names: Sequence[str], fact: Fact, rng: np.random.Generator) -> str:
    wordings = PHRASINGS[fact.relation]
    return f"{wordings[rng.integers(len(wordings))]} {names[fact.object]}"


def _relation(names: Sequence[str], fact: Fact, rng: np.random.Generator) -> str:
    return f"{names[fact.subject]} {_predicate(names, fact, rng)}"


def _two_relations(names: Sequence[str], order: Sequence[Fact], rng: np.random.Generator) -> str:
    """Join the first fact with another of the same subject, or with one about other things."""
    first = order[0]
    for fact in order[1:]:
        if fact.subject == first.subject and fact.object != first.object:
            return f"{_relation(names, first, rng)} and {_predicate(names, fact, rng)}"
        if not {fact.subject, fact.object} & {first.subject, first.object}:
            joint = _JOINTS[rng.integers(len(_JOINTS))]
            return f"{_relation(names, first, rng)}{joint}{_relation(names, fact, rng)}"
    return _relation(names, order[-1], rng)


def _relation_with_rest(names: Sequence[str], fact: Fact, rng: np.random.Generator) -> str:
    rest = [index for index in rng.permutation(len(names)) if index not in (fact.subject, fact.object)]
    if not rest:
        return _relation(names, fact, rng)
    kept = rest[: int(rng.integers(1, len(rest) + 1))]
    return f"{_relation(names, fact, rng)}, with {_join([names[index] for index in kept])}"
