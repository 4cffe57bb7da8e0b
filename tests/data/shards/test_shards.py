"""Shards: what is written is read back, byte for byte, from anywhere."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds
from PIL import Image

from cloc.contracts import BadSample, Region, Sample
from cloc.data.shards.index import load_manifest
from cloc.data.shards.manifest import MANIFEST_NAME
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.scanning import index_shard
from cloc.data.shards.tars import ShardError
from cloc.data.shards.writer import write_shards


def picture(color: int = 0, size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (color, 50, 50)).save(buffer, "PNG")
    return buffer.getvalue()


def make_samples(count: int = 7) -> list[Sample]:
    region = Region((0.1, 0.2, 0.5, 0.75), ("a chick", "the bird"), "chick", 0.5, ("a duck",), crowd=True)
    return [
        Sample(f"s{i:03d}", picture(i), "png", (f"caption {i} 🐤",), (region,) * (i % 3), 8, 6, "toy", {"note": [i]})
        for i in range(count)
    ]


def read_back(folder: Path) -> list[Sample]:
    manifest = load_manifest(folder)
    reader = ShardReader(manifest, max_open=1)
    places = [(shard, index) for shard, info in enumerate(manifest.shards) for index in range(info.samples)]
    return [reader.read_sample(place, "")[0] for place in places]


def test_round_trip(tmp_path: Path) -> None:
    samples = make_samples()
    manifest = write_shards(samples, tmp_path / "out", samples_per_shard=3)
    assert [shard.samples for shard in manifest.shards] == [3, 3, 1]
    assert (manifest.samples, manifest.regions, manifest.crowds, manifest.categories) == (7, 0, 6, ("chick",))
    assert read_back(tmp_path / "out") == samples
    assert load_manifest(tmp_path / "out") == manifest
    assert not list((tmp_path / "out").glob(".*"))


def test_same_samples_make_same_bytes(tmp_path: Path) -> None:
    first = write_shards(make_samples(), tmp_path / "a", samples_per_shard=3)
    second = write_shards(make_samples(), tmp_path / "b", samples_per_shard=3)
    assert first.shards == second.shards
    assert first.digest == second.digest != write_shards(make_samples(6), tmp_path / "c").digest


def test_webdataset_reads_the_same_samples(tmp_path: Path) -> None:
    write_shards(make_samples(), tmp_path, samples_per_shard=100)
    found = list(wds.WebDataset(str(tmp_path / "shard-000000.tar"), shardshuffle=False))
    assert [item["__key__"] for item in found] == [sample.key for sample in make_samples()]
    assert [item["png"] for item in found] == [sample.image for sample in make_samples()]


def test_without_manifest_shards_are_indexed_with_a_hint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = write_shards(make_samples(), tmp_path, samples_per_shard=4)
    (tmp_path / MANIFEST_NAME).unlink()
    assert load_manifest(tmp_path) == manifest
    assert "python -m cloc data check" in caplog.text


def test_reader_is_picklable_and_bounded(tmp_path: Path) -> None:
    manifest = write_shards(make_samples(), tmp_path, samples_per_shard=2)
    reader = ShardReader(manifest, max_open=2)
    expected = [reader.read(shard, 0) for shard in range(4)]
    assert len(reader._files) == 2
    copy = pickle.loads(pickle.dumps(reader))
    assert [copy.read(shard, 0) for shard in range(4)] == expected
    reader.close()


@pytest.mark.parametrize("key", ["k" * 150, "ключ_🐤", "deep/er/path"])
def test_long_and_foreign_names(tmp_path: Path, key: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("first", key, "last"):
            for extension, data in (("png", picture()), ("json", b'{"captions": ["x"]}')):
                member = tarfile.TarInfo(f"{name}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    assert [sample.key for sample in read_back(tmp_path)] == ["first", key, "last"]


def test_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    write_shards(make_samples(), tmp_path, samples_per_shard=2)
    with pytest.raises(ShardError, match="not empty.*overwrite"):
        write_shards(make_samples(), tmp_path)
    assert len(write_shards(make_samples(3), tmp_path, overwrite=True).shards) == 1
    assert len(list(tmp_path.glob("*.tar"))) == 1


@pytest.mark.parametrize("keys", [("a", "a"), ("a.b",), ("../a",), ("",), ("\udc80",)])
def test_keys_that_a_tar_cannot_hold_are_refused_and_leave_nothing(tmp_path: Path, keys: tuple[str, ...]) -> None:
    with pytest.raises(ShardError, match="key"):
        write_shards([Sample(key, picture(), "png", ("x",)) for key in keys], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        {"captions": ("a \ud83d cup",)},
        {"regions": (Region((0, 0, 1, 1), ("x",), category="\udfff"),)},
        {"extra": {"author": "\ud800"}},
        {"source": "\ud800"},
    ],
)
def test_texts_that_utf8_cannot_hold_are_refused_by_name_and_leave_nothing(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    bad = Sample(**{"key": "k7", "image": picture(), "extension": "png", "captions": ("x",)} | options)
    with pytest.raises(BadSample, match=r"^bad_text: sample 'k7': a lone surrogate.*\\ud") as caught:
        write_shards([*make_samples(3), bad], tmp_path)
    assert caught.value.reason == "bad_text"
    assert not list(tmp_path.iterdir())
    assert write_shards([replace(bad, captions=("🥤 ok",), regions=(), extra={}, source="")], tmp_path).samples == 1


def test_no_samples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no sample"):
        write_shards([], tmp_path)


def test_manifest_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_shards(make_samples(), tmp_path)
    shard = tmp_path / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ShardError, match=r"shard-000000\.tar.*data check"):
        load_manifest(tmp_path)
    shard.unlink()
    with pytest.raises(ShardError, match="not there"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 99}', '{"version": 1, "categories": [], "shards": [{}]}'])
def test_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    write_shards(make_samples(), tmp_path)
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(ShardError, match="rebuild it"):
        load_manifest(tmp_path)


def test_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    write_shards(make_samples(), tmp_path)
    record = json.loads((tmp_path / MANIFEST_NAME).read_text())
    record["shards"][0]["name"] = "../secret.tar"
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(record))
    with pytest.raises(ShardError, match="outside"):
        load_manifest(tmp_path)


def test_missing_folder_and_folder_without_shards(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_manifest(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no \.tar"):
        load_manifest(tmp_path)


def test_shard_that_vanishes_or_shrinks_is_named(tmp_path: Path) -> None:
    manifest = write_shards(make_samples(), tmp_path, samples_per_shard=2)
    (tmp_path / "shard-000001.tar").unlink()
    with pytest.raises(OSError, match=r"shard-000001\.tar.*vanished"):
        ShardReader(manifest).read(1, 0)
    (tmp_path / "shard-000002.tar").write_bytes(b"")
    with pytest.raises(OSError, match=r"shard-000002\.tar.*only 0"):
        ShardReader(manifest).read(2, 0)


def test_offsets_are_those_of_tarfile(tmp_path: Path) -> None:
    write_shards(make_samples(), tmp_path)
    info = index_shard(tmp_path / "shard-000000.tar")
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        assert list(info.offsets[:-1]) == [member.offset for member in tar if member.name.endswith(".json")]


def test_indexing_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cloc.console.FIRST", 0.0)
    write_shards(make_samples(), tmp_path / "out", samples_per_shard=3)
    (tmp_path / "out" / MANIFEST_NAME).unlink()
    load_manifest(tmp_path / "out")
    assert "indexing out: 1 of 3 shards (33%), " in capsys.readouterr().err
