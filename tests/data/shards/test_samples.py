"""The one loop over the samples of shards, the one reading of a sample, and what a sample may be called."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from cloc.contracts import BadSample, Sample
from cloc.data.inspect.tally import tally_part
from cloc.data.shards.index import load_manifest
from cloc.data.shards.keys import Keys, is_safe_key, safe_key
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample, usable_samples
from cloc.data.shards.tars import ShardError, ShardInfo, ShardReadError
from cloc.data.shards.writer import write_shards
from tests.kit.sources import jpeg, write_members

MEMBERS = {
    "a": {"jpg": jpeg(), "json": {"captions": ["one", " "]}},
    "b": {"jpg": jpeg(), "json": b"{broken"},
    "c": {"json": {"captions": ["no picture"]}},
    "d": {"jpg": jpeg(), "json": {"captions": ["four"], "source": "own"}},
}


def test_every_sample_comes_with_its_place_and_what_is_wrong_with_it(tmp_path: Path) -> None:
    reader = ShardReader(load_manifest(write_members(tmp_path / "set", MEMBERS)))
    found = list(each_sample(reader))
    assert [one.place for one in found] == reader.manifest.places() == [(0, index) for index in range(4)]
    assert [one.key for one in found] == list("abcd")
    assert [one.error and one.error.reason for one in found] == [None, "bad_json", "no_image", None]
    assert found[0].mended == {"empty_caption": 1} and found[2].members.keys() == {"json"}
    assert [one.need().source for one in (found[0], found[3])] == ["set", "own"]
    with pytest.raises(BadSample, match="no_image"):
        found[2].need()


def test_usable_ones_in_any_order_the_others_counted(tmp_path: Path) -> None:
    reader = ShardReader(load_manifest(write_members(tmp_path / "set", MEMBERS)))
    left_out: Counter[str] = Counter()
    found = usable_samples(reader, left_out, [(0, 3), (0, 1), (0, 0), (0, 2)], "name")
    assert [one.need().source for one in found] == ["own", "name"]
    assert left_out == {"bad_json": 1, "no_image": 1}


def test_a_shard_that_shrank_is_no_sample_left_out(tmp_path: Path) -> None:
    folder = write_members(tmp_path / "set", MEMBERS)
    reader = ShardReader(load_manifest(folder))
    os.truncate(folder / "x.tar", reader.manifest.shards[0].offsets[1] + 100)
    found = list(each_sample(reader))
    assert [type(one.error) for one in found] == [type(None), *[ShardReadError] * 3]
    assert [one.key for one in found] == ["a", "", "", ""]
    with pytest.raises(ShardReadError):
        list(usable_samples(reader, Counter()))


def test_views_hold_the_same_bytes(tmp_path: Path) -> None:
    reader = ShardReader(load_manifest(write_members(tmp_path / "set", MEMBERS)))
    sample, viewed = (reader.read_sample((0, 0), views=views)[0] for views in (False, True))
    assert type(sample.image) is bytes and isinstance(viewed.image, memoryview) and sample.image == viewed.image


def test_a_description_and_its_json_are_inverse_and_a_part_is_one(tmp_path: Path) -> None:
    folder = write_members(tmp_path / "set", MEMBERS)
    info = load_manifest(folder).shards[0]
    assert ShardInfo.from_json(info.to_json()) == info
    part = info.part(1, 3)
    assert (part.samples, part.offsets, info.part(3, 128).samples) == (2, info.offsets[1:4], 1)
    tally = tally_part(folder, part, 1)
    assert tally.samples == 2 and [(bad.key, bad.index) for bad in tally.bad] == [("b", 1), ("c", 2)]


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a\\b", "a\0b", "a\ud800b"])
def test_unsafe_keys_are_told_mended_and_refused(tmp_path: Path, key: str) -> None:
    assert not is_safe_key(key) and is_safe_key(safe_key(key) or "a_b")
    assert is_safe_key(Keys().unique(key))
    with pytest.raises(ShardError, match="key"):
        write_shards([Sample(key, jpeg(), "jpg", ("caption",))], tmp_path / "out")


def test_keys_that_are_handed_out_differ_and_hold_no_space() -> None:
    keys = Keys()
    stems = ["a b", "a.b", "a_b", "a_b-1", "", "é", "a ./\n b"]
    assert [keys.unique(stem) for stem in stems] == ["a_b", "a_b-1", "a_b-2", "a_b-1-1", "image", "é", "a_b-3"]
