"""Makes hard negatives of a picture's phrases: another attribute, or another thing of the same data set.

Serves the job beside it. What is drawn depends on the seed, the sample's key and the region's place alone.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cloc.contracts import Region, Sample
from cloc.data.negatives.phrases import SLOTS, Phrase, content, heads, meanings, take_apart
from cloc.data.negatives.words import ATTRIBUTES, DETERMINERS, MEASURES, VAGUE

_POOLS = {"the": "one"}  # "the dog" may become "the cat"; but what "the" stands before may be no countable thing
_AHEAD = 8  # names drawn for each negative: some may be true of the picture, or said already


@dataclass(slots=True)
class Vocabulary:
    """What the phrases of a data set say, counted.

    Attributes:
        things: by grammatical number, how often each name stands in a phrase.
        attributes: how often each attribute does.
        classes: names of the set's classes, whose phrases are names from end to end.
        said: those of them that name a region. No negative is another class: a pair that is kept for testing would be
            trained on, as what nothing ever is.
    """

    things: dict[str, Counter[str]] = field(default_factory=dict)
    attributes: Counter[str] = field(default_factory=Counter)
    classes: frozenset[str] = frozenset()
    said: set[str] = field(default_factory=set)

    def read(self, sample: Sample) -> None:
        """Count the phrases of a sample."""
        for region in sample.regions:
            for text in () if region.crowd else region.phrases:
                phrase = self.take_apart(text)
                self.said.update({text} & self.classes)
                self.attributes.update(phrase.words[place][0] for place in phrase.attributes)
                if _is_a_name(phrase, text in self.classes):
                    self.things.setdefault(phrase.number, Counter())[phrase.name] += 1

    def add(self, other: Vocabulary) -> None:
        """Add the counts of another part of the same set."""
        self.attributes.update(other.attributes)
        self.said |= other.said
        for number, counts in other.things.items():
            self.things.setdefault(number, Counter()).update(counts)

    def allows(self, phrase: Phrase, text: str) -> bool:
        """Whether a text may stand for a phrase: for that of a class only another class that the set shows."""
        return phrase.text not in self.classes or text in self.said

    def take_apart(self, text: str) -> Phrase:
        """As :func:`phrases.take_apart`, with the set's classes."""
        return take_apart(text, text in self.classes)


class Generator:
    """Makes negatives by a vocabulary.

    Args:
        vocabulary: of the data set.
        per_region: K, at most so many a region.
        seed: another one draws others.
    """

    def __init__(self, vocabulary: Vocabulary, per_region: int, seed: int = 0) -> None:
        self.vocabulary, self.per_region, self.seed = vocabulary, per_region, seed
        self._names = {number: sorted(counts) for number, counts in vocabulary.things.items()}
        self._weights: dict[str, NDArray[np.float64]] = {
            number: np.array([vocabulary.things[number][name] for name in names], float)
            for number, names in self._names.items()
        }

    def __call__(self, sample: Sample, counts: Counter[str]) -> Sample:
        """Return the sample with negatives of each region that is no crowd; those that are there are kept.

        Args:
            sample: as it was read.
            counts: receives how many were made, by what was exchanged, and how many regions got fewer than K.
        """
        picture = _Picture(sample)
        regions = [
            region if region.crowd else self._with_negatives(region, sample.key, place, picture, counts)
            for place, region in enumerate(sample.regions)
        ]
        return replace(sample, regions=tuple(regions))

    def _with_negatives(self, region: Region, key: str, place: int, picture: _Picture, counts: Counter[str]) -> Region:
        rng = _rng(self.seed, key, place)
        found = {text.casefold(): text for text in region.negatives}
        makers = [self._of_phrase(self.vocabulary.take_apart(text), rng, picture) for text in region.phrases]
        while makers and len(found) < self.per_region:
            for maker in tuple(makers):  # in turn, so that each phrase has some
                made = next(maker, None)
                if made is None:
                    makers.remove(maker)
                elif made[1].casefold() not in found and len(found) < self.per_region:
                    found[made[1].casefold()] = made[1]
                    counts[f"exchanged: {made[0]}"] += 1
        if len(found) < self.per_region:
            counts["regions with fewer" if found else "regions without any"] += 1
        return replace(region, negatives=tuple(found.values()))

    def _of_phrase(self, phrase: Phrase, rng: np.random.Generator, picture: _Picture) -> Iterator[tuple[str, str]]:
        """Negatives of a phrase with what was exchanged, attributes first."""
        for kind, text in self._attributes(phrase, rng):
            if self.vocabulary.allows(phrase, text) and not picture.shows(text):
                yield kind, text
        for name in self._things(phrase.number, rng):
            if not picture.holds(name) and not heads(name) & heads(phrase.name):
                text = phrase.with_thing(name)
                if self.vocabulary.allows(phrase, text) and not picture.shows(text):
                    yield "thing", text

    def _attributes(self, phrase: Phrase, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
        """Every exchange of one attribute for a word of the set, in an order drawn by how frequent the words are."""
        made = []
        for place in phrase.attributes:
            kind, number, own = SLOTS[phrase.words[place][0]]
            others = [word for rank, same in enumerate(ATTRIBUTES[kind][number]) if rank != own for word in same]
            known = [word for word in others if self.vocabulary.attributes[word]]
            made += [(kind, phrase.with_attribute(place, word), self.vocabulary.attributes[word]) for word in known]
        waits = rng.exponential(size=len(made)) / np.array([count for *_, count in made], float)
        return iter([made[index][:2] for index in np.argsort(waits).tolist()])

    def _things(self, number: str, rng: np.random.Generator) -> Iterator[str]:
        """Names of the set, in an order drawn by how frequent they are (Efraimidis & Spirakis)."""
        pool = _POOLS.get(number, number)
        names = self._names.get(pool, [])
        if not names:
            return iter(())
        waits = rng.exponential(size=len(names)) / self._weights[pool]
        most = min(len(names), self.per_region * _AHEAD)
        first = np.argpartition(waits, most - 1)[:most]
        return (names[index] for index in first[np.argsort(waits[first])].tolist())


class _Picture:
    """What may be true of a picture: the phrases of its regions, and what any word of them or of its captions names."""

    def __init__(self, sample: Sample) -> None:
        texts = [text for region in sample.regions for text in region.phrases]
        self.phrases = {content(text) for text in texts}
        self.told = meanings(itertools.chain(*(content(text) for text in (*texts, *sample.captions))))

    def holds(self, name: str) -> bool:
        """Whether a thing is in the picture, or may be: it, or what may be the same, has a region or is told of."""
        return bool(heads(name) & self.told)

    def shows(self, text: str) -> bool:
        """Whether a text says no more than a phrase of the picture does, so that it is true of that region."""
        said = content(text)
        return any(said <= phrase for phrase in self.phrases)


def _is_a_name(phrase: Phrase, is_class: bool) -> bool:
    """Whether a phrase's name may stand for another's: not "two" of "two of the men", not "glass" of "a glass of"."""
    last = phrase.name.rsplit(" ", 1)[-1]
    if not last or phrase.number == "the":
        return False
    attribute = last in SLOTS and SLOTS[last][0] != "person"
    return is_class or not (attribute or last in VAGUE or last in DETERMINERS or last in MEASURES or last.isdigit())


def _rng(seed: int, key: str, place: int) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed} {place} {key}".encode("utf-8", "replace"), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def joined(parts: Iterable[Vocabulary], classes: Sequence[str]) -> Vocabulary:
    """One vocabulary of those of all parts of a set."""
    whole = Vocabulary(classes=frozenset(classes))
    for part in parts:
        whole.add(part)
    return whole
