"""Opens shards by path, pattern or URL: from their manifest, or by an index made here and kept for the next time.

Stands above ``index`` at the start of ``data → models → losses → evaluation → engine``; ``stream/sources`` calls it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cloc.config.secrets import public
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.compressed import compressed_tars, kind_by_name, told_of_folder
from cloc.data.shards.index import ALONE, Share, check_files, is_tar, load_manifest
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest, OpenOffsets, parse_manifest
from cloc.data.shards.offsets import MIRRORS, NUMBER, OFFSETS_NAME, HeldOffsets, MappedOffsets, Offsets, RemoteOffsets
from cloc.data.shards.patterns import count_paths, expand, folders_of, shared_root
from cloc.data.shards.scanning import Scan, scan_shard, tell_hidden
from cloc.data.shards.shard_table import ShardTable
from cloc.data.shards.stores import (
    Access,
    attempt,
    filesystem,
    is_remote,
    join_url,
    read_document,
    split_query,
    within,
    without_user,
)
from cloc.data.shards.tars import ShardError, ShardInfo
from cloc.files import host_lock, make_folder, write_json

_INDEX_VERSION = 3  # of what scan_shard finds: indexes of another one are made anew
_READERS = 8  # shards that are fetched at a time while they are indexed
_LOG = logging.getLogger(__name__)


def open_shards(path: str, cache: ShardCache, share: Share = ALONE) -> Manifest:
    """Open shards by path or URL.

    Args:
        path: a folder, or ``.tar`` files; local or a URL of fsspec; braces expand (``shard-{000000..000009}.tar``).
        cache: of remote shards, of their offsets, and of the indexes of shards without a manifest.
        share: of the local shards that are compared with their manifest here.

    Raises:
        FileNotFoundError: there is no such folder or shard.
        ShardError: a shard or manifest is damaged, the URL cannot be opened, or it is a shell command.
    """
    folder = _indexed_folder(path)
    if folder is not None:
        return load_manifest(folder, share)
    return _join([_open_folder(url, names, cache, share) for url, names in folders_of(path).items()])


def index_share(path: str, cache: ShardCache, share: Share) -> None:
    """Index a share of the shards that have no manifest into the cache folder, where :func:`open_shards` finds it.

    Hosts that have the cache folder in common so index a set together; arguments and errors as :func:`open_shards`.
    """
    if _indexed_folder(path) is not None:
        return
    for url, names in folders_of(path).items():
        _, _, missing = _described(url, names, cache, _no_offsets)
        _scan_all(url, missing[share[0] :: share[1]], cache)


def _indexed_folder(path: str) -> Path | None:
    """The local folder that a path names, where it has a manifest or is not there at all; None for anything else."""
    filesystem(path)  # refuses what cannot be opened before braces multiply it
    place = split_query(path)[0]
    tars = place.endswith(".tar") or (kind_by_name(place) and not Path(place).is_dir())
    if count_paths(path) > 1 or is_remote(path) or (tars and not Path(path).is_dir()):
        return None
    folder = Path(expand(path)[0].removeprefix("file://").removeprefix("local://"))
    return folder if not folder.is_dir() or (folder / MANIFEST_NAME).is_file() else None


def _described(
    url: str, names: list[str], cache: ShardCache, offsets: OpenOffsets | None = None
) -> tuple[Manifest, list[str], list[str]]:
    """The manifest of a folder, empty without one; the names of the shards that are wanted, and which it lacks."""
    system, path = filesystem(url, cache.access)
    remote = url if is_remote(url) else ""
    folder = Path(path) if not remote else Path(PurePosixPath(split_query(path)[0]).name)
    shown, place = public(url), join_url(url, MANIFEST_NAME)
    try:
        text, opened = read_document(place, cache.access), offsets or partial(_open_offsets, url, cache)
        stored = parse_manifest(text, public(place), folder, remote, opened)
    except FileNotFoundError:
        stored = Manifest.of(folder, (), ())
        stored = replace(stored, remote=remote)
    known = stored.shards.names()
    names = names or known or _listing(system, path, shown, cache.access)
    indexed = set(known)
    return stored, names, [name for name in names if name not in indexed]


def _no_offsets(count: int, digest: int) -> Offsets:
    """For a look at the names alone."""
    return HeldOffsets(np.empty(0, NUMBER))


def _open_offsets(url: str, cache: ShardCache, count: int, digest: int) -> Offsets:
    """The file of offsets in a folder."""
    if is_remote(url):
        return RemoteOffsets.opened(join_url(url, OFFSETS_NAME), count, digest, cache.folder / MIRRORS, cache.access)
    return MappedOffsets.opened(Path(filesystem(url, cache.access)[1]) / OFFSETS_NAME, count, digest)


def _open_folder(url: str, names: list[str], cache: ShardCache, share: Share) -> Manifest:
    """Some shards of one folder, or all of them, from its manifest or from an index made here."""
    stored, names, missing = _described(url, names, cache)
    if missing:
        kept = "" if is_remote(url) else f"; python -m cloc data index {url} keeps one beside them"
        _LOG.warning("%s: no index of %d shards; reading them all to make one%s", public(url), len(missing), kept)
    scans = _scan_all(url, missing, cache)
    table = stored.shards
    if missing:
        table = ShardTable.joined([(table, ""), (ShardTable.of(scan.info for scan in scans), "")])
    known = table.names()
    if names != known:
        numbers = {name: number for number, name in enumerate(known)}
        table = table.take([numbers[name] for name in names])
    categories = set(stored.categories).union(*(scan.categories for scan in scans))
    manifest = replace(stored, shards=table, categories=tuple(sorted(categories)))
    if not manifest.remote:  # remote ones are checked when they are fetched
        check_files(manifest, share)
    return manifest


def _scan_all(url: str, names: list[str], cache: ShardCache) -> list[Scan]:
    """Indexes of some shards of a folder, 8 bytes an offset."""
    system, path = filesystem(url, cache.access)

    def scan(name: str) -> Scan:
        found = _scan(system, join_url(path, name), join_url(url, name), cache)
        return found._replace(info=replace(found.info, offsets=array("Q", found.info.offsets)))

    with ThreadPoolExecutor(_READERS) as pool:
        scans = list(pool.map(scan, names))
    tell_hidden(public(url), sum(found.hidden for found in scans))
    return scans


def _listing(system: Any, path: str, shown: str, access: Access) -> list[str]:
    try:
        paths = attempt(
            shown,
            "cannot be listed",
            lambda: within(system, access.timeout, lambda: _ls(system, path)),
            access.at_start,
        )
    except FileNotFoundError:
        paths = []
    names = sorted(PurePosixPath(file).name for file in paths)
    tars = list(filter(is_tar, names))
    if not tars and compressed_tars(names):
        raise FileNotFoundError(told_of_folder(shown, names))
    if not tars:
        raise FileNotFoundError(f"{shown}: no {MANIFEST_NAME} and no .tar there, but {names[:5] or 'nothing'}")
    return tars


def _ls(system: Any, path: str) -> list[str]:
    names: list[str] = system.ls(path, detail=False)
    return names


def _scan(system: Any, path: str, url: str, cache: ShardCache) -> Scan:
    """Index of one shard, kept in the cache folder for the next time: until its size, date or tag changes."""
    shown, seconds = public(url), cache.access.timeout
    try:
        size, version = attempt(
            shown,
            "cannot be opened",
            lambda: within(system, seconds, lambda: (system.size(path), system.ukey(path))),
            cache.access.at_start,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{shown}: no such shard; mend the path or the braces of data.train") from error
    # Another query may be another file, whatever it is for; the name does not tell it.
    facts = f"{without_user(url)}\n{size}\n{version}\n{_INDEX_VERSION}"
    name = hashlib.sha256(facts.encode()).hexdigest()[:32]
    index = cache.folder / "index" / f"{name}.json"
    make_folder(cache.folder, "index")
    with host_lock(cache.lock(index.name)):
        known = _read_index(index)
        if known is not None:
            return known
        if not is_remote(url):
            found = scan_shard(Path(path))
        elif size is None or size > cache.limit:
            raise ShardError(
                f"{url}: {size} bytes do not fit into data.cache_bytes={cache.limit}, so it cannot be indexed "
                f"here; put a {MANIFEST_NAME} beside it (python -m cloc data index), or raise the limit"
            )
        else:
            found = scan_shard(url, cache.open(url, size))
            found = found._replace(info=replace(found.info, name=PurePosixPath(split_query(path)[0]).name))
        write_json(index, {"shard": found.info.to_json(), "categories": sorted(found.categories)}, indent=None)
    return found


def _read_index(index: Path) -> Scan | None:
    """What :func:`_scan` wrote; None where there is nothing, or nothing whole."""
    try:
        record = json.loads(index.read_text(encoding="utf-8"))
        return Scan(ShardInfo.from_json(record["shard"]), set(record["categories"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        _LOG.warning("%s is damaged; the shard is indexed again", index)
        return None


def _join(parts: list[Manifest]) -> Manifest:
    """Shards of several folders as one set, named from the folder that they share."""
    if len(parts) == 1:
        return parts[0]
    if len({bool(part.remote) for part in parts}) > 1:
        raise ShardError("a pattern mixes local and remote shards; make them sources of their own in data.train")
    root, query, befores = shared_root([part.remote or str(part.folder) for part in parts])
    table = ShardTable.joined([(part.shards, before) for part, before in zip(parts, befores, strict=True)])
    categories = tuple(sorted(set().union(*(part.categories for part in parts))))
    if parts[0].remote:
        return Manifest(Path(PurePosixPath(root).name), table, categories, root + query)
    return Manifest(Path(root or "/"), table, categories)
