"""Describes a folder of shards, and reads the file that holds the description: ``manifest.json``.

Stands between ``tars`` and ``index`` at the start of ``data → models → losses → evaluation → engine``. Manifests come
with the data of others: all of one is looked at before it is used.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloc.data.json_values import parse_json, shown
from cloc.data.shards.stores import join_url
from cloc.data.shards.tars import ShardError, ShardInfo, missed_by, open_tar
from cloc.files import read_file

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1

Place = tuple[int, int]
"""Where a sample is: the number of its shard in the manifest, and its index in that shard."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """An indexed folder of shards.

    Attributes:
        folder: where the shards are; for remote ones only the name is of use.
        shards: in order of name.
        categories: sorted distinct region categories.
        remote: URL of the folder; empty for a local one.
    """

    folder: Path
    shards: tuple[ShardInfo, ...]
    categories: tuple[str, ...]
    remote: str = ""

    @property
    def samples(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def regions(self) -> int:
        """Number of usable regions in all shards, without groups."""
        return sum(shard.regions for shard in self.shards)

    @property
    def crowds(self) -> int:
        """Number of usable groups in all shards."""
        return sum(shard.crowds for shard in self.shards)

    @property
    def dropped(self) -> int:
        """Number of regions in all shards that cannot be used."""
        return sum(shard.dropped for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def location(self, shard_index: int) -> str:
        """Path or URL of one shard, with the credentials that open it."""
        return join_url(self.remote or str(self.folder), self.shards[shard_index].name)

    def places(self) -> list[Place]:
        """Where each sample is, in their stored order."""
        return [(shard, index) for shard, info in enumerate(self.shards) for index in range(info.samples)]

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change with any byte of any shard, or their order."""
        return hashlib.sha256("\n".join(shard.sha256 for shard in self.shards).encode()).hexdigest()[:16]


def parse_manifest(text: str | bytes, where: str, folder: Path, remote: str = "") -> Manifest:
    """Read the text of a ``manifest.json``; ``where`` is its path or URL.

    Raises:
        ShardError: it is damaged, of another version, or names a shard outside of its folder or twice.
    """
    try:
        return Manifest(folder, *_parse_manifest(parse_json(text)), remote)
    except (ValueError, RecursionError) as error:
        remedy = f"rebuild it: delete {where}, then python -m cloc data check {remote or folder}"
        raise ShardError(f"{where}: not a manifest: {error}; {remedy}") from error


def _parse_manifest(record: Any) -> tuple[tuple[ShardInfo, ...], tuple[str, ...]]:
    if not isinstance(record, dict) or not record.keys() >= {"version", "shards", "categories"}:
        raise ValueError(f"an object with version, shards and categories is needed, not {shown(record)}")
    if type(record["version"]) is not int or record["version"] != MANIFEST_VERSION:
        raise ValueError(f"version {shown(record['version'])}, this program reads {MANIFEST_VERSION}")
    items, categories = record["shards"], record["categories"]
    if not isinstance(items, list) or not isinstance(categories, list):
        raise ValueError(f"shards are {shown(items)}, categories {shown(categories)}; both are lists")
    if not all(isinstance(name, str) for name in categories):
        raise ValueError(f"categories are {shown(categories)}; they are texts")
    shards = tuple(map(ShardInfo.from_json, items))
    twice = [name for name, count in Counter(shard.name for shard in shards).items() if count > 1]
    if twice:
        raise ValueError(f"it names the shard {twice[0]} twice")
    return shards, tuple(categories)


def read_manifest_text(path: Path) -> bytes:
    """Return the bytes of a ``manifest.json``.

    Raises:
        ShardError: it cannot be read, or is a folder, a pipe or a device.
    """
    try:
        return read_file(path)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}); remove it, or mend its rights") from error


def check_file(path: Path, shard: ShardInfo) -> None:
    """Compare a local shard with what its manifest says of it.

    Raises:
        ShardError: it is not there, of another size, or holds samples before the first or behind the last offset.
    """
    remedy = remedy_for(path.parent)
    if not path.is_file():
        raise ShardError(f"{path}: the manifest names this shard, but it is not there; restore it, or {remedy}")
    try:
        file, read, size = open_tar(path)
    except OSError as error:
        raise ShardError(f"{path}: cannot be opened ({error.strerror}); mend its rights") from error
    with file:
        if size != shard.bytes:
            seen = f"{size:,} bytes, its manifest says {shard.bytes:,}"
            raise ShardError(f"{path}: the shard has {seen}; restore it, or {remedy}")
        missed = missed_by(shard, read, size)
    if missed:
        raise ShardError(f"{path}: its manifest does not fit: {missed}; {remedy}")


def remedy_for(folder: Path) -> str:
    """What to do about a manifest that does not fit its folder."""
    return f"rebuild {folder / MANIFEST_NAME}: delete it, then python -m cloc data check {folder}"
