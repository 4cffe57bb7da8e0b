"""Reads stores behind URLs through fsspec: which are opened, how long one request may take, what is taken of answers.

Stands above ``retries`` and below ``cache`` at the start of ``data → models → losses → evaluation → engine``. No answer
that is longer than what was asked for is used, no store is waited for without end, and no error tells credentials.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import fsspec
from fsspec.registry import known_implementations

from cloc.config.secrets import public
from cloc.data.downloads import refuse_unreachable
from cloc.data.shards.retries import Access, VanishedError, attempt, may_pass, store_of, tell, together
from cloc.data.shards.tars import ShardError, ShardReadError

__all__ = ["Access", "attempt", "tell"]  # of ``retries``, for who reads stores
T = TypeVar("T")
MAX_DOCUMENT_BYTES = 1 << 28
"""Largest manifest that is taken from a store: 256 MiB, some 1.3 million shards."""
SLOWEST = 1 << 18
"""Bytes a second below which a store other than HTTP counts as stalled."""
BLOCK = 1 << 22
"""Bytes of a whole file that come at a time."""
_HTTP = ("http://", "https://")
_S3 = ("s3", "s3a")
_ADDRESS = re.compile(r"//\[[0-9A-Fa-f:.]+\]")


def is_remote(path: str) -> bool:
    """Tell whether a path is a URL of another file system than the local one."""
    return "://" in path and not path.startswith(("file://", "local://"))


def split_query(url: str) -> tuple[str, str]:
    """Part the query, with its ``?``, from an HTTP URL. In object stores ``?`` is a letter of names."""
    path, mark, query = url.partition("?") if url.startswith(_HTTP) else (url, "", "")
    return path, mark + query


def without_user(url: str) -> str:
    """The URL without user name and password, its query as it is."""
    path, query = split_query(url)
    return public(path) + query


def join_url(folder: str, name: str) -> str:
    """URL or path of a file in a folder; the folder's query goes with it."""
    path, query = split_query(folder)
    return f"{path.rstrip('/')}/{name}{query}"


def filesystem(url: str, access: Access | None = None) -> tuple[Any, str]:
    """Return the fsspec file system of a path or URL, and the path in it.

    Args:
        url: path or URL.
        access: how it is read by :func:`attempt`; without it a backend keeps attempts and limits of its own.

    Raises:
        DownloadError: it lies on the Hugging Face hub, and nothing answers there.
        ShardError: it is a shell command, a chain of file systems, of a protocol that fsspec does not know, or the
            protocol's package is missing (the message holds the pip command).
    """
    if url.startswith("pipe:"):
        raise ShardError(f"{url!r}: shell commands are never run; give a path or a URL that fsspec opens")
    web = url.startswith(_HTTP)
    plain = _ADDRESS.sub("//host", url) if web else url  # "[::1]" is no chain, which fsspec takes it for
    if "::" in plain and is_remote(url):
        raise ShardError(f"{url}: chained file systems are not opened; give the last URL (data.cache_dir caches it)")
    try:
        system, path = fsspec.core.url_to_fs(plain, **(_options(url, access) if access else {}))
    except ImportError as error:
        protocol = url.partition("://")[0]
        package = known_implementations[protocol]["class"].partition(".")[0]
        package = f"'fsspec[{protocol}]'" if package == "fsspec" else package.replace("_", "-")
        raise ShardError(f"{url}: {protocol}:// needs another package: pip install {package} ({error})") from error
    except ValueError as error:
        message = f"{url}: {error}; give a path, or a URL such as s3://, gs://, hf:// or https://"
        raise ShardError(message) from None  # its text may hold the URL
    if access and url.partition("://")[0] in _S3:
        system.retries = 1  # of s3fs itself, no argument of it
    if url.startswith("hf://"):
        refuse_unreachable(public(url))
    if web:
        from cloc.data.shards.http import HttpFiles

        access = access or Access()
        return HttpFiles(timeout=access.timeout, redirect_hosts=access.redirect_hosts), url
    return system, path


def _options(url: str, access: Access) -> dict[str, Any]:
    """What S3 gets: attempts are made here alone, where they are counted; its own limits end what is left behind.

    Credentials, endpoint and all else come from where botocore and fsspec look for them, and what fsspec's
    configuration says of these options holds.
    """
    protocol = url.partition("://")[0]
    if protocol not in _S3:
        return {}
    given = fsspec.config.conf.get(protocol, {})
    ours = {
        "connect_timeout": min(10.0, access.timeout),
        "read_timeout": access.timeout,
        "max_pool_connections": access.max_requests,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
    return {**given, "config_kwargs": ours | given.get("config_kwargs", {})}


def within(system: Any, seconds: float, call: Callable[[], T]) -> T:
    """Return what a call of a file system returns, or leave it behind: not every backend has limits of its own.

    Raises:
        TimeoutError: it has not returned in time.
    """
    if getattr(system, "has_limits", False) or system.protocol in ("memory", ("file", "local")):
        return call()
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  (raised below, in the thread that waits)
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


class TooLongError(OSError):
    """A store has more bytes than were asked for."""

    again = False


def read_blocks(system: Any, path: str, limit: int, access: Access, start: int = 0) -> Iterator[bytes]:
    """Yield a file's bytes, each block within the time that it may take.

    Args:
        system: file system of it.
        path: in the file system.
        limit: bytes that the file may have.
        access: bounds in time.
        start: first byte that is wanted.

    Raises:
        TooLongError: there are more than ``limit``; none beyond is yielded.
        TimeoutError: the store has fallen silent.
    """
    left = limit - start
    more = {"start": start} if getattr(system, "has_limits", False) else {}  # HTTP is asked for the rest
    with within(system, access.timeout, lambda: system.open(path, "rb", **more)) as file:
        said = getattr(file, "size", None) or 0
        if start and not more:
            within(system, access.timeout, lambda: file.seek(start))
        # Backends ask for blocks of their own size, however few bytes are read of them.
        seconds = access.timeout + max(BLOCK, getattr(file, "blocksize", 0)) / SLOWEST
        while said <= limit and (block := within(system, seconds, partial(file.read, min(BLOCK, left + 1)))):
            left -= len(block)
            if left < 0:
                break
            yield block
    if said > limit or left < 0:
        raise TooLongError(f"it has more than the {limit:,} bytes that may come")


def read_document(url: str, access: Access | None = None) -> bytes:
    """Return a whole file that is kept in memory, such as a manifest.

    Raises:
        FileNotFoundError: there is none.
        ShardReadError: it cannot be read, or has more than ``MAX_DOCUMENT_BYTES``.
    """
    access = (access or Access()).at_start
    system, path = filesystem(url, access)
    call = partial(read_blocks, system, path, MAX_DOCUMENT_BYTES, access)
    return attempt(url, "cannot be read", lambda: b"".join(call()), access)


def read_range(url: str, start: int, stop: int, access: Access | None = None) -> bytes:
    """Return some bytes of a remote file.

    Raises:
        VanishedError: there is no such file.
        UnansweredError: they did not come within ``access.retry_seconds``.
        ShardReadError: they cannot be read, or others come.
    """
    access = access or Access()
    system, path = filesystem(url, access)
    seconds = access.timeout + (stop - start) / SLOWEST
    what, size = f"bytes {start} to {stop} cannot be read", stop - start
    try:
        data: bytes = attempt(
            url,
            what,
            lambda: within(system, seconds, lambda: system.cat_file(path, start=start, end=stop)),
            access,
            size=size,
        )
    except FileNotFoundError as error:
        raise VanishedError(f"{url}: the shard has vanished; restore it") from error
    if len(data) > size:
        raise ShardReadError(f"{url}: {len(data):,} bytes came, {size:,} were asked for; mend the store")
    return data


def read_ranges(places: Sequence[tuple[str, int, int]], access: Access) -> list[bytes | ShardReadError]:
    """Return some bytes (URL, start, stop) of several remote files, or why they cannot be had; several at a time."""
    calls = [partial(read_range, url, start, stop, access) for url, start, stop in places]
    return together(calls, access.max_requests, access.traffic)


def lives(url: str, access: Access) -> bool:
    """Whether a store answers anything about a file; that there is none is an answer too."""
    try:
        system, path = filesystem(url, access)
        with access.traffic.slot(access.max_requests, 0):
            within(system, access.timeout, lambda: system.info(path))
    except FileNotFoundError:
        pass
    except Exception as error:  # noqa: BLE001  (every backend has exceptions of its own)
        if may_pass(error):
            return False
    access.traffic.answered(store_of(url))
    return True
