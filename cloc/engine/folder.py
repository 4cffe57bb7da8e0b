"""The run folder: one process at a time writes it, and it may lie in an object store (beside ``runtime``).

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.utils import get_protocol
from rich.console import Console

from cloc.config import ConfigError
from cloc.engine.checkpoint import in_order, list_checkpoints
from cloc.files import discard, make_folder, new_path, open_lock, publish

CHECKPOINTS = "checkpoints"
LOCK = "run.lock"
console = Console()


class RunFolder:
    """Where a run writes.

    Args:
        location: a path, or a URL that fsspec knows.

    Attributes:
        local: folder that files are written to; that of the run itself, or its copy on this machine.
        checkpoints: local folder of checkpoints.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.is_remote = get_protocol(location) != "file"
        if self.is_remote:
            self.store, self.root = url_to_fs(location)
            # One copy a machine and user, so that its processes share it, and so does the run's next life.
            name = hashlib.sha256(location.encode()).hexdigest()[:16]
            self.local = Path(tempfile.gettempdir()) / f"cloc-{os.getuid()}" / name
        else:
            self.local = Path(location)
        self.checkpoints = self.local / CHECKPOINTS

    def make(self) -> None:
        """Make the local folder; a copy lies where only this user can write."""
        if self.is_remote:
            parent = make_folder(self.local.parent.parent, self.local.parent.name, private=True)
            if parent.stat().st_uid != os.getuid():
                raise ConfigError(f"{parent} belongs to another user; set TMPDIR to a folder of your own")
        make_folder(self.local)

    def names(self) -> list[str]:
        """Checkpoints of the run, newest first; for a remote run those in the store."""
        if not self.is_remote:
            return list_checkpoints(self.checkpoints)
        folder = f"{self.root}/{CHECKPOINTS}"
        self.store.invalidate_cache()
        found = self.store.ls(folder, detail=False) if self.store.exists(folder) else []
        return in_order([path.rstrip("/").rpartition("/")[2] for path in found])

    def fetch(self, name: str) -> Path:
        """Local path of a checkpoint; a remote one is downloaded."""
        path = self.checkpoints / name
        if self.is_remote:
            discard(path)
            make_folder(self.local, CHECKPOINTS)
            with new_path(path) as part:
                self.store.get(f"{self.root}/{CHECKPOINTS}/{name}", str(part), recursive=True)
        return path

    def publish(self, name: str) -> None:
        """Upload a complete checkpoint and then every other file. Nothing to do for a local run.

        Raises:
            OSError: the store does not take it, or holds another size afterwards.
        """
        if not self.is_remote:
            return
        path, target = self.checkpoints / name, f"{self.root}/{CHECKPOINTS}/{name}"
        self.store.makedirs(f"{self.root}/{CHECKPOINTS}", exist_ok=True)
        self.store.put(str(path), target, recursive=path.is_dir())
        self.store.invalidate_cache()
        if path.is_file() and self.store.size(target) != path.stat().st_size:
            raise OSError(f"{target} has {self.store.size(target)} bytes after the upload, not {path.stat().st_size}")
        self.push()

    def push(self) -> None:
        """Upload configuration, versions, logs: everything but checkpoints and the lock."""
        for path in sorted(self.local.rglob("*")) if self.is_remote else []:
            name = path.relative_to(self.local).as_posix()
            if path.is_file() and not name.startswith(CHECKPOINTS) and name != LOCK:
                self.store.makedirs(f"{self.root}/{name}".rpartition("/")[0], exist_ok=True)
                self.store.put_file(str(path), f"{self.root}/{name}")

    def pull(self) -> None:
        """Download what :meth:`push` uploaded, so that logs go on where they ended."""
        for path in self.store.find(self.root) if self.is_remote and self.store.exists(self.root) else []:
            name = path.removeprefix(self.root).lstrip("/")
            if not name.startswith(CHECKPOINTS):
                *folders, file = name.split("/")
                with new_path(make_folder(self.local, *folders) / file) as part:
                    self.store.get_file(path, str(part))

    def set_aside(self, name: str) -> str:
        """Rename a damaged checkpoint, so that it neither counts nor is lost."""
        other = f"damaged-{name}"
        if self.is_remote:
            folder = f"{self.root}/{CHECKPOINTS}"
            self.store.mv(f"{folder}/{name}", f"{folder}/{other}", recursive=True)
        else:
            publish(self.checkpoints / name, self.checkpoints / other)
        return other

    def remove(self, name: str) -> None:
        """Remove a checkpoint of the store; the local one is the caller's."""
        if self.is_remote:
            self.store.rm(f"{self.root}/{CHECKPOINTS}/{name}", recursive=True)


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
            text = (folder.local / LOCK).read_text()
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
    except json.JSONDecodeError:
        return "another process"
    return f"process {held['pid']} on {held['host']} (since {held['since']})"
