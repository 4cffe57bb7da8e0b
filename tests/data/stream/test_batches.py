"""Every batch is a pure function of its position: of ranks, workers and interruptions nothing is seen."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cloc.config import DataConfig
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.tars import ShardInfo
from cloc.data.shards.writer import write_shards
from cloc.data.stream import batches as stream_module
from cloc.data.stream.batches import Stream, make_loader
from cloc.data.stream.lanes import rank_positions
from cloc.data.stream.order import REPLACEMENTS, rank_share
from cloc.data.stream.region_sampling import Chooser
from cloc.data.stream.skip_limits import SkipLimitError
from cloc.data.stream.sources import ShardSource, ShardSources, open_sources
from tests.kit.streams import (
    CHOOSER,
    COUNT,
    TOKENIZER,
    contents,
    global_batches,
    make_manifest,
    make_sample,
    make_stream,
    worker_batches,
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_manifest(tmp_path_factory.mktemp("stream") / "shards")


def test_a_batch_holds_the_contract(manifest: Manifest) -> None:
    batch = next(iter(make_stream(manifest)))
    assert batch.images.shape == (8, 3, 16, 16) and batch.images.dtype == torch.uint8
    assert batch.boxes.shape == batch.target_boxes.shape == (8, 3, 4)
    assert batch.captions.shape[1] == (batch.captions != 0).sum(1).max()
    assert batch.phrases.shape[1] == (batch.phrases != 0).sum(1).max()
    assert len(set(batch.phrase_id.tolist())) == len(batch.phrases)
    assert batch.region_valid.any() and not batch.region_valid.all()
    assert set(batch.region_phrase[batch.region_valid].tolist()) == set(range(len(batch.phrases)))
    assert batch.cursor == 8


LAYOUTS = [(world, workers) for world in (1, 2, 4, 8) for workers in (0, 1, 3)]


@pytest.mark.parametrize("streams", [1, 8])
@pytest.mark.parametrize("shards", [1, 3, 40])
def test_one_pass_is_every_sample_once_and_every_layout_has_the_same_global_batches(
    tmp_path: Path, shards: int, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared by every tensor: pixels, boxes, phrases, captions. All ranks have the same number of batches."""
    manifest = make_manifest(tmp_path / "shards", count=40, shards=shards)
    assert len(manifest.shards) == shards
    expected = global_batches([iter(make_stream(manifest, streams=streams))], 5)
    keys = [row[0] for _, rows in expected for row in rows]
    assert sorted(keys) == [f"s{i:03d}" for i in range(40)]
    for world, workers in LAYOUTS:
        ranks = [make_stream(manifest, rank, world, streams=streams) for rank in range(world)]
        parts = [worker_batches(stream, workers, monkeypatch) for stream in ranks]
        assert global_batches(parts, 5) == expected, (world, workers)


@pytest.mark.parametrize("most", [1, 8])
@pytest.mark.parametrize("shards", range(1, 41))
def test_who_reads_what_for_every_number_of_shards(shards: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same over places alone, without pictures: 1 to 40 shards of different sizes, two passes."""
    monkeypatch.setattr(Stream, "_read_usable", lambda self, position, *_: self.locate(position)[1])
    monkeypatch.setattr(Stream, "_view", lambda self, place, *_: place)
    monkeypatch.setattr(Chooser, "choose", lambda self, places: places)
    monkeypatch.setattr(stream_module, "collate", lambda items, *_: SimpleNamespace(keys=items, stats={}))
    infos = tuple(ShardInfo(f"{i}.tar", 1 + i % 5, 0, 1000 + 7 * i, "", ()) for i in range(shards))
    manifest = Manifest(Path("nowhere"), infos, ())
    streams = min(most, manifest.samples)
    everything = [(shard, index) for shard, info in enumerate(infos) for index in range(info.samples)]
    count = -(-2 * -(-manifest.samples // streams) * streams // 8)
    expected = [batch.keys for batch in islice(make_stream(manifest, streams=streams), count)]
    rows = [row for number in range(count) for row in rank_positions(8 * number, 8, streams, 0, 1)]
    places = dict(zip(rows, [place for keys in expected for place in keys], strict=True))
    first, second = [], []
    for lane, length in enumerate(rank_share(manifest.samples, lane, streams) for lane in range(streams)):
        own = [places[lane + turn * streams] for turn in range(2 * len(length))]
        first, second = first + own[: len(length)], second + own[len(length) :]
    assert sorted(first) == sorted(second) == everything
    for world, workers in LAYOUTS:
        ranks = [make_stream(manifest, rank, world, streams=streams) for rank in range(world)]
        parts = [worker_batches(stream, workers, monkeypatch) for stream in ranks]
        found = [[place for part in parts for place in next(part).keys] for _ in range(count)]
        assert found == expected, (world, workers)


@pytest.mark.parametrize(
    ("streams", "first", "whole"),
    [
        (1, "s013 s006 s016 s005 s022 s010 s008 s012", "7263c6f9012cc4e0"),
        (8, "s001 s002 s020 s007 s008 s012 s016 s019", "7de5062159e421f1"),
    ],
)
def test_the_order_is_that_which_a_cursor_of_before_counts_in(
    tmp_path: Path, streams: int, first: str, whole: str
) -> None:
    """Literals: keys of nine batches with substitutes, over the seams of three passes."""
    broken = make_manifest(tmp_path / "shards", broken=(4, 11))
    batches = islice(make_stream(broken, streams=streams, max_skip_share=1.0), 9)
    keys = " ".join(key for batch in batches for key in batch.keys)
    assert keys.startswith(f"{first} ") and hashlib.sha256(keys.encode()).hexdigest()[:16] == whole


def test_a_pass_shows_every_sample_once_and_the_next_begins_without_a_seam(manifest: Manifest) -> None:
    keys = [key for batch in islice(make_stream(manifest), 6) for key in batch.keys]
    everything = sorted(f"s{i:03d}" for i in range(COUNT))
    assert sorted(keys[:COUNT]) == sorted(keys[COUNT : 2 * COUNT]) == everything


def test_choices_change_from_pass_to_pass(manifest: Manifest) -> None:
    rows = [row for batch in islice(make_stream(manifest), 6) for row in contents(batch)]
    first, second = ({row[0]: row[1:] for row in rows[start : start + COUNT]} for start in (0, COUNT))
    assert sum(first[key][0] != second[key][0] for key in first) > COUNT // 2  # another crop
    assert sum(first[key][2] != second[key][2] for key in first) > COUNT // 4  # another caption


@pytest.mark.parametrize("streams", [1, 8])
@pytest.mark.parametrize("stop", [1, 2, 4])
@pytest.mark.parametrize(("world", "workers"), [(4, 2), (1, 4), (1, 0), (8, 3)])
def test_a_run_stopped_on_two_ranks_resumes_on_another_layout(
    manifest: Manifest, stop: int, world: int, workers: int, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = global_batches([iter(make_stream(manifest, streams=streams))], stop + 4)
    before = [worker_batches(make_stream(manifest, rank, 2, streams), 1, monkeypatch) for rank in range(2)]
    stopped = global_batches(before, stop)
    assert stopped == expected[:stop]
    cursor = stopped[-1][0]
    after = [
        worker_batches(make_stream(manifest, rank, world, streams, cursor=cursor), workers, monkeypatch)
        for rank in range(world)
    ]
    assert global_batches(after, 4) == expected[stop:]


def test_a_cursor_off_the_batch_grid_continues_with_the_next_sample(manifest: Manifest) -> None:
    """After a change of the batch size."""
    small = [key for batch in islice(make_stream(manifest, batch_size=2), 9) for key in batch.keys]
    large = next(iter(make_stream(manifest, cursor=10)))
    assert large.keys == small[10:18]
    assert large.cursor == 18


@pytest.mark.parametrize("streams", [1, 3, 8])
def test_another_batch_size_on_another_layout_goes_on_with_the_next_samples(manifest: Manifest, streams: int) -> None:
    """12 samples by batches of 4, then batches of 12 on three ranks: as sets, the positions of one sequence."""
    whole = [
        row for batch in islice(make_stream(manifest, streams=streams, batch_size=1), 48) for row in contents(batch)
    ]
    small = list(islice(make_stream(manifest, streams=streams, batch_size=4), 3))
    ranks = [make_stream(manifest, rank, 3, streams, batch_size=12, cursor=small[-1].cursor) for rank in range(3)]
    large = [[row for part in step for row in contents(part)] for step in islice(zip(*ranks, strict=True), 3)]
    for number, batch in enumerate(small):
        assert sorted(contents(batch)) == sorted(whole[4 * number : 4 * number + 4])
    for number, rows in enumerate(large):
        assert sorted(rows) == sorted(whole[12 + 12 * number : 24 + 12 * number])


def test_another_seed_is_another_stream(manifest: Manifest) -> None:
    one = next(iter(Stream(manifest, TOKENIZER, CHOOSER, 8, seed=0)))
    other = next(iter(Stream(manifest, TOKENIZER, CHOOSER, 8, seed=1)))
    assert contents(one) != contents(other)


@pytest.mark.parametrize("streams", [1, 8])
@pytest.mark.parametrize(("world", "workers"), [(2, 0), (4, 2)])
def test_bad_samples_are_replaced_alike_on_every_layout_and_counted(
    tmp_path: Path, world: int, workers: int, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = make_manifest(tmp_path / "shards", broken=(4, 11))
    alone = list(islice(make_stream(broken, streams=streams, max_skip_share=1.0), 6))
    expected = [(batch.cursor, contents(batch)) for batch in alone]
    keys = [key for batch in alone for key in batch.keys]
    assert not {"s004", "s011"} & set(keys)
    counts = sum(batch.stats.get("skipped/corrupt_image", 0) for batch in alone)
    assert counts >= 4  # each comes once a pass, two passes and a bit
    parts = [
        worker_batches(make_stream(broken, rank, world, streams, max_skip_share=1.0), workers, monkeypatch)
        for rank in range(world)
    ]
    assert global_batches(parts, 6) == expected


def test_good_samples_stay_where_they_are_when_others_are_bad(tmp_path: Path, manifest: Manifest) -> None:
    broken = make_manifest(tmp_path / "shards", broken=(4, 11))
    good = [row for batch in islice(make_stream(manifest), 3) for row in contents(batch)]
    mended = [row for batch in islice(make_stream(broken, max_skip_share=1.0), 3) for row in contents(batch)]
    changed = [one[0] for one, other in zip(good, mended, strict=True) if one[0] != other[0]]
    assert 0 < len(changed) <= 3 and set(changed) <= {"s004", "s011"}


def test_too_many_bad_samples_stop_with_reason_place_and_remedy(tmp_path: Path) -> None:
    broken = make_manifest(tmp_path / "shards", broken=tuple(range(COUNT)))
    with pytest.raises(SkipLimitError, match="corrupt_image.*max_skip_share=0.01.*cloc data check"):
        next(iter(make_stream(broken)))


def test_a_position_without_any_usable_substitute_stops(tmp_path: Path) -> None:
    broken = make_manifest(tmp_path / "shards", broken=tuple(range(COUNT)))
    with pytest.raises(SkipLimitError, match=f"position 0: {REPLACEMENTS} samples in a row"):
        next(iter(make_stream(broken, max_skip_share=1.0)))


def damage(manifest: Manifest, number: int, how: str) -> None:
    info = manifest.shards[number]
    path = manifest.folder / info.name
    if how == "vanishes":
        path.unlink()
    else:
        os.truncate(path, info.offsets[2] + 100)


@pytest.mark.parametrize("how", ["vanishes", "is cut off"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_fails_in_the_middle_costs_its_rest_and_the_run_goes_on(
    tmp_path: Path, manifest: Manifest, how: str, workers: int, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """With the default limit: a shard is one loss, logged once, whatever it held."""
    whole = global_batches([iter(make_stream(manifest))], 12)
    copy = make_manifest(tmp_path / "shards")
    stream = make_stream(copy)
    stream.sources[0].reader.max_open = 1  # an open file would outlive its name
    batches = worker_batches(stream, workers, monkeypatch)
    found = [next(batches) for _ in range(3)]
    damage(copy, 1, how)
    found += [next(batches) for _ in range(9)]
    lost = {f"s{i:03d}" for i in range(5, 10)}
    assert [contents(batch) for batch in found[:3]] == [rows for _, rows in whole[:3]]
    changed = 0
    for batch, (cursor, rows) in zip(found, whole, strict=True):
        assert batch.cursor == cursor
        for row, one in zip(contents(batch), rows, strict=True):
            if row != one:  # nothing but what the shard held is replaced, in its place
                assert one[0] in lost
                changed += 1
    counts = sum(batch.stats.get("skipped/unreadable_shard", 0) for batch in found)
    assert counts >= changed >= (9 if how == "vanishes" else 3)
    assert len([record for record in caplog.records if copy.shards[1].name in record.message]) == 1


def test_more_than_a_few_lost_shards_stop_the_run(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path / "shards")
    for number in (1, 3):
        (tmp_path / "shards" / manifest.shards[number].name).unlink()
    with pytest.raises(SkipLimitError, match=r"2 of 5 shards cannot be read.*vanished"):
        list(islice(make_stream(manifest), 6))


# --- several sources --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> ShardSources:
    """Two sources with regions and one without, a quarter, a half and a quarter of the samples."""
    folder = tmp_path_factory.mktemp("mixed")
    plain = [replace(make_sample(i), key=f"p{i:03d}", regions=()) for i in range(4)]
    write_shards(plain, folder / "plain")
    for name, count, broken in (("one", 9, (2,)), ("two", 7, ())):
        make_manifest(folder / name, broken, count, 3)
    paths = {"one": (folder / "one", 0.25), "two": (folder / "two", 0.5), "plain": (folder / "plain", 0.25)}
    train = {name: {"path": str(path), "weight": weight} for name, (path, weight) in paths.items()}
    return open_sources(DataConfig(train=train, cache_dir=str(folder / "cache")))


def test_a_mixture_is_that_which_a_cursor_of_before_counts_in(mixed: ShardSources) -> None:
    keys = " ".join(key for batch in islice(make_stream(mixed), 14) for key in batch.keys)
    assert keys.startswith("s004 s003 p001 s006 s000 s007 p002 s001 ")
    assert hashlib.sha256(keys.encode()).hexdigest()[:16] == "c9ed391780c21c64"


@pytest.mark.parametrize("streams", [1, 4])
def test_a_mixture_has_its_shares_and_every_source_its_passes(mixed: ShardSources, streams: int) -> None:
    batches = list(islice(make_stream(mixed, streams=streams), 14))
    sources = torch.cat([batch.source for batch in batches]).tolist()
    for batch in batches:
        assert torch.bincount(batch.source, minlength=3).tolist() == [2, 4, 2]
        assert batch.stats["samples_from/two"] == 4
        assert not batch.region_valid[batch.source == 2].any()
    keys = [key for batch in batches for key in batch.keys]
    two = [key for key, source in zip(keys, sources, strict=True) if source == 1]
    for start in range(0, 56, 7) if streams == 1 else ():
        assert sorted(two[start : start + 7]) == [f"s{i:03d}" for i in range(7)]
    assert Counter(two).keys() == {f"s{i:03d}" for i in range(7)} and min(Counter(two).values()) >= 7
    counts = Counter()
    for batch in batches:
        counts.update(batch.stats)
    assert counts["skipped_from/one"] == counts["skipped/corrupt_image"] > 0
    assert "skipped_from/two" not in counts


@pytest.mark.parametrize("streams", [1, 4])
def test_a_mixture_is_the_same_on_every_layout_and_resumes(
    mixed: ShardSources, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = global_batches([iter(make_stream(mixed, streams=streams))], 8)
    for world, workers, stop in ((2, 2, 0), (4, 1, 3), (8, 4, 5)):
        cursor = stop * 8
        parts = [
            worker_batches(make_stream(mixed, rank, world, streams, cursor=cursor), workers, monkeypatch)
            for rank in range(world)
        ]
        assert global_batches(parts, 8 - stop) == expected[stop:]


def test_a_bad_source_stops_the_run_though_the_others_are_good(tmp_path: Path, manifest: Manifest) -> None:
    bad = make_manifest(tmp_path / "bad", tuple(range(6)), 12, 2)
    data = ShardSources((ShardSource("good", manifest, 0.9), ShardSource("bad", bad, 0.1)), ShardCache(tmp_path))
    with pytest.raises(SkipLimitError, match="data.train 'bad'.*samples left out"):
        list(islice(make_stream(data), 40))


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="batch_size=10 does not divide over 4 ranks"):
        make_stream(manifest, 0, 4, batch_size=10)


@pytest.mark.distributed
@pytest.mark.parametrize("streams", [1, 8])
@pytest.mark.parametrize(("world", "workers", "start"), [(1, 2, "forkserver"), (2, 1, "fork"), (2, 2, "fork")])
def test_real_worker_processes_give_the_same_global_batches(
    manifest: Manifest, world: int, workers: int, start: str, streams: int
) -> None:
    expected = global_batches([iter(make_stream(manifest, streams=streams, cursor=8))], 6)
    loaders = [
        make_loader(make_stream(manifest, rank, world, streams, cursor=8), workers, multiprocessing_context=start)
        for rank in range(world)
    ]
    assert global_batches([iter(loader) for loader in loaders], 6) == expected


def train_until_killed(manifest: Manifest, workers: int, cursor: int, log: Path) -> None:
    """Stands for a run: reads a batch, "trains" it, notes its cursor and hash, and never ends by itself."""
    options = {"multiprocessing_context": "fork"} if workers else {}
    with log.open("a") as file:
        for batch in make_loader(make_stream(manifest, cursor=cursor), workers, **options):
            file.write(f"{batch.cursor} {fingerprint(batch)}\n")
            file.flush()


def fingerprint(batch: Any) -> str:
    return hashlib.sha256(repr(contents(batch)).encode()).hexdigest()[:16]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_killed_twenty_times_the_batches_are_those_of_the_run_never_stopped(
    manifest: Manifest, tmp_path: Path, workers: int
) -> None:
    """Kill -9 at a random batch; the next process starts from the cursor of the last batch that was trained."""
    random.seed(workers)
    log, lines = tmp_path / "log", []
    log.touch()
    for _ in range(20):
        wanted = len(lines) + random.randint(1, 5)
        cursor = int(lines[-1].split()[0]) if lines else 0
        process = get_context("fork").Process(target=train_until_killed, args=(manifest, workers, cursor, log))
        process.start()
        while log.read_text().count("\n") < wanted:
            assert process.is_alive()
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        lines = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        log.write_text("".join(lines))
    expected = [f"{batch.cursor} {fingerprint(batch)}\n" for batch in islice(make_stream(manifest), len(lines))]
    assert lines == expected
