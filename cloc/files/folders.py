"""Folders: made without following links below what the user named, filled under a hidden name, private, removed."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cloc.files.basics import PART, LinkError, create, hidden, refuse_other, settle, sync_folder


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
            refuse_other(folder, stat.S_ISDIR)
    return folder


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


@contextmanager
def private_folder(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A temporary folder of some files, for libraries that read nothing else; nobody else may look into it.

    Args:
        files: content by name.

    Raises:
        LinkError: a name that leads out of it.
    """
    with tempfile.TemporaryDirectory(prefix="cloc-") as made:
        for name, content in files.items():
            if name in ("", ".", "..") or "/" in name:
                raise LinkError(f"{name!r} is no name of a file, and nothing is written there")
            with create(Path(made) / name) as file:
                file.write(content)
        yield Path(made)
