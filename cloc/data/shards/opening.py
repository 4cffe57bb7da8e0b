"""Opens shards by path, pattern or URL: from their manifest, or by an index made here and kept for the next time.

Stands above ``index`` at the start of ``data → models → losses → evaluation → engine``; ``stream/sources`` calls it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from braceexpand import braceexpand

from cloc.config.secrets import public
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.index import ALONE, Share, check_files, load_manifest
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest, parse_manifest
from cloc.data.shards.offsets import OFFSETS_NAME, MappedOffsets, Offsets, RemoteOffsets
from cloc.data.shards.scanning import scan_shard
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

MAX_NAMES = 1_000_000
"""Shards that braces may name."""

_INDEX_VERSION = 2  # of what scan_shard finds: indexes of another one are made anew
_READERS = 8  # shards that are fetched at a time while they are indexed
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d{1,18}|[^\W\d_])\.\.(-?\d{1,18}|[^\W\d_])(?:\.\.(-?\d{1,18}))?")
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
    return _join([_open_folder(url, names, cache, share) for url, names in _folders(path).items()])


def index_share(path: str, cache: ShardCache, share: Share) -> None:
    """Index a share of the shards that have no manifest into the cache folder, where :func:`open_shards` finds it.

    Hosts that have the cache folder in common so index a set together; arguments and errors as :func:`open_shards`.
    """
    if _indexed_folder(path) is not None:
        return
    for url, names in _folders(path).items():
        _, _, missing = _described(url, names, cache)
        _scan_all(url, missing[share[0] :: share[1]], cache)


def urls_of(path: str) -> list[str]:
    """The remote folders that a path names, in their order; none where it is local."""
    return list(_folders(path)) if is_remote(path) else []


def remote_root(urls: Sequence[str]) -> str:
    """The URL that the shards of some remote folders are named from; empty without one."""
    if len(urls) < 2:
        return "".join(urls)
    root, query, _ = _shared(urls)
    return root + query


def remote_offsets(url: str, digest: int, cache: ShardCache) -> RemoteOffsets:
    """The offsets beside a remote manifest that another process has opened."""
    return RemoteOffsets(join_url(url, OFFSETS_NAME), digest, cache.folder / "offsets", cache.access)


def _indexed_folder(path: str) -> Path | None:
    """The local folder that a path names, where it has a manifest or is not there at all; None for anything else."""
    filesystem(path)  # refuses what cannot be opened before braces multiply it
    tars = split_query(path)[0].endswith(".tar")
    if _count(path) > 1 or is_remote(path) or (tars and not Path(path).is_dir()):
        return None
    folder = Path(_expand(path)[0].removeprefix("file://").removeprefix("local://"))
    return folder if not folder.is_dir() or (folder / MANIFEST_NAME).is_file() else None


def _folders(path: str) -> dict[str, list[str]]:
    """The folders that a path names, each with the names of its shards; no name for all that it holds."""
    wanted: dict[str, list[str]] = {}
    for entry in _expand(path):
        place, query = split_query(entry)
        parent, _, name = place.rpartition("/") if place.endswith(".tar") else (place.rstrip("/"), "", "")
        wanted.setdefault((parent or ".") + query, []).extend([name] if name else [])
    return wanted


def _expand(path: str) -> list[str]:
    """The paths that a path with braces stands for."""
    if _count(path) > MAX_NAMES:  # counted first: ranges are written out before the first path comes
        raise ShardError(f"{path}: the braces name more than {MAX_NAMES:,} shards; name their folder, or fewer")
    try:
        return list(dict.fromkeys(braceexpand(path)))
    except ValueError as error:  # also of braces without a partner
        message = f"{path}: {public(str(error))}; a pattern looks like shard-{{000000..000009}}.tar"
        raise ShardError(message) from None  # its text holds the path


def _count(text: str) -> int:
    """How many paths braces stand for: from the innermost outwards, each pair leaves its number between NULs."""
    while found := _INNERMOST.search(text):
        inside = found[1]
        span = _RANGE.fullmatch(inside)
        if span:
            first, last = (int(end) if end.lstrip("-").isdecimal() else ord(end) for end in span.group(1, 2))
            count = abs(last - first) // max(1, abs(int(span[3] or 1))) + 1
        else:
            count = sum(_count(part) for part in inside.split(","))
        text = f"{text[: found.start()]}\0{count}\0{text[found.end() :]}"
    return math.prod(int(count) for count in text.split("\0")[1::2])


def _described(url: str, names: list[str], cache: ShardCache) -> tuple[Manifest, list[str], list[str]]:
    """The manifest of a folder, empty without one; the names of the shards that are wanted, and which it lacks."""
    system, path = filesystem(url, cache.access)
    remote = url if is_remote(url) else ""
    folder = Path(path) if not remote else Path(PurePosixPath(split_query(path)[0]).name)
    shown, place = public(url), join_url(url, MANIFEST_NAME)
    try:
        stored = parse_manifest(
            read_document(place, cache.access), public(place), folder, remote, partial(_open_offsets, url, cache)
        )
    except FileNotFoundError:
        stored = Manifest.of(folder, (), ())
        stored = replace(stored, remote=remote)
    known = stored.shards.names()
    names = names or known or _listing(system, path, shown, cache.access)
    indexed = set(known)
    return stored, names, [name for name in names if name not in indexed]


def _open_offsets(url: str, cache: ShardCache, count: int, digest: int) -> Offsets:
    """The file of offsets in a folder."""
    if is_remote(url):
        return RemoteOffsets.opened(join_url(url, OFFSETS_NAME), count, digest, cache.folder / "offsets", cache.access)
    return MappedOffsets.opened(Path(filesystem(url, cache.access)[1]) / OFFSETS_NAME, count, digest)


def _open_folder(url: str, names: list[str], cache: ShardCache, share: Share) -> Manifest:
    """Some shards of one folder, or all of them, from its manifest or from an index made here."""
    stored, names, missing = _described(url, names, cache)
    if missing:
        _LOG.warning("%s: no index of %d shards; reading them all to make one", public(url), len(missing))
    scans = _scan_all(url, missing, cache)
    table = stored.shards
    if missing:
        table = ShardTable.joined([(table, ""), (ShardTable.of(info for info, _ in scans), "")])
    known = table.names()
    if names != known:
        numbers = {name: number for number, name in enumerate(known)}
        table = table.take([numbers[name] for name in names])
    categories = set(stored.categories).union(*(found for _, found in scans))
    manifest = replace(stored, shards=table, categories=tuple(sorted(categories)))
    if not manifest.remote:  # remote ones are checked when they are fetched
        check_files(manifest, share)
    return manifest


def _scan_all(url: str, names: list[str], cache: ShardCache) -> list[tuple[ShardInfo, set[str]]]:
    """Indexes of some shards of a folder, 8 bytes an offset."""
    system, path = filesystem(url, cache.access)

    def scan(name: str) -> tuple[ShardInfo, set[str]]:
        info, categories = _scan(system, join_url(path, name), join_url(url, name), cache)
        return replace(info, offsets=array("Q", info.offsets)), categories

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(scan, names))


def _listing(system: Any, path: str, shown: str, access: Access) -> list[str]:
    try:
        paths = attempt(shown, "cannot be listed", lambda: within(system, access.timeout, lambda: _ls(system, path)))
    except FileNotFoundError:
        paths = []
    names = sorted(PurePosixPath(file).name for file in paths)
    tars = [name for name in names if name.endswith(".tar")]
    if not tars:
        raise FileNotFoundError(f"{shown}: no {MANIFEST_NAME} and no .tar there, but {names[:5] or 'nothing'}")
    return tars


def _ls(system: Any, path: str) -> list[str]:
    names: list[str] = system.ls(path, detail=False)
    return names


def _scan(system: Any, path: str, url: str, cache: ShardCache) -> tuple[ShardInfo, set[str]]:
    """Index of one shard, kept in the cache folder for the next time: until its size, date or tag changes."""
    shown, seconds = public(url), cache.access.timeout
    try:
        size, version = attempt(
            shown,
            "cannot be opened",
            lambda: within(system, seconds, lambda: (system.size(path), system.ukey(path))),
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{shown}: no such shard; mend the path or the braces of data.train") from error
    # Another query may be another file, whatever it is for; the name does not tell it.
    facts = f"{without_user(url)}\n{size}\n{version}\n{_INDEX_VERSION}"
    name = hashlib.sha256(facts.encode()).hexdigest()[:32]
    index = cache.folder / "index" / f"{name}.json"
    make_folder(cache.folder, "index")
    with host_lock(index.with_name(f"{index.name}.lock")):
        known = _read_index(index)
        if known is not None:
            return known
        if not is_remote(url):
            info, categories = scan_shard(Path(path))
        elif size is None or size > cache.limit:
            raise ShardError(
                f"{url}: {size} bytes do not fit into data.cache_bytes={cache.limit}, so it cannot be indexed "
                f"here; put a {MANIFEST_NAME} beside it (python -m cloc data index), or raise the limit"
            )
        else:
            info, categories = scan_shard(cache.fetch(url, size))
            info = replace(info, name=PurePosixPath(split_query(path)[0]).name)
        write_json(index, {"shard": info.to_json(), "categories": sorted(categories)}, indent=None)
    return info, categories


def _read_index(index: Path) -> tuple[ShardInfo, set[str]] | None:
    """What :func:`_scan` wrote; None where there is nothing, or nothing whole."""
    try:
        record = json.loads(index.read_text(encoding="utf-8"))
        return ShardInfo.from_json(record["shard"]), set(record["categories"])
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
    root, query, befores = _shared([part.remote or str(part.folder) for part in parts])
    table = ShardTable.joined([(part.shards, before) for part, before in zip(parts, befores, strict=True)])
    categories = tuple(sorted(set().union(*(part.categories for part in parts))))
    if parts[0].remote:
        return Manifest(Path(PurePosixPath(root).name), table, categories, root + query)
    return Manifest(Path(root or "/"), table, categories)


def _shared(urls: Sequence[str]) -> tuple[str, str, list[str]]:
    """What several folders share: their root and their query; and what stands before the names of each."""
    bare, queries = zip(*(split_query(url) for url in urls), strict=True)
    if len(set(queries)) > 1:
        raise ShardError("a pattern mixes folders with other queries; make them sources of their own in data.train")
    places = [url.split("/") for url in bare]
    shared = len(os.path.commonprefix(places))
    befores = ["".join(f"{name}/" for name in place[shared:]) for place in places]
    return "/".join(places[0][:shared]), queries[0], befores
