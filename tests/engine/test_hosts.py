"""One process of each host opens what a job reads and checks its share; the others take its word."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cloc.config import ConfigError, DataConfig
from cloc.data.shards import index, opening
from cloc.data.shards.manifest import MANIFEST_NAME
from cloc.data.shards.offsets import OFFSETS_NAME
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.tars import ShardError
from cloc.engine import hosts, pretrain_data, process_group
from tests.kit.manifests import version_one
from tests.kit.streams import make_manifest

SHARDS = 10


class Job:
    """Threads that stand for the processes of a job, each on the host that it is told."""

    def __init__(self, places: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.places, self.said = places, dict[int, str]()
        self.meet = threading.Barrier(len(places), timeout=60)
        for module in (hosts, process_group):
            monkeypatch.setattr(module, "exchange", self.exchange)
            monkeypatch.setattr(module, "rank_and_world", lambda: (self.rank, len(places)))
        monkeypatch.setattr(hosts, "host_name", lambda: places[self.rank])

    @property
    def rank(self) -> int:
        return int(threading.current_thread().name)

    def exchange(self, value: Any) -> list[Any]:
        self.said[self.rank] = json.dumps(value)
        self.meet.wait()
        values = [json.loads(self.said[number]) for number in range(len(self.places))]
        self.meet.wait()
        return values

    def run(self, action: Callable[[], Any]) -> list[Any]:
        """What each process returns, or the error that it raises."""
        results: list[Any] = [None] * len(self.places)

        def act(rank: int) -> None:
            try:
                results[rank] = action()
            except Exception as error:  # noqa: BLE001  (compared by the test)
                results[rank] = error

        threads = [threading.Thread(target=act, args=(rank,), name=str(rank)) for rank in range(len(self.places))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_manifest(tmp_path / "set", count=20, shards=SHARDS).folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a manifest was parsed, a shard compared with it, and a shard indexed."""
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def count(module: Any, name: str) -> None:
        real = getattr(module, name)

        def counted(*args: Any, **options: Any) -> Any:
            with lock:
                counts[name] += 1
            return real(*args, **options)

        monkeypatch.setattr(module, name, counted)

    count(index, "parse_manifest")
    count(opening, "parse_manifest")
    count(index, "check_file")
    count(opening, "scan_shard")
    return counts


def open_data(train: Any, cache: Path) -> Callable[[], Any]:
    """What a process of pretraining does, without a model to look at."""

    class Config:
        data = DataConfig(train=train, cache_dir=str(cache))

    return lambda: pretrain_data.open_data(Config)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_data, "check_data", lambda config, data: None)


def everything(data: Any) -> list[bytes]:
    return [
        ShardReader(part.manifest, cache=data.cache).read(*place)
        for part in data.parts
        for place in part.manifest.places()
    ]


THREE_BY_TWO = ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize("places", [THREE_BY_TWO, ["a", "b", "c", "c", "b", "a"], ["a"] * 4])
def test_each_shard_is_opened_once_a_job_and_the_manifest_parsed_once_a_host(
    places: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Counter[str]
) -> None:
    found = Job(places, monkeypatch).run(open_data(str(folder), tmp_path / "cache"))
    assert seen == {"parse_manifest": len(set(places)), "check_file": SHARDS}
    assert len({data.digest for data in found}) == 1
    expected = everything(found[0])
    assert len(expected) == 20 and all(everything(data) == expected for data in found)


def test_an_old_manifest_and_several_sources_are_handed_over_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Counter[str]
) -> None:
    version_one(folder)
    make_manifest(tmp_path / "two", count=4, shards=2)
    seen.clear()
    train = {"one": {"path": str(folder), "weight": 2}, "two": {"path": str(tmp_path / "two"), "weight": 1}}
    found = Job(THREE_BY_TWO, monkeypatch).run(open_data(train, tmp_path / "cache"))
    assert seen["parse_manifest"] == 6 and seen["check_file"] == SHARDS + 2
    assert all([part.name for part in data.parts] == ["one", "two"] for data in found)
    assert len({data.digest for data in found}) == 1 and everything(found[5]) == everything(found[0])


@pytest.mark.parametrize("shared", [True, False])
def test_a_set_without_a_manifest_is_indexed_once_a_job_where_hosts_share_the_cache_and_else_once_a_host(
    shared: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Counter[str]
) -> None:
    for name in (MANIFEST_NAME, OFFSETS_NAME):
        (folder / name).unlink()
    job = Job(THREE_BY_TWO, monkeypatch)
    found = job.run(
        lambda: open_data(str(folder), tmp_path / ("cache" if shared else f"cache-{job.places[job.rank]}"))()
    )
    assert seen["scan_shard"] == (SHARDS if shared else 3 * SHARDS)
    assert len({data.digest for data in found}) == 1 and everything(found[5]) == everything(found[0])


def test_a_remote_manifest_is_asked_for_once_a_host(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Counter[str]
) -> None:
    system = fsspec.filesystem("memory")
    for file in folder.iterdir():
        system.pipe(f"/bucket/hosts/{file.name}", file.read_bytes())
    names: Counter[str] = Counter()
    opened = type(system).open

    def counted(self: Any, path: str, *rest: Any, **options: Any) -> Any:
        names[Path(path).name] += 1
        return opened(self, path, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(type(system), "open", counted)
        found = Job(THREE_BY_TWO, monkeypatch).run(open_data("memory://bucket/hosts", tmp_path / "cache"))
    assert names == {MANIFEST_NAME: 3 + 3, OFFSETS_NAME: 3}  # also to see whether there is something to index
    assert everything(found[1]) == everything(found[0])
    system.store.clear()


def test_where_one_host_cannot_open_all_stop_and_say_why(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "shard-000004.tar"
    path.write_bytes(path.read_bytes()[:-512])
    found = Job(THREE_BY_TWO, monkeypatch).run(open_data(str(folder), tmp_path / "cache"))
    assert [type(error) for error in found] == [ConfigError] * 2 + [ShardError] + [ConfigError] * 3
    assert all("shard-000004.tar: the shard has" in str(error) for error in found)
    assert str(found[0]).startswith("process 2 cannot go on: ShardError: ")


def test_a_process_that_sees_no_file_of_the_first_one_opens_for_itself(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = pretrain_data.load_sources
    job = Job(["a", "a"], monkeypatch)

    def load_elsewhere(config: DataConfig, saved: Any) -> Any:
        return load(config, [[path, file + (".elsewhere" if job.rank else "")] for path, file in saved])

    monkeypatch.setattr(pretrain_data, "load_sources", load_elsewhere)
    found = job.run(open_data(str(folder), tmp_path / "cache"))
    assert "what process 0 has opened cannot be taken over" in caplog.text
    assert everything(found[0]) == everything(found[1])


def test_a_process_that_names_another_set_opens_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digests are compared afterwards: it must not pass for one of the same set."""
    other = make_manifest(tmp_path / "other", count=4, shards=2).folder
    job = Job(["a", "a"], monkeypatch)
    found = job.run(lambda: open_data(str(other if job.rank else folder), tmp_path / "cache")())
    assert found[0].digest != found[1].digest and found[1].samples == 4


def test_a_cache_folder_that_cannot_be_written_is_no_hindrance(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    found = Job(["a", "a"], monkeypatch).run(open_data(str(folder), tmp_path / "file"))
    assert everything(found[0]) == everything(found[1])
    shutil.rmtree(next(tmp_path.glob("cloc-*")))


def test_a_process_of_its_own_hands_nothing_over(folder: Path, tmp_path: Path) -> None:
    data = open_data(str(folder), tmp_path / "cache")()
    assert data.samples == 20 and not (tmp_path / "cache").exists()
    assert hosts.find_host() == hosts.Host((0, 1), 0, True)
