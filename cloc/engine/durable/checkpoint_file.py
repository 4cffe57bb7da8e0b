"""Checkpoint files: written aside, synced, then given their name; found by content (below ``checkpointing``).

A name that :func:`cloc.checkpoints.list_checkpoints` returns belongs to a checkpoint that was complete when it got the
name. What can happen to it afterwards (a disk that lies, a copy that broke off) is found by :func:`inspect` before it
is used.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from cloc.files import create, discard, make_folder, publish, write_file, write_json, write_link
from cloc.models.weights.digests import SUMS, check_archive, digests

MARKER = "complete.json"  # in a sharded checkpoint: its files, their sizes and checksums
SHARDED_INFO = "meta.pt"  # Lightning's name for what a sharded checkpoint holds besides tensors
READ_ERRORS = (OSError, RuntimeError, UnpicklingError, EOFError, KeyError, ValueError, zipfile.BadZipFile)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or used; says which, why, and what remains."""


@dataclass(frozen=True)
class Stored:
    """A checkpoint whose content was checked.

    Attributes:
        path: file, or folder of a sharded checkpoint.
        step: optimizer steps done.
        info: what :meth:`cloc.engine.task.Task.on_save_checkpoint` stores.
        world_size: processes that trained it.
    """

    path: Path
    step: int
    info: dict[str, Any]
    world_size: int


def commit(part: Path, path: Path) -> None:
    """Give a checkpoint that was written aside its name. A folder (sharded) gets its list of files first.

    Args:
        part: what was written, by every process that had a share in it.
        path: its name; an older checkpoint there is replaced.
    """
    if part.is_dir():
        sums = digests(part)
        write_json(part / MARKER, {"bytes": {name: (part / name).stat().st_size for name in sums}, SUMS: sums})
        discard(path)  # a folder cannot be renamed over another
    publish(part, path)


def point(link: Path, target: Path) -> None:
    """Let a symbolic link name a complete checkpoint; it names the old or the new one at any moment.

    On a file system without links (exFAT, some network shares) a text of that name holds the checkpoint's.
    """
    try:
        write_link(link, target.name)
    except OSError:
        write_file(link, target.name)


def inspect(path: Path) -> Stored:
    """Read a checkpoint's description and check that all of it is there.

    Checksums are compared over the whole content; those of a sharded checkpoint are in its list of files.

    Raises:
        CheckpointError: it is truncated, corrupt, or no checkpoint of this project.
    """
    try:
        if path.is_dir():
            _check_sharded(path)
        else:
            check_archive(path)
        stored = read(path)
        return Stored(path, stored["global_step"], stored["cloc"], len(stored.get("random_states", [])))
    except READ_ERRORS as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint of cloc: {error}") from error


def _check_sharded(path: Path) -> None:
    listed = json.loads((path / MARKER).read_text())
    if not isinstance(listed, dict):
        raise ValueError(f"{MARKER} holds no list of files")
    sums = listed.get(SUMS, {})  # earlier versions wrote the sizes alone
    for name, size in listed.get("bytes", listed).items():
        if (path / name).stat().st_size != size:
            raise ValueError(f"{name} has {(path / name).stat().st_size} bytes, not {size}")
    found = digests(path) if sums else {}
    for name, known in sums.items():
        if found.get(name) != known:
            raise ValueError(f"{name} does not have its checksum")


def read(path: Path) -> dict[str, Any]:
    """Content of a checkpoint, its tensors still on disk; of a sharded one all but the tensors."""
    place = path / SHARDED_INFO if path.is_dir() else path
    content: dict[str, Any] = torch.load(place, "cpu", weights_only=True, mmap=True)
    return content


class CheckpointFiles(CheckpointIO):
    """Lightning's way to checkpoint files: streams them to disk, and keeps an error for all processes to hear of.

    Only the first process writes. An exception there would leave the others waiting in a barrier.

    Attributes:
        failure: why the last checkpoint could not be written; None when it could.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a file; on an error remove it and set ``failure``."""
        self.failure, path = None, Path(path)
        try:
            make_folder(path.parent.parent, path.parent.name)
            with create(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # PyTorch's writer says "unexpected pos"; the reason (a full disk) is behind it.
            self.failure = error.__context__ if isinstance(error.__context__, OSError) else error
            path.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a file into memory, never unpickling freely. Not mapped: the optimizer keeps what it is given."""
        content: dict[str, Any] = torch.load(path, "cpu", weights_only=True)
        return content

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file or folder."""
        discard(Path(path))
