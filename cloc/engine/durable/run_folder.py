"""The run folder: one process at a time writes it, and it may lie in an object store (beside ``checkpointing``).

A remote folder (``s3://bucket/runs/x``, any URL of fsspec) has a local copy for the files that grow. Checkpoints are
written there and uploaded; all other files go with each of them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar

from fsspec.utils import get_protocol
from rich.console import Console

from cloc.checkpoints import FOLDER as CHECKPOINTS
from cloc.checkpoints import in_order, list_checkpoints
from cloc.config import ConfigError
from cloc.config.secrets import public
from cloc.data.shards.stores import SLOWEST, filesystem, tell, within
from cloc.files import discard, make_folder, new_path, open_lock, publish

LOCK = "run.lock"
T = TypeVar("T")
console = Console(soft_wrap=True)  # a message is a line, however long its paths are


class StoreError(ConfigError, OSError):
    """The store of a run cannot be read or written; says why, without credentials."""


class RunFolder:
    """Where a run writes.

    Args:
        location: a path, or a URL that fsspec knows.
        timeout: seconds that a store may be silent.

    Attributes:
        location: the same without credentials, to be shown.
        local: folder that files are written to; that of the run itself, or its copy on this machine.
        checkpoints: local folder of checkpoints.

    Raises:
        ConfigError: a URL that cannot be written.
        StoreError: every method, where the store fails.
    """

    def __init__(self, location: str, timeout: float = 30.0) -> None:
        self.location, self.timeout = public(location), timeout
        self.is_remote = get_protocol(location) != "file"
        if self.is_remote:
            if location.startswith(("http://", "https://")):
                raise ConfigError(f"run_dir={location}: HTTP is read, not written; give a path or an object store")
            self.store, self.root = filesystem(location)
            # One copy a machine and user, so that its processes share it, and so does the run's next life, whatever
            # its credentials are then.
            name = hashlib.sha256(self.location.encode()).hexdigest()[:16]
            self.local = Path(tempfile.gettempdir()) / f"cloc-{os.getuid()}" / name
        else:
            self.local = Path(location)
        self.checkpoints = self.local / CHECKPOINTS

    def make(self) -> None:
        """Make the local folder; a copy lies where only this user can write."""
        if self.is_remote:
            parent = make_folder(self.local.parent.parent, self.local.parent.name, private=True)
            found = parent.stat()
            if found.st_uid != os.getuid() or found.st_mode & 0o022:
                raise ConfigError(f"{parent} is open to other users; set TMPDIR to a folder of your own")
        make_folder(self.local)

    def names(self) -> list[str]:
        """Checkpoints of the run, newest first; for a remote run those in the store."""
        if not self.is_remote:
            return list_checkpoints(self.checkpoints)
        folder = f"{self.root}/{CHECKPOINTS}"

        def listed() -> list[str]:
            self.store.invalidate_cache()
            return self.store.ls(folder, detail=False) if self.store.exists(folder) else []

        found = self._ask("its checkpoints cannot be listed", listed)
        return in_order([path.rstrip("/").rpartition("/")[2] for path in found])

    def fetch(self, name: str) -> Path:
        """Local path of a checkpoint; a remote one is downloaded."""
        path = self.checkpoints / name
        if self.is_remote:
            self._fetch(path, f"{self.root}/{CHECKPOINTS}/{name}")
        return path

    def _fetch(self, path: Path, source: str) -> None:
        discard(path)
        make_folder(self.local, CHECKPOINTS)
        files = self._ask(f"{path.name} cannot be found", lambda: self.store.find(source, detail=True))
        if any(".." in file.removeprefix(source).split("/") for file in files):  # fsspec would write where it leads
            raise StoreError(f"{self.location}: {path.name} holds files that lead out of it; remove it from the store")
        size = sum(file["size"] or 0 for file in files.values())
        with new_path(path) as part:
            fetched = partial(self.store.get, source, str(part), recursive=True)
            self._ask(f"{path.name} cannot be fetched", fetched, size)

    def publish(self, name: str) -> None:
        """Upload a complete checkpoint and then every other file. Nothing to do for a local run.

        Raises:
            StoreError: the store does not take it, or holds another size afterwards.
        """
        if not self.is_remote:
            return
        path, target = self.checkpoints / name, f"{self.root}/{CHECKPOINTS}/{name}"
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]

        def uploaded() -> int | None:
            self.store.makedirs(f"{self.root}/{CHECKPOINTS}", exist_ok=True)
            self.store.put(str(path), target, recursive=path.is_dir())
            self.store.invalidate_cache()
            return self.store.size(target) if path.is_file() else None

        there = self._ask(f"{name} cannot be uploaded", uploaded, sum(file.stat().st_size for file in files))
        if path.is_file() and there != path.stat().st_size:
            size = path.stat().st_size
            raise StoreError(f"{self.location}: {name} has {there} bytes after the upload, not {size}")
        self.push()

    def push(self) -> None:
        """Upload configuration, versions, logs: everything but checkpoints and the lock."""
        for path in sorted(self.local.rglob("*")) if self.is_remote else []:
            name = path.relative_to(self.local).as_posix()
            if path.is_file() and not name.startswith(CHECKPOINTS) and name != LOCK:
                self._ask(f"{name} cannot be uploaded", partial(self._put, path, name), path.stat().st_size)

    def _put(self, path: Path, name: str) -> None:
        self.store.makedirs(f"{self.root}/{name}".rpartition("/")[0], exist_ok=True)
        self.store.put_file(str(path), f"{self.root}/{name}")

    def pull(self) -> None:
        """Download what :meth:`push` uploaded, so that logs go on where they ended."""
        if not self.is_remote:
            return

        def listed() -> dict[str, dict[str, Any]]:
            return self.store.find(self.root, detail=True) if self.store.exists(self.root) else {}

        for path, about in self._ask("its files cannot be listed", listed).items():
            name = path.removeprefix(self.root).lstrip("/")
            if not name.startswith(CHECKPOINTS) and name != LOCK:
                *folders, file = name.split("/")
                with new_path(make_folder(self.local, *folders) / file) as part:
                    fetched = partial(self.store.get_file, path, str(part))
                    self._ask(f"{name} cannot be fetched", fetched, about["size"] or 0)

    def set_aside(self, name: str) -> str:
        """Rename a damaged checkpoint, so that it neither counts nor is lost."""
        other, number = f"damaged-{name}", 1
        while os.path.lexists(self.checkpoints / other):
            number += 1
            other = f"damaged-{number}-{name}"
        if self.is_remote:
            folder = f"{self.root}/{CHECKPOINTS}"
            moved = partial(self.store.mv, f"{folder}/{name}", f"{folder}/{other}", recursive=True)
            self._ask(f"{name} cannot be renamed", moved)
        else:
            publish(self.checkpoints / name, self.checkpoints / other)
        return other

    def remove(self, name: str) -> None:
        """Remove a checkpoint of the store; the local one is the caller's."""
        if self.is_remote:
            removed = partial(self.store.rm, f"{self.root}/{CHECKPOINTS}/{name}", recursive=True)
            self._ask(f"{name} cannot be removed", removed)

    def _ask(self, what: str, call: Callable[[], T], size: int = 0) -> T:
        """What a call of the store returns that moves ``size`` bytes; ``what`` says what is not so when it fails."""
        try:
            return within(self.store, self.timeout + size / SLOWEST, call)
        except Exception as error:  # every backend has exceptions of its own, which mean the same here
            failure = StoreError(f"{self.location}: {what} ({tell(error)})")
        raise failure  # outside of the handler: the store's own error may hold the URL


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Hold the run folder. The kernel frees the lock of a process that dies, however it dies.

    A remote folder is guarded on this machine only: object stores have no locks.

    Raises:
        ConfigError: another live process holds it; says which, where and since when.
    """
    folder.make()
    with open_lock(folder.local / LOCK) as file:
        _take(file.fileno(), folder)
        assert isinstance(file, TextIOWrapper)  # of a descriptor
        file.reconfigure(errors="replace")  # whatever was written over it
        left = file.read()
        if left:
            console.print(f"{folder.location}: {_holder(left)} ended without releasing it; taken over")
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        file.seek(0)
        file.truncate()
        file.write(json.dumps(mine))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # an empty file says that the run ended by itself


def _take(descriptor: int, folder: RunFolder) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            text = (folder.local / LOCK).read_text(errors="replace")
            raise ConfigError(
                f"{folder.location}: {_holder(text)} is writing it; wait until that run ends, or give another run_dir"
            ) from error
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        console.print(
            f"[bold]{folder.location}[/]: its file system has no locks ({error.strerror}); start one run at a time"
        )


def _holder(text: str) -> str:
    try:
        held = json.loads(text)
        return f"process {held['pid']} on {held['host']} (since {held['since']})"
    except (ValueError, TypeError, KeyError):
        return "another process"
