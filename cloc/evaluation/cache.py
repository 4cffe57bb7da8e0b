"""Embeddings kept between evaluations, by the model's weights and the data's bytes.

A file is safetensors, named by what made it: another weight, view, text, picture or version of this code makes another
name. So nothing is ever out of date, and the folder can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cloc.data.tokenizer import Tokenizer
from cloc.encoder import Encoder
from cloc.evaluation.reduce import Ranks
from cloc.files import make_folder, write_tensors
from cloc.models.protocols import view
from cloc.models.weights.digests import add_weights

FORMAT = 2  # raised when the same model and data come to mean other embeddings


class Cache:
    """A folder of embeddings.

    Args:
        folder: None keeps nothing.
        ranks: processes that evaluate together; the first one writes, and all read or none.
    """

    def __init__(self, folder: str | Path | None, ranks: Ranks) -> None:
        self.folder, self.ranks = Path(folder).expanduser() if folder else None, ranks

    def read(self, *key: str) -> dict[str, Tensor] | None:
        """What is kept under a key; None where it is not, or not whole."""
        if self.folder is None:
            return None
        try:
            found = load_file(_file(self.folder, key))
        except (OSError, SafetensorError):  # not there, or garbage
            found = None
        return found if self.ranks.all(found is not None) else None

    def write(self, tensors: dict[str, Tensor], *key: str) -> None:
        """Keep tensors under a key, whole or not at all."""
        if self.folder is None or not self.ranks.first:
            return
        make_folder(self.folder, *key[:-1])
        write_tensors(
            _file(self.folder, key), {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        )


def _file(folder: Path, key: tuple[str, ...]) -> Path:
    *folders, name = key
    return Path(folder, *folders, f"{name}.safetensors")


def model_digest(encoder: Encoder) -> str:
    """Sixteen hex digits that change with any weight, the tokenizer, the view, or the version of the code."""
    model, seen = encoder.model, view(encoder.model.image)
    digest = hashlib.sha256()
    add_weights(digest, model, lambda name, value: f"{name} {value.dtype} {tuple(value.shape)}")
    facts = {
        "format": FORMAT,
        "code": encoder.info.get("code"),
        "model": encoder.info.get("config", {}).get("model", encoder.info.get("file")),
        "activation": encoder.info.get("activation"),
        "view": repr((encoder.preprocess, seen.size, seen.mean, seen.std)),
        "tokenizer": _words(encoder),
    }
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def _words(encoder: Encoder) -> str:
    """What the tokenizer is; where one lies says nothing of it."""
    tokenizer = encoder.tokenizer
    own = isinstance(tokenizer, Tokenizer) and tokenizer.name != "open_clip"
    return tokenizer.digest if own else str(encoder.model.text.tokenizer)


def digest_of(*values: Any) -> str:
    """Sixteen hex digits of plain values."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=False, default=str).encode()).hexdigest()[:16]
