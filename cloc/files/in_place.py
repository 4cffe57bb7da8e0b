"""Files that grow (logs) or are held open (locks): written where they lie, refused where a link or pipe does."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

from cloc.files.basics import LinkError, open_regular, refuse_other
from cloc.files.whole import write_file

if TYPE_CHECKING:
    from filelock import BaseFileLock


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
    refuse_other(path, stat.S_ISREG)
    clear(path)
    descriptor = open_regular(path, os.O_WRONLY | os.O_APPEND)
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


def clear(path: Path) -> None:
    """Make a way for a library that is about to write a file or folder of this name itself.

    A link or pipe there is removed, a file with a second name elsewhere becomes a copy of its own.
    """
    try:
        refuse_other(path, lambda mode: stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    except LinkError:
        path.unlink()
    if path.is_file() and path.stat().st_nlink > 1:
        write_file(path, path.read_bytes())


def reopen(path: Path) -> BinaryIO:
    """Open a file that this process has made before for writing into what it holds, from its start.

    Raises:
        LinkError: as :func:`open_lock`.
    """
    return os.fdopen(open_regular(path, os.O_RDWR), "r+b")


def open_lock(path: Path) -> TextIO:
    """Open a lock file for reading and writing, from its start; made where it is missing, never truncated.

    Raises:
        LinkError: a link, a pipe, or a file with a second name lies there.
    """
    return os.fdopen(open_regular(path, os.O_RDWR), "r+", encoding="utf-8")


def host_lock(path: Path, timeout: float = -1) -> BaseFileLock:
    """A lock among the processes of a host, to be used in a ``with``; ``timeout`` in seconds, negative waits.

    Raises:
        LinkError: as :func:`open_lock`.
    """
    from filelock import FileLock

    os.close(open_regular(path, os.O_RDONLY))
    return FileLock(path, timeout=timeout)
