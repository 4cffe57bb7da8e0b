"""Whole files: written under a hidden name and renamed, so that a name holds the old content or the new one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cloc.files.basics import create, hidden, publish, settle, sync_folder
from cloc.files.folders import hidden_folder

if TYPE_CHECKING:
    from torch import Tensor

Content = bytes | str | Callable[[BinaryIO], Any]
"""Bytes, text (UTF-8), or what writes into the open file that it is given."""


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


def write_link(path: Path, target: str) -> None:
    """Let a symbolic link of this name lead to ``target``; it leads to the old or the new one at any moment."""
    with hidden_folder(path) as room:
        (room / "link").symlink_to(target)
        os.replace(room / "link", path)
    sync_folder(path.parent)


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


def _is_the_systems(path: Path) -> bool:
    """Whether a path names a device or stream of the system (/dev/null, /dev/stdout), which nothing can replace."""
    folder = path.parent.resolve()
    return folder.is_relative_to("/proc") or (folder.is_relative_to("/dev") and not folder.is_relative_to("/dev/shm"))
