"""Digests of weights, and checksums of their files, compared with a file's whole content before any of it is used.

An archive of PyTorch (``.ckpt``, ``.pt``, ``.bin``) holds a CRC-32 of each of its members, which PyTorch itself does
not look at. Safetensors and JSON hold none; ``cloc.json`` of an exported folder lists the SHA-256 of all files beside
it. Of other libraries' safetensors, and of exports of earlier versions, no checksum is known, and nothing is compared.
Stands below ``files``, ``exported`` and the engine's checkpoints. Files are read in pieces, once.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

EXTRA_CONFIG = "cloc.json"
SUMS = "sha256"  # key in it: name → hexadecimal digest; its own is that of all other keys
TORCH_FILES = (".ckpt", ".pt", ".pth", ".bin")
_ARCHIVE = b"PK\x03\x04"
_FOLDER = 0x10  # of a member's attributes
_REMEDY = "take another checkpoint, or copy it again from where it is whole"
# What Python's reader says of a damaged archive, whichever byte it is.
_READING = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError, LookupError, ValueError)
_DAMAGE = (*_READING, OverflowError)


class DamageError(ValueError):
    """A file is not what its checksum says; names it, and the remedy."""


def weights_digest(module: nn.Module) -> str:
    """Sixteen hex digits of all weights, to compare processes and runs by."""
    digest = hashlib.sha256()
    add_weights(digest, module)
    return digest.hexdigest()[:16]


def add_weights(digest: Any, module: nn.Module, describe: Callable[[str, Tensor], str] = lambda name, _: name) -> None:
    """Feed all weights to a digest of :mod:`hashlib`, each after its description.

    Args:
        digest: is changed.
        module: whose state is read, in the order of its names.
        describe: name and tensor → text; the name alone unless given.
    """
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(describe(name, value).encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all files in a folder and below, by their path in it; several are read at a time."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    with ThreadPoolExecutor(8) as pool:
        return dict(zip((file.relative_to(folder).as_posix() for file in files), pool.map(sha256, files), strict=True))


def check_file(file: Path) -> None:
    """Compare a file with the checksum that is known of it; nothing happens where none is.

    Raises:
        DamageError: another content than when it was written.
    """
    known = listed(file.parent).get(file.name)
    if known is None:
        check_archive(file)
    elif sha256(file) != known:
        raise DamageError(
            f"{file} is damaged: its SHA-256 is not the one in {EXTRA_CONFIG}; copy the folder again, or export anew"
        )


def check_folder(folder: Path) -> None:
    """Compare what another library is about to read in a folder: files that are listed, and archives of PyTorch.

    Raises:
        DamageError: as :func:`check_file`.
    """
    known = listed(folder)
    for file in sorted(folder.iterdir()):
        if file.is_file() and (file.name in known or file.suffix in TORCH_FILES):
            check_file(file)


def listed(folder: Path) -> dict[str, str]:
    """The SHA-256 of an exported folder's files by their names; empty for other folders.

    Raises:
        DamageError: the list itself is damaged.
    """
    file = folder / EXTRA_CONFIG
    if not file.is_file():
        return {}
    try:
        stored = json.loads(file.read_bytes())
        sums: dict[str, str] = stored.pop(SUMS, {})
        known = sums.pop(EXTRA_CONFIG, None)
    except (ValueError, AttributeError, TypeError) as error:
        raise DamageError(f"{file} is damaged: {error}; copy the folder again, or export anew") from error
    if known is not None and known != _own(stored):
        raise DamageError(f"{file} is damaged: its SHA-256 is another; copy the folder again, or export anew")
    return sums


def with_sums(stored: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Content of an exported folder's ``cloc.json``, with the digests of all files that are there by now."""
    plain: dict[str, Any] = json.loads(json.dumps(stored))  # as it will be read again
    return plain | {SUMS: digests(folder) | {EXTRA_CONFIG: _own(plain)}}


def _own(stored: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def check_archive(file: Path) -> None:
    """Compare the checksums that an archive of PyTorch holds with all of its content; other files pass.

    Raises:
        DamageError: it is damaged; or compressed or overlapping, which PyTorch never writes and which could take
            forever to read.
        OSError: it cannot be opened.
    """
    with file.open("rb") as content:
        if content.read(len(_ARCHIVE)) != _ARCHIVE:
            return
        size = content.seek(0, 2)
        try:
            with zipfile.ZipFile(content) as archive:
                _check_plain(archive, size)
                bad = archive.testzip()
        except _DAMAGE as error:
            raise DamageError(f"{file} is damaged: {error or type(error).__name__}; {_REMEDY}") from error
    if bad:
        raise DamageError(f"{file} is damaged: {bad} does not have its checksum; {_REMEDY}")


def _check_plain(archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("a member comes twice")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("a member is compressed, which PyTorch never does")
    if any(member.external_attr & _FOLDER for member in members):
        raise ValueError("a member is marked as a folder, so that PyTorch would leave its memory as it was")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members are larger than the file")
