"""Describes a folder of shards, and reads the files that hold the description: ``manifest.json``, ``manifest.offsets``.

Stands between ``shard_table`` and ``index`` at the start of ``data → models → losses → evaluation → engine``. Manifests
come with the data of others: all of one is looked at before it is used, its offsets when a shard is.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np

from cloc.data.json_values import parse_json, shown
from cloc.data.shards.offsets import OFFSETS_NAME, MappedOffsets, Offsets, digest_of
from cloc.data.shards.shard_table import RECORD, ShardTable, hashes
from cloc.data.shards.stores import join_url
from cloc.data.shards.tar_headers import BLOCK
from cloc.data.shards.tars import MAX_COUNT, MAX_NAME, ShardError, ShardInfo, check_hash, check_name, missed_by
from cloc.files import open_file, read_file

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 2

Place = tuple[int, int]
"""Where a sample is: the number of its shard in the manifest, and its index in that shard."""

OpenOffsets = Callable[[int, int], Offsets]
"""Opens the file of offsets beside a manifest: (how many numbers, digest of the manifest) → what holds them."""

_COUNTS = ("samples", "regions", "crowds", "dropped", "bytes", "offsets_crc32")
_KEYS = ("name", "samples", "regions", "crowds", "dropped", "bytes", "sha256", "offsets_crc32")
_KEY_SET = set(_KEYS)
_HEX = re.compile("[0-9a-f]*")


@dataclass(frozen=True, slots=True)
class Manifest:
    """An indexed folder of shards.

    Attributes:
        folder: where the shards are; for remote ones only the name is of use.
        shards: in order of name; any sequence of ``ShardInfo`` may be given.
        categories: sorted distinct region categories.
        remote: URL of the folder; empty for a local one.
    """

    folder: Path
    shards: ShardTable
    categories: tuple[str, ...]
    remote: str = ""

    def __post_init__(self) -> None:
        given = cast(Sequence[ShardInfo], self.shards)
        object.__setattr__(self, "shards", ShardTable.of(given, str(self.folder)))

    @classmethod
    def of(cls, folder: Path, shards: Sequence[ShardInfo], categories: Sequence[str]) -> Manifest:
        """The manifest of local shards that are known one by one, with all their offsets."""
        return cls(folder, ShardTable.of(shards, str(folder)), tuple(categories))

    @property
    def samples(self) -> int:
        """Number of samples in all shards."""
        return self.shards.total("samples")

    @property
    def regions(self) -> int:
        """Number of usable regions in all shards, without groups."""
        return self.shards.total("regions")

    @property
    def crowds(self) -> int:
        """Number of usable groups in all shards."""
        return self.shards.total("crowds")

    @property
    def dropped(self) -> int:
        """Number of regions in all shards that cannot be used."""
        return self.shards.total("dropped")

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return self.shards.total("bytes")

    def location(self, shard_index: int) -> str:
        """Path or URL of one shard, with the credentials that open it."""
        return join_url(self.remote or str(self.folder), self.shards.name(shard_index))

    def places(self) -> list[Place]:
        """Where each sample is, in their stored order: a list of the whole set, for sets that are read as a whole."""
        samples = self.shards.column("samples").tolist()
        return [(shard, index) for shard, count in enumerate(samples) for index in range(count)]

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change with any byte of any shard, or their order."""
        return hashlib.sha256("\n".join(self.shards.hashes()).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return what ``manifest.json`` holds."""
        table = self.shards
        columns = [table.column(name).tolist() for name in ("samples", "regions", "crowds", "dropped", "bytes")]
        rows = zip(table.names(), *columns, table.hashes(), table.records["crc"].tolist(), strict=True)
        shards = [dict(zip(_KEYS, row, strict=True)) for row in rows]
        return {"version": MANIFEST_VERSION, "categories": list(self.categories), "shards": shards}


def parse_manifest(
    text: str | bytes, where: str, folder: Path, remote: str = "", offsets: OpenOffsets | None = None
) -> Manifest:
    """Read the text of a ``manifest.json``, and open the offsets beside it where they do not stand in it (version 1).

    Args:
        text: of the file.
        where: its path or URL.
        folder: of the shards.
        remote: URL of the folder, if it is one.
        offsets: opens the file of offsets; the one in ``folder`` where None.

    Raises:
        ShardError: it is damaged, of another version, or names a shard outside of its folder or twice; its offsets are
            another manifest's, of another byte order or version, or cut off.
    """
    opened = offsets or partial(MappedOffsets.opened, folder / OFFSETS_NAME)
    try:
        record = parse_json(text)
        categories, items = _parts(record)
        if record["version"] == 1:
            table = ShardTable.of([ShardInfo.from_json(item) for item in items], where)
            table.records["checked"] = False
        else:
            table = _table(items, opened)
        names = table.names()
        if len(set(names)) < len(names):
            raise ValueError(f"it names the shard {Counter(names).most_common(1)[0][0]} twice")
        return Manifest(folder, table, categories, remote)
    except ShardError:  # of the file of offsets, which says where
        raise
    except (ValueError, RecursionError) as error:
        remedy = f"rebuild it: delete {where}, then python -m cloc data check {remote or folder}"
        raise ShardError(f"{where}: not a manifest: {error}; {remedy}") from error


def _parts(record: Any) -> tuple[tuple[str, ...], list[Any]]:
    """Categories and shards of a manifest of either version."""
    if not isinstance(record, dict) or not record.keys() >= {"version", "shards", "categories"}:
        raise ValueError(f"an object with version, shards and categories is needed, not {shown(record)}")
    if type(record["version"]) is not int or record["version"] not in (1, MANIFEST_VERSION):
        raise ValueError(f"version {shown(record['version'])}, this program reads 1 and {MANIFEST_VERSION}")
    items, categories = record["shards"], record["categories"]
    if not isinstance(items, list) or not isinstance(categories, list):
        raise ValueError(f"shards are {shown(items)}, categories {shown(categories)}; both are lists")
    if not all(isinstance(name, str) for name in categories):
        raise ValueError(f"categories are {shown(categories)}; they are texts")
    return tuple(categories), items


def _table(items: list[Any], opened: OpenOffsets) -> ShardTable:
    """The shards of a manifest of version 2, column by column: there may be hundreds of thousands."""
    for item in items:
        if not isinstance(item, dict) or item.keys() != _KEY_SET:
            raise ValueError(f"a shard is {shown(item)}; it has {', '.join(_KEYS)}")
    records = np.zeros(len(items), RECORD)
    names, sha256 = ([item[key] for item in items] for key in ("name", "sha256"))
    if not (_are_names(names) and _are_hashes(sha256)):
        for item in items:  # one of them says what is wrong
            check_name(item["name"])
            check_hash(item["name"], item["sha256"])
    for key in _COUNTS:
        column = [item[key] for item in items]
        limit = 2**32 if key == "offsets_crc32" else MAX_COUNT
        if set(map(type, column)) - {int} or column and not 0 <= min(column) <= max(column) < limit:
            wrong = next(one for one in items if type(one[key]) is not int or not 0 <= one[key] < limit)
            raise ValueError(f"{key} of {wrong['name']} is no whole number: {shown(wrong[key])}")
        if sum(column) >= MAX_COUNT:
            raise ValueError(f"{key} of all shards are {sum(column)}, more than there can be")
        records["crc" if key == "offsets_crc32" else key] = column
    crowded = np.flatnonzero(records["samples"] > records["bytes"] // BLOCK)
    if len(crowded):  # memory is taken for as many as it says
        wrong = items[int(crowded[0])]
        raise ValueError(f"{wrong['name']} has {wrong['samples']:,} samples, too many for {wrong['bytes']:,} bytes")
    count = records["samples"] + 1
    records["first"] = np.cumsum(count) - count
    encoded = [name.encode() for name in names]
    records["name_end"] = list(accumulate(map(len, encoded)))
    records["sha256"] = hashes(sha256)
    store = opened(int(count.sum()), digest_of(records["samples"], records["crc"]))
    return ShardTable(records, b"".join(encoded), [store])


def _are_names(names: list[Any]) -> bool:
    """Whether :func:`check_name` takes all of them, told at once; False leaves it open."""
    if set(map(type, names)) - {str} or {"", ".", ".."} & set(names):
        return False
    text = "".join(names)
    return text.isascii() and text.isprintable() and "/" not in text and max(map(len, names), default=0) <= MAX_NAME


def _are_hashes(texts: list[Any]) -> bool:
    """Whether :func:`check_hash` takes all of them, told at once."""
    return (
        not set(map(type, texts)) - {str}
        and not set(map(len, texts)) - {0, 64}
        and _HEX.fullmatch("".join(texts)) is not None
    )


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
    try:
        file = open_file(path)
    except OSError as error:
        if not path.is_file():
            remedy = f"restore it, or {remedy_for(path.parent)}"
            raise ShardError(f"{path}: the manifest names this shard, but it is not there; {remedy}") from error
        raise ShardError(f"{path}: cannot be opened ({error.strerror}); mend its rights") from error
    with file:
        check_opened(path, file.fileno(), shard)


def check_opened(path: Path, descriptor: int, shard: ShardInfo) -> None:
    """As :func:`check_file`, of one that is open."""
    size, remedy = os.fstat(descriptor).st_size, remedy_for(path.parent)
    if size != shard.bytes:
        seen = f"{size:,} bytes, its manifest says {shard.bytes:,}"
        raise ShardError(f"{path}: the shard has {seen}; restore it, or {remedy}")
    missed = missed_by(shard, lambda start, count: os.pread(descriptor, count, start), size)
    if missed:
        raise ShardError(f"{path}: its manifest does not fit: {missed}; {remedy}")


def remedy_for(folder: Path) -> str:
    """What to do about a manifest that does not fit its folder."""
    return f"rebuild {folder / MANIFEST_NAME}: delete it, then python -m cloc data check {folder}"
