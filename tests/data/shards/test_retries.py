"""Stores that fail: what is asked again and for how long, what is given up and taken back, what a run is told."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cloc.config import DataConfig
from cloc.data.shards import offsets, retries, stores
from cloc.data.shards.cache import CacheError, ShardCache
from cloc.data.shards.http import AnswerError
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.reader import FIRST_PAUSE, ShardReader
from cloc.data.shards.retries import Access, ReadingInterrupted, StoreSilentError, Traffic, UnansweredError, attempt
from cloc.data.shards.tars import ShardReadError
from cloc.data.stream.sources import open_shards, open_sources
from tests.kit.clocks import skip_pauses
from tests.kit.hostile_http import Request, serving
from tests.kit.streams import contents, make_manifest, make_stream

URL = "memory://bucket/retried"


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    found = make_manifest(tmp_path / "set")
    system = fsspec.filesystem("memory")
    for file in (tmp_path / "set").iterdir():
        system.pipe(f"/bucket/retried/{file.name}", file.read_bytes())
    yield found
    system.store.clear()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> dict[str, Exception]:
    """Errors of the store by a part of a file's name; whatever is asked about such a file raises them."""
    system, errors = type(fsspec.filesystem("memory")), {}
    errors["asked"] = []
    for name in ("cat_file", "open", "info"):
        usual = getattr(system, name)

        def shaky(self: Any, path: str, *rest: Any, usual: Any = usual, **options: Any) -> Any:
            errors["asked"].append(path)
            for part, error in errors.items():
                if part in path:
                    raise error
            return usual(self, path, *rest, **options)

        monkeypatch.setattr(system, name, shaky)
    return errors


def busy() -> AnswerError:
    return AnswerError("503 Slow Down", again=True)


# --- attempts ---------------------------------------------------------------------------------------------------------


def test_two_dead_minutes_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses, access = skip_pauses(monkeypatch), Access()

    def dead() -> str:
        if sum(pauses) < 120:
            raise ConnectionResetError("reset by peer")
        return "here"

    assert attempt("s3://b/x", "cannot be read", dead, access) == "here"
    assert pauses[:5] == [2, 4, 8, 16, 30] and max(pauses) == 30
    assert access.traffic.take_counts()["store_retries"] == len(pauses)


def test_pauses_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter: a thousand readers of a store that comes back do not come together."""
    pauses: list[float] = []

    def fail() -> None:
        raise busy()

    for _ in range(200):
        with monkeypatch.context() as patch:
            now = iter(range(0, 10_000, 10))
            patch.setattr(retries.time, "monotonic", lambda now=now: float(next(now)))
            patch.setattr(Traffic, "pause", lambda self, seconds: pauses.append(seconds))
            with pytest.raises(ShardReadError):
                attempt("s3://b/x", "cannot be read", fail, Access(retry_seconds=15))
    assert min(pauses) < 0.5 and max(pauses) > 1.5 and len(set(pauses)) > 100


@pytest.mark.parametrize(
    "error",
    [
        AnswerError("403 Forbidden"),
        PermissionError("Access Denied"),
        OSError(errno.EINVAL, "The requested range is not satisfiable"),
        ValueError("no address"),
        type("HttpError", (Exception,), {"code": 404})("not there"),
        type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"),
    ],
)
def test_what_cannot_pass_is_told_at_once(error: Exception) -> None:
    calls: list[int] = []

    def refuse() -> None:
        calls.append(1)
        raise error

    with pytest.raises(ShardReadError, match="1 attempt"):
        attempt("s3://b/x", "cannot be read", refuse, Access())
    assert len(calls) == 1


@pytest.mark.parametrize(
    "error",
    [
        AnswerError("503", again=True),
        OSError(errno.EBUSY, "Please reduce your request rate."),
        TimeoutError(),
        ConnectionResetError("reset"),
        type("EndpointConnectionError", (Exception,), {})("Could not connect"),
        type("HttpError", (Exception,), {"code": 429})("slower"),
    ],
)
def test_what_may_pass_is_tried_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_pauses(monkeypatch)
    answers = iter([error, error, None])

    def ask() -> int:
        if (one := next(answers)) is not None:
            raise one
        return 7

    assert attempt("s3://b/x", "cannot be read", ask, Access()) == 7


def test_what_s3_asks_to_wait_is_heard() -> None:
    cause = Exception()
    cause.response = {"ResponseMetadata": {"HTTPHeaders": {"retry-after": "17"}}}  # as botocore's ClientError
    error = OSError(errno.EBUSY, "Please reduce your request rate.")
    error.__cause__ = cause
    assert retries.asked_to_wait(error) == 17 and retries.asked_to_wait(OSError()) == 0


def test_silence_is_told_once_and_its_end(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pauses = skip_pauses(monkeypatch)

    def dead() -> None:
        if sum(pauses) < 200:
            raise busy()

    attempt("s3://user:S3cret@b/x", "cannot be read", dead, Access())
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and "tried 4 times (503 Slow Down); next in 16 s" in told[0] and "answers again" in told[1]
    assert "S3cret" not in caplog.text


def test_a_silence_that_nobody_has_listened_to_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours may lie between two shards: one failure before them says nothing of now."""
    pauses, access = skip_pauses(monkeypatch), Access()
    answers = iter([busy(), busy(), busy(), None])

    def ask() -> None:
        if (error := next(answers)) is not None:
            raise error

    with pytest.raises(UnansweredError, match="2 attempts"):
        attempt("s3://b/x", "cannot be read", ask, access.within(1.0))
    pauses.append(3600)
    attempt("s3://b/other", "cannot be read", ask, access)
    assert next(answers, "asked for all") == "asked for all"


def test_shards_that_are_lost_say_nothing_of_their_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """All others are in the cache; then one is not, and the store is busy for a moment."""
    pauses, access = skip_pauses(monkeypatch), Access()

    def lost() -> None:
        raise busy()

    for _ in range(30):
        with pytest.raises(UnansweredError, match="1 attempt"):
            attempt("s3://b/lost", "cannot be read", lost, access.within(0.0))
        pauses.append(30)
    answers = iter([busy(), None])

    def ask() -> None:
        if (error := next(answers)) is not None:
            raise error

    attempt("s3://b/other", "cannot be read", ask, access)
    assert next(answers, "asked for all") == "asked for all"


def test_a_dead_store_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses, access = skip_pauses(monkeypatch), Access()

    def dead() -> None:
        raise busy()

    for _ in range(3):
        with pytest.raises(UnansweredError):
            attempt("s3://b/x", "cannot be read", dead, access)
        pauses.append(0.9 * retries.UNASKED)  # a few samples that are at hand are read meanwhile
    assert sum(pauses) == pytest.approx(600 + 3 * 0.9 * retries.UNASKED, abs=1)


def test_requests_and_bytes_in_flight_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "MAX_BYTES", 100)
    access, now, seen, lock = Access(max_requests=4), [0, 0], [(0, 0)], threading.Lock()

    def call(size: int) -> None:
        with lock:
            now[0], now[1] = now[0] + 1, now[1] + min(size, 100)
            seen.append((now[0], now[1]))
        time.sleep(0.01)
        with lock:
            now[0], now[1] = now[0] - 1, now[1] - min(size, 100)

    def worker(size: int) -> None:
        attempt("s3://b/x", "cannot be read", lambda: call(size), access, size=size)

    threads = [threading.Thread(target=worker, args=(size,)) for size in [10, 30, 60, 500] * 6]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 < max(requests for requests, _ in seen) <= 4 and max(size for _, size in seen) <= 100


def test_who_waits_stops_when_the_run_is_to_end() -> None:
    access, caught = Access(), []

    def run() -> None:
        def dead() -> None:
            raise busy()

        try:
            attempt("s3://b/x", "cannot be read", dead, access)
        except ReadingInterrupted as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.2)
    access.traffic.interrupted = True
    thread.join(2)
    assert caught and not thread.is_alive()


# --- shards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_a_shard_is_given_up_after_three_rounds_and_taken_back(
    limit: int, manifest: Manifest, tmp_path: Path, failing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = skip_pauses(monkeypatch)
    cache = ShardCache(tmp_path / "cache", limit, Access())
    reader = ShardReader(open_shards(URL, cache), cache=cache)
    failing["000001"] = busy()
    spent = []
    for given_up in (False, False, True):
        before = sum(pauses)
        with pytest.raises(ShardReadError, match="503 Slow Down"):
            reader.read(1, 0)
        spent.append(round(sum(pauses) - before))
        assert reader.given_up(1) is given_up
    assert spent == [600, 300, 150]
    assert reader.read(2, 0) and reader.take_returned() == []
    failing["asked"].clear()
    with pytest.raises(ShardReadError, match="503 Slow Down"):
        reader.read(1, 1)
    reader.load([(1, 0), (1, 1)])
    assert not [path for path in failing["asked"] if "000001" in path]  # not before its pause is over
    pauses.append(FIRST_PAUSE)
    with pytest.raises(ShardReadError):
        reader.read(1, 1)
    assert len({path for path in failing["asked"] if "000001" in path}) == 1 and sum(pauses) < 1300  # one attempt
    del failing["000001"]
    pauses.append(FIRST_PAUSE)
    with pytest.raises(ShardReadError):
        reader.read(1, 1)  # its pause has doubled
    pauses.append(FIRST_PAUSE)
    assert reader.read(1, 1) == ShardReader(manifest).read(1, 1)
    assert reader.take_returned() == [1] and reader.take_returned() == []


def test_offsets_of_a_shard_are_asked_for_as_long_as_the_shard(
    manifest: Manifest, tmp_path: Path, failing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offsets, "WHOLE_BYTES", 0)
    pauses = skip_pauses(monkeypatch)
    cache = ShardCache(tmp_path / "cache", 0, Access())
    reader = ShardReader(open_shards(URL, cache), cache=cache)
    failing["manifest.offsets"] = busy()
    spent = []
    for _ in range(3):
        before = sum(pauses)
        with pytest.raises(ShardReadError, match="503 Slow Down"):
            reader.read(1, 0)
        spent.append(round(sum(pauses) - before))
    assert spent == [600, 300, 150] and reader.given_up(1)
    pauses.append(FIRST_PAUSE)
    before = sum(pauses)
    with pytest.raises(ShardReadError, match="503 Slow Down"):
        reader.read(1, 0)
    assert sum(pauses) == before
    del failing["manifest.offsets"]
    pauses.append(2 * FIRST_PAUSE)
    assert reader.read(1, 0) == ShardReader(manifest).read(1, 0) and reader.take_returned() == [1]


def test_two_threads_that_wait_for_a_shard_at_a_time_are_one_failure(manifest: Manifest, tmp_path: Path) -> None:
    reader = ShardReader(open_shards(URL, ShardCache(tmp_path / "cache")))

    def fail(access: Access) -> None:
        raise UnansweredError("nothing came")

    def fail_beside(access: Access) -> None:
        with pytest.raises(UnansweredError):
            reader._counted(1, fail)  # the thread that fetches ahead
        fail(access)

    for given_up in (False, False, True):
        with pytest.raises(UnansweredError):
            reader._counted(1, fail_beside)
        assert reader.given_up(1) is given_up


def test_the_limit_counts_shards_that_are_lost_now(
    manifest: Manifest, tmp_path: Path, failing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = skip_pauses(monkeypatch)
    data = open_sources(DataConfig(train=URL, cache_dir=str(tmp_path / "cache"), cache_bytes=0))
    stream = make_stream(data)
    failing["000001"] = FileNotFoundError("gone")
    stream.batch_at(0), stream.batch_at(8), stream.batch_at(16)
    skips = stream.sources[0].skips
    assert skips.lost == {1}
    del failing["000001"]
    pauses.append(FIRST_PAUSE)
    expected = make_stream(manifest)
    assert [contents(stream.batch_at(k * 8)) for k in range(3)] == [
        contents(expected.batch_at(k * 8)) for k in range(3)
    ]
    assert skips.lost == set()


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_a_dead_store_ends_the_run_and_costs_no_sample(
    limit: int, manifest: Manifest, tmp_path: Path, failing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_pauses(monkeypatch)
    data = open_sources(DataConfig(train=URL, cache_dir=str(tmp_path / "cache"), cache_bytes=limit))
    stream = make_stream(data)
    stream.sources[0].look_ahead = lambda index, lane: None
    failing["retried"] = ConnectionResetError("reset by peer")
    with pytest.raises(StoreSilentError, match=r"memory://bucket answers nothing.*600 s \(data.retry_seconds\)"):
        next(iter(stream))
    assert not stream.sources[0].skips.skipped and not stream.sources[0].skips.lost


def test_errors_that_pass_change_no_batch(
    manifest: Manifest, tmp_path: Path, failing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [contents(batch) for batch in islice(make_stream(manifest), 6)]
    for limit in (0, manifest.bytes):
        pauses = skip_pauses(monkeypatch)
        where = tmp_path / str(limit)
        data = open_sources(DataConfig(train=URL, cache_dir=str(where), cache_bytes=limit))
        system, calls = type(fsspec.filesystem("memory")), []
        with monkeypatch.context() as patch:
            for name in ("cat_file", "open"):
                usual = getattr(system, name)

                def shaky(self: Any, *rest: Any, usual: Any = usual, calls: Any = calls, **options: Any) -> Any:
                    calls.append(1)
                    if len(calls) % 3 == 0:
                        raise busy()
                    return usual(self, *rest, **options)

                patch.setattr(system, name, shaky)
            batches = list(islice(make_stream(data), 6))
        assert [contents(batch) for batch in batches] == expected
        assert sum(batch.stats.get("store_retries", 0) for batch in batches) == len(pauses) > 0


# --- whole shards -----------------------------------------------------------------------------------------------------


def test_a_shard_that_is_cut_off_goes_on_where_it_stopped(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five in a hundred requests fail: a shard of a thousand blocks would never be whole if it began anew each time."""
    skip_pauses(monkeypatch)
    monkeypatch.setattr(stores, "BLOCK", 1024)
    spans: list[str | None] = []

    def answer(request: Request) -> bool:
        if not request.path.endswith(".tar"):
            return False
        data = Path(manifest.location(0)).read_bytes()
        spans.append(request.headers.get("Range"))
        start = int(spans[-1][6:-1]) if spans[-1] else 0
        said = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}", "Content-Length": len(data) - start}
        request.reply(206 if start else 200, data[start : start + 3000], said)
        time.sleep(0.1)  # what came before the end of the connection is read
        request.close_connection = True
        return True

    with serving(manifest.folder, answer) as server:
        cache = ShardCache(tmp_path / "cache", access=Access(timeout=5))
        away = open_shards(server.url, cache)
        assert ShardReader(away, cache=cache).read(0, 4) == ShardReader(manifest).read(0, 4)
    starts = [int(span[6:-1]) if span else 0 for span in spans]
    assert starts == sorted(starts) and starts[0] == 0 and max(starts) > 3000


def test_a_server_without_ranges_begins_anew(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_pauses(monkeypatch)
    monkeypatch.setattr(stores, "BLOCK", 1024)
    asked: list[str] = []

    def answer(request: Request) -> bool:
        if not request.path.endswith(".tar"):
            return False
        asked.append(request.path)
        data = Path(manifest.location(0)).read_bytes()
        request.reply(200, data if len(asked) > 2 else data[:4000], {"Content-Length": len(data)})
        request.close_connection = True
        return True

    with serving(manifest.folder, answer) as server:
        cache = ShardCache(tmp_path / "cache", access=Access(timeout=5))
        assert ShardReader(open_shards(server.url, cache), cache=cache).read(0, 4) == ShardReader(manifest).read(0, 4)
    assert len(asked) == 3


def test_a_transfer_that_flips_a_bit_is_made_once_more(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(request: Request) -> bool:
        if not request.path.endswith(".tar"):
            return False
        asked.append(request.path)
        data = bytearray(Path(manifest.location(0)).read_bytes())
        data[900] ^= len(asked) == 1
        return request.reply(200, bytes(data))

    with serving(manifest.folder, answer) as server:
        cache = ShardCache(tmp_path / "cache", access=Access(timeout=5))
        assert ShardReader(open_shards(server.url, cache), cache=cache).read(0, 4) == ShardReader(manifest).read(0, 4)
    assert len(asked) == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("where", ["create", "write", "make_folder"])
def test_a_disk_that_cannot_be_written_is_told_and_no_shard_is_blamed(
    number: int, where: str, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(tmp_path / "cache", access=Access())
    away = open_shards(URL, cache)

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, "No room", "/cache/x")

    target: tuple[Any, str] = {
        "create": ("cloc.data.shards.cache.create", refuse),
        "make_folder": ("cloc.data.shards.cache.make_folder", refuse),
        "write": ("cloc.data.shards.cache._Copy.go_on", refuse),
    }[where]
    monkeypatch.setattr(*target)
    with pytest.raises(CacheError, match=f"^data.cache_dir={cache.folder}: No room.*give another data.cache_dir"):
        ShardReader(away, cache=cache).read(0, 0)
    monkeypatch.undo()
    assert ShardReader(away, cache=cache).read(0, 0) == ShardReader(manifest).read(0, 0)


def test_options_of_s3_leave_the_attempts_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True, "config_kwargs": {"read_timeout": 7}})
    given: Callable[..., Any] = stores._options
    found = given("s3://b/x", Access(timeout=20, max_requests=3))
    assert found["anon"] and found["config_kwargs"]["read_timeout"] == 7  # what the user has set holds
    assert found["config_kwargs"]["retries"]["total_max_attempts"] == 1
    assert found["config_kwargs"]["max_pool_connections"] == 3
    assert given("gs://b/x", Access()) == {}
