"""Shards behind URLs: the same stream as from a folder, through a cache that never holds more than it may."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pytest
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem

from cloc.config import ConfigError, DataConfig
from cloc.data.shards import cache as remote
from cloc.data.shards import opening
from cloc.data.shards.cache import ShardCache, filesystem
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.retries import Traffic
from cloc.data.shards.tars import ShardError, ShardReadError
from cloc.data.stream.prefetch import FETCHING
from cloc.data.stream.read_plan import check_cache, plan_reading
from cloc.data.stream.sources import ShardSource, ShardSources, open_shards, open_sources
from tests.kit.streams import contents, make_manifest, make_stream

URL = "memory://bucket/set"


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    """Five shards in a local folder and, the same, behind ``URL``."""
    found = make_manifest(tmp_path / "set")
    system = fsspec.filesystem("memory")
    for file in (tmp_path / "set").iterdir():
        system.pipe(f"/bucket/set/{file.name}", file.read_bytes())
    yield found
    system.store.clear()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """URLs that were downloaded."""
    urls: list[str] = []
    download = remote._download
    monkeypatch.setattr(remote, "_download", lambda url, *rest: (urls.append(url), download(url, *rest))[1])
    return urls


def everything(manifest: Manifest, cache: ShardCache | None = None) -> list[bytes]:
    reader = ShardReader(manifest, cache=cache)
    return [reader.read(shard, i) for shard, info in enumerate(manifest.shards) for i in range(info.samples)]


def held(cache: ShardCache) -> int:
    return sum(path.stat().st_size for path in cache.folder.rglob("*.tar*"))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_a_remote_set_is_the_local_one_whatever_the_cache_holds(
    manifest: Manifest, tmp_path: Path, share: float, fetched: list[str]
) -> None:
    cache = ShardCache(tmp_path / "cache", int(manifest.bytes * share))
    away = open_shards(URL, cache)
    assert (away.remote, away.shards, away.digest) == (URL, manifest.shards, manifest.digest)
    assert everything(away, cache) == everything(manifest)
    assert len(fetched) == (0 if share == 0 else len(manifest.shards))  # without room each sample is asked for by range
    assert not cache.folder.exists() or held(cache) <= cache.limit


def test_a_stream_of_remote_shards_is_that_of_local_ones(manifest: Manifest, tmp_path: Path) -> None:
    expected = [contents(batch) for batch in islice(make_stream(manifest), 6)]
    for limit in (manifest.bytes, 0):
        data = open_sources(DataConfig(train=URL, cache_dir=str(tmp_path / "cache"), cache_bytes=limit))
        assert [contents(batch) for batch in islice(make_stream(data), 6)] == expected


def test_shards_of_the_next_window_are_fetched_ahead(manifest: Manifest, tmp_path: Path, fetched: list[str]) -> None:
    data = open_sources(DataConfig(train=URL, cache_dir=str(tmp_path / "cache"), cache_bytes=manifest.bytes))
    stream = make_stream(data)
    stream.sources[0].look_ahead(0)
    for thread in threading.enumerate():
        if thread.name == FETCHING:
            thread.join(10)
    assert sorted(fetched) == [manifest_url(shard.name) for shard in manifest.shards]


def manifest_url(name: str) -> str:
    return f"{URL}/{name}"


def test_the_least_recently_used_shard_leaves(manifest: Manifest, tmp_path: Path, fetched: list[str]) -> None:
    size = manifest.shards[0].bytes
    cache = ShardCache(tmp_path / "cache", 2 * size)
    reader = ShardReader(open_shards(URL, cache), cache=cache)
    for shard in (0, 1, 0, 2, 0, 1):  # 2 takes the place of 1, and 1 that of 2
        reader.read(shard, 0)
    assert [url[-5] for url in fetched] == ["0", "1", "2", "1"]
    assert held(cache) == 2 * size


def test_what_a_killed_process_left_is_room_and_what_a_living_one_fetches_is_not(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = manifest.shards[0].bytes
    cache, name = ShardCache(tmp_path / "cache", size), f"{0:016}-other.tar"
    part = cache.ledger.place(f"{name}.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"0" * size)
    with FileLock(cache.ledger.lock(name)):
        assert cache.ledger.reserve("1" * 16 + "-mine.tar", 1, lambda: True) is None
    assert cache.ledger.reserve("1" * 16 + "-mine.tar", 1, lambda: True) and not part.exists()
    assert everything(open_shards(URL, cache), cache) == everything(manifest)


def _read_all(folder: Path, limit: int, source: str, failed: Any) -> None:
    """In a process of its own: every sample again and again, through the shared cache."""
    cache = ShardCache(folder, limit)
    away = Manifest(Path("set"), open_shards(source, cache).shards, (), f"slow://{source}")
    try:
        for _ in range(3):
            everything(away, cache)
            assert held(cache) <= limit
    except BaseException:
        failed.set()
        raise


class _Slow(LocalFileSystem):
    """Local files that pass for remote ones."""

    protocol = "slow"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("slow://")


@pytest.mark.distributed
def test_processes_share_a_cache_that_is_too_small_for_them(manifest: Manifest, tmp_path: Path) -> None:
    fsspec.register_implementation("slow", _Slow, clobber=True)
    context = multiprocessing.get_context("fork")
    failed = context.Event()
    arguments = (tmp_path / "cache", 3 * manifest.shards[0].bytes, str(manifest.folder), failed)
    processes = [context.Process(target=_read_all, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert not failed.is_set()


@pytest.mark.parametrize("change", ["size", "byte"])
def test_a_remote_shard_that_is_not_what_the_manifest_says_is_lost(
    manifest: Manifest, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(Path(manifest.location(1)).read_bytes())
    data[600] ^= 1
    fsspec.filesystem("memory").pipe("/bucket/set/shard-000001.tar", bytes(data if change == "byte" else data[:-512]))
    cache = ShardCache(tmp_path / "cache", manifest.bytes)
    with pytest.raises(ShardReadError, match=r"shard-000001\.tar.*its manifest says"):
        ShardReader(open_shards(URL, cache), cache=cache).read(1, 0)
    assert not held(cache)


def test_a_remote_shard_that_vanishes_costs_its_samples_and_is_not_asked_for_again_at_once(
    manifest: Manifest, tmp_path: Path, caplog: Any, fetched: list[str]
) -> None:
    data = open_sources(DataConfig(train=URL, cache_dir=str(tmp_path / "cache"), cache_bytes=manifest.bytes))
    fsspec.filesystem("memory").rm("/bucket/set/shard-000001.tar")
    stream = make_stream(data)
    stream.sources[0].look_ahead = lambda *_: None
    batches = list(islice(stream, 3))
    assert not {f"s{i:03d}" for i in range(5, 10)} & {key for batch in batches for key in batch.keys}
    assert sum(batch.stats.get("skipped/unreadable_shard", 0) for batch in batches) >= 5
    assert fetched.count(manifest_url("shard-000001.tar")) == 1
    assert sum("has vanished" in record.message for record in caplog.records) == 1


def test_a_network_that_fails_for_a_moment_is_asked_again(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, calls = fsspec.filesystem("memory"), []
    opened = type(system).open

    def shaky(self: Any, path: str, *rest: Any, **options: Any) -> Any:
        calls.append(path)
        if len(calls) % 2:
            raise RuntimeError("connection reset")
        return opened(self, path, *rest, **options)

    monkeypatch.setattr(Traffic, "pause", lambda self, seconds: None)
    cache = ShardCache(tmp_path / "cache", manifest.bytes)
    away = open_shards(URL, cache)
    monkeypatch.setattr(type(system), "open", shaky)
    assert everything(away, cache) == everything(manifest)
    assert len(calls) == 2 * len(manifest.shards)


# --- what data.train may say ------------------------------------------------------------------------------------------


def test_braces_name_shards_and_folders(manifest: Manifest, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache")
    for root in (URL, str(manifest.folder)):
        some = open_shards(f"{root}/shard-00000{{1..3}}.tar", cache)
        assert some.shards == manifest.shards[1:4]
    make_manifest(tmp_path / "two", count=4, shards=2)
    both = open_shards(str(tmp_path / "{set,two}"), cache)
    assert [shard.name for shard in both.shards[-2:]] == ["two/shard-000000.tar", "two/shard-000001.tar"]
    assert both.samples == manifest.samples + 4
    assert everything(both)[: manifest.samples] == everything(manifest)


def test_a_shard_that_leaves_the_cache_while_it_is_indexed_is_read_to_its_end(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may need the room between the fetch and the look."""
    fsspec.filesystem("memory").rm(f"/bucket/set/{MANIFEST_NAME}")
    cache, scan = ShardCache(tmp_path / "cache", manifest.bytes), opening.scan_shard

    def scan_late(*of: Any) -> Any:
        for path in cache.folder.rglob("*.tar"):
            path.unlink(missing_ok=True)
        return scan(*of)

    monkeypatch.setattr(opening, "scan_shard", scan_late)
    assert open_shards(URL, cache).shards == manifest.shards


def test_a_pattern_of_several_stores_is_refused_in_a_line(manifest: Manifest, tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for file in manifest.folder.iterdir():
        system.pipe(f"/other/set/{file.name}", file.read_bytes())
    with pytest.raises(ShardError, match="several stores .*sources of their own in data.train"):
        open_shards("memory://{bucket,other}/set", ShardCache(tmp_path / "cache"))


@pytest.mark.parametrize("root", ["local", "remote"])
def test_without_a_manifest_shards_are_indexed_once(
    manifest: Manifest, tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (manifest.folder / MANIFEST_NAME).unlink()
    fsspec.filesystem("memory").rm(f"/bucket/set/{MANIFEST_NAME}")
    cache = ShardCache(tmp_path / "cache", manifest.bytes)
    path = f"{URL if root == 'remote' else manifest.folder}/shard-{{000000..000004}}.tar"
    assert open_shards(path, cache).shards == manifest.shards
    if root == "remote":
        assert open_shards(URL, cache).shards == manifest.shards
    monkeypatch.setattr(opening, "scan_shard", lambda *_: pytest.fail("indexed again"))
    assert open_shards(path, cache).shards == manifest.shards


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("pipe:cat x.tar", "shell commands are never run"),
        ("foo://bucket/set", "Protocol not known"),
        ("nowhere/set", "no such folder"),
        ("nowhere/shard-{0..1}.tar", "no such shard"),
        ("memory://nowhere", r"no manifest\.json and no \.tar"),
        ("memory://nowhere/shard-{0..1}.tar", "no such shard"),
        ("shard-{0..1.tar", "Unbalanced"),
    ],
)
def test_paths_that_cannot_be_opened(path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((ShardError, FileNotFoundError), match=message):
        open_shards(path, ShardCache(tmp_path))


def test_a_missing_backend_is_named_with_its_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str, **_: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ShardError, match="pip install s3fs"):
        filesystem("s3://bucket/set")
    with pytest.raises(ShardError, match=r"pip install 'fsspec\[https\]'"):
        filesystem("https://host/set")
    with pytest.raises(ShardError, match="pip install huggingface-hub"):
        filesystem("hf://datasets/a/b")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({}, "data.train={}"),
        (["a"], "data.train="),
        ({"a": "folder"}, "data.train.a='folder'"),
        ({"a": {"path": "x", "wieght": 1}}, "data.train.a="),
        ({"a": {"path": "x", "weight": 1}, "b": {"path": "y"}}, "data.train.b.weight=None"),
        ({"a": {"path": "x"}, "b": {"path": "y", "weight": 1}}, "data.train.b.weight=1"),
        ({"a": {"path": "x", "weight": 0}}, "data.train.a.weight=0"),
        ({"a": {"path": "x", "weight": float("nan")}}, "data.train.a.weight=nan"),
    ],
)
def test_sources_that_contradict_themselves(train: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_sources(DataConfig(train=train, cache_dir=str(tmp_path)))
    assert message in str(caught.value)


def test_weights_default_to_sizes(manifest: Manifest, tmp_path: Path) -> None:
    make_manifest(tmp_path / "two", count=4, shards=2)
    train = {"one": {"path": str(manifest.folder)}, "two": {"path": str(tmp_path / "two")}}
    data = open_sources(DataConfig(train=train, cache_dir=str(tmp_path)))
    assert [part.weight for part in data.parts] == [23, 4]
    batches = list(islice(make_stream(data, batch_size=9), 3))
    assert len({(int(s), key) for batch in batches for s, key in zip(batch.source, batch.keys, strict=True)}) == 27
    other = open_sources(DataConfig(train={"one": train["one"] | {"weight": 1}, "two": train["two"] | {"weight": 1}}))
    assert data.digest != other.digest


def test_a_cache_that_would_be_filled_again_and_again_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    away = open_shards(URL, ShardCache(tmp_path))
    for limit, good in ((0, True), (manifest.bytes // 2, False), (manifest.bytes, True)):
        data = ShardSources((ShardSource("train", away, 1),), ShardCache(tmp_path, limit))
        if good:
            check_cache(data, 0, 8)
        else:
            with pytest.raises(ConfigError, match=rf"data.cache_bytes={limit:,}: {manifest.bytes:,} bytes"):
                check_cache(data, 0, 8)


def test_the_plan_tells_what_is_read(manifest: Manifest, tmp_path: Path) -> None:
    local = plan_reading(ShardSources((ShardSource("train", manifest, 1),), ShardCache(tmp_path)), 0, 230, 8, 4)
    assert "10.0 passes over 23 in 5 shards" in local["data"] and "amplification 1.0" in local["reads"]
    away = open_shards(URL, ShardCache(tmp_path))
    cached = plan_reading(ShardSources((ShardSource("train", away, 1),), ShardCache(tmp_path)), 0, 230, 8, 4)
    assert "100% of the remote bytes" in cached["reads"] and "amplification 4.0" in cached["reads"]
    ranges = plan_reading(ShardSources((ShardSource("train", away, 1),), ShardCache(tmp_path, 0)), 0, 230, 8, 4)
    assert "0% of the remote bytes" in ranges["reads"] and "amplification 1.0" in ranges["reads"]


def test_shards_come_over_http(manifest: Manifest, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(manifest.folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        cache = ShardCache(tmp_path / "cache", manifest.bytes)
        away = open_shards(f"http://127.0.0.1:{server.server_port}", cache)
        assert everything(away, cache) == everything(manifest)
    finally:
        server.shutdown()
        server.server_close()
