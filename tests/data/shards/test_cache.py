"""The cache of remote shards in a world where files change, processes die and links are planted."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cloc.config import DataConfig
from cloc.data.shards import cache as remote
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.ledger import Ledger
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.retries import Traffic
from cloc.data.shards.tars import ShardReadError
from cloc.data.stream.prefetch import FETCHING
from cloc.data.stream.sources import open_shards, open_sources
from tests.kit.streams import contents, make_manifest, make_stream

URL = "memory://bucket/cached"


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    found = make_manifest(tmp_path / "set")
    system = fsspec.filesystem("memory")
    for file in (tmp_path / "set").iterdir():
        system.pipe(f"/bucket/cached/{file.name}", file.read_bytes())
    yield found
    system.store.clear()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """URLs that were downloaded."""
    urls: list[str] = []
    download = remote._download
    monkeypatch.setattr(remote, "_download", lambda url, *rest: (urls.append(url), download(url, *rest))[1])
    return urls


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each cached shard that was compared with its hash."""
    calls: list[int] = []
    digest = remote.hashlib.file_digest
    monkeypatch.setattr(remote.hashlib, "file_digest", lambda file, name: (calls.append(1), digest(file, name))[1])
    return calls


def everything(manifest: Manifest, cache: ShardCache) -> list[bytes]:
    reader = ShardReader(manifest, cache=cache)
    return [reader.read(shard, i) for shard, info in enumerate(manifest.shards) for i in range(info.samples)]


def shards_in(cache: ShardCache) -> list[Path]:
    return sorted(cache.folder.rglob("*.tar"), key=lambda path: path.name[-5:])


def flip(path: Path) -> None:
    """Change one bit, and let the file look as before."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[700] ^= 4
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-512])


def replace_by_link(path: Path) -> None:
    other = path.with_name("elsewhere")
    path.rename(other)
    path.symlink_to(other)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def swap(path: Path) -> None:
    path.write_bytes(shards_in(ShardCache(path.parent.parent))[2].read_bytes())


CHANGES = [flip, cut, replace_by_link, replace_by_pipe, swap]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["in another run", "in this run", "in another process of this run"])
def test_a_shard_that_changed_on_the_disk_is_fetched_again(
    change: Callable[[Path], None], when: str, manifest: Manifest, tmp_path: Path, fetched: list[str]
) -> None:
    cache = ShardCache(tmp_path / "cache")
    away = open_shards(URL, cache)
    expected = everything(away, cache)
    fetched.clear()
    victim = shards_in(cache)[1]
    change(victim)
    own = {"in another run": lambda: ShardCache(cache.folder), "in this run": lambda: cache}
    found = own.get(when, lambda: pickle.loads(pickle.dumps(cache)))()  # noqa: S301
    assert everything(away, found) == expected
    assert fetched == [f"{URL}/shard-000001.tar"] and found.damaged == 1
    assert victim.is_file() and not victim.is_symlink()
    assert everything(away, found) == expected and len(fetched) == 1


def test_what_is_whole_is_hashed_once_a_run(manifest: Manifest, tmp_path: Path, hashed: list[int]) -> None:
    first = ShardCache(tmp_path / "cache")
    away = open_shards(URL, first)
    everything(away, first)
    assert not hashed  # when it was fetched
    second = ShardCache(first.folder)
    for cache in (second, second, pickle.loads(pickle.dumps(second))):  # noqa: S301  (as a worker gets it)
        everything(away, cache)
    assert len(hashed) == len(manifest.shards) and second.damaged == 0


@pytest.mark.parametrize("note", [b"", b"{", b"null", b"[1]", b'{"sha256": 1, "state": 2, "at": "x"}', None])
def test_notes_that_say_nothing_are_not_believed(note: bytes | None, manifest: Manifest, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache")
    away = open_shards(URL, cache)
    expected = everything(away, cache)
    for path in cache.folder.rglob("*.checked"):
        if note is None:
            path.unlink()
            path.symlink_to("/etc/passwd")
        else:
            path.write_bytes(note)
    other = pickle.loads(pickle.dumps(ShardCache(cache.folder)))  # noqa: S301
    assert everything(away, other) == expected and other.damaged == 0


def test_a_note_of_another_user_is_not_believed(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[int]
) -> None:
    cache = ShardCache(tmp_path / "cache")
    away = open_shards(URL, cache)
    everything(away, cache)
    later = pickle.loads(pickle.dumps(cache))  # noqa: S301
    later._checked.clear()
    monkeypatch.setattr(remote.os, "getuid", lambda: 12345)
    everything(away, later)
    assert hashed


def test_nothing_is_written_through_planted_links(manifest: Manifest, tmp_path: Path) -> None:
    cache, outside = ShardCache(tmp_path / "cache"), tmp_path / "precious"
    away = open_shards(URL, cache)
    expected = everything(away, cache)
    outside.write_text("untouched")
    shards = shards_in(cache)
    for path in list(cache.folder.rglob("*")):
        if path.is_file() and not path.name.endswith(".lock"):
            path.unlink()
    for shard in shards:
        for planted in (shard, Path(f"{shard}.part"), shard.with_suffix(".checked")):
            planted.symlink_to(outside)
    (cache.folder / "cache.sqlite").symlink_to(outside)
    assert everything(away, ShardCache(cache.folder)) == expected
    assert outside.read_text() == "untouched"
    assert not any(path.is_symlink() for path in cache.folder.rglob("*"))


def test_a_folder_where_a_shard_belongs_is_told(manifest: Manifest, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache")
    away = open_shards(URL, cache)
    everything(away, cache)
    victim = shards_in(cache)[0]
    victim.unlink()
    victim.mkdir()
    with pytest.raises(ShardReadError, match="is a folder where a shard is to lie; remove it"):
        ShardReader(away, cache=ShardCache(cache.folder)).read(0, 0)


def _fetch_slowly(folder: Path, url: str, size: int, sha256: str) -> None:
    """In a process that will be killed in the middle of its download."""
    system = fsspec.filesystem("memory")
    system.pipe(url, bytes(size))
    opened = type(system).open

    def slow(self: Any, path: str, *rest: Any, **options: Any) -> Any:
        file = opened(self, path, *rest, **options)
        read = file.read
        file.read = lambda count: (read(100), time.sleep(60))[0]
        return file

    type(system).open = slow
    ShardCache(folder).open(url, size, sha256).close()


@pytest.mark.distributed
def test_what_a_killed_process_left_is_no_shard(manifest: Manifest, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache")
    away, info = open_shards(URL, cache), manifest.shards[0]
    arguments = (cache.folder, away.location(0), info.bytes, info.sha256)
    process = multiprocessing.get_context("fork").Process(target=_fetch_slowly, args=arguments)
    process.start()
    deadline = time.monotonic() + 30
    while not list(cache.folder.rglob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    assert list(cache.folder.rglob("*.part"))
    assert everything(away, cache) == everything(manifest, cache)
    assert not list(cache.folder.rglob("*.part"))


def test_a_damaged_shard_is_counted_in_the_batch(manifest: Manifest, tmp_path: Path) -> None:
    # Shards are fetched ahead: after twelve batches each of them has been needed.
    config = DataConfig(train=URL, cache_dir=str(tmp_path / "cache"))
    batches = list(islice(make_stream(open_sources(config)), 12))
    assert not any("cached_shards_damaged" in batch.stats for batch in batches)
    for thread in threading.enumerate():  # of the first stream: they would find the damage before the second does
        if thread.name == FETCHING:
            thread.join()
    for path in (tmp_path / "cache").rglob("*.tar"):
        flip(path)
    again = list(islice(make_stream(open_sources(config)), 12))
    assert [contents(batch) for batch in again] == [contents(batch) for batch in batches]
    assert sum(batch.stats.get("cached_shards_damaged", 0) for batch in again) == len(manifest.shards)


def test_a_shard_without_a_known_hash_is_not_taken_from_the_cache(
    manifest: Manifest, tmp_path: Path, fetched: list[str]
) -> None:
    """Without an index nothing says whether a cached file is whole; indexed once, it is not fetched again."""
    fsspec.filesystem("memory").rm(f"/bucket/cached/{MANIFEST_NAME}")
    cache = ShardCache(tmp_path / "cache")
    away = open_shards(URL, cache)
    assert everything(away, cache) == everything(manifest, cache) and len(fetched) == len(manifest.shards)
    for path in cache.folder.glob("index/*.json"):
        path.unlink()
    flip(shards_in(cache)[1])
    assert open_shards(URL, cache).digest == manifest.digest


@pytest.mark.parametrize("text", ["", "{", "[]", '{"shard": {}, "categories": []}', '{"shard": 1}'])
def test_a_damaged_index_is_made_again(text: str, manifest: Manifest, tmp_path: Path) -> None:
    fsspec.filesystem("memory").rm(f"/bucket/cached/{MANIFEST_NAME}")
    cache = ShardCache(tmp_path / "cache")
    open_shards(URL, cache)
    for path in cache.folder.glob("index/*.json"):
        path.write_text(text)
    assert open_shards(URL, cache).shards == manifest.shards
    assert json.loads(next(cache.folder.glob("index/*.json")).read_text())["shard"]["samples"]


def test_names_in_the_cache_are_plain() -> None:
    names = [
        remote._name(url, 5, "ab")
        for url in ("https://me:S3cret@host/a/x.tar?sig=T0K", "https://me:0ther@host/a/x.tar?sig=OLD")
    ]
    assert names[0] == names[1] and names[0].endswith("-x.tar")
    for url in ("s3://b/..", "s3://b/" + "x" * 400, "s3://b/a\nb c?.tar", "https://h/?T0K"):
        name = remote._name(url, 5, "ab")
        assert len(name) < 120 and name.endswith(".tar") and "T0K" not in name and name.isprintable()
        assert Ledger(Path("cache"), 1, 0)._own(name) == Path("cache") / name[:2] / name
    assert remote._name("https://h/x.tar", 5, "ab") != remote._name("https://h/y.tar", 5, "ab")


def test_who_waits_for_room_has_a_reason_to_wait(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All room is taken by fetches of other processes: the training process is not to end the run for it."""
    cache = ShardCache(tmp_path / "cache")
    cache.access.traffic.horizon, reserve, told = [0.0], Ledger.reserve, []

    def full(self: Ledger, *of: Any) -> Any:
        told.append(cache.access.traffic.horizon[0] > time.monotonic())
        return None if len(told) < 3 else reserve(self, *of)

    monkeypatch.setattr(Ledger, "reserve", full)
    monkeypatch.setattr(Traffic, "sleep", lambda self, seconds: None)
    cache.open(f"{URL}/{manifest.shards.name(0)}", manifest.shards.size(0), manifest.shards.sha256(0)).close()
    assert told == [False, True, True]
