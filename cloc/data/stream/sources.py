"""Opens what a run trains on: one or several sources, each a folder, a pattern or a URL of shards.

Stands above ``shards/`` at the start of ``data → models → losses → evaluation → engine``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from braceexpand import braceexpand

from cloc.config import ConfigError, DataConfig, from_fields
from cloc.config.domains import Interval
from cloc.config.secrets import public
from cloc.data.drops import MAX_DROP_SHARE
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.index import load_manifest
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest, check_file, parse_manifest
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
from cloc.data.shards.tars import ShardError, ShardInfo, scan_shard
from cloc.data.stream.lanes import DealtOrder
from cloc.files import host_lock, make_folder, write_json

MAX_NAMES = 1_000_000
"""Shards that braces may name."""

_INDEX_VERSION = 2  # of what scan_shard finds: indexes of another one are made anew
_READERS = 8  # shards that are fetched at a time while they are indexed
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d{1,18}|[^\W\d_])\.\.(-?\d{1,18}|[^\W\d_])(?:\.\.(-?\d{1,18}))?")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardSource:
    """One part of a mixture.

    Attributes:
        name: key in ``data.train``; ``train`` where that is a single path.
        manifest: its shards.
        weight: its share among the samples drawn, in the unit of the other sources' weights.
    """

    name: str
    manifest: Manifest
    weight: float


@dataclass(frozen=True, slots=True)
class ShardSources:
    """All that a run reads: one source, or several that are mixed by their weights.

    Attributes:
        parts: the sources; ``Batch.source`` counts them in this order.
        cache: of their remote shards.
        streams: C, into which the samples of each are dealt (:mod:`cloc.data.stream.lanes`).

    Raises:
        ConfigError: a source has fewer samples than streams.
    """

    parts: tuple[ShardSource, ...]
    cache: ShardCache
    streams: int = 1

    def __post_init__(self) -> None:
        for part in self.parts:
            if part.manifest.samples < self.streams:
                raise ConfigError(
                    f"data.streams={self.streams}: data.train.{part.name} holds {part.manifest.samples} samples, at "
                    "least one a stream is needed; give fewer streams (1 for one order over all), or more data"
                )

    @property
    def samples(self) -> int:
        """Number of samples in all sources."""
        return sum(part.manifest.samples for part in self.parts)

    @property
    def regions(self) -> int:
        """Number of usable regions in all sources, without groups."""
        return sum(part.manifest.regions for part in self.parts)

    def left_out(self) -> dict[str, str]:
        """Say how many groups and unusable regions there are, for people; nothing of what there is none."""
        manifests = [part.manifest for part in self.parts]
        crowds, dropped = (sum(getattr(one, name) for one in manifests) for name in ("crowds", "dropped"))
        total = self.regions + crowds + dropped
        rows = {"crowds": f"{crowds:,} of {total:,} regions are groups, which are not trained on"} if crowds else {}
        if dropped:
            loud = "warning: " if dropped > MAX_DROP_SHARE * total else ""
            why = "python -m cloc data check says why"
            rows["dropped"] = f"{loud}{dropped:,} of {total:,} regions cannot be used; {why}"
        return rows

    @property
    def digest(self) -> str:
        """Hex digits that change with any byte of any shard, the shards' order, the sources and their weights."""
        if len(self.parts) == 1:
            return self.parts[0].manifest.digest
        facts = [f"{part.name} {part.weight} {part.manifest.digest}" for part in self.parts]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]

    def orders(self, seed: int) -> list[DealtOrder]:
        """The order of each source."""
        return [
            DealtOrder([s.samples for s in shards], [s.bytes for s in shards], seed, number, self.streams)
            for number, shards in enumerate(part.manifest.shards for part in self.parts)
        ]


def open_sources(config: DataConfig) -> ShardSources:
    """Open everything that ``data.train`` names.

    Raises:
        ConfigError: ``data.train`` is neither a path nor a mapping of names to ``{path, weight}``, weights are given
            for some sources only, or a source has fewer samples than ``data.streams``.
        FileNotFoundError: there is no shard.
        ShardError: shards cannot be used, or a URL cannot be opened.
    """
    cache = ShardCache(config.cache_dir, config.cache_bytes, from_fields(Access, config))
    given: Any = {"train": {"path": config.train}} if isinstance(config.train, str) else config.train
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"data.train={given!r}: give a folder, a pattern, a URL, or sources NAME: {{path, weight}}")
    for name, source in given.items():
        known = (
            isinstance(source, Mapping) and isinstance(source.get("path"), str) and source.keys() <= {"path", "weight"}
        )
        if not known:
            raise ConfigError(
                f"data.train.{name}={source!r}: give a mapping with path, and weight if the others have it"
            )
    weights = {name: source.get("weight") for name, source in given.items()}
    for name, weight in weights.items():
        if (weight is None) != (next(iter(weights.values())) is None):
            raise ConfigError(f"data.train.{name}.weight={weight}: give every source a weight, or none (then its size)")
        if weight is not None and weight not in Interval(0, open_low=True):
            raise ConfigError(f"data.train.{name}.weight={weight!r}: must be a positive number")
    parts = []
    for name, source in given.items():
        manifest = open_shards(source["path"], cache)
        if not manifest.samples:
            raise ShardError(f"data.train.{name}: {source['path']} holds no sample; name other shards, or leave it out")
        parts.append(ShardSource(name, manifest, weights[name] or manifest.samples))
    return ShardSources(tuple(parts), cache, config.streams)


def open_shards(path: str, cache: ShardCache) -> Manifest:
    """Open shards by path or URL.

    Args:
        path: a folder, or ``.tar`` files; local or a URL of fsspec; braces expand (``shard-{000000..000009}.tar``).
        cache: of remote shards, and of the indexes of shards without a manifest.

    Raises:
        FileNotFoundError: there is no such folder or shard.
        ShardError: a shard or manifest is damaged, the URL cannot be opened, or it is a shell command.
    """
    filesystem(path)  # refuses what cannot be opened before braces multiply it
    entries = _expand(path)
    tars = split_query(path)[0].endswith(".tar")
    if len(entries) == 1 and not is_remote(path) and (not tars or Path(path).is_dir()):
        folder = Path(path.removeprefix("file://").removeprefix("local://"))
        if not folder.is_dir() or (folder / MANIFEST_NAME).is_file():
            return load_manifest(folder)
    wanted: dict[str, list[str]] = {}  # names of each folder; none for all that it holds
    for entry in entries:
        place, query = split_query(entry)
        parent, _, name = place.rpartition("/") if place.endswith(".tar") else (place.rstrip("/"), "", "")
        wanted.setdefault((parent or ".") + query, []).extend([name] if name else [])
    return _join([_open_folder(folder, names, cache) for folder, names in wanted.items()])


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


def _open_folder(url: str, names: list[str], cache: ShardCache) -> Manifest:
    """Some shards of one folder, or all of them, from its manifest or from an index made here."""
    system, path = filesystem(url, cache.access)
    remote = url if is_remote(url) else ""
    folder = Path(path) if not remote else Path(PurePosixPath(split_query(path)[0]).name)
    shown, place = public(url), join_url(url, MANIFEST_NAME)
    try:
        stored = parse_manifest(read_document(place, cache.access), public(place), folder, remote)
    except FileNotFoundError:
        stored = Manifest(folder, (), (), remote)
    indexed = {shard.name: shard for shard in stored.shards}
    if not names:
        names = list(indexed) or _listing(system, path, shown, cache.access)
    for name in [] if remote else names:  # remote ones are checked when they are fetched
        if name in indexed:
            check_file(folder / name, indexed[name])
    missing = [name for name in names if name not in indexed]
    if missing:
        _LOG.warning("%s: no index of %d shards; reading them all to make one", shown, len(missing))
    with ThreadPoolExecutor(_READERS) as pool:
        scans = list(pool.map(lambda name: _scan(system, join_url(path, name), join_url(url, name), cache), missing))
    indexed |= {info.name: info for info, _ in scans}
    categories = set(stored.categories).union(*(found for _, found in scans))
    return Manifest(folder, tuple(indexed[name] for name in names), tuple(sorted(categories)), remote)


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
            info, categories = scan_shard(Path(path))
        elif size is None or size > cache.limit:
            raise ShardError(
                f"{url}: {size} bytes do not fit into data.cache_bytes={cache.limit}, so it cannot be indexed "
                f"here; put a {MANIFEST_NAME} beside it (python -m cloc data check), or raise the limit"
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
    urls, queries = zip(*(split_query(part.remote or str(part.folder)) for part in parts), strict=True)
    if len(set(queries)) > 1:
        raise ShardError("a pattern mixes folders with other queries; make them sources of their own in data.train")
    places = [url.split("/") for url in urls]
    shared = len(os.path.commonprefix(places))
    root = "/".join(places[0][:shared])
    shards = [
        replace(shard, name="/".join([*place[shared:], shard.name]))
        for part, place in zip(parts, places, strict=True)
        for shard in part.shards
    ]
    categories = sorted(set().union(*(part.categories for part in parts)))
    if parts[0].remote:
        return Manifest(Path(places[0][shared - 1]), tuple(shards), tuple(categories), root + queries[0])
    return Manifest(Path(root or "/"), tuple(shards), tuple(categories))
