"""How well a score tells what is there: counted pair by pair."""

from __future__ import annotations

import random

import pytest
import torch

from benchmarks.absent import absent_phrases, area, best_cut
from cloc.contracts import Region, Sample


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 5, (40,), generator=generator).float()  # with ties
    there = torch.rand(40, generator=generator) < 0.4
    pairs = [(float(one), float(other)) for one in values[there] for other in values[~there]]
    expected = sum((one > other) + (one == other) / 2 for one, other in pairs) / len(pairs)
    assert area(values, there) == pytest.approx(expected)


def test_the_best_cut_parts_what_can_be_parted() -> None:
    values, there = torch.tensor([0.9, 0.2, 0.6, 0.1, 0.5]), torch.tensor([True, False, True, False, False])
    assert best_cut(values, there) == (pytest.approx(0.6), 1.0)
    there[3] = True  # one of three is below the cut
    assert best_cut(values, there)[1] == pytest.approx((2 / 3 + 1) / 2)


def test_absent_phrases_name_nothing_that_is_shown() -> None:
    def sample(key: str, *things: tuple[str, str]) -> Sample:
        regions = [Region((0.0, 0.0, 1.0, 1.0), (phrase,), category) for category, phrase in things]
        return Sample(key, b"", "png", (), tuple(regions))

    samples = [
        sample("0", ("dog", "a dog"), ("cup", "a red cup")),
        sample("1", ("dog", "an old dog"), ("hat", "a hat"), ("tree", "a tree")),
        sample("2", ("cup", "a cup"), ("sun", "a sun")),
    ]
    found = absent_phrases(samples, 0, random.Random(0))
    assert len(found) == 2 and set(found) <= {"a hat", "a tree", "a sun"}
