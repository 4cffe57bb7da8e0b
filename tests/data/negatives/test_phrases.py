"""Phrases are taken apart by words alone: attributes, and the name of the thing."""

from __future__ import annotations

import pytest

from cloc.data.negatives.phrases import content, heads, is_plural, singular, take_apart
from cloc.data.negatives.words import ATTRIBUTES, SAME


@pytest.mark.parametrize(
    ("text", "name", "attributes", "number"),
    [
        ("a man in a red shirt", "man", ["man", "red"], "one"),
        ("A small brown dog running on the grass", "dog", ["small", "brown"], "one"),
        ("two young girls", "girls", ["two", "young", "girls"], "many"),
        ("the man holding a large wooden stick", "man", ["man", "large", "wooden"], "the"),
        ("a running dog", "running dog", [], "one"),
        ("a slice of pizza", "slice of pizza", [], "one"),
        ("a group of men dressed in black", "group of men", ["men", "black"], "one"),
        ("the side of a brick building", "side", ["brick"], "the"),
        ("a black and white dog", "dog", ["white"], "one"),
        ("young and old men in red and white", "men", ["old", "men", "red", "white"], "many"),
        ("a boy and girl", "boy", ["boy", "girl"], "one"),
        ("an orange", "orange", [], "one"),
        ("an orange cone", "cone", ["orange"], "one"),
        ("a glass of orange juice", "glass of orange juice", ["orange"], "one"),
        ("a man with a glass", "man", ["man"], "one"),
        ("grass", "grass", [], "mass"),
        ("blue jeans", "jeans", ["blue"], "mass"),
        ("his hat, which is red", "hat", ["red"], "the"),
        ("a black man", "man", ["man"], "one"),  # no color of a thing
        ("white", "white", [], "mass"),
        ("…", "", [], ""),
        ("", "", [], ""),
        ("in", "", [], ""),
    ],
)
def test_names_and_attributes(text: str, name: str, attributes: list[str], number: str) -> None:
    phrase = take_apart(text)
    assert (phrase.name, phrase.number) == (name, number)
    assert [phrase.words[place][0] for place in phrase.attributes] == attributes


@pytest.mark.parametrize(
    ("text", "name", "attributes"),
    [
        ("a bow and arrow", "bow and arrow", []),
        ("a red bow and arrow", "bow and arrow", ["red"]),
        ("a glass", "glass", []),
        ("an orange", "orange", []),
    ],
)
def test_class_names_are_names_from_end_to_end(text: str, name: str, attributes: list[str]) -> None:
    phrase = take_apart(text, True)
    assert (phrase.name, phrase.number) == (name, "class")
    assert [phrase.words[place][0] for place in phrase.attributes] == attributes


def test_what_is_exchanged_stands_in_the_place_of_the_old() -> None:
    phrase = take_apart("A brown dog, and a man")
    assert phrase.with_attribute(1, "orange") == "An orange dog, and a man"
    assert phrase.with_thing("cat") == "A brown cat, and a man"
    assert take_apart("a dog").with_thing("apple") == "an apple"
    assert take_apart("an apple").with_thing("unicorn") == "a unicorn"
    assert take_apart("Dogs").with_thing("cats") == "Cats"
    assert take_apart("the German Shepherd").with_thing("cat") == "the cat"


def test_words() -> None:
    assert [singular(word) for word in ("dogs", "men", "ladies", "boxes", "grass", "jeans", "ties", "bus", "skis")] == [
        *("dog", "man", "lady", "box", "grass", "jeans", "tie", "bus", "ski")
    ]
    assert is_plural("dogs") and not is_plural("glasses")
    assert heads("tennis ball") & heads("soccer balls") and heads("mug of beer") & heads("cup")
    assert heads("puppies") & heads("hunting dog") and not heads("cat") & heads("dog bowl")
    assert content("The two dogs") == content("two dog")
    for groups in ATTRIBUTES.values():
        for group in groups:
            words = [word for same in group for word in same]
            assert len(words) == len(set(words)) and len(group) > 1
    assert all(len(line.split()) > 1 for line in SAME)
