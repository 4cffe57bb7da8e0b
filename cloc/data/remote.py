"""Shards behind URLs: files open through fsspec, whole shards lie in a bounded local cache.

Stands below ``shards`` at the start of ``data → models → losses → evaluation → engine``. The cache belongs to all
processes of a host: a shard is fetched once, checked by size and hash, and appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from filelock import Timeout
from fsspec.registry import known_implementations

from cloc.data.tars import ShardError, ShardReadError
from cloc.files import PART, create, host_lock, make_folder, publish, reopen

CACHE_BYTES = 1 << 36
"""Default bound of the cache."""
_ATTEMPTS = 3
_BLOCK = 1 << 22


def is_remote(path: str) -> bool:
    """Tell whether a path is a URL of another file system than the local one."""
    return "://" in path and not path.startswith(("file://", "local://"))


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a path or URL, and the path in it.

    Raises:
        ShardError: it is a shell command, of a protocol that fsspec does not know, or the protocol's package is missing
            (the message holds the pip command).
    """
    if url.startswith("pipe:"):
        raise ShardError(f"{url!r}: shell commands are never run; give a path or a URL that fsspec opens")
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        protocol = url.partition("://")[0]
        package = known_implementations[protocol]["class"].partition(".")[0]
        package = f"'fsspec[{protocol}]'" if package == "fsspec" else package.replace("_", "-")
        raise ShardError(f"{url}: {protocol}:// needs another package: pip install {package} ({error})") from error
    except ValueError as error:
        raise ShardError(f"{url}: {error}; give a path, or a URL such as s3://, gs://, hf:// or https://") from error


def read_range(url: str, start: int, stop: int) -> bytes:
    """Return some bytes of a remote file.

    Raises:
        ShardReadError: they cannot be read.
    """
    system, path = filesystem(url)
    try:
        return system.cat_file(path, start=start, end=stop)
    except Exception as error:  # every backend has exceptions of its own, which mean the same here
        raise ShardReadError(f"{url}: bytes {start} to {stop} cannot be read ({error!r})") from error


def read_ranges(places: Sequence[tuple[str, int, int]]) -> list[bytes | None]:
    """Return some bytes (URL, start, stop) of several remote files, asked for at once; None where that failed."""
    system, _ = filesystem(places[0][0])
    paths = [filesystem(url)[1] for url, _, _ in places]
    starts, stops = [start for _, start, _ in places], [stop for _, _, stop in places]
    found = system.cat_ranges(paths, starts, stops, on_error="return")
    return [None if isinstance(data, Exception) else data for data in found]


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/cloc``, or ``~/.cache/cloc``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cloc"


class ShardCache:
    """Whole shards on the local disk; the least recently used leave first. May be pickled into workers.

    Args:
        folder: shared by all processes of a host.
        limit: bytes of all shards in it, those being fetched included; larger shards are not cached.
    """

    def __init__(self, folder: Path | str | None = None, limit: int = CACHE_BYTES) -> None:
        self.folder, self.limit = Path(folder) if folder else default_cache(), limit

    def open(self, url: str, size: int, sha256: str = "") -> BinaryIO:
        """Open the local copy of a shard; as :meth:`fetch`."""
        while True:
            try:
                return self.fetch(url, size, sha256).open("rb", buffering=0)
            except FileNotFoundError:  # another process needed the room at this very moment
                continue

    def fetch(self, url: str, size: int, sha256: str = "") -> Path:
        """Return the local copy of a shard, fetched where it is missing.

        Args:
            url: of the shard.
            size: its bytes.
            sha256: its hash; empty where it is not known.

        Raises:
            ShardReadError: it cannot be fetched after some attempts, or is not what the manifest says.
        """
        name = hashlib.sha256(f"{url}\n{size}\n{sha256}".encode()).hexdigest()[:16]
        path = self.folder / f"{name}-{url.rpartition('/')[2]}"
        if _touch(path):
            return path
        make_folder(self.folder)
        with host_lock(path.with_name(f"{path.name}.lock")):
            if not _touch(path):
                partial = path.with_name(f"{path.name}{PART}")  # by this name others find what is being fetched
                partial.unlink(missing_ok=True)  # of a process that was killed: nobody else holds this lock
                self._reserve(partial, size)
                try:
                    _download(url, partial, size, sha256)
                    _touch(partial)
                    publish(partial, path)
                finally:
                    partial.unlink(missing_ok=True)
        return path

    def _reserve(self, partial: Path, size: int) -> None:
        """Make room, and take it by a file of the full size; wait where all room is taken by other fetches."""
        while True:
            with host_lock(self.folder / "room.lock"):
                if self._make_room(size):
                    with create(partial) as file:
                        file.truncate(size)
                    return
            time.sleep(0.1)

    def _make_room(self, size: int) -> bool:
        files = []
        for path in [*self.folder.glob(f"*.tar{PART}"), *self.folder.glob("*.tar")]:
            with contextlib.suppress(FileNotFoundError):  # a fetch has just ended: it counts under its final name
                stat = path.stat()
                files.append((stat.st_mtime_ns, stat.st_size, path))
        total = size + sum(own for _, own, _ in files)
        for _, own, path in sorted(files):
            if total <= self.limit:
                break
            if path.suffix == ".tar" or _abandoned(path):
                path.unlink()
                total -= own
        return total <= self.limit


def _touch(path: Path) -> bool:
    """Note that a shard is in use; False where it is not there."""
    try:
        now = time.time_ns()  # the kernel's own stamp is too coarse to tell which of two came first
        os.utime(path, ns=(now, now))
    except FileNotFoundError:
        return False
    return True


def _abandoned(partial: Path) -> bool:
    """Tell whether the process that fetched this was killed: its lock is free."""
    try:
        with host_lock(partial.with_suffix(".lock"), timeout=0):
            return True
    except Timeout:
        return False


def _download(url: str, target: Path, size: int, sha256: str) -> None:
    system, path = filesystem(url)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            digest, count = hashlib.sha256(), 0
            with system.open(path, "rb") as source, reopen(target) as file:  # the room stays taken
                while block := source.read(_BLOCK):
                    count += file.write(block)
                    digest.update(block)
            break
        except FileNotFoundError as error:
            raise ShardReadError(f"{url}: the shard has vanished ({error}); restore it") from error
        except Exception as error:  # every backend has exceptions of its own, which mean the same here
            if attempt == _ATTEMPTS:
                raise ShardReadError(f"{url}: cannot be fetched, {_ATTEMPTS} attempts ({error!r})") from error
            time.sleep(2**attempt)
    if count != size or sha256 not in ("", digest.hexdigest()):
        found = f"{count:,} bytes with SHA-256 {digest.hexdigest()[:12]}…"
        raise ShardReadError(
            f"{url}: {found}, its manifest says {size:,} and {sha256[:12]}…; restore the shard or its manifest"
        )
