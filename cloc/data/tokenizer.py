"""Turns texts into token ids, trimmed (``order → decode → views → collate → stream``)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cloc.data.bpe import quicken
from cloc.data.downloads import from_hub
from cloc.data.inputs import as_texts
from cloc.files import into_folder, private_folder, write_file

CACHED_TEXTS = 1 << 15  # about 15 MB in each worker
ARCHITECTURE = "config.json"  # of an encoder, which may lie among its tokenizer's files
CLEANINGS = ("whitespace", "lower", "canonicalize")  # open_clip's names


class Tokenizer:
    """Open_clip's byte-pair encoder, or any Hugging Face tokenizer folder. Threads may share it.

    Args:
        name: ``open_clip`` (CLIP's own byte-pair encoding) or a folder or hub name of a Hugging Face tokenizer.
        context_length: texts are truncated to this many tokens, special tokens included.
        clean: what is done to a text first, by open_clip's names: ``whitespace``, ``lower``, or ``canonicalize`` (lower
            case without punctuation: SigLIP and SigLIP 2). None for ``lower`` with open_clip's encoding, and for
            nothing beyond the tokenizer's own with others.
        files: content by name of a Hugging Face tokenizer's folder that is not on disk, as a checkpoint carries it.

    Raises:
        FileNotFoundError: ``name`` looks like a path and is not there.
    """

    def __init__(
        self,
        name: str = "open_clip",
        context_length: int = 77,
        clean: str | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        place = None if files is not None or name == "open_clip" else name
        if place and place.startswith((".", "/", "~")) and not Path(place).expanduser().is_dir():
            raise FileNotFoundError(
                f"model.text.tokenizer={name!r}: no such folder; give a tokenizer folder or 'open_clip'"
            )
        self.name, self.context_length, self.clean, self.files = name, context_length, clean, files
        self._cached = lru_cache(CACHED_TEXTS)(self._encode)

    @classmethod
    def of(cls, tower: Any) -> Tokenizer:
        """That of a text tower, which names it."""
        files = getattr(tower, "tokenizer_files", None)
        return cls(tower.tokenizer, tower.context_length, getattr(tower, "clean", None), files)

    def __getstate__(self) -> dict[str, Any]:
        names = ("name", "context_length", "clean", "files")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Tokenizer.__init__(self, **state)

    @cached_property
    def _backend(self) -> Any:
        if self.name == "open_clip":
            from open_clip.tokenizer import SimpleTokenizer

            backend = quicken(SimpleTokenizer(context_length=self.context_length, clean=self.clean or "lower"))
            if self.clean in (None, "lower"):
                backend.clean_fn = partial(_clean, thorough=backend.clean_fn)
            return backend
        return self.open()

    def open(self, **options: Any) -> Any:
        """The tokenizer of transformers, but for open_clip's own.

        Args:
            options: as for :func:`open_tokenizer`.

        Raises:
            ValueError: see there.
        """
        if self.files is None:
            return open_tokenizer(self.name, **options)
        with private_folder(self.files) as folder:
            return open_tokenizer(self.name, folder, **options)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self._backend.vocab_size if self.name == "open_clip" else len(self._backend)

    @property
    def digest(self) -> str:
        """Hex digits that change with any entry of the vocabulary."""
        entries = self._backend.encoder if self.name == "open_clip" else self._backend.get_vocab()
        return hashlib.sha256(repr(sorted(entries.items())).encode()).hexdigest()

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

    def _encode(self, given: str) -> tuple[tuple[int, ...], bool]:
        text = shorten(given, self.context_length)
        cut = len(text) < len(given)
        if self.name == "open_clip":
            ids = self._backend.encode(text)
            kept = ids[: self.context_length - 2]
            return (self._backend.sot_token_id, *kept, self._backend.eot_token_id), cut or len(kept) < len(ids)
        text = self._cleaned(text)
        ids = self._whole(text)["input_ids"]
        if len(ids) <= self.context_length:
            return tuple(ids), cut
        return tuple(self._truncated(text)), True

    @cached_property
    def _whole(self) -> Any:
        """The tokenizer of transformers that neither cuts nor pads, whatever its file says.

        It would switch that off by itself at the first text, maybe while another thread encodes.
        """
        backend = self._backend
        if backend.is_fast:
            backend.backend_tokenizer.no_truncation()
            backend.backend_tokenizer.no_padding()
        return backend

    def _truncated(self, text: str) -> list[int]:
        """The ids that ``truncation=True`` gives.

        That would set a switch inside of a fast tokenizer, which holds for all threads: texts that another one encodes
        meanwhile would be cut, or fail, and those of this one come out at full length.
        """
        backend = self._whole
        if not backend.is_fast:
            return list(backend(text, truncation=True, max_length=self.context_length)["input_ids"])
        fast = backend.backend_tokenizer
        encoding = fast.encode(text, add_special_tokens=False)
        room = max(0, self.context_length - fast.num_special_tokens_to_add(False))
        encoding.truncate(room, direction=backend.truncation_side)
        return list(fast.post_process(encoding).ids)

    @cached_property
    def _cleaned(self) -> Callable[[str], str]:
        if self.clean is None:
            return str
        from open_clip.tokenizer import get_clean_fn

        clean: Callable[[str], str] = get_clean_fn(self.clean)
        return clean

    def save(self, folder: Path) -> None:
        """Write a Hugging Face tokenizer's files, so that a run folder can be loaded elsewhere."""
        if self.name == "open_clip":
            return
        own = {name: content for name, content in (self.files or {}).items() if name != ARCHITECTURE}
        with into_folder(folder.parent, folder.name) as room:
            if not own:
                self._backend.save_pretrained(str(room))
            for name, content in own.items():
                write_file(room / name, content)

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Tokenize texts to ``[T,L]`` int64, padded to the longest of them; a string is one text."""
        return pack([self.encode(text)[0] for text in as_texts(texts)], self.pad_id)


def shorten(text: str, context_length: int) -> str:
    """Cut a text behind all that its tokens can reach, so that none costs much, whatever it is.

    Tokens of natural text have four or five characters; the longest of CLIP's has 28.
    """
    limit = max(8192, 32 * context_length)
    return text if len(text) <= limit else text.lstrip()[:limit]


def open_tokenizer(name: str, folder: Path | None = None, **options: Any) -> Any:
    """A tokenizer of transformers, none of whose own code runs.

    Args:
        name: folder, which then asks no network, or hub name.
        folder: where its files lie, if not there.
        options: further arguments of ``AutoTokenizer.from_pretrained``.

    Raises:
        ValueError: it is a Python file of the folder or repository, or no tokenizer.
        DownloadError: a hub name that is neither here nor to be had.
    """
    from transformers import AutoTokenizer

    place = folder or Path(name).expanduser()
    with refusing_code(name), from_hub(f"the tokenizer {name!r}", place):
        try:
            return AutoTokenizer.from_pretrained(str(place), **without_code(place), **options)
        except (OSError, ImportError, MemoryError):
            raise
        except Exception as error:  # of what is damaged, each part of the library has an error of its own
            if "trust_remote_code" in str(error):
                raise
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ValueError(
                f"{name}: no tokenizer that transformers reads ({said}); copy or export it again"
            ) from error


def without_code(name: str | Path) -> dict[str, bool]:
    """Arguments for transformers: no Python file of a folder or repository is run, and a folder asks no network."""
    return {"trust_remote_code": False, "local_files_only": Path(name).expanduser().is_dir()}


@contextmanager
def refusing_code(name: str | Path) -> Iterator[None]:
    """Turn transformers' refusal to run code into one line; its own goes on to recommend running it."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{name}: needs a Python file of its own (auto_map), and no code of a folder or repository is run; give "
            "one that a class of transformers reads"
        ) from error


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
