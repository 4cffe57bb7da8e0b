"""Loads the manifest of a folder of shards, makes it where there is none, and writes it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from cloc.console import progress, progress_console
from cloc.data.shards.manifest import (
    MANIFEST_NAME,
    MANIFEST_VERSION,
    Manifest,
    check_file,
    parse_manifest,
    read_manifest_text,
    remedy_for,
)
from cloc.data.shards.tars import ShardError, scan_shard
from cloc.files import write_file

_LOG = logging.getLogger(__name__)


def load_manifest(folder: Path | str) -> Manifest:
    """Read the folder's manifest, or index its shards where it has none.

    Raises:
        FileNotFoundError: there is no such folder, or no shard in it.
        ShardError: the manifest is damaged or does not fit the files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of shards; see python -m cloc data convert --help")
    path = folder / MANIFEST_NAME
    if path.exists():
        return _read_manifest(path)
    _LOG.warning("%s has no %s: indexing every shard; save the index: python -m cloc data check", folder, MANIFEST_NAME)
    with progress(progress_console(), f"indexing {folder.name}", unit="shards") as bar:
        return index_folder(folder, told=bar.move)


def _read_manifest(path: Path) -> Manifest:
    manifest = parse_manifest(read_manifest_text(path), str(path), path.parent)
    for shard in manifest.shards:
        check_file(path.parent / shard.name, shard)
    known = {shard.name for shard in manifest.shards}
    others = [tar for tar in sorted(path.parent.glob("*.tar")) if tar.name not in known]
    if others:
        raise ShardError(f"{others[0]}: {path.name} beside it says nothing of this shard; {remedy_for(path.parent)}")
    return manifest


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
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        inside = sorted(path.name for path in folder.iterdir())[:5]
        raise FileNotFoundError(f"{folder}: holds no .tar, but {inside or 'nothing'}; name the folder of the shards")
    scans = []
    for path in paths:
        scans.append(scan_shard(path))
        if told is not None:
            told(len(scans), len(paths))
    seen = set(categories) if categories is not None else set().union(*(found for _, found in scans))
    return Manifest(folder, tuple(info for info, _ in scans), tuple(sorted(seen)))


def write_manifest(manifest: Manifest) -> Path:
    """Write ``manifest.json`` into the manifest's folder, whole or not at all, and return its path."""
    path = manifest.folder / MANIFEST_NAME
    shards = [shard.to_json() for shard in manifest.shards]
    record = {"version": MANIFEST_VERSION, "categories": list(manifest.categories), "shards": shards}
    write_file(path, json.dumps(record, ensure_ascii=False, separators=(",", ":")))
    return path
