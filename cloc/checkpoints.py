"""Which checkpoints a folder holds, by their names: the newest, and what ``last`` and ``best`` stand for.

Beside ``contracts``, for whoever writes or reads a run folder. Nothing here depends on symbolic links: where a file
system has none, ``last.ckpt`` and ``best.ckpt`` are short texts that hold the name of a checkpoint.
"""

from __future__ import annotations

import re
from pathlib import Path

NAME = re.compile(r"step-(\d+)\.ckpt")
FOLDER = "checkpoints"
_LONGEST = 64  # bytes of a name; a checkpoint is longer


def file_name(step: int) -> str:
    """Name of the checkpoint of a step."""
    return f"step-{step:08d}.ckpt"


def in_order(names: list[str]) -> list[str]:
    """Those names that are checkpoints' own, newest first. ``last.ckpt`` of an older version comes last."""
    found = [(int(match[1]), name) for name in names if (match := NAME.fullmatch(name))]
    return [name for _, name in sorted(found, reverse=True)] + [name for name in names if name == "last.ckpt"]


def list_checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder, newest first; links and texts that only name one are left out."""
    own = (path for path in folder.glob("*.ckpt") if not path.is_symlink() and pointed(path) is None)
    return in_order([path.name for path in own])


def pointed(path: Path) -> str | None:
    """The name that a text in the place of a link holds; None for everything else."""
    if not path.is_file() or path.stat().st_size > _LONGEST:
        return None
    text = path.read_bytes().decode("ascii", "replace").strip()
    return text if NAME.fullmatch(text) else None


def find(path: Path) -> Path:
    """The checkpoint that a path stands for: the newest one of a run folder, and what a text in place of a link names.

    Returns:
        Its path; for a run folder without any that of ``last.ckpt``, which is not there.
    """
    if path.is_dir():
        names = list_checkpoints(path / FOLDER)
        return path / FOLDER / (names[0] if names else "last.ckpt")
    name = pointed(path)
    return path if name is None else path.with_name(name)
