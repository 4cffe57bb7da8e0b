"""Reading what others named: regular files alone, for opening a pipe would wait for ever."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader, FileIO
from pathlib import Path


def open_file(path: Path) -> BufferedReader:
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


def open_plain(path: Path) -> FileIO | None:
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
