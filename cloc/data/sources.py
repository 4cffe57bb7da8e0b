"""What a run trains on: one or several sources, each a folder, a pattern or a URL of shards.

Stands above ``shards`` at the start of ``data → models → losses → evaluation → engine``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from braceexpand import UnbalancedBracesError, braceexpand

from cloc.config import ConfigError, DataConfig
from cloc.data.drops import MAX_DROP_SHARE
from cloc.data.order import GlobalOrder
from cloc.data.remote import ShardCache, filesystem, is_remote
from cloc.data.shards import MANIFEST_NAME, Manifest, ShardError, ShardInfo, check_size, load_manifest, parse_manifest
from cloc.data.tars import scan_shard
from cloc.files import host_lock, make_folder, write_json

_LOG = logging.getLogger(__name__)
_INDEX_VERSION = 2  # of what scan_shard finds: indexes of another one are made anew
_READERS = 8  # shards that are fetched at a time while they are indexed


@dataclass(frozen=True, slots=True)
class Source:
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
class Sources:
    """All that a run reads: one source, or several that are mixed by their weights.

    Attributes:
        parts: the sources; ``Batch.source`` counts them in this order.
        cache: of their remote shards.
    """

    parts: tuple[Source, ...]
    cache: ShardCache

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

    def orders(self, seed: int) -> list[GlobalOrder]:
        """The order of each source."""
        return [
            GlobalOrder([s.samples for s in shards], [s.bytes for s in shards], seed, source=number)
            for number, shards in enumerate(part.manifest.shards for part in self.parts)
        ]

    def plan(self, seed: int, samples: int, hosts: int) -> dict[str, str]:
        """What reading ``samples`` samples on so many hosts means, by name, for people."""
        total, rows = sum(part.weight for part in self.parts), {}
        for part, order in zip(self.parts, self.orders(seed), strict=True):
            name = "data" if len(self.parts) == 1 else f"data: {part.name}"
            share, shards = part.weight / total, len(part.manifest.shards)
            rows[name] = (
                f"{share:.1%} of the samples, {samples * share / order.length:.1f} passes over {order.length:,} in "
                f"{shards} shards; {-(-shards // order.windows)} ({order.window_bytes / 2**20:,.0f} MiB) at a time"
            )
        rows["reads"] = "each sample by itself: no byte is read twice in a pass (amplification 1.0)"
        remote = [shard for part in self.parts if part.manifest.remote for shard in part.manifest.shards]
        if remote:
            held = sum(shard.bytes for shard in remote if shard.bytes <= self.cache.limit)
            share, often = (
                held / sum(shard.bytes for shard in remote),
                "once" if held <= self.cache.limit else "once a pass",
            )
            rows["reads"] = (
                f"{share:.0%} of the remote bytes by whole shards, fetched {often} by each of {hosts} host(s) "
                f"(amplification {share * hosts + 1 - share:.1f}); the rest by one request a sample"
            )
        return rows

    def check_cache(self, seed: int) -> None:
        """Refuse a cache in which shards would come and go many times a pass.

        Raises:
            ConfigError: says how large it must be.
        """
        needed = 0
        for part, order in zip(self.parts, self.orders(seed), strict=True):
            sizes = [shard.bytes for shard in part.manifest.shards if shard.bytes <= self.cache.limit]
            if part.manifest.remote:  # the window that is read, and the next one, which is fetched meanwhile
                needed += min(sum(sizes), 2 * order.window_bytes)
        if needed > self.cache.limit:
            raise ConfigError(
                f"data.cache_bytes={self.cache.limit:,}: {needed:,} bytes of shards are read at a time, so they would "
                "be fetched again and again; give at least that, or 0 to ask for each sample by itself"
            )


def open_sources(config: DataConfig) -> Sources:
    """Open everything that ``data.train`` names.

    Raises:
        ConfigError: ``data.train`` is neither a path nor a mapping of names to ``{path, weight}``, or weights are given
            for some sources only.
        FileNotFoundError: there is no shard.
        ShardError: shards cannot be used, or a URL cannot be opened.
    """
    cache = ShardCache(config.cache_dir, config.cache_bytes)
    given = {"train": {"path": config.train}} if isinstance(config.train, str) else config.train
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
        if weight is not None and not (isinstance(weight, int | float) and 0 < weight < float("inf")):
            raise ConfigError(f"data.train.{name}.weight={weight!r}: must be a positive number")
    found = []
    for name, source in given.items():
        manifest = open_shards(source["path"], cache)
        if not manifest.samples:
            raise ShardError(f"data.train.{name}: {source['path']} holds no sample; name other shards, or leave it out")
        found.append(Source(name, manifest, weights[name] or manifest.samples))
    return Sources(tuple(found), cache)


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
    try:
        entries = list(dict.fromkeys(braceexpand(path)))
    except UnbalancedBracesError as error:
        raise ShardError(f"{path}: {error}; a pattern looks like shard-{{000000..000009}}.tar") from error
    if len(entries) == 1 and not is_remote(path) and (not path.endswith(".tar") or Path(path).is_dir()):
        folder = Path(path.removeprefix("file://").removeprefix("local://"))
        if not folder.is_dir() or (folder / MANIFEST_NAME).is_file():
            return load_manifest(folder)
    wanted: dict[str, list[str]] = {}  # names of each folder; none for all that it holds
    for entry in entries:
        folder, _, name = entry.rpartition("/") if entry.endswith(".tar") else (entry.rstrip("/"), "", "")
        wanted.setdefault(folder or ".", []).extend([name] if name else [])
    return _join([_open_folder(folder, names, cache) for folder, names in wanted.items()])


def _open_folder(url: str, names: list[str], cache: ShardCache) -> Manifest:
    """Some shards of one folder, or all of them, from its manifest or from an index made here."""
    system, path = filesystem(url)
    path = path.rstrip("/")
    remote = url if is_remote(url) else ""
    folder = Path(path) if not remote else Path(PurePosixPath(path).name)
    try:
        stored = parse_manifest(system.cat_file(f"{path}/{MANIFEST_NAME}"), f"{url}/{MANIFEST_NAME}", folder, remote)
    except FileNotFoundError:
        stored = Manifest(folder, (), (), remote)
    except ShardError:
        raise
    except Exception as error:  # every backend has exceptions of its own: no access, no network
        raise ShardError(f"{url}: cannot be opened ({error!r}); check the address and your credentials") from error
    indexed = {shard.name: shard for shard in stored.shards}
    if not names:
        names = list(indexed) or _listing(system, path, url)
    for name in [] if remote else names:  # remote ones are checked when they are fetched
        if name in indexed:
            check_size(folder / name, indexed[name])
    missing = [name for name in names if name not in indexed]
    if missing:
        _LOG.warning("%s: no index of %d shards; reading them all to make one", url, len(missing))
    with ThreadPoolExecutor(_READERS) as pool:
        scans = list(pool.map(lambda name: _scan(system, f"{path}/{name}", f"{url}/{name}", cache), missing))
    indexed |= {info.name: info for info, _ in scans}
    categories = set(stored.categories).union(*(found for _, found in scans))
    return Manifest(folder, tuple(indexed[name] for name in names), tuple(sorted(categories)), remote)


def _listing(system: Any, path: str, url: str) -> list[str]:
    try:
        names = sorted(PurePosixPath(found).name for found in system.ls(path, detail=False))
    except FileNotFoundError:
        names = []
    found = [name for name in names if name.endswith(".tar")]
    if not found:
        raise FileNotFoundError(f"{url}: no {MANIFEST_NAME} and no .tar there, but {names[:5] or 'nothing'}")
    return found


def _scan(system: Any, path: str, url: str, cache: ShardCache) -> tuple[ShardInfo, set[str]]:
    """Index of one shard, kept in the cache folder for the next time: until its size, date or tag changes."""
    try:
        version = system.ukey(path)
        size = system.size(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: no such shard; mend the path or the braces of data.train") from error
    name = hashlib.sha256(f"{url}\n{size}\n{version}\n{_INDEX_VERSION}".encode()).hexdigest()[:32]
    index = cache.folder / "index" / f"{name}.json"
    make_folder(cache.folder, "index")
    with host_lock(index.with_name(f"{index.name}.lock")):
        if index.is_file():
            record = json.loads(index.read_text(encoding="utf-8"))
            return ShardInfo(**record["shard"] | {"offsets": tuple(record["shard"]["offsets"])}), set(
                record["categories"]
            )
        if not is_remote(url):
            info, categories = scan_shard(Path(path))
        elif size is None or size > cache.limit:
            raise ShardError(
                f"{url}: {size} bytes do not fit into data.cache_bytes={cache.limit}, so it cannot be indexed "
                f"here; put a {MANIFEST_NAME} beside it (python -m cloc data check), or raise the limit"
            )
        else:
            info, categories = scan_shard(cache.fetch(url, size))
            info = ShardInfo(**asdict(info) | {"name": PurePosixPath(path).name})
        write_json(index, {"shard": asdict(info), "categories": sorted(categories)}, None)
    return info, categories


def _join(parts: list[Manifest]) -> Manifest:
    """Shards of several folders as one set, named from the folder that they share."""
    if len(parts) == 1:
        return parts[0]
    if len({bool(part.remote) for part in parts}) > 1:
        raise ShardError("a pattern mixes local and remote shards; make them sources of their own in data.train")
    places = [(part.remote or str(part.folder)).split("/") for part in parts]
    shared = len(os.path.commonprefix(places))
    root = "/".join(places[0][:shared])
    shards = [
        ShardInfo(**asdict(shard) | {"name": "/".join([*place[shared:], shard.name])})
        for part, place in zip(parts, places, strict=True)
        for shard in part.shards
    ]
    categories = sorted(set().union(*(part.categories for part in parts)))
    if parts[0].remote:
        return Manifest(Path(places[0][shared - 1]), tuple(shards), tuple(categories), root)
    return Manifest(Path(root or "/"), tuple(shards), tuple(categories))
