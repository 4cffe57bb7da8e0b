"""The order dealt into C lanes: still a pure function, the same global batch on any layout, hosts that keep apart."""

from __future__ import annotations

import hashlib
import pickle
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloc.config import ConfigError
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.tars import ShardInfo
from cloc.data.stream import prefetch
from cloc.data.stream.lanes import NEAR, Deal, DealtOrder, lanes_read, rank_positions
from cloc.data.stream.mixture import Mixture
from cloc.data.stream.order import REPLACEMENTS, WINDOW_SHARDS, GlobalOrder
from cloc.data.stream.prefetch import FETCHERS, FETCHING, Prefetcher
from cloc.data.stream.read_plan import check_cache, plan_reading
from cloc.data.stream.sources import ShardSource, ShardSources, open_shards
from tests.data.stream.test_order import LAYOUTS
from tests.kit.streams import make_manifest, make_stream

STREAMS = st.sampled_from([1, 2, 3, 8])


def set_of(shards: int, samples: int = 10, size: int = 1000, remote: str = "") -> Manifest:
    infos = tuple(ShardInfo(f"{i}.tar", samples, 0, size, "", ()) for i in range(shards))
    return Manifest(Path("nowhere"), infos, (), remote)


def sources(*manifests: Manifest, streams: int = 1, limit: int = 1 << 40) -> ShardSources:
    parts = tuple(ShardSource(f"s{i}", one, one.samples) for i, one in enumerate(manifests))
    return ShardSources(parts, ShardCache("unused", limit), streams)


# --- one lane is the order of before ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "sizes", "options", "first", "passes", "substitutes"),
    [
        (
            [20] * 6,
            [1000] * 6,
            {"seed": 0},
            [(3, 8), (3, 10), (3, 18), (1, 19), (5, 6)],
            "66c76a356129e70e",
            "0791a1d4f81828ae",
        ),
        (
            [1 + i % 5 for i in range(100)],
            [1000 + 7 * i for i in range(100)],
            {"seed": 3, "group_bytes": 20_000, "source": 2},
            [(62, 0), (47, 2), (84, 4), (29, 2), (93, 1)],
            "f84bf104d7a7dc26",
            "3b333f036f7adc25",
        ),
        (
            [0, 9, 4, 0, 5000],
            [100, 900, 4000, 10, 1 << 20],
            {"seed": 2**31, "group_bytes": 1 << 16},
            [(4, 2212), (4, 4206), (4, 3449), (4, 2113), (4, 3391)],
            "0f8824a012452bab",
            "9387fe2f50b33e6f",
        ),
    ],
)
def test_one_lane_is_the_order_that_checkpoints_hold_a_cursor_of(
    samples: Any, sizes: Any, options: Any, first: Any, passes: str, substitutes: str
) -> None:
    """Literals of the order without lanes: three passes, and every substitute of three positions."""
    for order in (GlobalOrder(samples, sizes, **options), DealtOrder(samples, sizes, streams=1, **options)):
        lane = () if isinstance(order, GlobalOrder) else (0,)
        length = order.length
        assert [order.locate(*lane, position) for position in (0, 1, 2, length, 5 * length + 3)] == first
        assert digest([order.locate(*lane, position) for position in range(3 * length)]) == passes
        others = [order.locate(*lane, p, r) for p in (0, length - 1, 3 * length + 7) for r in range(REPLACEMENTS)]
        assert digest(others) == substitutes


def test_one_lane_takes_the_mixture_as_it_was() -> None:
    found = [Deal([0.3, 0.7, 2.5], 1).locate(position) for position in range(500)]
    assert {lane for _, lane, _ in found} == {0}
    assert digest([(source, count) for source, _, count in found]) == "63ae53935ff33238"


def test_many_lanes_are_those_that_checkpoints_hold_a_cursor_of() -> None:
    """Literals of this version's order: another one would go on from a cursor somewhere else."""
    order = DealtOrder([1 + i % 5 for i in range(100)], [1000 + 7 * i for i in range(100)], 3, 2, 8, 2000)
    assert digest([order.locate(lane, index) for lane in range(8) for index in range(100)]) == "97ab9c2c05a1d496"
    assert digest([order.locate(3, 7, replacement) for replacement in range(REPLACEMENTS)]) == "7260c05f81da25bf"
    deal = Deal([118, 5000, 30_000, 900], 64)
    assert digest([deal.locate(position) for position in range(5000)]) == "9aea88a7451af460"
    assert digest(list(rank_positions(1000, 96, 8, 1, 3))) == "cc6ec893e2c97563"


def digest(values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


# --- exactly once -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(LAYOUTS, STREAMS, st.integers(0, 2**31), st.integers(1, 20_000))
def test_every_sample_comes_exactly_once_in_a_pass_of_its_lane(
    shards: list[tuple[int, int]], streams: int, seed: int, group_bytes: int
) -> None:
    samples, sizes = zip(*shards, strict=True)
    if sum(samples) < streams:
        with pytest.raises(ValueError, match=f"{sum(samples)} samples cannot be dealt into {streams} streams"):
            DealtOrder(samples, sizes, seed, 0, streams, group_bytes)
        return
    order = DealtOrder(samples, sizes, seed, 0, streams, group_bytes)
    lengths = [order.lane(lane).length for lane in range(streams)]
    assert sum(lengths) == order.length and max(lengths) - min(lengths) <= 1
    own: list[list[tuple[int, int]]] = []
    for number in range(3):
        found = [
            [order.locate(lane, number * length + i) for i in range(length)] for lane, length in enumerate(lengths)
        ]
        before, own = own, [sorted(one) for one in found]
        assert number == 0 or own == before  # the same samples in every pass
        assert sorted(sum(own, [])) == [(shard, i) for shard, count in enumerate(samples) for i in range(count)]
        if streams > 1:
            assert [sorted({shard for shard, _ in one}) for one in own] == [
                order.shards([lane]).tolist() for lane in range(streams)
            ]
    assert sum(order.lane(lane).sizes.sum() for lane in range(streams)) <= sum(sizes)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(LAYOUTS, STREAMS, st.randoms(use_true_random=False))
def test_a_place_does_not_depend_on_what_was_asked_before(
    shards: list[tuple[int, int]], streams: int, random: Any
) -> None:
    samples, sizes = zip(*shards, strict=True)
    streams = min(streams, sum(samples))
    order = DealtOrder(samples, sizes, 1, 0, streams, 5000)
    for _ in range(40):
        asked = random.randrange(streams), random.randrange(6 * order.length), random.randrange(REPLACEMENTS)
        assert order.locate(*asked) == DealtOrder(samples, sizes, 1, 0, streams, 5000).locate(*asked)


def test_lanes_passes_seeds_and_sources_differ() -> None:
    def one_pass(lane: int, number: int, seed: int, source: int) -> list[int]:
        order = DealtOrder([40] * 4, [1000] * 4, seed, source, 4)  # a lane is a shard of 40 samples
        return [order.locate(lane, number * 40 + i)[1] for i in range(40)]

    variants = [one_pass(lane, number, seed, source) for lane, number, seed, source in np.ndindex(4, 2, 2, 2)]
    for i, one in enumerate(variants):
        for other in variants[:i]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 12  # by chance one in 40
    dealt = [tuple(DealtOrder([40] * 9, [1] * 9, seed, 0, 3).shards([0]).tolist()) for seed in range(9)]
    assert len(set(dealt)) > 4  # which shards a lane has is the seed's too


# --- a batch, and who reads it ----------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10**12), st.integers(1, 40), st.integers(1, 70))
def test_the_rows_of_the_ranks_are_one_sequence_whatever_their_number(start: int, part: int, streams: int) -> None:
    batch = 8 * part
    rows = list(rank_positions(start, batch, streams, 0, 1))
    assert sorted(rows) == list(range(start, start + batch))
    assert [position % streams for position in rows] == sorted(position % streams for position in rows)
    for world in (1, 2, 4, 8):
        assert [row for rank in range(world) for row in rank_positions(start, batch, streams, rank, world)] == rows


@pytest.mark.parametrize("streams", [1, 4, 6, 8, 13, 64])
@pytest.mark.parametrize("batch", [8, 24, 64, 192])
@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_the_lanes_of_a_host_are_those_that_it_reads(streams: int, batch: int, hosts: int) -> None:
    """Against a look at every global batch, and where hosts divide C and C divides B: an equal part each."""
    found = np.zeros((hosts, streams), dtype=bool)
    for number in range(streams):
        for host in range(hosts):
            rows = rank_positions(number * batch, batch, streams, host, hosts)
            found[host, [position % streams for position in rows]] = True
    assert (lanes_read(batch, streams, hosts) == found).all()
    if streams % hosts == 0 and batch % streams == 0:
        assert (found.sum(axis=0) == 1).all() and (found.sum(axis=1) == streams // hosts).all()


def test_batches_of_a_host_stay_in_its_own_shards_from_any_cursor() -> None:
    """64 shards, 8 streams, 4 hosts: 16 shards each, in every pass, also after a change of the batch size."""
    order, deal, seen = DealtOrder([10] * 64, [1000] * 64, 0, 0, 8), Deal([1], 8), []
    for host in range(4):
        shards = set()
        for number in range(3 * 640 // 16):
            for position in rank_positions(40 + 16 * number, 16, 8, host, 4):
                _, lane, index = deal.locate(position)
                shards.add(order.locate(lane, index)[0])
        seen.append(shards)
    assert [len(shards) for shards in seen] == [16] * 4 and len(set().union(*seen)) == 64


def test_a_batch_mixes_the_windows_of_all_lanes() -> None:
    """Of 1,024 shards one lane mixes 32 at a time, eight mix 256; groups and windows stay bounded."""
    distinct = {}
    for streams in (1, 8):
        order = DealtOrder([64] * 1024, [1 << 16] * 1024, 0, 0, streams, group_bytes=1 << 18)
        deal = Deal([1], streams)
        places = [order.locate(*deal.locate(position)[1:]) for position in range(2048)]
        distinct[streams] = len({shard for shard, _ in places})
        for lane in range(streams):
            inner = order.lane(lane)
            assert order.window_shards(lane) == WINDOW_SHARDS
            assert max(len(shards) for shards, _ in inner._groups.kept.values()) <= 256
            assert len(inner._groups.kept) <= 4 and len(inner._windows.kept) <= 3
    assert distinct[1] == WINDOW_SHARDS and distinct[8] > 5 * WINDOW_SHARDS


def test_a_rank_builds_the_lanes_that_it_reads_alone(tmp_path: Path) -> None:
    stream = make_stream(make_manifest(tmp_path / "shards"), 1, 4, streams=8)
    list(islice(stream, 6))
    assert sorted(stream.sources[0].order._lanes) == [2, 3]


# --- substitutes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [1, 2, 8, 64])
def test_substitutes_are_all_different_the_first_of_the_same_lane(streams: int) -> None:
    order = DealtOrder([100] * 80, [1000] * 80, 0, 0, streams)
    for lane, index in ((0, 0), (streams - 1, 77)):
        found = [order.locate(lane, index, replacement) for replacement in range(REPLACEMENTS)]
        assert len(set(found)) == REPLACEMENTS
        assert {shard for shard, _ in found[: NEAR + 1]} <= set(order.shards([lane]).tolist())


def test_a_lane_whose_only_shard_is_lost_takes_samples_of_others(tmp_path: Path) -> None:
    """Five lanes of a shard each; a lost one must not stop the run, which allows one."""
    manifest = make_manifest(tmp_path / "shards", count=25)
    (manifest.folder / manifest.shards[2].name).unlink()
    batches = list(islice(make_stream(manifest, streams=5, batch_size=10), 5))
    keys = [key for batch in batches for key in batch.keys]
    assert not {f"s{i:03d}" for i in range(10, 15)} & set(keys) and len(set(keys)) == 20
    assert sum(batch.stats["skipped/unreadable_shard"] for batch in batches) >= 10


# --- several sources --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [1, 8, 64])
@pytest.mark.parametrize(
    "weights", [[0.3, 0.7], [1, 1], [0.5, 0.3, 0.15, 0.05], [0.99, 0.01], [118, 5000, 30_000, 900]]
)
def test_every_batch_holds_each_share_to_within_a_few_samples(weights: list[float], streams: int) -> None:
    deal, shares = Deal(weights, streams), np.array(weights) / sum(weights)
    for batch in (64, 1024):
        sources = np.array([deal.locate(position)[0] for position in range(40 * batch)]).reshape(40, batch)
        counts = np.stack([(sources == source).sum(axis=1) for source in range(len(weights))], axis=1)
        assert np.abs(counts - shares * batch).max() <= 6
    if weights == [1, 1]:
        assert (counts == batch // 2).all()


@pytest.mark.parametrize("weights", [[0.3, 0.7], [1, 1], [2_000_000_000, 118_000, 7]])
def test_a_lane_takes_the_samples_of_each_source_without_a_gap(weights: list[float]) -> None:
    deal, counts = Deal(weights, 8), {}
    for position in range(4000):
        source, lane, index = deal.locate(position)
        assert lane == position % 8 and index == counts.get((source, lane), 0)
        counts[source, lane] = index + 1


def test_a_rare_source_does_not_come_from_all_lanes_at_once() -> None:
    """In consecutive places of the mixture 64 lanes would give a share of 1 % in lumps of 64."""
    weights, lanes = [99, 1], 64
    mixture, deal = Mixture(weights), Deal(weights, lanes)
    batches = [range(first, first + 32) for first in range(0, 320, 32)]  # of 32 turns of the lanes
    near = [sum(mixture.locate(turn + lane)[0] for turn in one for lane in range(lanes)) for one in batches]
    spread = [sum(deal.locate(64 * turn + lane)[0] for turn in one for lane in range(lanes)) for one in batches]
    assert max(near) - min(near) > 15 and max(spread) - min(spread) <= 4


def test_sources_weighted_by_their_sizes_end_their_passes_together() -> None:
    sizes, streams = [160, 80, 16], 8
    deal = Deal(sizes, streams)
    found = [deal.locate(position) for position in range(256)]
    for lane in range(streams):
        counts = [sum(one == (source, lane) for one in ((s, at) for s, at, _ in found)) for source in range(3)]
        assert np.abs(np.array(counts) - np.array(sizes) / streams).max() <= 1
    totals = np.bincount([source for source, _, _ in found])
    assert np.abs(totals - np.array(sizes)).max() <= 3


# --- what is told and refused -----------------------------------------------------------------------------------------


def test_more_streams_than_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.streams=64: data.train.s1 holds 63 samples.*fewer streams") as told:
        sources(set_of(10), set_of(9, 7), streams=64)
    assert "\n" not in str(told.value)
    with pytest.raises(ConfigError, match=r"data.train holds 63 samples"):
        sources(set_of(9, 7), streams=64)


@pytest.mark.parametrize(
    ("streams", "batch", "hosts", "amplification", "why"),
    [
        (1, 64, 4, "4.0000", "every host reads from all shards; data.streams=4"),
        (64, 64, 1, "1.0000", None),
        (64, 64, 4, "1.0000", "each host reads 16 of 64 streams, and no other"),
        (8, 64, 64, "8.0000", "64 hosts do not divide data.streams=8, so hosts read from shards of their neighbors"),
        (6, 96, 4, "1.3333", "4 hosts do not divide data.streams=6"),
        (64, 96, 2, "1.2500", "data.streams=64 does not divide batch_size=96"),
    ],
)
def test_the_plan_tells_the_amplification_and_why(
    streams: int, batch: int, hosts: int, amplification: str, why: str | None
) -> None:
    """Of 192 shards, which all of these cut between shards."""
    away = sources(set_of(192, remote="memory://set"), streams=streams)
    rows = plan_reading(away, 0, 1920, batch, hosts)
    assert f"{hosts} host(s), amplification {amplification})" in rows["reads"]
    assert why is None and "streams" not in rows or why in rows["streams"]
    if streams > 1:
        assert f"in each of {streams} streams" in rows["data"]
    local = plan_reading(sources(set_of(192), streams=streams), 0, 1920, batch, hosts)
    assert "amplification 1.0" in local["reads"] and (hosts == 1 or "a host touches shards of" in local["reads"])


def test_the_amplification_of_the_plan_is_that_of_the_shards_read() -> None:
    """Counted sample by sample over a pass, with shards of odd sizes cut at the borders of hosts."""
    infos = tuple(ShardInfo(f"{i}.tar", 3 + i % 7, 0, 1000 + 37 * i, "", ()) for i in range(50))
    manifest, seen = Manifest(Path("nowhere"), infos, (), "memory://set"), 0
    order, deal = sources(manifest, streams=4).orders(3)[0], Deal([1], 4)
    for host in range(4):
        rows = [row for first in range(0, 320, 8) for row in rank_positions(first, 8, 4, host, 4)]
        shards = {order.locate(*deal.locate(row)[1:])[0] for row in rows}
        seen += sum(infos[shard].bytes for shard in shards)
    assert 1 < seen / manifest.bytes <= 1 + 3 * 2813 / manifest.bytes
    reads = plan_reading(sources(manifest, streams=4), 3, 1920, 8, 4)["reads"]
    assert f"amplification {seen / manifest.bytes:.4f})" in reads


def test_the_cache_must_hold_two_windows_of_the_lanes_of_a_host() -> None:
    manifest = set_of(1024, remote="memory://set")  # windows of 32 shards in each lane, of 1,000 bytes a shard
    window = 32_000
    for streams, hosts, needed in ((1, 1, None), (8, 1, 8), (8, 2, 4), (8, 8, 1)):
        data = sources(manifest, streams=streams, limit=1000)
        order = data.orders(0)[0]
        assert all(order.window_bytes(lane) >= window for lane in range(streams))
        with pytest.raises(ConfigError) as told:
            check_cache(data, 0, 64, hosts)
        text = str(told.value)
        assert ("data.streams" in text) == (streams > 1) and ("fewer data.streams" in text) == (needed not in (None, 1))
        if needed is not None:
            assert f"which reads {needed} of data.streams={streams}" in text
    check_cache(sources(manifest, streams=8), 0, 64)


# --- fetching ahead ---------------------------------------------------------------------------------------------------


class Slow:
    """Stands for a reader: notes which shards are asked for, and how many at a time."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.now = self.most = 0
        self.lock = threading.Lock()

    def prefetch(self, shard: int) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.002)
        with self.lock:
            self.asked.append(shard)
            self.now -= 1
        if shard % 10 == 3:
            raise OSError("not there")


def ended() -> None:
    for thread in threading.enumerate():
        if thread.name == FETCHING:
            thread.join(30)


def test_many_lanes_are_fetched_for_by_a_few_threads_present_windows_first() -> None:
    reader: Any = Slow()
    ahead = Prefetcher(reader, 64)
    for lane in range(64):
        ahead.want([lane], [100 + lane])
    assert sum(thread.name == FETCHING for thread in threading.enumerate()) <= FETCHERS
    ended()
    assert sorted(reader.asked) == [*range(64), *range(100, 164)] and reader.most <= FETCHERS
    assert sum(shard < 100 for shard in reader.asked[:72]) >= 60
    ahead.want([5], [])  # after all threads have ended
    ended()
    assert reader.asked[-1] == 5


def test_a_prefetcher_begins_anew_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    reader: Any = Slow()
    ahead = Prefetcher(reader, 2)
    ahead._lock.acquire()  # as it may be at the moment of a fork
    monkeypatch.setattr(prefetch.os, "getpid", lambda: -1)
    ahead.want([1], [2])
    ended()
    assert sorted(reader.asked) == [1, 2]


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Manifest]:
    """Sixteen remote shards of three samples."""
    folder = tmp_path / "set"
    make_manifest(folder, count=48, shards=16)
    system = fsspec.filesystem("memory")
    for file in folder.iterdir():
        system.pipe(f"/bucket/lanes/{file.name}", file.read_bytes())
    yield open_shards("memory://bucket/lanes", ShardCache(tmp_path / "index"))
    system.store.clear()


def test_each_host_fetches_its_own_shards_alone(away: Manifest, tmp_path: Path) -> None:
    """Two hosts with a cache each, of two processes each; two passes, with what is fetched ahead."""
    found = []
    for host in range(2):
        data = ShardSources((ShardSource("train", away, 1),), ShardCache(tmp_path / str(host)))
        for rank in (2 * host, 2 * host + 1):
            list(islice(make_stream(data, rank, 4, streams=4), 12))
        ended()
        found.append({path.name for path in (tmp_path / str(host)).rglob("*.tar")})
    assert [len(names) for names in found] == [8, 8] and not found[0] & found[1]


def test_a_stream_that_has_looked_ahead_can_be_pickled(tmp_path: Path) -> None:
    stream = make_stream(make_manifest(tmp_path / "shards"), streams=4)
    first = next(iter(stream))
    stream.sources[0].ahead.want([], [])
    assert next(iter(pickle.loads(pickle.dumps(stream)))).keys == first.keys
