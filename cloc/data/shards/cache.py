"""Keeps whole shards of URLs in a bounded local cache.

Stands below ``reader`` at the start of ``data → models → losses → evaluation → engine``. The cache belongs to all
processes of a host: a shard is fetched once, checked by size and hash before it is used, and appears whole or not at
all. What room there is says ``ledger``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from filelock import Timeout

from cloc.config.secrets import public
from cloc.data.shards.ledger import Ledger
from cloc.data.shards.retries import Access, VanishedError, attempt
from cloc.data.shards.stores import filesystem, read_blocks, split_query
from cloc.data.shards.tars import OpenFile, ShardReadError
from cloc.files import PART, LinkError, create, host_lock, make_folder, open_file, open_plain, publish, write_json

CACHE_BYTES = 1 << 36
"""Default bound of the cache."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_POLL = 0.5  # seconds between two looks at whether the run is to end, while another process fetches a shard
_SLOW = 60.0  # seconds that a block of a whole shard may take beyond ``data.timeout``
_State = tuple[int, ...]
_LOG = logging.getLogger(__name__)


class CacheError(RuntimeError):
    """The disk of the cache cannot be written. No shard is to blame."""


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/cloc``, or ``~/.cache/cloc``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cloc"


class ShardCache:
    """Whole shards on the local disk; the least recently used leave first. May be pickled into workers.

    A shard's content is compared with its hash when it is fetched, once more by each run that finds it there, and
    whenever the file has changed since. ``NAME.checked`` beside it says for which state of the file that was done, and
    its date when the shard was used last.

    Args:
        folder: shared by all processes of a host.
        limit: bytes of all shards in it, those being fetched included; larger shards are not cached.
        access: how stores are reached.
    """

    def __init__(
        self, folder: Path | str | None = None, limit: int = CACHE_BYTES, access: Access | None = None
    ) -> None:
        self.folder, self.limit = Path(folder) if folder else default_cache(), limit
        self.access = access or Access()
        self.since = time.time_ns()  # what was checked before this run is checked again
        self.ledger = Ledger(self.folder, limit, self.since)
        self._checked: dict[Path, tuple[str, _State]] = {}
        self._removed: list[Path] = []

    @property
    def damaged(self) -> int:
        """Shards that were found changed by this process, and were removed."""
        return len(self._removed)

    def open(self, url: str, size: int, sha256: str = "", access: Access | None = None) -> OpenFile:
        """Open the local copy of a shard, fetched where it is missing.

        It can be read whatever happens to the cache meanwhile: another process may need the room at that very moment.

        Args:
            url: of the shard. Credentials are no part of the local name: whoever has others shares the copy.
            size: its bytes.
            sha256: its hash; empty where it is not known. Then nothing can be checked, and it is fetched anew.
            access: how long it is tried; that of the cache by default.

        Raises:
            VanishedError: the store has no such shard.
            UnansweredError: it could not be fetched within ``data.retry_seconds``.
            ShardReadError: it cannot be fetched, or is not what the manifest says.
            CacheError: the cache's disk is full or cannot be written.
        """
        name, access = _name(url, size, sha256), access or self.access
        while True:
            with self._on_disk():
                file = self._open(self.ledger.place(name), sha256) or self._check(name, size, sha256, access)
                file = file or self._bring(url, size, sha256, access)
                if file is not None:
                    return file

    def lock(self, name: str) -> Path:
        """The lock file of something in the folder that is made once for all processes; names share a few files."""
        return self.ledger.lock(name)

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except (ShardReadError, LinkError):
            raise
        except OSError as error:
            if error.errno not in _DISK:
                raise
            raise CacheError(
                f"data.cache_dir={self.folder}: {error.strerror or error} ({error.filename or 'a shard'}); free some "
                f"room, mend its rights, or give another data.cache_dir or a smaller data.cache_bytes={self.limit}"
            ) from error

    @contextmanager
    def _locked(self, name: str, access: Access) -> Iterator[float]:
        """Be the one process that sees to a shard; gives the monotonic time since when that was waited for."""
        begun, lock = time.monotonic(), host_lock(self.ledger.lock(name))
        while True:
            try:
                lock.acquire(timeout=_POLL)
                break
            except Timeout:
                access.traffic.check()
                if time.monotonic() - begun < access.retry_seconds:
                    access.traffic.expect(_SLOW)
        try:
            yield begun
        finally:
            lock.release()

    def _open(self, path: Path, sha256: str) -> OpenFile | None:
        """Open a shard that was checked in its present state, during this run; None for any other."""
        file = open_plain(path)
        if file is None:
            return None
        checked = (sha256, _state(file))
        if self._checked.get(path) != checked and _read_note(_note(path), self.since) != checked:
            file.close()
            return None
        self._checked[path] = checked
        _touch(_note(path))
        return file

    def _check(self, name: str, size: int, sha256: str, access: Access) -> OpenFile | None:
        """Compare a shard that is there with its hash; one that differs is removed. None where there is none."""
        path = self.ledger.place(name)
        if not os.path.lexists(path):
            return None
        with self._locked(name, access):
            checked = self._open(path, sha256)  # another process may have done it meanwhile
            if checked is not None:
                return checked
            file = open_plain(path)
            if file is not None:
                state = _state(file)
                if state[0] == size and hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                    self._write_note(path, sha256, state)
                    return file
                file.close()
            if os.path.lexists(path):
                self._removed.append(path)  # one step, whichever thread
                _LOG.warning("%s is no longer what was fetched; it is fetched again", path)
                _remove(path)
                self.ledger.forget(name)
        return None

    def _bring(self, url: str, size: int, sha256: str, access: Access) -> OpenFile | None:
        """Fetch a shard under a name that it gets when it is whole; None where another process has brought it."""
        name = _name(url, size, sha256)
        path = self.ledger.place(name)
        with self._locked(name, access) as begun:
            self.ledger.prepare()  # may find it where an earlier version left it
            if sha256 and os.path.lexists(path):
                return None
            make_folder(self.folder, path.parent.name)
            part = path.with_name(f"{name}{PART}")  # by this name others find what is being fetched
            try:
                with self._reserve(name, part, size, access) as file:
                    digest = _download(url, file, size, sha256, access, begun)
                    whole = _name(url, size, digest)
                    path = self.ledger.place(whole)
                    make_folder(self.folder, path.parent.name)
                    if whole != name:
                        self.ledger.keep(whole, size)  # what is not noted would be too much
                    found = open_file(part)  # before it has its name: from then on it may have to leave
                    publish(part, path)
                    self._write_note(path, digest, _state(file))
                    self.ledger.keep(whole, size)
                    return found
            finally:
                if not os.path.lexists(self.ledger.place(name)) or os.path.lexists(part):
                    part.unlink(missing_ok=True)
                    self.ledger.forget(name)

    def _write_note(self, path: Path, sha256: str, state: _State) -> None:
        write_json(_note(path), {"sha256": sha256, "state": state, "at": time.time_ns()}, None)

    def _reserve(self, name: str, part: Path, size: int, access: Access) -> BinaryIO:
        """Make room, and take it by a file of the full size; wait where all room is taken by other fetches."""

        def make() -> BinaryIO:
            file = create(part)
            file.truncate(size)
            return file

        begun = time.monotonic()
        while True:
            _remove(part)  # of a process that was killed
            file = self.ledger.reserve(name, size, make)
            if file is not None:
                return file
            if time.monotonic() - begun < access.retry_seconds:
                access.traffic.expect(_SLOW)
            access.traffic.sleep(0.1)


def _note(path: Path) -> Path:
    return path.with_suffix(".checked")


def _state(file: BinaryIO) -> _State:
    """What changes when anything changes a file through its file system: the last number cannot be set back."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _read_note(note: Path, since: int) -> tuple[str, _State] | None:
    """What a shard was when this user's processes checked it last; None where that was before ``since``."""
    file = open_plain(note)
    if file is None:
        return None
    with file:
        mine = os.fstat(file.fileno()).st_uid == os.getuid()
        text = file.read(4096)
    try:
        record = json.loads(text)
        return (record["sha256"], tuple(record["state"])) if mine and record["at"] >= since else None
    except (ValueError, KeyError, TypeError):
        return None


def _touch(note: Path) -> None:
    """Note that a shard is in use."""
    with contextlib.suppress(FileNotFoundError):  # it has just left, but stays open here
        now = time.time_ns()  # the kernel's own stamp is too coarse to tell which of two came first
        os.utime(note, ns=(now, now), follow_symlinks=False)


def _remove(path: Path) -> None:
    """Remove a shard, or whatever lies under its name, and its note."""
    if path.is_dir() and not path.is_symlink():
        raise ShardReadError(f"{path} is a folder where a shard is to lie; remove it, or give another data.cache_dir")
    path.unlink(missing_ok=True)
    if path.suffix == ".tar":
        _note(path).unlink(missing_ok=True)


def _name(url: str, size: int, sha256: str) -> str:
    """Name of a shard's file."""
    shown = public(url)
    digits = hashlib.sha256(f"{shown}\n{size}\n{sha256}".encode()).hexdigest()[:16]
    stem = re.sub(r"[^\w.-]", "_", PurePosixPath(split_query(shown)[0]).name.removesuffix(".tar"))[-80:]
    return f"{digits}-{stem}.tar"


def _download(url: str, target: BinaryIO, size: int, sha256: str, access: Access, begun: float | None = None) -> str:
    """Write a shard into a file that is open, and return its hash. No byte beyond ``size`` is taken.

    What differs from its hash is fetched once more: a transfer may flip a bit.
    """
    system, path = filesystem(url, access)
    for _ in range(2):
        copy = _Copy(system, path, target, size, access)
        try:
            attempt(url, "cannot be fetched", copy.go_on, access, begun=begun, moved=copy.moved)
        except FileNotFoundError as error:
            raise VanishedError(f"{url}: the shard has vanished; restore it") from error
        digest = copy.digest.hexdigest()
        if copy.count == size and sha256 in ("", digest):
            return digest
    raise ShardReadError(
        f"{url}: {copy.count:,} bytes with SHA-256 {digest[:12]}…, its manifest says {size:,} and {sha256[:12]}…; "
        "restore the shard or its manifest"
    )


class _Copy:
    """A file of ``size`` bytes at most on its way into another; goes on where it stopped."""

    def __init__(self, system: Any, path: str, target: BinaryIO, size: int, access: Access) -> None:
        self.target, self.access, self.count, self.digest = target, access, 0, hashlib.sha256()
        self._blocks = partial(read_blocks, system, path, size, access)

    def moved(self) -> int:
        """How far it is."""
        return self.count

    def go_on(self) -> None:
        """Copy what is left."""
        self.target.seek(self.count)
        for block in self._blocks(start=self.count):
            self.target.write(block)
            self.digest.update(block)
            self.count += len(block)
            self.access.traffic.check()
            self.access.traffic.expect(self.access.timeout + _SLOW)
        self.target.flush()
