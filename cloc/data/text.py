"""Text → token ids, trimmed (``order → decode → views → collate → stream``)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cloc.data.given import as_texts
from cloc.files import into_folder

CACHED_TEXTS = 1 << 15  # about 15 MB in each worker


class Tokenizer:
    """Open_clip's byte-pair encoder, or any Hugging Face tokenizer folder.

    Args:
        name: ``open_clip`` (CLIP's own byte-pair encoding) or a folder or hub name of a Hugging Face tokenizer.
        context_length: texts are truncated to this many tokens, special tokens included.

    Raises:
        FileNotFoundError: ``name`` looks like a path and is not there.
    """

    def __init__(self, name: str = "open_clip", context_length: int = 77) -> None:
        if name != "open_clip" and name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
            raise FileNotFoundError(
                f"model.text.tokenizer={name!r}: no such folder; give a tokenizer folder or 'open_clip'"
            )
        self.name, self.context_length = name, context_length
        self._cached = lru_cache(CACHED_TEXTS)(self._encode)

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "context_length": self.context_length}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    @cached_property
    def _backend(self) -> Any:
        if self.name == "open_clip":
            from open_clip.tokenizer import SimpleTokenizer

            backend = SimpleTokenizer(context_length=self.context_length)
            backend.clean_fn = partial(_clean, thorough=backend.clean_fn)
            return backend
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(Path(self.name).expanduser()))

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self._backend.vocab_size if self.name == "open_clip" else len(self._backend)

    @property
    def pad_id(self) -> int:
        """Id that fills short texts up."""
        return 0 if self.name == "open_clip" else (self._backend.pad_token_id or 0)

    def encode(self, text: str) -> tuple[tuple[int, ...], bool]:
        """Return the token ids of a text, special tokens included, and whether it was truncated.

        Raises:
            TypeError: not a string.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text must be a string, got {type(text).__name__}")
        return self._cached(text)

    def _encode(self, text: str) -> tuple[tuple[int, ...], bool]:
        if self.name == "open_clip":
            ids = self._backend.encode(text)
            kept = ids[: self.context_length - 2]
            return (self._backend.sot_token_id, *kept, self._backend.eot_token_id), len(kept) < len(ids)
        ids = self._backend(text)["input_ids"]
        if len(ids) <= self.context_length:
            return tuple(ids), False
        return tuple(self._backend(text, truncation=True, max_length=self.context_length)["input_ids"]), True

    def save(self, folder: Path) -> None:
        """Write a Hugging Face tokenizer's files, so that a run folder can be loaded elsewhere."""
        if self.name != "open_clip":
            with into_folder(folder.parent, folder.name) as room:
                self._backend.save_pretrained(str(room))

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Tokenize texts to ``[T,L]`` int64, padded to the longest of them; a string is one text."""
        return pack([self.encode(text)[0] for text in as_texts(texts)], self.pad_id)


def pack(ids: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Pad token ids to the longest: ``[T,L]`` int64."""
    length = max((len(row) for row in ids), default=1)
    packed = np.full((len(ids), length), pad_id, dtype=np.int64)
    for row, values in zip(packed, ids, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(packed)


def _clean(text: str, thorough: Callable[[str], str]) -> str:
    """open_clip's cleaning; in plain ASCII, where it has nothing to mend, without its search for broken encodings."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return " ".join(text.split()).lower()
    return thorough(text)


@lru_cache(CACHED_TEXTS)
def text_id(ids: tuple[int, ...]) -> int:
    """A 63-bit hash of token ids: equal texts have equal ids on every rank and in every run."""
    digest = hashlib.blake2b(",".join(map(str, ids)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
