"""The order is a pure function: every sample once a pass, every position the same however it is asked for."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloc.data.stream.mixture import Mixture
from cloc.data.stream.order import GROUP_PIECES, REPLACEMENTS, WINDOW_SHARDS, GlobalOrder, choices, rank_share

LAYOUTS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5000)), min_size=1, max_size=40).filter(
    lambda shards: any(samples for samples, _ in shards)
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(LAYOUTS, st.integers(0, 2**31), st.integers(1, 20_000))
def test_every_sample_comes_exactly_once_a_pass(shards: list[tuple[int, int]], seed: int, group_bytes: int) -> None:
    samples, sizes = zip(*shards, strict=True)
    order = GlobalOrder(samples, sizes, seed, group_bytes)
    everything = [(shard, index) for shard, count in enumerate(samples) for index in range(count)]
    for number in range(3):
        found = [order.locate(number * order.length + i) for i in range(order.length)]
        assert sorted(found) == everything


@settings(max_examples=20, deadline=None, derandomize=True)
@given(LAYOUTS, st.integers(1, 20_000), st.randoms(use_true_random=False))
def test_a_position_does_not_depend_on_what_was_asked_before(
    shards: list[tuple[int, int]], group_bytes: int, random: Any
) -> None:
    samples, sizes = zip(*shards, strict=True)
    order = GlobalOrder(samples, sizes, 1, group_bytes)
    positions = [random.randrange(6 * order.length) for _ in range(40)]
    for position in positions:
        assert order.locate(position) == GlobalOrder(samples, sizes, 1, group_bytes).locate(position)


def test_passes_and_seeds_differ_and_equal_seeds_do_not() -> None:
    def one_pass(seed: int, number: int) -> list[tuple[int, int]]:
        order = GlobalOrder([20] * 6, [1000] * 6, seed)
        return [order.locate(number * 120 + i) for i in range(120)]

    assert one_pass(0, 0) == one_pass(0, 0)
    variants = [one_pass(seed, number) for seed in range(3) for number in range(3)]
    for i, one in enumerate(variants):
        for other in variants[:i]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 20  # by chance one in 120


def test_groups_mix_pieces_of_many_shards_and_a_window_bounds_them() -> None:
    """96 shards, each of half a group's bytes: three windows of 32 shards, whose groups mix pieces of many of them."""
    order = GlobalOrder([128] * 96, [1 << 16] * 96, seed=0, group_bytes=1 << 17)
    found = np.array([order.locate(i)[0] for i in range(order.length)])
    windows = found.reshape(3, WINDOW_SHARDS * 128)
    assert sorted(np.concatenate([np.unique(window) for window in windows])) == list(range(96))
    for group in windows.reshape(-1, 256):  # 256 pieces of one sample, 8 a shard in the mean
        assert len(np.unique(group)) >= 30 and np.bincount(group).max() <= 20
    assert order.window_bytes == WINDOW_SHARDS << 16
    for number, window in enumerate(windows):
        _, shards = order.window_shards(number * WINDOW_SHARDS * 128 + 5)
        assert sorted(shards) == sorted(np.unique(window))
        assert order.next_window(number * WINDOW_SHARDS * 128 + 5) == (number + 1) * WINDOW_SHARDS * 128


def test_one_giant_shard_is_mixed_from_end_to_end_with_little_memory() -> None:
    order = GlobalOrder([1_000_000], [100 << 20], seed=0, group_bytes=1 << 20)  # a hundred groups
    found = np.array([order.locate(i)[1] for i in range(20_000)]).reshape(2, 10_000)
    for group in found:
        assert np.ptp(group) > 900_000
        assert len(np.unique(group // 39)) <= 2 * GROUP_PIECES + 2  # 256 pieces of 39 or 40 samples
    assert max(len(shards) for shards, _ in order._groups.kept.values()) <= 10_100


def test_choices_are_those_of_the_position_alone() -> None:
    drawn = {
        (seed, position): tuple(choices(seed, position).integers(0, 2**62, 3))
        for seed in (0, 1)
        for position in range(50)
    }
    assert len(set(drawn.values())) == 100
    assert tuple(choices(1, 7).integers(0, 2**62, 3)) == drawn[1, 7]


def test_a_wide_group_mixes_all_shards() -> None:
    order = GlobalOrder([10] * 8, [1000] * 8, seed=0)
    assert len({order.locate(i)[0] for i in range(20)}) >= 6


@pytest.mark.parametrize("length", [65, 100, 7919, 2 * 7919])
def test_substitutes_are_fixed_and_all_different(length: int) -> None:
    order = GlobalOrder([length], [1000], seed=0)
    for position in (0, length - 1, 3 * length + 7):
        found = [order.locate(position, replacement) for replacement in range(REPLACEMENTS)]
        assert len(set(found)) == REPLACEMENTS
        assert found == [order.locate(position, replacement) for replacement in range(REPLACEMENTS)]


def test_no_sample_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 shards hold no sample"):
        GlobalOrder([0, 0], [10, 10], 0)


# --- several sources --------------------------------------------------------------------------------------------------


WEIGHTS = st.lists(st.sampled_from([1, 2, 3, 0.1, 7.25, 100, 1_000_003]), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(WEIGHTS, st.integers(0, 10**12))
def test_a_mixture_counts_every_source_without_a_gap_and_holds_its_share(weights: list[float], start: int) -> None:
    mixture, exact, counts = Mixture(weights), [Fraction(str(weight)) for weight in weights], {}
    for position in range(start, start + 150):
        source, index = mixture.locate(position)
        assert index == counts.get(source, index)
        counts[source] = index + 1
        assert abs(counts[source] - exact[source] / sum(exact) * (position + 1)) <= 1 + len(weights) / 2


@settings(max_examples=40, deadline=None, derandomize=True)
@given(WEIGHTS)
def test_a_mixture_is_that_of_counting_from_the_beginning(weights: list[float]) -> None:
    """Against the definition: the next sample is of the source whose next date, (j + ½) / weight, is the earliest."""
    mixture, counts = Mixture(weights), [0] * len(weights)
    for position in range(200):
        exact = [Fraction(2 * count + 1) / Fraction(str(weight)) for count, weight in zip(counts, weights, strict=True)]
        source = exact.index(min(exact))
        assert mixture.locate(position) == (source, counts[source])
        counts[source] += 1


def test_sources_weighted_by_their_sizes_end_their_passes_together() -> None:
    mixture = Mixture([100, 50, 7])
    found = [mixture.locate(position) for position in range(314)]
    everything = sorted((source, i) for source, size in enumerate((100, 50, 7)) for i in range(size))
    assert sorted(found[:157]) == everything
    assert {source: sum(s == source for s, _ in found) for source in range(3)} == {0: 200, 1: 100, 2: 14}


@pytest.mark.parametrize("weights", [[], [0, 1], [-1], [float("nan")], [float("inf"), 1]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="positive finite"):
        Mixture(weights)


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7, 64, 1001])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_ranks_share_a_set_without_overlap(count: int, world: int) -> None:
    shares = [rank_share(count, rank, world) for rank in range(world)]
    assert [place for share in shares for place in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
