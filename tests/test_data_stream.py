"""The order is a pure function, and so is every batch: of ranks, workers and interruptions nothing is seen."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from cloc.contracts import Batch, Region, Sample
from cloc.data import stream as stream_module
from cloc.data.collate import Chooser
from cloc.data.order import REPLACEMENTS, GlobalOrder
from cloc.data.shards import Manifest, load_manifest, write_shards
from cloc.data.stream import SkipLimitError, Stream, make_loader
from cloc.data.text import Tokenizer
from cloc.data.views import View

COUNT = 23  # samples in shards of 5: the last one is smaller, and a global batch of 8 crosses the seam of a pass
TOKENIZER = Tokenizer("open_clip", 16)
CHOOSER = Chooser(View(16, crop=0.5, min_visible=0.3), regions=3)

LAYOUTS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5000)), min_size=1, max_size=40).filter(
    lambda shards: any(samples for samples, _ in shards)
)


# --- the order --------------------------------------------------------------------------------------------------------


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


def test_groups_bound_how_far_samples_are_mixed() -> None:
    order = GlobalOrder([10] * 8, [1000] * 8, seed=0, group_bytes=2000)
    found = [order.locate(i) for i in range(80)]
    for start in range(0, 80, 20):
        assert len({shard for shard, _ in found[start : start + 20]}) == 2
        assert found[start : start + 20] != sorted(found[start : start + 20])


def test_a_wide_group_mixes_all_shards() -> None:
    order = GlobalOrder([10] * 8, [1000] * 8, seed=0)
    assert len({order.locate(i)[0] for i in range(20)}) >= 6


def test_without_shuffling_the_stored_order_repeats() -> None:
    order = GlobalOrder([2, 0, 3], [10, 1, 20], seed=5, group_bytes=15, shuffle=False)
    assert [order.locate(i) for i in range(10)] == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)] * 2


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


# --- the stream -------------------------------------------------------------------------------------------------------


def picture(number: int) -> bytes:
    image = Image.new("RGB", (20 + number % 5, 14 + number % 7), (number * 9 % 256, 40, 200))
    image.paste((255, number * 5 % 256, 0), (3, 3, 12, 9))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def make_sample(number: int, broken: bool = False) -> Sample:
    things = ("a chick", "a cup of tea", "the thing", f"thing {number}")
    regions = tuple(
        Region((0.1 * i, 0.05 * i, 0.5 + 0.1 * i, 0.6 + 0.05 * i), (things[(number + i) % 4], things[2]))
        for i in range(number % 6)
    )
    data = picture(number)
    captions = (f"picture {number}", "a picture", f"many things, {number % 3} of them")
    return Sample(f"s{number:03d}", data[: len(data) // 2] if broken else data, "png", captions, regions)


def make_manifest(folder: Path, broken: tuple[int, ...] = ()) -> Manifest:
    write_shards([make_sample(i, i in broken) for i in range(COUNT)], folder, samples_per_shard=5)
    return load_manifest(folder)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_manifest(tmp_path_factory.mktemp("stream") / "shards")


def make_stream(manifest: Manifest, rank: int = 0, world: int = 1, **options: Any) -> Stream:
    return Stream(manifest, TOKENIZER, CHOOSER, options.pop("batch_size", 8), 3, rank, world, **options)


def digest(*tensors: Tensor) -> str:
    return hashlib.sha256(
        b"".join(tensor.numpy().tobytes() + str(tensor.shape).encode() for tensor in tensors)
    ).hexdigest()


def contents(batch: Batch) -> list[tuple[Any, ...]]:
    """All that a batch says of each of its samples, without what depends on how many are stacked (P, L)."""
    found = []
    for row, key in enumerate(batch.keys):
        own = digest(batch.images[row], batch.content[row], batch.boxes[row], batch.target_boxes[row])
        flags = digest(batch.region_valid[row], batch.phrase_is_shared[row], batch.source[row], batch.caption_id[row])
        phrases = [
            (tuple(filter(None, batch.phrases[phrase].tolist())), int(batch.phrase_id[phrase]))
            for phrase in batch.region_phrase[row][batch.region_valid[row]].tolist()
        ]
        found.append((key, own, flags, tuple(filter(None, batch.captions[row].tolist())), phrases))
    return found


def worker_batches(stream: Stream, workers: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Batch]:
    """What a DataLoader with so many workers yields: their batches in turn."""
    iterators = [iter(stream) for _ in range(max(1, workers))]
    number = 0
    while True:
        info = SimpleNamespace(num_workers=workers, id=number % workers) if workers else None
        monkeypatch.setattr(stream_module, "get_worker_info", lambda info=info: info)
        yield next(iterators[number % len(iterators)])
        number += 1


def global_batches(parts: list[Iterator[Batch]], count: int) -> list[tuple[int, list[tuple[Any, ...]]]]:
    found = []
    for _ in range(count):
        batches = [next(part) for part in parts]
        assert len({batch.cursor for batch in batches}) == 1
        found.append((batches[0].cursor, [row for batch in batches for row in contents(batch)]))
    return found


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


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_global_batches_are_the_same_for_every_layout(
    manifest: Manifest, world: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = global_batches([iter(make_stream(manifest))], 6)
    parts = [worker_batches(make_stream(manifest, rank, world), workers, monkeypatch) for rank in range(world)]
    assert global_batches(parts, 6) == expected


def test_a_pass_shows_every_sample_once_and_the_next_begins_without_a_seam(manifest: Manifest) -> None:
    keys = [key for batch in islice(make_stream(manifest), 6) for key in batch.keys]
    everything = sorted(f"s{i:03d}" for i in range(COUNT))
    assert sorted(keys[:COUNT]) == sorted(keys[COUNT : 2 * COUNT]) == everything


def test_choices_change_from_pass_to_pass(manifest: Manifest) -> None:
    rows = [row for batch in islice(make_stream(manifest), 6) for row in contents(batch)]
    first, second = ({row[0]: row[1:] for row in rows[start : start + COUNT]} for start in (0, COUNT))
    assert sum(first[key][0] != second[key][0] for key in first) > COUNT // 2  # another crop
    assert sum(first[key][2] != second[key][2] for key in first) > COUNT // 4  # another caption


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_resumed_stream_continues_exactly_on_another_layout(
    manifest: Manifest, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = global_batches([iter(make_stream(manifest))], stop + 4)
    cursor = expected[stop - 1][0]
    parts = [worker_batches(make_stream(manifest, rank, 2, cursor=cursor), 2, monkeypatch) for rank in range(2)]
    assert global_batches(parts, 4) == expected[stop:]


def test_a_cursor_off_the_batch_grid_continues_with_the_next_sample(manifest: Manifest) -> None:
    """After a change of the batch size."""
    small = [key for batch in islice(make_stream(manifest, batch_size=2), 9) for key in batch.keys]
    large = next(iter(make_stream(manifest, cursor=10)))
    assert large.keys == small[10:18]
    assert large.cursor == 18


def test_another_seed_is_another_stream(manifest: Manifest) -> None:
    one = next(iter(Stream(manifest, TOKENIZER, CHOOSER, 8, seed=0)))
    other = next(iter(Stream(manifest, TOKENIZER, CHOOSER, 8, seed=1)))
    assert contents(one) != contents(other)


@pytest.mark.parametrize(("world", "workers"), [(2, 0), (4, 2)])
def test_bad_samples_are_replaced_alike_on_every_layout_and_counted(
    tmp_path: Path, world: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = make_manifest(tmp_path / "shards", broken=(4, 11))
    alone = list(islice(make_stream(broken, max_skip_share=1.0), 6))
    expected = [(batch.cursor, contents(batch)) for batch in alone]
    keys = [key for batch in alone for key in batch.keys]
    assert not {"s004", "s011"} & set(keys)
    counts = sum(batch.stats.get("skipped/corrupt_image", 0) for batch in alone)
    assert counts >= 4  # each comes once a pass, two passes and a bit
    parts = [
        worker_batches(make_stream(broken, rank, world, max_skip_share=1.0), workers, monkeypatch)
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


def test_a_vanished_shard_is_counted_and_replaced(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path / "shards")
    (tmp_path / "shards" / manifest.shards[1].name).unlink()
    batches = list(islice(make_stream(manifest, max_skip_share=1.0), 3))
    assert sum(batch.stats.get("skipped/unreadable_shard", 0) for batch in batches) >= 5
    assert not {f"s{i:03d}" for i in range(5, 10)} & {key for batch in batches for key in batch.keys}


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="batch_size=10 does not divide over 4 ranks"):
        make_stream(manifest, 0, 4, batch_size=10)


@pytest.mark.distributed
@pytest.mark.parametrize(("world", "workers", "start"), [(1, 2, "forkserver"), (2, 1, "fork"), (2, 2, "fork")])
def test_real_worker_processes_give_the_same_global_batches(
    manifest: Manifest, world: int, workers: int, start: str
) -> None:
    expected = global_batches([iter(make_stream(manifest, cursor=8))], 6)
    loaders = [
        make_loader(make_stream(manifest, rank, world, cursor=8), workers, multiprocessing_context=start)
        for rank in range(world)
    ]
    assert global_batches([iter(loader) for loader in loaders], 6) == expected
