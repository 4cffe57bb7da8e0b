"""Loads the manifest of a folder of shards, makes it where there is none, and writes it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cloc.console import progress, progress_console
from cloc.data.shards.compressed import told_of_folder
from cloc.data.shards.manifest import (
    MANIFEST_NAME,
    Manifest,
    check_file,
    parse_manifest,
    read_manifest_text,
    remedy_for,
)
from cloc.data.shards.offsets import OFFSETS_NAME, digest_of, write_numbers
from cloc.data.shards.tars import ShardError
from cloc.files import open_new, write_file

Share = tuple[int, int]
"""Which of the hosts of a job this is, and how many there are: each looks at every so many-th shard."""
ALONE: Share = (0, 1)

_CHECKERS = 16  # shards that are opened at a time: most of it is waiting for the file system
_LOG = logging.getLogger(__name__)


def load_manifest(folder: Path | str, share: Share = ALONE) -> Manifest:
    """Read the folder's manifest, or index its shards where it has none.

    Args:
        folder: of the shards.
        share: of the files that are compared with the manifest here; the reader looks at the others when it opens them.

    Raises:
        FileNotFoundError: there is no such folder, or no shard in it.
        ShardError: the manifest is damaged or does not fit the files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of shards; see python -m cloc data convert --help")
    path = folder / MANIFEST_NAME
    if path.exists():
        return _read_manifest(path, share)
    _LOG.warning("%s has no %s: indexing every shard; save the index: python -m cloc data check", folder, MANIFEST_NAME)
    with progress(progress_console(), f"indexing {folder.name}", unit="shards") as bar:
        return index_folder(folder, told=bar.move)


def _read_manifest(path: Path, share: Share) -> Manifest:
    manifest = parse_manifest(read_manifest_text(path), str(path), path.parent)
    there, known = set(tar_names(path.parent)), manifest.shards.names()
    for number, name in enumerate(known):
        if name not in there:  # it is not there, or has another ending
            check_file(path.parent / name, manifest.shards[number])
    others = sorted(there.difference(known))
    if others:
        shard = path.parent / others[0]
        raise ShardError(f"{shard}: {path.name} beside it says nothing of this shard; {remedy_for(path.parent)}")
    check_files(manifest, share)
    return manifest


def tar_names(folder: Path) -> list[str]:
    """Names of the tars of a folder, sorted, by one listing; none that starts with a dot, as a Mac's ``._000.tar``."""
    with os.scandir(folder) as entries:
        return sorted(filter(is_tar, (entry.name for entry in entries)))


def is_tar(name: str) -> bool:
    """Whether a file of a folder is one of its shards, by its name."""
    return name.endswith(".tar") and not name.startswith(".")


def check_files(manifest: Manifest, share: Share = ALONE) -> None:
    """Open each local shard of a share, compare it with the manifest, and note that it was.

    Raises:
        ShardError: see :func:`cloc.data.shards.manifest.check_file`; of the first one in the manifest's order.
    """
    host, hosts = share
    table = manifest.shards
    mine = [number for number in range(host, len(table), hosts) if not table.checked(number)]
    calls = [(manifest.folder / table.name(number), number) for number in mine]

    def check(call: tuple[Path, int]) -> None:
        check_file(call[0], table[call[1]])

    if len(calls) <= _CHECKERS:
        for call in calls:
            check(call)
    else:
        with ThreadPoolExecutor(_CHECKERS) as pool:
            for _ in pool.map(check, calls):
                pass
    table.records["checked"][mine] = True


def index_folder(
    folder: Path, categories: Sequence[str] | None = None, told: Callable[[int, int], None] | None = None
) -> Manifest:
    """Index every ``*.tar`` of a folder.

    Args:
        folder: where the shards are.
        categories: names to record instead of those that occur.
        told: called with how many shards are done, and how many there are.

    Raises:
        FileNotFoundError: there is no ``.tar`` in the folder.
        ShardError: as ``index_shard``.
    """
    from cloc.data.shards.scanning import scan_shard, tell_hidden  # with PyTorch, which reading an index does not need

    names = need_tars(folder)
    scans = []
    for name in names:
        scans.append(scan_shard(folder / name))
        if told is not None:
            told(len(scans), len(names))
    tell_hidden(str(folder), sum(scan.hidden for scan in scans))
    seen = set(categories) if categories is not None else set().union(*(scan.categories for scan in scans))
    return Manifest.of(folder, [scan.info for scan in scans], sorted(seen))


def need_tars(folder: Path) -> list[str]:
    """Names of the tars of a folder, sorted.

    Raises:
        FileNotFoundError: there is none.
    """
    names = tar_names(folder)
    if not names:
        raise FileNotFoundError(told_of_folder(str(folder), os.listdir(folder)))
    return names


def write_manifest(manifest: Manifest) -> Path:
    """Write ``manifest.offsets`` and ``manifest.json`` into the manifest's folder; return the path of the latter.

    Each appears whole or not at all, the offsets first; they name the manifest that they belong to, so what stands
    beside another one is refused.
    """
    path, table = manifest.folder / MANIFEST_NAME, manifest.shards
    count = manifest.samples + len(table)
    digest = digest_of(table.records["samples"], table.records["crc"])
    with open_new(manifest.folder / OFFSETS_NAME) as file:
        write_numbers(file, count, digest, (table.offsets(number) for number in range(len(table))))
    write_file(path, json.dumps(manifest.to_json(), ensure_ascii=False, separators=(",", ":")))
    return path
