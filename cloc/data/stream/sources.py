"""Opens what a run trains on: one or several sources, each a folder, a pattern or a URL of shards.

Stands above ``shards/`` at the start of ``data → models → losses → evaluation → engine``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np

from cloc.config import ConfigError, DataConfig, from_fields
from cloc.config.domains import Interval
from cloc.config.secrets import public
from cloc.data.drops import MAX_DROP_SHARE
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.manifest import Manifest
from cloc.data.shards.opening import index_share, open_shards
from cloc.data.shards.patterns import urls_of
from cloc.data.shards.saved_table import FOLDER, load_table, save_table
from cloc.data.shards.stores import Access
from cloc.data.shards.tars import ShardError
from cloc.data.stream.order import GlobalOrder
from cloc.files import make_folder

Opener = Callable[[str, ShardCache], Manifest]
"""Opens a source: (its path, the cache) → its manifest."""


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
    """

    parts: tuple[ShardSource, ...]
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
            GlobalOrder(shards.column("samples"), shards.column("bytes"), seed, source=number)
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
        sizes = [part.manifest.shards.column("bytes") for part in self.parts if part.manifest.remote]
        if sizes:
            remote = np.concatenate(sizes)
            held = int(remote[remote <= self.cache.limit].sum())
            share, often = held / int(remote.sum()), "once" if held <= self.cache.limit else "once a pass"
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
            sizes = part.manifest.shards.column("bytes")
            if part.manifest.remote:  # the window that is read, and the next one, which is fetched meanwhile
                needed += min(int(sizes[sizes <= self.cache.limit].sum()), 2 * order.window_bytes)
        if needed > self.cache.limit:
            raise ConfigError(
                f"data.cache_bytes={self.cache.limit:,}: {needed:,} bytes of shards are read at a time, so they would "
                "be fetched again and again; give at least that, or 0 to ask for each sample by itself"
            )


def open_sources(config: DataConfig, open_one: Opener = open_shards) -> ShardSources:
    """Open everything that ``data.train`` names.

    Args:
        config: the data's.
        open_one: opens a source by its path.

    Raises:
        ConfigError: ``data.train`` is neither a path nor a mapping of names to ``{path, weight}``, or weights are given
            for some sources only.
        FileNotFoundError: there is no shard.
        ShardError: shards cannot be used, or a URL cannot be opened.
    """
    cache, given = cache_of(config), _given(config)
    parts = []
    for name, source in given.items():
        manifest = open_one(source["path"], cache)
        if not manifest.samples:
            raise ShardError(f"data.train.{name}: {source['path']} holds no sample; name other shards, or leave it out")
        parts.append(ShardSource(name, manifest, source.get("weight") or manifest.samples))
    return ShardSources(tuple(parts), cache)


def index_sources(config: DataConfig, share: tuple[int, int]) -> None:
    """Index a share of the shards that have no manifest; see :func:`cloc.data.shards.opening.index_share`."""
    for source in _given(config).values():
        index_share(source["path"], cache_of(config), share)


def save_sources(config: DataConfig, data: ShardSources) -> list[list[str]]:
    """Write what is known of opened sources for other processes of this host.

    Returns:
        For each source its path, without credentials, and a file: in the folder of the cache or, where that cannot be
        written, of temporary files.
    """
    paths = [source["path"] for source in _given(config).values()]

    def write(folder: Path) -> list[list[str]]:
        saved = (save_table(part.manifest, folder, urls_of(path)) for part, path in zip(data.parts, paths, strict=True))
        return [[public(path), str(file.absolute())] for path, file in zip(paths, saved, strict=True)]

    try:
        return write(data.cache.folder / FOLDER)
    except OSError:  # local shards need no cache, and its folder may be anywhere
        return write(make_folder(Path(gettempdir()), f"cloc-{os.getuid()}", private=True))


def load_sources(config: DataConfig, saved: Sequence[Sequence[str]]) -> ShardSources:
    """Open the sources of a configuration by what :func:`save_sources` has returned and written.

    Raises:
        ShardError: it is of other sources, or a file cannot be used.
    """
    given, theirs = [public(source["path"]) for source in _given(config).values()], [path for path, _ in saved]
    if given != theirs:
        raise ShardError(f"it is of {', '.join(theirs)}; this process names {', '.join(given)}")
    files = iter(saved)
    return open_sources(config, lambda path, cache: load_table(Path(next(files)[1]), urls_of(path), cache)[0])


def cache_of(config: DataConfig) -> ShardCache:
    """The cache of remote shards that a configuration describes."""
    return ShardCache(config.cache_dir, config.cache_bytes, from_fields(Access, config))


def _given(config: DataConfig) -> Mapping[str, Mapping[str, Any]]:
    """Path and weight of each source; errors as :func:`open_sources`."""
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
    return given
