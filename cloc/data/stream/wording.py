"""How the phrases of regions are worded in training: names of things as further phrases, and templates.

Beside ``region_sampling``. A model that reads "a man in a red shirt" in training is asked for "person" and "a photo of
a dog" by sets of named boxes; these options bring the two nearer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
ARTICLE = re.compile(r"\b(?:an?|the)\s+$", re.IGNORECASE)
AMOUNT = re.compile(
    r"^(?:an?\s+)?(?:\w+\s+)?(?:group|pair|bunch|couple|lots?|crowd|row|pile|stack|piece|set|team|number)s?\s+of\s+",
    re.IGNORECASE,
)
DETERMINERS = frozenset(
    "a an the this that these those his her its their my your our some any each every another other one two three four "
    "five six seven eight nine ten several many few both all no".split()
)
ENDS = frozenset(
    "in on of with at by near from to for over under behind beside besides between into onto through along across "
    "around above below inside outside against among toward towards up down off out about like as and or next while "
    "that which who whose where is are was were has have wearing holding carrying sitting standing".split()
)
NO_NAMES = DETERMINERS | frozenset(
    "black white red blue green yellow brown gray grey orange purple pink tan gold silver "
    "he she it they them him himself herself itself themselves i you we us me who what something someone others there "
    "left right front back side top bottom".split()
)
NOUNS_IN_ING = frozenset(
    "building clothing ring king string swing wing railing thing ceiling painting drawing awning wedding evening "
    "morning crossing landing lightning duckling sibling icing spring earring siding stocking bedding parking".split()
)
PLURALS = {"men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot", "teeth": "tooth"}
PLURALS |= {"buses": "bus", "mice": "mouse", "knives": "knife", "leaves": "leaf", "wolves": "wolf", "shelves": "shelf"}
PAIRS = frozenset(
    "glasses sunglasses eyeglasses pants jeans shorts trousers clothes scissors goggles overalls pajamas tights series "
    "stairs headphones tennis lens".split()
)


def head_noun(phrase: str) -> str | None:
    """The name of the thing that an English phrase describes: "two dogs in the snow" → "dog"; None where none is found.

    Simple rules, no parser: the last word before the first preposition or verb, in the singular.
    """
    words: list[str] = []
    for word in WORD.findall(AMOUNT.sub("", phrase)):
        if words and word.lower() in ENDS:
            break
        words.append(word.lower())
    while len(words) > 1 and words[-1].endswith("ing") and words[-1] not in NOUNS_IN_ING:
        words.pop()  # "a dog running"
    if not words or words[-1] in NO_NAMES or words[-1] in ENDS:
        return None
    return singular(words[-1])


def singular(word: str) -> str:
    """An English noun in the singular, by its ending."""
    if word in PLURALS:
        return PLURALS[word]
    if word in PAIRS or not word.endswith("s") or word.endswith(("ss", "us", "is", "'s", "’s")) or len(word) < 4:
        return word
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1]


@dataclass(frozen=True, slots=True)
class Wording:
    """How phrases become texts: by default as they are.

    Attributes:
        names: whether the name of a phrase's thing is a further phrase of its region.
        templates: of which one is drawn for each region; ``{}`` is the phrase. Without any, phrases stay as they are.
    """

    names: bool = False
    templates: Sequence[str] = ()

    def phrases(self, phrases: Sequence[str]) -> tuple[str, ...]:
        """A region's phrases, and the names that they hold."""
        if not self.names:
            return tuple(phrases)
        found = [name for phrase in phrases if (name := head_noun(phrase))]
        return tuple(dict.fromkeys([*phrases, *found]))

    def draw(self, count: int, rng: np.random.Generator) -> list[str]:
        """Templates of so many regions; nothing is drawn where there is none to choose."""
        if len(self.templates) < 2:
            return [*self.templates] * count or ["{}"] * count
        return [self.templates[i] for i in rng.integers(len(self.templates), size=count).tolist()]

    def forms(self, phrase: str) -> list[str]:
        """All texts that may stand for a phrase."""
        return [worded(template, phrase) for template in self.templates or ("{}",)]


def worded(template: str, phrase: str) -> str:
    """A phrase in a template; "a photo of a {}" keeps its article only before a phrase that brings none."""
    before, _, after = template.partition("{}")
    first = WORD.match(phrase)
    if first and first[0].lower() in DETERMINERS:
        before = ARTICLE.sub("", before)
    return f"{before}{phrase}{after}"
