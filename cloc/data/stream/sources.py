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
from cloc.data.stream.lanes import DealtOrder
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
                key = f"data.train.{part.name}" if len(self.parts) > 1 else "data.train"
                raise ConfigError(
                    f"data.streams={self.streams}: {key} holds {part.manifest.samples} samples, at "
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
            DealtOrder(shards.column("samples"), shards.column("bytes"), seed, number, self.streams)
            for number, shards in enumerate(part.manifest.shards for part in self.parts)
        ]


def open_sources(config: DataConfig, open_one: Opener = open_shards) -> ShardSources:
    """Open everything that ``data.train`` names.

    Args:
        config: the data's.
        open_one: opens a source by its path.

    Raises:
        ConfigError: ``data.train`` is neither a path nor a mapping of names to ``{path, weight}``, weights are given
            for some sources only, or a source has fewer samples than ``data.streams``.
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
    return ShardSources(tuple(parts), cache, config.streams)


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
