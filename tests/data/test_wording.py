"""Names of things and templates: what a region is called in training besides its phrases."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

from cloc.config import ConfigError, data_config
from cloc.contracts import Region, Sample
from cloc.data.frozen.blocks import record_of
from cloc.data.stream.region_sampling import Candidate, Chooser, make_chooser
from cloc.data.stream.wording import Wording, head_noun, singular, worded
from cloc.data.transforms import View, ViewedPicture
from cloc.engine.frozen.texts import texts_of_record

SEEN = ViewedPicture(torch.empty(0), np.array([0, 0, 1, 1], np.float32), False)
MAN = Region((0.1, 0.1, 0.5, 0.9), ("A man in a red shirt", "the old man"))
DOGS = Region((0.4, 0.4, 0.9, 0.9), ("two dogs",), negatives=("two cats",))


@pytest.mark.parametrize(
    ("phrase", "name"),
    [
        ("a man in a red shirt", "man"),
        ("Two young women", "woman"),
        ("a dog running through the snow", "dog"),
        ("a tall building", "building"),
        ("a group of people", "person"),
        ("three dishes", "dish"),
        ("his sunglasses", "sunglasses"),
        ("puppies", "puppy"),
        ("a small child's bicycle", "bicycle"),
        ("the man who is waving", "man"),
        ("them", None),
        ("another", None),
        ("black", None),
        ("in the back", None),
        ("", None),
        ("42", None),
        ("日本", "日本"),
    ],
)
def test_the_name_of_the_thing_in_a_phrase(phrase: str, name: str | None) -> None:
    assert head_noun(phrase) == name


def test_plurals_by_their_ending() -> None:
    words = {
        "buses": "bus",
        "houses": "house",
        "boxes": "box",
        "grass": "grass",
        "bus": "bus",
        "gas": "gas",
        "ties": "tie",
    }
    assert {word: singular(word) for word in words} == words


def test_an_article_gives_way_to_the_phrases_own() -> None:
    template = "a photo of a {} outside"
    assert worded(template, "dog") == "a photo of a dog outside"
    assert worded(template, "The dog") == "a photo of The dog outside"
    assert worded(template, "two dogs") == "a photo of two dogs outside"
    assert worded("{}", "two dogs") == "two dogs"


def drawn(wording: Wording, seed: int, **options: int) -> tuple[list[str], list[str], list[list[str]]]:
    """Phrases, caption and negatives of a picture with both regions."""
    sample = Sample("a", b"", "png", ("a man and his dogs", "a walk"), (MAN, DOGS), 10, 10)
    chooser = Chooser(View(8), 2, wording=wording, **options)
    item = chooser.choose([Candidate(sample, SEEN, np.random.default_rng(seed))])[0]
    return item.phrases, [item.caption], item.negatives


def test_without_names_and_templates_the_draws_are_what_they_were() -> None:
    """One template draws nothing either; caption and order of regions do not depend on names."""
    for seed in range(20):
        phrases, caption, _ = drawn(Wording(), seed)
        assert set(phrases) <= {*MAN.phrases, *DOGS.phrases}
        alone, same_caption, _ = drawn(Wording(templates=["see {}"]), seed)
        assert alone == [f"see {phrase}" for phrase in phrases] and same_caption == caption
        assert drawn(Wording(names=True), seed)[1] == caption


def test_every_text_that_is_drawn_is_foreseen_and_all_of_them_are_drawn() -> None:
    """The token cache must hold each."""
    wording = Wording(names=True, templates=["{}", "a photo of a {}"])
    seen: set[str] = set()
    for seed in range(200):
        phrases, _, negatives = drawn(wording, seed, negatives=1)
        seen |= {*phrases, *(text for texts in negatives for text in texts)}
    sample = Sample("a", b"", "png", (), (MAN, DOGS), 10, 10)
    record = json.loads(record_of(sample, Counter()))
    assert seen == set(texts_of_record(record, wording, False, True))
    assert {"man", "dog", "a photo of a man", "a photo of two dogs", "a photo of two cats"} <= seen


def test_the_caption_of_a_picture_that_has_none_is_foreseen_too() -> None:
    """It is made of what its regions hold, crowds aside."""
    crowd = Region((0.0, 0.0, 0.3, 0.3), ("a crowd",), crowd=True)
    sample = Sample("a", b"", "png", (), (crowd, MAN, DOGS), 10, 10)
    item = Chooser(View(8), 2).choose([Candidate(sample, SEEN, np.random.default_rng(0))])[0]
    assert item.caption == "A man in a red shirt, two dogs"
    assert item.caption in set(texts_of_record(json.loads(record_of(sample, Counter())), Wording(), True, False))


def test_a_name_that_two_regions_share_owns_both() -> None:
    regions = tuple(Region((x, 0.1, x + 0.2, 0.5), (text,)) for x, text in ((0.1, "a red man"), (0.6, "a tall man")))
    sample, shared = Sample("a", b"", "png", (), regions, 10, 10), {}
    for seed in range(20):
        chooser = Chooser(View(8), 2, wording=Wording(names=True))
        item = chooser.choose([Candidate(sample, SEEN, np.random.default_rng(seed))])[0]
        shared |= dict(zip(item.phrases, item.shared, strict=True))
    assert shared == {"a red man": False, "a tall man": False, "man": True}


def test_the_configuration_names_both_and_refuses_a_template_without_a_place() -> None:
    config = data_config(["names=true", "templates=['a {}']"])
    assert make_chooser(config, 8).wording == Wording(True, ("a {}",))
    with pytest.raises(ConfigError, match=r"data\.templates: 'a photo' must hold \{\} once"):
        data_config(["templates=[a photo]"])
