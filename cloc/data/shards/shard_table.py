"""What is known of the shards of a set, as columns: 96 bytes and a name a shard, whatever they hold.

Stands between ``offsets`` and ``manifest`` at the start of ``data → models → losses → evaluation → engine``. A table is
a sequence of ``ShardInfo``, which are made when they are asked for; what goes over all shards takes the columns.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, overload

import numpy as np

from cloc.data.shards.offsets import REMEDY, HeldOffsets, Offsets, RemoteOffsets
from cloc.data.shards.retries import Access
from cloc.data.shards.tars import ShardError, ShardInfo, ShardReadError

RECORD = np.dtype(
    [
        ("samples", "<i8"),
        ("bytes", "<i8"),
        ("regions", "<i8"),
        ("crowds", "<i8"),
        ("dropped", "<i8"),
        ("first", "<i8"),  # number of its first offset among those of its store
        ("name_end", "<i8"),  # where its name ends among the names of all
        ("crc", "<u4"),  # of its offsets
        ("store", "<u2"),
        ("checked", "?"),  # its file was compared with this
        ("spare", "u1"),
        ("sha256", "u1", (32,)),  # zeros where it is not known
    ]
)
_SAME = ("samples", "bytes", "regions", "crowds", "dropped", "crc", "sha256")
_UNKNOWN = "00" * 32
MOST_STORES = np.iinfo(np.uint16).max
"""Files of offsets, or sets of shards without one, that a table is of."""


class ShardTable(Sequence[ShardInfo]):
    """Shards in the order of their manifest.

    Args:
        records: ``[shards]`` of ``RECORD``.
        names: UTF-8 of all names, one behind the other.
        stores: what holds the offsets; ``records["store"]`` counts them.
        again: what makes this table once more in another process, from a file that both can map: a function and its
            first arguments, to which ``stores`` is added. Without it the columns themselves are sent.
    """

    def __init__(
        self,
        records: np.ndarray,
        names: bytes | memoryview,
        stores: Sequence[Offsets],
        again: tuple[Callable[..., ShardTable], tuple[Any, ...]] | None = None,
    ) -> None:
        self.records, self.name_bytes, self.stores, self.again = records, names, tuple(stores), again
        self._columns = {name: records[name] for name in RECORD.names or ()}
        self._sound = bytearray(len(records))  # whose offsets were compared with their checksum

    @classmethod
    def of(cls, shards: Iterable[ShardInfo], where: str = "") -> ShardTable:
        """The table of shards that are known one by one, with all their offsets; ``where`` they are from."""
        if isinstance(shards, ShardTable):
            return shards
        infos = list(shards)
        arrays = [np.asarray(info.offsets, np.uint64) for info in infos]
        records, names = _empty(len(infos)), [info.name.encode() for info in infos]
        for name in ("samples", "bytes", "regions", "crowds", "dropped"):
            records[name] = [getattr(info, name) for info in infos]
        records["name_end"] = list(accumulate(map(len, names)))
        records["first"] = list(accumulate(map(len, arrays), initial=0))[:-1]
        records["crc"] = [zlib.crc32(numbers.tobytes()) for numbers in arrays]
        records["checked"] = True
        records["sha256"] = hashes([info.sha256 for info in infos])
        flat = np.concatenate(arrays) if arrays else np.empty(0, np.uint64)
        return cls(records, b"".join(names), [HeldOffsets(flat, where)])

    @classmethod
    def joined(cls, parts: Sequence[tuple[ShardTable, str]]) -> ShardTable:
        """Several tables as one, each with what stands before its names.

        Raises:
            ShardError: they are too many.
        """
        parts = [part for part in parts if len(part[0])] or parts[:1]
        if len(parts) == 1 and not parts[0][1]:
            return parts[0][0]
        count = sum(len(table.stores) for table, _ in parts)
        if count > MOST_STORES:
            told = f"{count:,} indexes in one pattern, {MOST_STORES:,} at most"
            raise ShardError(f"{told}; make them several sources in data.train, or larger folders")
        records = np.concatenate([table.records for table, _ in parts])
        names = [f"{before}{name}".encode() for table, before in parts for name in table.names()]
        stores: list[Offsets] = []
        position = 0
        for table, _ in parts:
            records["store"][position : position + len(table)] += len(stores)
            position += len(table)
            stores += table.stores
        records["name_end"] = list(accumulate(map(len, names)))
        return cls(records, b"".join(names), stores)

    def take(self, numbers: Sequence[int]) -> ShardTable:
        """Some of the shards, in the order of their numbers here."""
        names = [self.name(number).encode() for number in numbers]
        records = self.records[np.asarray(numbers, np.int64)]
        records["name_end"] = list(accumulate(map(len, names)))
        return ShardTable(records, b"".join(names), self.stores)

    def column(self, name: str) -> np.ndarray:
        """``[shards]`` int64: ``samples``, ``bytes``, ``regions``, ``crowds`` or ``dropped`` of each shard."""
        return np.asarray(self._columns[name], np.int64)

    def total(self, name: str) -> int:
        """The sum of a column."""
        return int(self._columns[name].sum())

    def name(self, number: int) -> str:
        """File name of a shard."""
        ends = self._columns["name_end"]
        return str(self.name_bytes[int(ends[number - 1]) if number else 0 : int(ends[number])], "utf-8")

    def names(self) -> list[str]:
        """File names of all shards."""
        ends, names = self._columns["name_end"].tolist(), self.name_bytes
        return [str(names[start:end], "utf-8") for start, end in zip([0, *ends], ends, strict=False)]

    def size(self, number: int) -> int:
        """Bytes of a shard's file."""
        return int(self._columns["bytes"][number])

    def sha256(self, number: int) -> str:
        """Hash of a shard's file in hex digits; empty where it is not known."""
        found = self._columns["sha256"][number].tobytes().hex()
        return "" if found == _UNKNOWN else found

    def hashes(self) -> Iterator[str]:
        """Hashes of all shards, as :meth:`sha256`."""
        text = self._columns["sha256"].tobytes().hex()
        every = (text[start : start + 64] for start in range(0, len(text), 64))
        return ("" if one == _UNKNOWN else one for one in every)

    def checked(self, number: int) -> bool:
        """Whether the shard's file was compared with what is known of it when the set was opened."""
        return bool(self._columns["checked"][number])

    def offsets(self, number: int, access: Access | None = None) -> np.ndarray:
        """``[samples + 1]`` uint64: where each sample of a shard starts, and where the last one ends.

        The first time a process asks for those of a shard, they are checked. ``access`` is as for
        :meth:`cloc.data.shards.offsets.Offsets.read`.

        Raises:
            ShardReadError: they cannot be had, or are not those that the manifest means.
        """
        columns = self._columns
        store = self.stores[columns["store"][number]]
        first, count, crc = self._place(number)
        found: np.ndarray = store.read(first, count, crc, access)
        if not self._sound[number] or len(found) != count:
            self._check(number, found, crc, store.where)
            self._sound[number] = 1
        return found

    def span(self, number: int, index: int, access: Access | None = None) -> tuple[int, int]:
        """Where a sample of a shard starts and ends, in bytes; ``access`` as for :meth:`offsets`.

        Raises:
            ShardReadError: as :meth:`offsets`.
            IndexError: the shard has no such sample.
        """
        found = self.offsets(number, access)
        if not 0 <= index < len(found) - 1:
            raise IndexError(f"shard {number} has {len(found) - 1} samples, there is no sample {index}")
        return int(found[index]), int(found[index + 1])

    def bring(self, numbers: Iterable[int]) -> None:
        """Ask for the offsets of some shards at once, where each would be a request; errors come when they are read."""
        wanted: dict[int, list[tuple[int, int, int]]] = {}
        for number in numbers:
            if isinstance(self.stores[self._columns["store"][number]], RemoteOffsets):
                wanted.setdefault(int(self._columns["store"][number]), []).append(self._place(number))
        for store, places in wanted.items():
            remote = self.stores[store]
            if isinstance(remote, RemoteOffsets):
                remote.bring(places)

    def _place(self, number: int) -> tuple[int, int, int]:
        """First offset of a shard in its store, how many there are, and their checksum."""
        columns = self._columns
        return int(columns["first"][number]), int(columns["samples"][number]) + 1, int(columns["crc"][number])

    def _check(self, number: int, found: np.ndarray, crc: int, where: str) -> None:
        samples = int(self._columns["samples"][number])
        wrong = ""
        if len(found) != samples + 1 or zlib.crc32(found.tobytes()) != crc:
            wrong = "are not those of its manifest (CRC-32)"
        elif (found[1:] < found[:-1]).any() or int(found[-1]) > self.size(number):
            wrong = f"do not ascend within its {self.size(number):,} bytes"
        if wrong:
            shard = self.name(number)
            raise ShardReadError(f"{where or shard}: the offsets of {shard} {wrong}; {REMEDY}")

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, key: int) -> ShardInfo: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[ShardInfo, ...]: ...
    def __getitem__(self, key: int | slice) -> ShardInfo | tuple[ShardInfo, ...]:
        if isinstance(key, slice):
            return tuple(self[number] for number in range(*key.indices(len(self))))
        number = range(len(self))[operator.index(key)]
        row = self.records[number]
        samples, regions, size = int(row["samples"]), int(row["regions"]), int(row["bytes"])
        offsets, crowds, dropped = _OffsetsOfShard(self, number), int(row["crowds"]), int(row["dropped"])
        return ShardInfo(self.name(number), samples, regions, size, self.sha256(number), offsets, crowds, dropped)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ShardTable):
            return self.names() == other.names() and all(
                np.array_equal(self._columns[name], other._columns[name]) for name in _SAME
            )
        return isinstance(other, Sequence) and len(other) == len(self) and all(map(operator.eq, self, other))

    def __repr__(self) -> str:
        return f"ShardTable({len(self):,} shards, {self.total('samples'):,} samples)"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.again is not None:
            function, arguments = self.again
            return function, (*arguments, self.stores)
        return ShardTable, (self.records, bytes(self.name_bytes), self.stores)


class _OffsetsOfShard(Sequence[int]):
    """The offsets of a shard as integers, read when they are asked for; a tuple once it is pickled or copied."""

    def __init__(self, table: ShardTable, number: int) -> None:
        self._table, self._number = table, number

    def _all(self) -> tuple[int, ...]:
        return tuple(self._table.offsets(self._number).tolist())

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[int, ...]: ...
    def __getitem__(self, key: int | slice) -> int | tuple[int, ...]:
        found = self._table.offsets(self._number)[key]
        return tuple(found.tolist()) if isinstance(key, slice) else int(found)

    def __len__(self) -> int:
        return len(self._table.offsets(self._number))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (self._all(),)


def _empty(count: int) -> np.ndarray:
    return np.zeros(count, RECORD)


def hashes(texts: Sequence[str]) -> np.ndarray:
    """``[shards, 32]`` uint8 of hashes in hex digits; zeros for an empty one."""
    return np.frombuffer(bytes.fromhex("".join(text or _UNKNOWN for text in texts)), np.uint8).reshape(-1, 32)
