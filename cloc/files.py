"""The one place that writes: atomic, exclusive, through no planted link, synced, readable as the umask asks.

Below everything; every folder of ``cloc`` writes through it. What is written appears under its name whole or not at
all: it is made under a random hidden name beside it, synced, and renamed. A folder that was downloaded may hold links
where ``cloc`` writes, so:

- a link (or pipe) at the name of a file is replaced, never followed;
- below the folder that the user named, folders that ``cloc`` makes itself (``report``, ``checkpoints``) are refused
  where they are links: :func:`make_folder`. Links on the way to the folder that the user named are his own;
- what grows (logs) or is held open (locks) is refused where it is anything but a file of its own.

What others named is read through :func:`open_file`, which takes files alone: opening a pipe would wait for ever.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from torch import Tensor

Content = bytes | str | Callable[[BinaryIO], Any]
"""Bytes, text (UTF-8), or what writes into the open file that it is given."""

PART = ".part"
"""Ending of hidden names; what carries it after a crash may be removed."""


class LinkError(FileExistsError):
    """Something other than a file or folder of its own lies where one is to be written; says what, and the remedy."""


def write_file(path: Path, content: Content) -> None:
    """Write a whole file or nothing. Whatever the name held before, a link or a pipe included, is replaced.

    Raises:
        OSError: it cannot be written (a full disk); the old file is untouched and nothing is left of the new one.
    """
    with open_new(path) as file:
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write a value as JSON, as :func:`write_file`."""
    write_file(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, as :func:`write_file`; their bytes are not held twice."""
    from safetensors.torch import save_file

    with new_path(path) as part:
        save_file(dict(tensors), part, metadata=metadata)


@contextmanager
def open_new(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that gets the name ``path`` when the block has ended well; as :func:`write_file`."""
    if _is_the_systems(path):
        with path.open("wb") as file:
            yield file
        return
    part = hidden(path)
    try:
        with create(part) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(part)):
            error.filename, error.filename2 = str(path), None  # "No space left on device" alone does not say where
        raise
    sync_folder(path.parent)


@contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """Give a library that opens files itself a path to write to; the file or folder there then gets the name ``path``.

    It has the same name, in a hidden folder beside it where nothing can lie in wait. Other files that the library puts
    there are dropped.
    """
    with hidden_folder(path) as room:
        yield room / path.name
        settle(room)
        publish(room / path.name, path)


@contextmanager
def into_folder(root: Path, *names: str) -> Iterator[Path]:
    """Give a folder to fill; its files are then moved into a folder that may exist, as :func:`make_folder` makes it.

    Files there that have other names stay. Nothing is moved when the block fails.
    """
    target = make_folder(root, *names)
    with hidden_folder(target) as room:
        yield room
        settle(room)
        for file in sorted(room.rglob("*")):
            place = file.relative_to(room)
            if file.is_dir():
                make_folder(target, *place.parts)
            else:
                os.replace(file, target / place)
    sync_folder(target)


@contextmanager
def hidden_folder(path: Path) -> Iterator[Path]:
    """A new folder under a hidden name beside a path. What has not been published when the block ends is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    room = hidden(path)
    room.mkdir()
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)  # it has got its name, or is of no use


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


def make_folder(root: Path, *names: str, private: bool = False) -> Path:
    """Make a folder, and below it one or more that are folders of their own, no links.

    Args:
        root: what the user named. Links on the way to it are his own, and followed.
        names: of the folders below it, each in the one before.
        private: nobody else may look into those that are made.

    Returns:
        The last folder.

    Raises:
        LinkError: one of ``names`` is a link or a file, or leads out.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = root
    for name in names:
        if name in ("", ".", "..") or "/" in name:
            raise LinkError(f"{name!r} is no name of a folder in {folder}, and nothing is written there")
        folder = folder / name
        try:
            folder.mkdir(0o700 if private else 0o777)
        except FileExistsError:
            _refuse(folder, stat.S_ISDIR)
    return folder


def clear(path: Path) -> None:
    """Make a way for a library that is about to write a file or folder of this name itself.

    A link or pipe there is removed, a file with a second name elsewhere becomes a copy of its own.
    """
    try:
        _refuse(path, lambda mode: stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    except LinkError:
        path.unlink()
    if path.is_file() and path.stat().st_nlink > 1:
        write_file(path, path.read_bytes())


def append(path: Path, text: str, *, sync: bool = False) -> None:
    """Append to a text file, all or nothing; made where it is missing.

    Args:
        path: a link or pipe there is refused; a file with a second name keeps its content there.
        text: UTF-8 when written.
        sync: return when it is on the disk.

    Raises:
        LinkError: a link or a pipe lies there.
        OSError: there is no room; the file is as before.
    """
    _refuse(path, stat.S_ISREG)
    clear(path)
    descriptor = _open_own(path, os.O_WRONLY | os.O_APPEND)
    try:
        end, left = os.fstat(descriptor).st_size, memoryview(text.encode())
        try:
            while left:
                left = left[os.write(descriptor, left) :]
            if sync:
                os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, end)  # half a line would glue to the next one
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)


def write_link(path: Path, target: str) -> None:
    """Let a symbolic link of this name lead to ``target``; it leads to the old or the new one at any moment."""
    with hidden_folder(path) as room:
        (room / "link").symlink_to(target)
        os.replace(room / "link", path)
    sync_folder(path.parent)


def reopen(path: Path) -> BinaryIO:
    """Open a file that this process has made before for writing into what it holds, from its start.

    Raises:
        LinkError: as :func:`open_lock`.
    """
    return os.fdopen(_open_own(path, os.O_RDWR), "r+b")


def open_lock(path: Path) -> TextIO:
    """Open a lock file for reading and writing, from its start; made where it is missing, never truncated.

    Raises:
        LinkError: a link, a pipe, or a file with a second name lies there.
    """
    return os.fdopen(_open_own(path, os.O_RDWR), "r+", encoding="utf-8")


def host_lock(path: Path, timeout: float = -1) -> BaseFileLock:
    """A lock among the processes of a host, to be used in a ``with``; ``timeout`` in seconds, negative waits.

    Raises:
        LinkError: as :func:`open_lock`.
    """
    from filelock import FileLock

    os.close(_open_own(path, os.O_RDONLY))
    return FileLock(path, timeout=timeout)


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading: a regular one, or a link to one. Never waits for the other end of a pipe.

    Raises:
        OSError: it is not there or may not be read; ``EINVAL`` for a folder, a pipe, a device or a socket.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: for some devices that does something
        raise OSError(errno.EINVAL, "a folder, pipe, device or socket, not a file", str(path))
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def read_file(path: Path) -> bytes:
    """Return the bytes of a file; errors as :func:`open_file`."""
    with open_file(path) as file:
        return file.read()


def discard(path: Path) -> None:
    """Remove a file, link or folder. A folder loses its name first: half of it never looks like the whole."""
    if path.is_dir() and not path.is_symlink():
        doomed = hidden(path)
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def remove_parts(folder: Path, names: str) -> None:
    """Remove what killed processes left of files matching a pattern; for the one process that writes them."""
    for part in folder.glob(f".{names}.*{PART}"):
        discard(part)


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


def open_plain(path: Path) -> BinaryIO | None:
    """Open a regular file for reading, through no link and waiting for no pipe; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # nothing, a link, a socket
            return None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb", buffering=0)


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
        _sync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync a folder
            raise


def _open_own(path: Path, flags: int) -> int:
    """Descriptor of a regular file that has one name; made where it is missing. Never waits for a pipe's other end."""
    _refuse(path, stat.S_ISREG)
    safe = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags | safe, 0o666)
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise LinkError(f"{path} is a file with a second name elsewhere, which would change with it; remove it")
    return descriptor


def _refuse(path: Path, wanted: Callable[[int], bool]) -> None:
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


def _is_the_systems(path: Path) -> bool:
    """Whether a path names a device or stream of the system (/dev/null, /dev/stdout), which nothing can replace."""
    folder = path.parent.resolve()
    return folder.is_relative_to("/proc") or (folder.is_relative_to("/dev") and not folder.is_relative_to("/dev/shm"))
