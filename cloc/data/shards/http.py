"""HTTP as a file system of fsspec that trusts no server: answers are bounded, redirects stay, silence ends.

Stands below ``cache`` at the start of ``data → models → losses → evaluation → engine``. fsspec's own file system reads
whatever a server sends, follows it wherever it leads, waits for ever, and calls every failure "not found".
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import re
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote

import aiohttp
import yarl
from fsspec.asyn import AsyncFileSystem, sync

from cloc.config.secrets import public

MAX_LISTING_BYTES = 1 << 22
"""Largest page that is searched for the names of shards."""
PIECE = 1 << 16
"""Bytes that must arrive within the time limit; so a server that drips is as slow as one that is silent."""

_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_REQUEST_OPTIONS = ("headers", "auth", "ssl", "proxy", "proxy_auth")
_LOG = logging.getLogger(__name__)


class AnswerError(OSError):
    """What a server answered cannot be used.

    Args:
        message: without the URL.
        again: whether another attempt may fare better.
        after: seconds that the server asks to wait before it.
    """

    def __init__(self, message: str, again: bool = False, after: float = 0.0) -> None:
        super().__init__(public(message))
        self.again, self.after = again, after


class HttpFiles(AsyncFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Files behind ``http://`` and ``https://``, to be read.

    Credentials of the URL, and what fsspec's configuration says of HTTP (``headers``, ``client_kwargs``, …), go to the
    URL's own host alone.

    Args:
        timeout: seconds within which a server must answer, and within which each ``PIECE`` of a body must arrive.
        redirect_hosts: hosts (``name`` or ``name:port``) that redirects may lead to besides the URL's own.
        client_kwargs: of :class:`aiohttp.ClientSession`.
        options: of each request, and of fsspec.
    """

    protocol = ("http", "https")
    has_limits = True

    def __init__(
        self,
        timeout: float = 30.0,
        redirect_hosts: Sequence[str] = (),
        client_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.request_options = {name: options.pop(name) for name in _REQUEST_OPTIONS if name in options}
        super().__init__(**options)
        self.timeout, self.redirect_hosts = timeout, frozenset(host.lower() for host in redirect_hosts)
        self.client_kwargs, self.encoded = client_kwargs or {}, options.get("encoded", False)
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def ukey(self, path: str) -> str:
        """Hex digits that change with the file's size, date or tag."""
        return hashlib.sha256(json.dumps(self.info(path), sort_keys=True).encode()).hexdigest()

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        try:
            async with self._answer("HEAD", path) as head:
                facts = _facts(head)
        except (AnswerError, FileNotFoundError):
            facts = {"size": None}  # signed URLs often allow GET alone
        if facts["size"] is None:
            async with self._answer("GET", path) as answer:
                facts = _facts(answer)
        return {"name": public(path), "type": "file", **facts}

    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """Files that the page of a folder links to, without its query; what leads elsewhere is left out."""
        async with self._answer("GET", path) as answer:
            here = answer.url
            text = (await self._body(answer, MAX_LISTING_BYTES)).decode("utf-8", "replace")
        links = _Links()
        if answer.content_type in ("text/html", "application/octet-stream"):  # the latter where nothing is said
            links.feed(text)
        base = path.partition("?")[0].rstrip("/")
        names, elsewhere = _children(here, links.found)
        if elsewhere:
            _LOG.warning("%s: %d links to shards lead elsewhere and are left out", public(path), elsewhere)
        files = [{"name": f"{base}/{name}", "size": None, "type": "file"} for name in names]
        return files if detail else [file["name"] for file in files]

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """The bytes from ``start`` to ``end``, no more and no less."""
        if start is None or end is None:
            raise ValueError("give start and end, or open the file: without them nothing bounds the answer")
        if end <= start:
            return b""
        async with self._answer("GET", path, {"Range": f"bytes={start}-{end - 1}"}) as answer:
            _check_range(answer, start, end)
            body = await self._body(answer, end - start)
        if len(body) != end - start:
            raise AnswerError(f"{len(body):,} bytes instead of {end - start:,}", again=True)
        return body

    def _open(self, path: str, mode: str = "rb", start: int = 0, **kwargs: Any) -> io.RawIOBase:
        """A body from byte ``start`` on; its ``size`` is that of the whole file."""
        if mode != "rb":
            raise NotImplementedError("HTTP is read, not written")
        answer = sync(self.loop, self._request, "GET", path, {"Range": f"bytes={start}-"} if start else {})
        body = _Body(self, answer)
        if not start:
            return body
        if answer.status == 206:
            said = re.fullmatch(rf"bytes {start}-\d+/(\d+)", answer.headers.get("Content-Range", "").strip())
            if said is None:
                body.close()
                raise AnswerError(f"bytes from {start} on were asked for, others came")
            body.size = int(said[1])
        else:  # a server without ranges begins anew
            body.skip(start)
        return body

    async def _pieces(self, answer: aiohttp.ClientResponse, size: int) -> bytes:
        """The next ``size`` bytes of a body, fewer at its end, however long they take as long as they come."""
        body = bytearray()
        while piece := await self._piece(answer, min(PIECE, size - len(body))):
            body += piece
        return bytes(body)

    async def _body(self, answer: aiohttp.ClientResponse, limit: int) -> bytes:
        if answer.content_length is not None and answer.content_length > limit:
            raise AnswerError(f"{answer.content_length:,} bytes, more than the {limit:,} that may come")
        body = await self._pieces(answer, limit + 1)
        if len(body) > limit:
            raise AnswerError(f"more than the {limit:,} bytes that may come")
        return body

    async def _piece(self, answer: aiohttp.ClientResponse, size: int) -> bytes:
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self.timeout):
                while size and (part := await answer.content.read(size)):
                    parts.append(part)
                    size -= len(part)
        except (TimeoutError, aiohttp.ClientError) as error:
            raise self._failure(error) from None  # its text may hold the URL
        return b"".join(parts)

    @asynccontextmanager
    async def _answer(
        self, method: str, url: str, headers: dict[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        answer = await self._request(method, url, headers)
        try:
            yield answer
        finally:
            answer.close()

    async def _request(self, method: str, url: str, headers: dict[str, str] | None = None) -> aiohttp.ClientResponse:
        """The answer to a request, behind redirects, its body still to come.

        Raises:
            FileNotFoundError: the server says that there is no such file.
            AnswerError: it says anything else than the file, or nothing.
        """
        try:
            async with asyncio.timeout(self.timeout):
                answer = await self._ask(method, url, headers or {})
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            raise self._failure(error) from None
        try:
            _check_status(answer, url)
        except OSError:
            answer.close()
            raise
        return answer

    async def _ask(self, method: str, url: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        first = here = yarl.URL(url, encoded=self.encoded)
        for _ in range(_MAX_REDIRECTS + 1):
            same_host = _same_host(first, here)
            session = await self._session(same_host)
            options = self.request_options if same_host else {}
            sent = {**options.get("headers", {}), **headers, "Accept-Encoding": "identity"}
            answer = await session.request(method, here, **{**options, "headers": sent}, allow_redirects=False)
            if answer.status not in _REDIRECTS:
                return answer
            location = answer.headers.get("Location", "")
            answer.close()
            here = self._follow(first, here.join(yarl.URL(location)))
        raise AnswerError(f"more than {_MAX_REDIRECTS} redirects")

    def _follow(self, first: yarl.URL, target: yarl.URL) -> yarl.URL:
        """Where a redirect may lead, with the credentials of the first URL on its own host alone."""
        if _same_host(first, target):
            return target.with_user(first.user).with_password(first.password)
        host, port = (target.host or "").lower(), target.port
        host = f"[{host}]" if ":" in host else host
        named = {host, f"{host}:{port}"} & self.redirect_hosts
        if target.scheme not in ("http", "https") or not named or (first.scheme, target.scheme) == ("https", "http"):
            where = f"{target.scheme}://{host}" + (f":{port}" if port else "")
            raise AnswerError(f"it leads to {where}; name that host in data.redirect_hosts if it may")
        return target.with_user(None)

    async def _session(self, own: bool) -> aiohttp.ClientSession:
        """The session of a URL's own host, or that of others, which knows no credentials."""
        if own not in self._sessions:
            mine = self.client_kwargs if own else {}
            ours = {"auto_decompress": False, "raise_for_status": False, "cookie_jar": aiohttp.DummyCookieJar()}
            limits = aiohttp.ClientTimeout(total=None)  # those of _answer and _piece hold
            self._sessions[own] = aiohttp.ClientSession(**{**mine, **ours, "timeout": limits})
            weakref.finalize(self, _close, self.loop, self._sessions[own])
        return self._sessions[own]

    def _failure(self, error: Exception) -> AnswerError:
        if isinstance(error, TimeoutError):
            return AnswerError(f"nothing, or too little, came within {self.timeout:g} s", again=True)
        if isinstance(error, aiohttp.ClientResponseError):
            return AnswerError(f"no HTTP ({error.status} {error.message})", again=True)
        return AnswerError(f"{type(error).__name__}: {error}", again=not isinstance(error, ValueError))


class _Body(io.RawIOBase):
    """The body of one answer as a file that is read from its start; ``size`` is what its server says, or None."""

    def __init__(self, system: HttpFiles, answer: aiohttp.ClientResponse) -> None:
        super().__init__()
        self._system, self._answer, self.size = system, answer, answer.content_length

    def readable(self) -> bool:
        return True

    def read(self, size: int = PIECE) -> bytes:
        data: bytes = sync(self._system.loop, self._system._pieces, self._answer, size)
        return data

    def skip(self, count: int) -> None:
        """Read so many bytes, and forget them."""
        while count and (data := self.read(min(count, 1 << 22))):
            count -= len(data)

    def close(self) -> None:
        if not self.closed:
            self._system.loop.call_soon_threadsafe(self._answer.close)
        super().close()


class _Links(HTMLParser):
    """Targets of the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _children(folder: yarl.URL, links: Sequence[str]) -> tuple[list[str], int]:
    """Names of the shards right below a folder, and how many links lead to shards that are not."""
    root = folder.raw_path.rstrip("/") + "/"
    base = folder.with_path(root, encoded=True).with_query(None)
    names, elsewhere = set(), 0
    for link in links:
        try:
            target = base.join(yarl.URL(link))
        except ValueError:
            continue  # no address at all
        name = target.raw_path.removeprefix(root)
        if not target.path.endswith(".tar"):
            continue
        if _same_host(folder, target) and target.raw_path.startswith(root) and "/" not in unquote(name):
            names.add(name)
        else:
            elsewhere += 1
    return sorted(names), elsewhere


def _same_host(first: yarl.URL, other: yarl.URL) -> bool:
    """Tell whether credentials for one URL may be sent to another: same host and port, or its encrypted door."""
    if not first.host or first.host != other.host:
        return False
    upgraded = (first.scheme, first.port, other.scheme, other.port) == ("http", 80, "https", 443)
    return (first.scheme, first.port) == (other.scheme, other.port) or upgraded


def _check_status(answer: aiohttp.ClientResponse, url: str) -> None:
    status = f"{answer.status} {answer.reason or ''}".strip()
    if answer.status in (404, 410):
        raise FileNotFoundError(f"{public(url)}: {status}")
    if answer.status in (401, 403, 407):
        raise AnswerError(f"{status}; check your credentials")
    if answer.status >= 300 or answer.status < 200:
        raise AnswerError(status, again=answer.status in _BUSY, after=_wait(answer.headers.get("Retry-After", "")))
    coding = answer.headers.get("Content-Encoding", "identity").lower()
    if coding not in ("identity", ""):
        raise AnswerError(f"it is encoded ({coding}) although plain bytes were asked for")


def _wait(text: str) -> float:
    """Seconds that a ``Retry-After`` asks for: a number, or a date."""
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _check_range(answer: aiohttp.ClientResponse, start: int, end: int) -> None:
    """Refuse an answer of other bytes before its body is read."""
    said = answer.headers.get("Content-Range", "")
    if answer.status == 206 and not re.fullmatch(rf"bytes {start}-{end - 1}/(\d+|\*)", said.strip()):
        raise AnswerError(f"bytes {start}-{end - 1} were asked for, it has {said[:80]!r}")
    if answer.status != 206 and (start, answer.content_length) != (0, end):
        raise AnswerError("the server has no byte ranges; raise data.cache_bytes, so that whole shards are fetched")


def _facts(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    headers = {name: answer.headers[name] for name in ("ETag", "Last-Modified") if name in answer.headers}
    return {"size": answer.content_length, **headers}


def _close(loop: asyncio.AbstractEventLoop, session: aiohttp.ClientSession) -> None:
    if loop.is_running():
        asyncio.run_coroutine_threadsafe(session.close(), loop)
    elif session.connector is not None:
        session.connector._close()
