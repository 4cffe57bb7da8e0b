"""Files of a text tower that a checkpoint carries: its tokenizer, and the configuration of a Hugging Face encoder.

A checkpoint that is copied without its run folder has all that it needs. The files are data: tensors of bytes under
plain names, of bounded size, read by the same rules as a folder of others (``registry``), and never code. Checkpoints
of earlier versions carry none, and are loaded with the folder ``text/`` of their run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cloc.config import ConfigError
from cloc.data.tokenizer import ARCHITECTURE, Tokenizer
from cloc.files import private_folder
from cloc.models.trust.values import FolderError

KEY = "text_files"  # of a checkpoint
DIGEST = "tokenizer_digest"  # of a checkpoint: changes with any word of its tokenizer
FOLDER = "text"  # of a run
OPEN_CLIP = "open_clip"  # name of the tokenizer that has no files
_FOUND = {"tokenizer": "tokenizer_config.json", "name": ARCHITECTURE}  # argument of a tower: file that stands for it
MOST_FILES = 32
MOST_BYTES = 1 << 27  # together; the largest tokenizers have 40 MB
# What tokenizers of transformers are made of. No code, no pickle, no weights.
NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}\.(json|txt|model|jinja|spm|bpe|codes|vocab|tiktoken)", re.ASCII)


def carried(folder: Path) -> dict[str, Tensor]:
    """Files of a folder as a checkpoint carries them, each ``[N]`` uint8; empty where they are more than it may hold.

    Such a checkpoint is loaded with its run folder alone.
    """
    files = [file for file in sorted(folder.iterdir()) if NAME.fullmatch(file.name) and _is_plain(file)]
    if len(files) > MOST_FILES or sum(file.stat().st_size for file in files) > MOST_BYTES:
        return {}
    return {file.name: _as_tensor(file.read_bytes()) for file in files}


def _is_plain(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)


def admit_files(stored: Any, source: Any) -> dict[str, bytes]:
    """Content by name of the files that a checkpoint carries; empty where it carries none.

    Args:
        stored: what stands under :data:`KEY`.
        source: file that it comes from, for messages.

    Raises:
        FolderError: a name that is not one of such a file, no bytes, or too many.
    """
    if stored is None:
        return {}
    if not isinstance(stored, Mapping) or len(stored) > MOST_FILES:
        raise FolderError(f"{source}: {KEY} must hold at most {MOST_FILES} files; take another copy of the checkpoint")
    for name, content in stored.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise FolderError(f"{source}: {KEY} holds {str(name)[:100]!r}, which is no file of a tokenizer")
        if not _is_bytes(content):
            raise FolderError(f"{source}: {KEY}[{name!r}] is not the bytes of a file")
    size = sum(content.numel() for content in stored.values())
    if size > MOST_BYTES:
        raise FolderError(f"{source}: {KEY} has {size:,} bytes; a text tower's files may have at most {MOST_BYTES:,}")
    return {name: content.contiguous().numpy().tobytes() for name, content in stored.items()}


def _is_bytes(content: Any) -> bool:
    plain = isinstance(content, Tensor) and content.layout == torch.strided and content.device.type == "cpu"
    return plain and content.dtype == torch.uint8 and content.ndim == 1


@dataclass(frozen=True)
class TextFiles:
    """Where the text tower of a checkpoint finds the files that it needs.

    Attributes:
        source: the checkpoint, for messages.
        content: by name, what it carries; empty where it carries nothing.
        folder: the same on disk while the model is built, or ``text/`` of the run; None where there is neither.
        digest: of its tokenizer, where it is recorded.
        node: ``model.text`` as it is recorded.
    """

    source: Path
    content: dict[str, bytes]
    folder: Path | None
    digest: str | None
    node: Any

    def model(self, model: Any) -> Any:
        """The stored model whose text tower names the folder, for what it does not have by a name of open_clip's.

        Raises:
            ConfigError: there is none, and what lies where the run had it may be another tokenizer.
        """
        if not isinstance(model, Mapping) or not isinstance(self.node, Mapping):
            return model
        if self.folder is None:
            self._check_recorded()
            return model
        own = {key: str(self.folder) for key in self._needed() if (self.folder / _FOUND[key]).is_file()}
        if not self.content and "tokenizer" in own:
            self._compare(str(self.folder))
        return {**model, "text": {**self.node, **own}}

    def give(self, tower: Any) -> None:
        """Let a tower that is built keep what the checkpoint carries, for whoever opens its tokenizer later."""
        if self.content:
            tower.tokenizer = self.node.get("tokenizer") or self.node.get("name") or tower.tokenizer
            tower.tokenizer_files = self.content

    def _needed(self) -> list[str]:
        """Arguments of the tower that name files, so that those of the folder may stand for them."""
        clip = str(self.node.get("_target_")).rpartition(".")[2] == "ClipText"  # whose name is an architecture
        named = self.node.get("tokenizer", OPEN_CLIP if clip else None)
        # A class of the user's may have open_clip's tokenizer by default.
        own = named == OPEN_CLIP or (named is None and self.digest is not None and self.digest == Tokenizer().digest)
        return [key for key in _FOUND if not (own if key == "tokenizer" else clip)]

    def _check_recorded(self) -> None:
        encoder = str(self.node.get("_target_")).endswith("HuggingFaceText")
        for key in ("tokenizer", "name") if encoder else ("tokenizer",):
            place = self.node.get(key)
            if not isinstance(place, str) or place == OPEN_CLIP or not os.path.isdir(os.path.expanduser(place)):
                continue
            if key == "tokenizer" and self.digest:
                self._compare(place)
            elif not os.path.isabs(os.path.expanduser(place)):
                raise ConfigError(
                    f"{self.source}: model.text.{key}={place!r} is the path that its run had, and what lies there now "
                    f"may be another one; {_REMEDY} (if {place} is the very one, copy that there as text/)"
                )

    def _compare(self, place: str) -> None:
        if self.digest and Tokenizer(place).digest != self.digest:
            raise ConfigError(
                f"{self.source}: {place} holds another tokenizer than the one that it was trained with; {_REMEDY}"
            )


_REMEDY = "load the whole run folder, or copy its text/ beside the checkpoint"


@contextmanager
def text_files(stored: Mapping[str, Any], file: Path) -> Iterator[TextFiles]:
    """Open what the text tower of a checkpoint needs, while its model is built.

    Args:
        stored: content of the checkpoint.
        file: its path; ``text/`` of its run may lie beside it, or beside its folder.

    Raises:
        FolderError: see :func:`admit_files`.
    """
    model, content = stored["cloc"]["config"]["model"], admit_files(stored.get(KEY), file)
    node = model.get("text") if isinstance(model, Mapping) else None
    if content:
        with private_folder(content) as folder:
            yield TextFiles(file, content, folder, None, node)
        return
    places = (file.parent / FOLDER, file.parent.parent / FOLDER)
    beside = next((place for place in places if any((place / name).is_file() for name in _FOUND.values())), None)
    yield TextFiles(file, content, beside, stored.get(DIGEST), node)
