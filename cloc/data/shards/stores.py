"""Reads stores behind URLs through fsspec: which are opened, how often they are asked, how long they are waited for.

Stands below ``cache`` at the start of ``data → models → losses → evaluation → engine``. No answer that is longer than
what was asked for is used, no store is waited for without end, and no error tells credentials.
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import fsspec
from fsspec.registry import known_implementations

from cloc.config.secrets import public
from cloc.data.downloads import refuse_unreachable
from cloc.data.shards.tars import ShardError, ShardReadError

T = TypeVar("T")
MAX_DOCUMENT_BYTES = 1 << 28
"""Largest manifest that is taken from a store: 256 MiB, some 1.3 million shards."""
SLOWEST = 1 << 18
"""Bytes a second below which a store other than HTTP counts as stalled."""
_BLOCK = 1 << 22
_ATTEMPTS = 3
_LONGEST_WAIT = 60.0
_HTTP = ("http://", "https://")
_ADDRESS = re.compile(r"//\[[0-9A-Fa-f:.]+\]")
_NO_USE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True, slots=True)
class Access:
    """How stores are reached.

    Attributes:
        timeout: seconds that a store may be silent.
        redirect_hosts: hosts that HTTP redirects may lead to besides the URL's own.
    """

    timeout: float = 30.0
    redirect_hosts: tuple[str, ...] = ()


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


def filesystem(url: str, access: Access = Access()) -> tuple[Any, str]:
    """Return the fsspec file system of a path or URL, and the path in it.

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
        system, path = fsspec.core.url_to_fs(plain)
    except ImportError as error:
        protocol = url.partition("://")[0]
        package = known_implementations[protocol]["class"].partition(".")[0]
        package = f"'fsspec[{protocol}]'" if package == "fsspec" else package.replace("_", "-")
        raise ShardError(f"{url}: {protocol}:// needs another package: pip install {package} ({error})") from error
    except ValueError as error:
        message = f"{url}: {error}; give a path, or a URL such as s3://, gs://, hf:// or https://"
        raise ShardError(message) from None  # its text may hold the URL
    if url.startswith("hf://"):
        refuse_unreachable(public(url))
    if web:
        from cloc.data.shards.http import HttpFiles

        return HttpFiles(timeout=access.timeout, redirect_hosts=access.redirect_hosts), url
    return system, path


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


def attempt(url: str, what: str, call: Callable[[], T]) -> T:
    """Call until it succeeds, three times at most, waiting as long as the server asks for in between.

    Args:
        url: for the message.
        what: for the message: what is not so when all attempts fail.
        call: asks a store.

    Raises:
        FileNotFoundError: the store says that there is no such file.
        ShardReadError: all attempts failed, or another one is of no use.
    """
    for number in range(1, _ATTEMPTS + 1):
        try:
            return call()
        except FileNotFoundError:
            missing = True
        except Exception as error:  # every backend has exceptions of its own, which mean the same here
            missing, failure = False, error
        if missing:  # outside of the handler: the store's own error may hold the URL
            raise FileNotFoundError(f"{public(url)}: no such file")
        if number == _ATTEMPTS or not _again(failure):
            break
        time.sleep(min(max(2.0**number, getattr(failure, "after", 0.0)), _LONGEST_WAIT))
    raise ShardReadError(f"{url}: {what}, {number} attempt{'s' * (number > 1)} ({tell(failure)})")


def _again(error: Exception) -> bool:
    """Whether another attempt may fare better."""
    use = not isinstance(error, PermissionError) and getattr(error, "errno", None) not in _NO_USE
    return getattr(error, "again", use)


def tell(error: Exception) -> str:
    """An error of a store in one line, without credentials."""
    if isinstance(error, TimeoutError):
        return "nothing came in time; check the store and the network, or raise data.timeout"
    text = " ".join(public(str(error)).split())[:300]
    return text if hasattr(error, "again") else f"{type(error).__name__}: {text}"


class TooLongError(OSError):
    """A store has more bytes than were asked for."""

    again = False


def read_blocks(system: Any, path: str, limit: int, access: Access) -> Iterator[bytes]:
    """Yield a file's bytes, each block within the time that it may take.

    Raises:
        TooLongError: there are more than ``limit``; none beyond is yielded.
        TimeoutError: the store has fallen silent.
    """
    left = limit
    with within(system, access.timeout, lambda: system.open(path, "rb")) as file:
        said = getattr(file, "size", None) or 0
        # Backends ask for blocks of their own size, however few bytes are read of them.
        seconds = access.timeout + max(_BLOCK, getattr(file, "blocksize", 0)) / SLOWEST
        while said <= limit and (block := within(system, seconds, partial(file.read, min(_BLOCK, left + 1)))):
            left -= len(block)
            if left < 0:
                break
            yield block
    if said > limit or left < 0:
        raise TooLongError(f"it has more than the {limit:,} bytes that may come")


def read_document(url: str, access: Access = Access()) -> bytes:
    """Return a whole file that is kept in memory, such as a manifest.

    Raises:
        FileNotFoundError: there is none.
        ShardReadError: it cannot be read, or has more than ``MAX_DOCUMENT_BYTES``.
    """
    system, path = filesystem(url, access)
    return attempt(url, "cannot be read", lambda: b"".join(read_blocks(system, path, MAX_DOCUMENT_BYTES, access)))


def read_range(url: str, start: int, stop: int, access: Access = Access()) -> bytes:
    """Return some bytes of a remote file.

    Raises:
        ShardReadError: they cannot be read, or others come.
    """
    system, path = filesystem(url, access)
    seconds = access.timeout + (stop - start) / SLOWEST
    try:
        data: bytes = attempt(
            url,
            f"bytes {start} to {stop} cannot be read",
            lambda: within(system, seconds, lambda: system.cat_file(path, start=start, end=stop)),
        )
    except FileNotFoundError as error:
        raise ShardReadError(f"{url}: the shard has vanished; restore it") from error
    if len(data) > stop - start:
        raise ShardReadError(f"{url}: {len(data):,} bytes came, {stop - start:,} were asked for; mend the store")
    return data


def read_ranges(places: Sequence[tuple[str, int, int]], access: Access = Access()) -> list[bytes | None]:
    """Return some bytes (URL, start, stop) of several remote files, asked for at once; None where that failed."""
    system, _ = filesystem(places[0][0], access)
    paths = [filesystem(url, access)[1] for url, _, _ in places]
    starts, stops = [start for _, start, _ in places], [stop for _, _, stop in places]
    seconds = access.timeout + sum(stop - start for _, start, stop in places) / SLOWEST
    try:
        found = within(system, seconds, lambda: system.cat_ranges(paths, starts, stops, on_error="return"))
    except TimeoutError:
        return [None] * len(places)
    return [
        data if isinstance(data, bytes) and len(data) <= stop - start else None
        for data, (_, start, stop) in zip(found, places, strict=True)
    ]
