"""Takes a phrase apart by words alone: its attributes, and the name of the thing that it is about.

Serves ``negatives``. There is no parser: a thing's name begins behind determiners and attributes and ends at the first
preposition, verb form or comma. Where that is wrong, the negative reads oddly; it is a wrong text all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from cloc.data.negatives.words import (
    ATTRIBUTES,
    DETERMINERS,
    IRREGULAR,
    MEASURES,
    NO_PLURALS,
    NOUNS_IN_ING,
    PLURAL_DETERMINERS,
    STOPS,
    synonyms,
)

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_VOWEL_SOUND = re.compile(r"(?!uni|use|uk|eu|one\b)[aeiou]|hour|honest", re.IGNORECASE)
_PLURALS = {word for groups in ATTRIBUTES["number"] for same in groups for word in same} | PLURAL_DETERMINERS

Slot = tuple[str, int, int]
"""An attribute: its kind, its group of that kind, its place in the group."""

SLOTS: dict[str, Slot] = {
    word: (kind, number, place)
    for kind, groups in ATTRIBUTES.items()
    for number, group in enumerate(groups)
    for place, same in enumerate(group)
    for word in same
}
"""Each attribute word, where it stands in the lists."""
_SYNONYMS = synonyms()
_JOINS = ("and", "or")
_PERSON = 0  # the line of SAME that names people


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase, taken apart.

    Attributes:
        text: as it stands.
        words: each word in lower case, with its first and last place in the text.
        attributes: places in ``words`` of attributes that may be exchanged.
        thing: first and last place in ``words`` of the thing's name; empty where there is none.
        number: ``one`` ("a dog"), ``the`` ("the dog", which may be no countable thing), ``many``, ``mass`` (no
            article), or ``class``; empty without a thing.
    """

    text: str
    words: tuple[tuple[str, int, int], ...]
    attributes: tuple[int, ...]
    thing: tuple[int, int]
    number: str

    @property
    def name(self) -> str:
        """The thing's name, in lower case."""
        first, last = self.thing
        return self.text[self.words[first][1] : self.words[last - 1][2]].lower() if last > first else ""

    def with_attribute(self, place: int, word: str) -> str:
        """The phrase with another attribute at a place in ``words``."""
        return self._with(self.words[place][1], self.words[place][2], place, word)

    def with_thing(self, name: str) -> str:
        """The phrase about another thing."""
        first, last = self.thing
        return self._with(self.words[first][1], self.words[last - 1][2], first, name)

    def _with(self, start: int, end: int, place: int, new: str) -> str:
        if place == 0 and self.text[start].isupper():
            new = new[0].upper() + new[1:]
        before = self.text[:start]
        if place and self.words[place - 1][0] in ("a", "an"):
            first, last = self.words[place - 1][1:]
            article = "an" if _VOWEL_SOUND.match(new) else "a"
            before = before[:first] + (article.capitalize() if before[first].isupper() else article) + before[last:]
        return before + new + self.text[end:]


@lru_cache(1 << 16)
def take_apart(text: str, is_class: bool = False) -> Phrase:
    """Find the attributes and the thing of a phrase.

    Args:
        text: the phrase.
        is_class: it is a class name: all of it behind determiners and attributes is the thing's name.
    """
    words = tuple((match.group().lower(), *match.span()) for match in _WORD.finditer(text))
    first = _first(words)
    last = len(words) if is_class else _last(text, words, first)
    attributes = tuple(
        place for place in range(len(words)) if _may_change(text, words, place) and not (is_class and place >= first)
    )
    number = _number(words, first, last)
    return Phrase(text, words, attributes, (first, last), "class" if number and is_class else number)


def _first(words: tuple[tuple[str, int, int], ...]) -> int:
    """Where the name begins: behind determiners and attributes, but for an attribute that names the thing itself."""
    place = 0
    while place < len(words) and (words[place][0] in DETERMINERS or _qualifies(words, place) or _joins(words, place)):
        place += 1
    return place


def _qualifies(words: tuple[tuple[str, int, int], ...], place: int) -> bool:
    """Whether an attribute stands before a thing: "an orange" is one itself, and so is "a glass of milk"."""
    word = words[place][0]
    if word not in SLOTS or SLOTS[word][0] == "person" or place + 1 == len(words):
        return False
    behind = words[place + 1][0]
    if behind in _JOINS and place + 2 < len(words):  # "a black and white dog" is no black one
        return words[place + 2][0] in SLOTS and SLOTS[words[place + 2][0]][0] != "person"
    return behind not in STOPS


def _joins(words: tuple[tuple[str, int, int], ...], place: int) -> bool:
    return place > 0 and words[place][0] in _JOINS and _qualifies(words, place - 1)


def _last(text: str, words: tuple[tuple[str, int, int], ...], first: int) -> int:
    """Where the name ends."""
    place = first
    while place < len(words):
        word = words[place][0]
        cut = place > first and not text[words[place - 1][2] : words[place][1]].isspace()
        measured = place > first and word == "of" and words[place - 1][0] in MEASURES and place + 1 < len(words)
        if cut or (word in STOPS and not measured) or (place > first and _is_verb(word)):
            break
        place += 1
    return place


def _is_verb(word: str) -> bool:
    """Whether a word behind a noun says what it does ("a man holding", "a man dressed"), by its ending."""
    return (word.endswith("ing") and word not in NOUNS_IN_ING) or (word.endswith("ed") and len(word) > 4)


def _may_change(text: str, words: tuple[tuple[str, int, int], ...], place: int) -> bool:
    """Whether an attribute can be exchanged where it stands: "an orange", "on a stone", "a black man" are no such."""
    word = words[place][0]
    if word not in SLOTS:
        return False
    kind = SLOTS[word][0]
    if kind in ("person", "number"):
        return True
    follows = place + 1 < len(words) and text[words[place][2] : words[place + 1][1]].isspace()
    behind = words[place + 1][0] if follows else ""
    if not behind or behind in STOPS:
        return kind != "material" and place > 0 and words[place - 1][0] not in DETERMINERS
    return kind != "color" or _PERSON not in _SYNONYMS.get(singular(behind), ())


def _number(words: tuple[tuple[str, int, int], ...], first: int, last: int) -> str:
    if last <= first:
        return ""
    before = {word for word, _, _ in words[:first]}
    if before & {"a", "an", "one", "another", "each"}:
        return "one"
    if before & _PLURALS or is_plural(words[last - 1][0]):
        return "many"
    return "the" if before & DETERMINERS else "mass"


def color_and_thing(name: str) -> tuple[str, str]:
    """A class name parted: "a red chick" → ("red", "chick"); no color where none stands before the thing."""
    phrase = take_apart(name, True)
    colors = [word for place in phrase.attributes if SLOTS[word := phrase.words[place][0]][0] == "color"]
    return " ".join(colors), phrase.name


def is_plural(word: str) -> bool:
    """Whether a noun is a plural, by its ending."""
    if word in NO_PLURALS or word in IRREGULAR:
        return word in IRREGULAR
    return word.endswith("s") and not word.endswith(("ss", "us"))


def singular(word: str) -> str:
    """A noun without the ending of a plural."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if not is_plural(word):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("shes", "ches", "xes", "sses")) else word[:-1]


@lru_cache(1 << 16)
def heads(name: str) -> frozenset[str | int]:
    """What a name may be known by: its last word, that before "of", and the lines of synonyms that hold either.

    Two names that share one of these may be true of the same thing.
    """
    words = name.split()
    ends = {words[-1], *(words[place - 1] for place, word in enumerate(words) if word == "of" and place)}
    return meanings(singular(word) for word in ends)


def meanings(words: Iterable[str]) -> frozenset[str | int]:
    """Words in the singular, and the lines of synonyms that hold one of them."""
    plain = frozenset(words)
    return plain.union(*(_SYNONYMS.get(word, frozenset()) for word in plain))


@lru_cache(1 << 16)
def content(text: str) -> frozenset[str]:
    """The words of a text that say something, in the singular."""
    words = (match.group().lower() for match in _WORD.finditer(text))
    return frozenset(singular(word) for word in words if word not in DETERMINERS)
