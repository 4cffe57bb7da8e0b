"""The steps that writing is made of: hidden names, refusing what else lies at a path, syncing to the disk."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PART = ".part"
"""Ending of hidden names; what carries it after a crash may be removed."""


class LinkError(FileExistsError):
    """Something other than a file or folder of its own lies where one is to be written; says what, and the remedy."""


def hidden(path: Path) -> Path:
    """A random hidden name beside a path: no pattern matches it, and nobody can have put a link there."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}{PART}")  # 40: names have 255 bytes at most


def create(path: Path) -> BinaryIO:
    """Open a file that must not exist yet for writing.

    Raises:
        FileExistsError: something of that name is there, be it a link to nothing.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def settle(folder: Path) -> None:
    """Give all files in a folder the mode that the umask asks for, and bring everything to the disk.

    Some writers (safetensors) go through private temporary files, which nobody else may read.
    """
    probe = hidden(folder / "mode")
    with create(probe) as file:  # what the kernel makes of the umask and the folder's own rules
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if not path.is_symlink():
            _settle_file(path, mode)
    sync_folder(folder)


def _settle_file(path: Path, mode: int | None) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor).st_mode
        if mode is not None and stat.S_ISREG(found) and stat.S_IMODE(found) != mode:
            os.fchmod(descriptor, mode)
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int) -> None:
    """Bring an open file or folder to the disk, where its file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync a folder
            raise


def open_regular(path: Path, flags: int) -> int:
    """Descriptor of a regular file that has one name; made where it is missing. Never waits for a pipe's other end."""
    refuse_other(path, stat.S_ISREG)
    safe = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags | safe, 0o666)
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise LinkError(f"{path} is a file with a second name elsewhere, which would change with it; remove it")
    return descriptor


def refuse_other(path: Path, wanted: Callable[[int], bool]) -> None:
    """Stop where a path is of another kind than wanted; nothing there is fine."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if wanted(mode):
        return
    kinds = {stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file"}
    kind = kinds.get(stat.S_IFMT(mode), "a device or socket")
    where = f" to {os.readlink(path)}" if stat.S_ISLNK(mode) else ""
    raise LinkError(f"{path} is {kind}{where}, and nothing is written through it; remove it")


def publish(part: Path, path: Path) -> None:
    """Bring a file or folder that was written under a hidden name to the disk, and give it its own name.

    Raises:
        OSError: there is no room, or a folder would take the place of something other than an empty folder.
    """
    if part.is_dir():
        settle(part)
    else:
        _settle_file(part, None)
    os.replace(part, path)
    sync_folder(path.parent)
