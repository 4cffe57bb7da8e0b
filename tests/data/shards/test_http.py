"""Servers that lie, lead astray, leak or fall silent: what is taken of them, and what a user is told."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from cloc.config import ConfigError, data_config
from cloc.data.shards import http, patterns, stores
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.stores import Access, read_range
from cloc.data.shards.tars import ShardError
from cloc.data.stream.sources import open_shards
from tests.kit.clocks import skip_pauses
from tests.kit.hostile_http import Request, serving
from tests.kit.streams import make_manifest

QUICK = Access(timeout=0.5, retry_seconds=6)
LOTS = 1 << 26
PACKED = gzip.compress(bytes(LOTS), 1)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited before each further attempt, without the waiting."""
    return skip_pauses(monkeypatch)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_manifest(tmp_path_factory.mktemp("set"))


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", access=QUICK)


def everything(manifest: Manifest, cache: ShardCache) -> list[bytes]:
    reader = ShardReader(manifest, cache=cache)
    return [reader.read(shard, i) for shard, info in enumerate(manifest.shards) for i in range(info.samples)]


def tar(answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """Answer so where a shard is asked for, and rightly everywhere else."""
    return lambda request: answer(request) if ".tar" in request.path else False


def without_cache(cache: ShardCache) -> ShardCache:
    return ShardCache(cache.folder, 0, cache.access)


# --- answers ----------------------------------------------------------------------------------------------------------


def whole(request: Request) -> bool:
    return request.reply(200, bytes(LOTS // 64))


def longer(request: Request) -> bool:
    return request.reply(206, bytes(LOTS // 64), {"Content-Range": f"bytes {request.headers['Range'][6:]}/999999"})


def shifted(request: Request) -> bool:
    start, last = map(int, request.headers["Range"][6:].split("-"))
    return request.reply(206, bytes(last - start + 1), {"Content-Range": f"bytes {start + 1}-{last + 1}/999999"})


def shorter(request: Request) -> bool:
    start, last = map(int, request.headers["Range"][6:].split("-"))
    return request.reply(
        206, bytes(last - start), {"Content-Range": f"bytes {start}-{last}/9999", "Content-Length": None}
    )


def endless(request: Request) -> bool:
    said = {"Content-Range": f"bytes {request.headers.get('Range', 'bytes=0-0')[6:]}/999999", "Content-Length": None}
    request.reply(206 if "Range" in request.headers else 200, b"", said)
    request.pour(LOTS)
    return True


def bomb(request: Request) -> bool:
    return request.reply(200, PACKED, {"Content-Encoding": "gzip"})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (whole, "no byte ranges; raise data.cache_bytes"),
        (longer, "more than the"),
        (shifted, "bytes .* were asked for, it has 'bytes"),
        (shorter, "bytes instead of"),
        (endless, "more than the"),
        (bomb, "encoded"),
    ],
)
def test_a_range_is_answered_by_its_bytes_or_not_at_all(
    answer: Callable[[Request], bool], message: str, manifest: Manifest, cache: ShardCache
) -> None:
    with serving(manifest.folder, tar(answer)) as server:
        away = open_shards(server.url, cache)
        tracemalloc.start()
        try:
            with pytest.raises(ShardError, match=message) as caught:
                ShardReader(away, cache=without_cache(cache)).read(1, 2)
            assert tracemalloc.get_traced_memory()[1] < LOTS // 16
        finally:
            tracemalloc.stop()
        assert "\n" not in str(caught.value) and server.url in str(caught.value)
        loaded = ShardReader(away, cache=without_cache(cache))
        loaded.load([(1, 2), (1, 3)])
        assert len(loaded._loaded) == 2
        for index in (2, 3):
            with pytest.raises(ShardError, match=message):
                loaded.read(1, index)


def test_ranges_that_are_answered_rightly(manifest: Manifest, cache: ShardCache) -> None:
    with serving(manifest.folder) as server:
        away = open_shards(server.url, cache)
        assert everything(away, without_cache(cache)) == everything(manifest, cache)
        info = manifest.shards[0]
        assert read_range(away.location(0), 0, info.bytes) == Path(manifest.location(0)).read_bytes()


@pytest.mark.parametrize("answer", [whole, endless, bomb])
def test_a_shard_is_never_longer_than_its_manifest_says(
    answer: Callable[[Request], bool], manifest: Manifest, cache: ShardCache
) -> None:
    with serving(manifest.folder, tar(answer)) as server:
        away = open_shards(server.url, cache)
        with pytest.raises(ShardError, match="more than the|encoded"):
            ShardReader(away, cache=cache).read(0, 0)
    assert not list(cache.folder.rglob("*.tar*")) and cache.ledger.held() == 0


@pytest.mark.parametrize("said", [None, 1 << 40])
def test_a_manifest_is_bounded(
    said: int | None, manifest: Manifest, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "MAX_DOCUMENT_BYTES", LOTS // 16)
    sent: list[int] = []

    def answer(request: Request) -> bool:
        request.reply(200, b"", {"Content-Length": said})
        sent.append(request.pour(LOTS))
        return True

    with serving(manifest.folder, answer) as server:
        with pytest.raises(ShardError, match="more than the 4,194,304 bytes"):
            open_shards(server.url, cache)
    assert max(sent) < LOTS // 2


def test_a_page_of_links_is_bounded(manifest: Manifest, cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_LISTING_BYTES", 1 << 20)

    def answer(request: Request) -> bool:
        if MANIFEST_NAME in request.path:
            return request.reply(404)
        request.reply(200, b"", {"Content-Length": None, "Content-Type": "text/html"})
        request.pour(LOTS, b'<a href="a.tar">' * 4096)
        return True

    with serving(manifest.folder, answer) as server, pytest.raises(ShardError, match="more than the 1,048,576 bytes"):
        open_shards(server.url, cache)


def test_links_that_lead_elsewhere_are_left_out(
    tmp_path: Path, manifest: Manifest, cache: ShardCache, caplog: pytest.LogCaptureFixture
) -> None:
    links = [
        *(
            "http://169.254.169.254/a.tar",
            "//example.com/b.tar",
            "../c.tar",
            "/other/d.tar",
            "deeper/e.tar",
            "..%2Ff.tar",
        ),
        *("https://127.0.0.1/set/g.tar", "file:///set/h.tar", "/set/shard-000001.tar", "shard-000000.tar", "?C=N"),
    ]

    def answer(request: Request) -> bool:
        if MANIFEST_NAME in request.path:
            return request.reply(404)
        page = "".join(f'<a class="x" href="{link}">y</a>' for link in links).encode()
        return request.reply(200, page, {"Content-Type": "text/html"}) if request.path == "/set" else False

    with serving(manifest.folder, answer) as server:
        assert open_shards(server.url, cache).shards == manifest.shards[:2]
        assert {path for _, path, _ in server.asked if path.endswith(".tar")} == {
            "/set/shard-000000.tar",
            "/set/shard-000001.tar",
        }
    assert "8 links to shards lead elsewhere" in caplog.text


@pytest.mark.parametrize("path", ["s-{0..99999999999}.tar", "s-{0..2000}{0..2000}.tar", "{a,b}" * 40 + ".tar"])
def test_braces_are_bounded(path: str, cache: ShardCache) -> None:
    for root in ("http://127.0.0.1:9", "/nowhere"):
        with pytest.raises(ShardError, match="the braces name more than 1,000,000"):
            open_shards(f"{root}/{path}", cache)


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("a.tar", 1),
        ("{a,b}{0..9}.tar", 20),
        ("{a{0..9},b{00..29},c}/{x,y}.tar", 82),
        ("{0..9..3}{a..e}", 20),
        ("{x}{,y}", 2),
        ("{5..-5}", 11),
    ],
)
def test_braces_are_counted_as_they_expand(path: str, count: int) -> None:
    assert patterns.count_paths(path) == count == len(patterns.expand(path))


# --- redirects --------------------------------------------------------------------------------------------------------


def leading(to: str, status: int = 302) -> Callable[[Request], bool]:
    """Redirect every request, its path added."""
    return lambda request: request.reply(status, b"", {"Location": to + request.path})


@pytest.mark.parametrize(
    ("status", "name"),
    [(301, MANIFEST_NAME), (302, "shard-000001.tar"), (303, MANIFEST_NAME), (307, MANIFEST_NAME), (308, MANIFEST_NAME)],
)
def test_redirects_stay_on_the_host(status: int, name: str, manifest: Manifest, cache: ShardCache) -> None:
    with serving(manifest.folder) as other:
        move = leading(f"http://{other.host}", status)
        with serving(manifest.folder, lambda r: move(r) if name in r.path else False) as server:
            secret = server.url.replace("//", "//user:S3cret@")
            with pytest.raises(ShardError, match=rf"leads to http://{other.host}; name that host in data.redirect"):
                everything(open_shards(secret, cache), cache)
            assert not other.asked
            for limit in (cache.limit, 0):
                named = ShardCache(
                    cache.folder.with_name(f"named-{limit}"), limit, Access(redirect_hosts=(other.host,))
                )
                assert everything(open_shards(secret, named), named) == everything(manifest, named)
            assert other.asked and not any("authorization" in str(headers).lower() for *_, headers in other.asked)


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("http://169.254.169.254/latest", "leads to http://169.254.169.254:80"),
        ("http://metadata.google.internal", "leads to http://metadata.google.internal"),
        ("http://user@127.0.0.1@169.254.169.254", "169.254.169.254"),
        ("file:///etc/passwd", "leads to file://"),
        ("ftp://127.0.0.1", "leads to ftp://"),
        ("//localhost", "leads to http://localhost"),
        ("https://127.0.0.1", "leads to https://127.0.0.1:443"),
        ("http://[::1]:80", r"leads to http://\[::1\]:80"),
        ("", "more than 5 redirects"),
        ("http://[nonsense", "ValueError"),
    ],
)
def test_redirects_lead_nowhere_else(to: str, message: str, manifest: Manifest, cache: ShardCache) -> None:
    with serving(manifest.folder, leading(to)) as server, pytest.raises(ShardError, match=message) as caught:
        open_shards(server.url, cache)
    assert "\n" not in str(caught.value)


def test_a_chain_of_redirects_is_judged_link_by_link(manifest: Manifest, cache: ShardCache) -> None:
    """The second host is named, the one that it leads to is not."""
    with serving(manifest.folder) as third, serving(manifest.folder, leading(f"http://{third.host}")) as second:
        with serving(manifest.folder, leading(f"http://{second.host}")) as first:
            chain = ShardCache(cache.folder, access=Access(redirect_hosts=(second.host,)))
            with pytest.raises(ShardError, match=f"leads to http://{third.host}"):
                open_shards(first.url, chain)
            assert second.asked and not third.asked


def test_redirects_on_the_host_are_followed_with_its_credentials(manifest: Manifest, cache: ShardCache) -> None:
    def answer(request: Request) -> bool:
        if "Authorization" not in request.headers:
            return request.reply(401)
        if request.path.startswith("/set"):
            return request.reply(307, b"", {"Location": request.path.replace("/set", "")})
        return False

    with serving(manifest.folder, answer) as server:
        away = open_shards(server.url.replace("//", "//user:S3cret@"), cache)
        assert everything(away, cache) == everything(manifest, cache)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("http://a/x", "http://a:80/y", True),
        ("http://a/x", "https://a/y", True),
        ("http://A/x", "http://a/y", True),
        ("https://a/x", "http://a/y", False),
        ("http://a:8000/x", "https://a/y", False),
        ("http://a/x", "http://a:8080/y", False),
        ("http://a/x", "http://b.a/y", False),
        ("http://a/x", "http://a./y", False),
    ],
)
def test_what_is_the_same_host(first: str, second: str, same: bool) -> None:
    assert http._same_host(http.yarl.URL(first), http.yarl.URL(second)) is same


@pytest.mark.parametrize(
    "given", ["redirect_hosts=[http://a]", "redirect_hosts=[a/b]", "redirect_hosts=['']", "timeout=0"]
)
def test_keys_of_access_are_checked(given: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{given.partition('=')[0]}(\[0\])?="):
        data_config([given])


@pytest.mark.parametrize(
    "url", ["simplecache::http://127.0.0.1:9/x", "reference::http://127.0.0.1:9/x", "zip://a::s3://b"]
)
def test_chained_file_systems_are_refused(url: str, cache: ShardCache) -> None:
    with pytest.raises(ShardError, match="chained file systems are not opened"):
        open_shards(url, cache)


# --- silence ----------------------------------------------------------------------------------------------------------


def silent(request: Request) -> bool:
    request.over.wait(20)
    return True


def dripping(request: Request) -> bool:
    request.reply(200, b"", {"Content-Length": None})
    request.pour(LOTS, b"x", pause=0.05)
    return True


def dripping_headers(request: Request) -> bool:
    request.pour(LOTS, b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.05)
    return True


@pytest.mark.parametrize("answer", [silent, dripping, dripping_headers])
@pytest.mark.parametrize("name", [MANIFEST_NAME, "shard-000001.tar"])
def test_a_silent_server_is_given_up(
    answer: Callable[[Request], bool], name: str, manifest: Manifest, cache: ShardCache, no_pauses: list[float]
) -> None:
    begun = time.monotonic()
    with serving(manifest.folder, lambda request: answer(request) if name in request.path else False) as server:
        with pytest.raises(ShardError, match=r"[234] attempts in \d s \(nothing.*within 0.5 s") as caught:
            ShardReader(open_shards(server.url, cache), cache=cache).read(1, 0)
    assert time.monotonic() - begun < 10 and server.host in str(caught.value)
    assert no_pauses[0] == 2


class Silent(LocalFileSystem):
    """A store that never answers."""

    protocol = "silent"

    def _open(self, path: str, *_: Any, **__: Any) -> Any:
        time.sleep(0.9)
        time.sleep(0.9)


def test_a_store_without_limits_of_its_own_is_given_up(tmp_path: Path) -> None:
    fsspec.register_implementation("silent", Silent, clobber=True)
    begun = time.monotonic()
    with pytest.raises(
        ShardError, match=r"silent://x/.* 3 attempts in [67] s \(nothing came in time; .* raise data.timeout\)"
    ):
        open_shards("silent://x", ShardCache(tmp_path, access=Access(timeout=0.1, retry_seconds=6)))
    assert time.monotonic() - begun < 1


# --- failures that pass, and those that do not ------------------------------------------------------------------------


DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("status", "wait"), [(503, "7"), (429, "1"), (500, None), (408, "x"), (503, "999999"), (503, DATE)]
)
def test_a_busy_server_is_asked_again(
    status: int, wait: str | None, manifest: Manifest, cache: ShardCache, no_pauses: list[float]
) -> None:
    turned_away: set[str] = set()

    def answer(request: Request) -> bool:
        if request.path in turned_away:
            return False
        turned_away.add(request.path)
        return request.reply(status, b"", {"Retry-After": wait} if wait else {})

    cache.access = Access(timeout=20)
    with serving(manifest.folder, answer) as server:
        assert everything(open_shards(server.url, cache), cache) == everything(manifest, cache)
    asked = {"7": 9.0, "1": 3.0, "999999": 600.0}.get(wait or "", 2.0)  # and two seconds in which readers part
    assert max(no_pauses) == pytest.approx(asked, abs=0.1)


@pytest.mark.parametrize(
    ("status", "message", "attempts"),
    [
        (404, "the shard has vanished; restore it", 1),
        (410, "the shard has vanished; restore it", 1),
        (403, r"1 attempt \(403 Forbidden; check your credentials\)", 1),
        (400, r"1 attempt \(400 Bad Request\)", 1),
        (503, r"3 attempts in 6 s \(503 Service Unavailable\)", 3),
    ],
)
def test_what_a_user_is_told(status: int, message: str, attempts: int, manifest: Manifest, cache: ShardCache) -> None:
    with serving(manifest.folder, tar(lambda request: request.reply(status))) as server:
        away = open_shards(server.url, cache)
        for own in (cache, without_cache(cache)):
            server.asked.clear()
            with pytest.raises(ShardError, match=message):
                ShardReader(away, cache=own).read(0, 0)
            assert sum(".tar" in path for _, path, _ in server.asked) == attempts


# --- addresses --------------------------------------------------------------------------------------------------------


def test_a_query_opens_every_file_of_a_folder(manifest: Manifest, cache: ShardCache, tmp_path: Path) -> None:
    """Signed URLs and tokens: the query goes along with the names."""

    def answer(request: Request) -> bool:
        return False if request.path.endswith("?sig=T0K") else request.reply(403)

    with serving(manifest.folder, answer) as server:
        assert everything(open_shards(f"{server.url}?sig=T0K", cache), cache) == everything(manifest, cache)
        some = open_shards(f"{server.url}/shard-00000{{1..3}}.tar?sig=T0K", cache)
        assert some.shards == manifest.shards[1:4] and some.folder.name == "set"
        both = open_shards(f"http://{server.host}/{{set,.}}/shard-000001.tar?sig=T0K", cache)
        assert [shard.name for shard in both.shards] == ["set/shard-000001.tar", "./shard-000001.tar"]
        assert everything(both, cache)[:5] == everything(some, cache)[:5]
        with pytest.raises(ShardError, match="403 Forbidden"):
            open_shards(server.url, cache)


def test_an_address_in_brackets(manifest: Manifest) -> None:
    system, path = stores.filesystem("http://[::1]:8000/set")
    assert (type(system), path) == (http.HttpFiles, "http://[::1]:8000/set")
