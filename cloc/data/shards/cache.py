"""Keeps whole shards of URLs in a bounded local cache.

Stands below ``reader`` at the start of ``data → models → losses → evaluation → engine``. The cache belongs to all
processes of a host: a shard is fetched once, checked by size and hash before it is used, and appears whole or not at
all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import stat
import time
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from filelock import Timeout

from cloc.config.secrets import public
from cloc.data.shards.stores import Access, attempt, filesystem, read_blocks, split_query
from cloc.data.shards.tars import ShardReadError
from cloc.files import PART, create, host_lock, make_folder, open_plain, publish, write_json

CACHE_BYTES = 1 << 36
"""Default bound of the cache."""
_State = tuple[int, ...]
_LOG = logging.getLogger(__name__)


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
        self._checked: dict[Path, tuple[str, _State]] = {}
        self._removed: list[Path] = []

    @property
    def damaged(self) -> int:
        """Shards that were found changed by this process, and were removed."""
        return len(self._removed)

    def open(self, url: str, size: int, sha256: str) -> BinaryIO:
        """Open the local copy of a shard; as :meth:`fetch`."""
        path = self._path(url, size, sha256)
        while True:  # another process may need the room at this very moment
            file = self._open(path, sha256) or self._check(path, size, sha256)
            if file is not None:
                return file
            self._bring(url, size, sha256)

    def fetch(self, url: str, size: int, sha256: str = "") -> Path:
        """Return the local copy of a shard, fetched where it is missing.

        Args:
            url: of the shard. Credentials are no part of the local name: whoever has others shares the copy.
            size: its bytes.
            sha256: its hash; empty where it is not known. Then nothing can be checked, and it is fetched anew.

        Raises:
            ShardReadError: it cannot be fetched after some attempts, or is not what the manifest says.
        """
        if not sha256:
            return self._bring(url, size, "")
        self.open(url, size, sha256).close()
        return self._path(url, size, sha256)

    def _path(self, url: str, size: int, sha256: str) -> Path:
        shown = public(url)
        name = hashlib.sha256(f"{shown}\n{size}\n{sha256}".encode()).hexdigest()[:16]
        stem = re.sub(r"[^\w.-]", "_", PurePosixPath(split_query(shown)[0]).name.removesuffix(".tar"))[-80:]
        return self.folder / f"{name}-{stem}.tar"

    def _open(self, path: Path, sha256: str) -> BinaryIO | None:
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

    def _check(self, path: Path, size: int, sha256: str) -> BinaryIO | None:
        """Compare a shard that is there with its hash; one that differs is removed. None where there is none."""
        if not os.path.lexists(path):
            return None
        with host_lock(_lock(path)):
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
        return None

    def _bring(self, url: str, size: int, sha256: str) -> Path:
        """Fetch a shard under a name that it gets when it is whole."""
        path = self._path(url, size, sha256)
        make_folder(self.folder)
        with host_lock(_lock(path)):
            if sha256 and os.path.lexists(path):  # another process has brought it
                return path
            part = path.with_name(f"{path.name}{PART}")  # by this name others find what is being fetched
            with self._reserve(part, size) as file:
                try:
                    digest = _download(url, file, size, sha256, self.access)
                    path = self._path(url, size, digest)
                    publish(part, path)
                    self._write_note(path, digest, _state(file))
                finally:
                    part.unlink(missing_ok=True)
        return path

    def _write_note(self, path: Path, sha256: str, state: _State) -> None:
        write_json(_note(path), {"sha256": sha256, "state": state, "at": time.time_ns()}, None)

    def _reserve(self, part: Path, size: int) -> BinaryIO:
        """Make room, and take it by a file of the full size; wait where all room is taken by other fetches."""
        while True:
            with host_lock(self.folder / "room.lock"):
                _remove(part)  # of a process that was killed: nobody else holds this shard's lock
                if self._make_room(size):
                    file = create(part)
                    file.truncate(size)
                    return file
            time.sleep(0.1)

    def _make_room(self, size: int) -> bool:
        files = []
        for path in [*self.folder.glob(f"*.tar{PART}"), *self.folder.glob("*.tar")]:
            with contextlib.suppress(FileNotFoundError):  # a fetch has just ended: it counts under its final name
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    files.append((_used(path, status), status.st_size, path))
        total = size + sum(length for _, length, _ in files)
        for _, length, path in sorted(files):
            if total <= self.limit:
                break
            if path.suffix == ".tar" or _abandoned(path):
                _remove(path)
                total -= length
        return total <= self.limit


def _note(path: Path) -> Path:
    return path.with_suffix(".checked")


def _lock(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


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


def _used(path: Path, status: os.stat_result) -> int:
    try:
        return _note(path).lstat().st_mtime_ns
    except FileNotFoundError:
        return status.st_mtime_ns


def _remove(path: Path) -> None:
    """Remove a shard, or whatever lies under its name, and its note."""
    if path.is_dir() and not path.is_symlink():
        raise ShardReadError(f"{path} is a folder where a shard is to lie; remove it, or give another data.cache_dir")
    path.unlink(missing_ok=True)
    if path.suffix == ".tar":
        _note(path).unlink(missing_ok=True)


def _abandoned(part: Path) -> bool:
    """Tell whether the process that fetched this was killed: its lock is free."""
    try:
        with host_lock(_lock(part.with_suffix("")), timeout=0):
            return True
    except Timeout:
        return False


def _download(url: str, target: BinaryIO, size: int, sha256: str, access: Access) -> str:
    """Write a shard into a file that is open, and return its hash. No byte beyond ``size`` is taken."""
    system, path = filesystem(url, access)
    try:
        count, digest = attempt(url, "cannot be fetched", lambda: _copy(system, path, target, size, access))
    except FileNotFoundError as error:
        raise ShardReadError(f"{url}: the shard has vanished; restore it") from error
    if count != size or sha256 not in ("", digest):
        found = f"{count:,} bytes with SHA-256 {digest[:12]}…"
        raise ShardReadError(
            f"{url}: {found}, its manifest says {size:,} and {sha256[:12]}…; restore the shard or its manifest"
        )
    return digest


def _copy(system: Any, path: str, target: BinaryIO, size: int, access: Access) -> tuple[int, str]:
    """Copy a file of ``size`` bytes at most into another; return its bytes and their hash."""
    target.seek(0)
    digest = hashlib.sha256()
    for block in read_blocks(system, path, size, access):
        target.write(block)
        digest.update(block)
    target.flush()
    return target.tell(), digest.hexdigest()
