"""Reads any one sample of a folder of shards, on disk or behind URLs.

Stands at the start of ``data → models → losses → evaluation → engine``. A manifest beside plain webdataset tars says
where each sample's bytes are; so the set has a known length, any sample can be read alone, and the order of training
can be a pure function of (seed, pass). Nothing here unpickles or runs what a shard holds.
"""

from __future__ import annotations

import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

from cloc.config.secrets import public
from cloc.contracts import BadSample, Sample
from cloc.data.sample import MAX_MEMBER_BYTES, parse_sample
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.manifest import Manifest, Place, check_opened
from cloc.data.shards.stores import read_range, read_ranges
from cloc.data.shards.tars import ShardError, ShardReadError, read_sample_members
from cloc.files import open_file

MAX_SAMPLE_BYTES = 4 * MAX_MEMBER_BYTES
"""Largest sample, all members together, that is read into memory."""
RETRY_SECONDS = 300.0
"""A remote shard that could not be fetched is not asked for again before."""


class ShardReader:
    """Reads the bytes of any sample. May be pickled into workers: files open where they are read.

    Args:
        manifest: the index.
        max_open: number of local files held open; the one used longest ago closes first.
        cache: for remote shards; those that it does not hold are read by ranges.
    """

    def __init__(self, manifest: Manifest, max_open: int = 128, cache: ShardCache | None = None) -> None:
        self.manifest, self.max_open, self.cache = manifest, max_open, cache or ShardCache()
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()
        self._checked: set[int] = set()
        self._lost: dict[int, tuple[float, str]] = {}
        self._loaded: dict[tuple[int, int], bytes | None] = {}

    def read(self, shard_index: int, sample_index: int) -> bytes:
        """Return the tar bytes of one sample, headers included, as ``read_sample_members`` takes them.

        Raises:
            ShardReadError: the shard is gone, or shorter than its manifest says; or it does not fit its manifest, where
                nobody has looked at it before; or its offsets are not the manifest's.
            BadSample: ``giant_member``: it is too large to be read at all.
        """
        where = self.manifest.location(shard_index)
        start, stop = self.manifest.shards.span(shard_index, sample_index)
        if stop - start > MAX_SAMPLE_BYTES:
            detail = f"sample {sample_index} has {stop - start:,} bytes, the limit is {MAX_SAMPLE_BYTES:,}"
            raise BadSample("giant_member", f"{public(where)}: {detail}")
        if not self.manifest.remote:
            data = os.pread(self._file(shard_index).fileno(), stop - start, start)
        else:
            data = self._loaded.pop((shard_index, sample_index), None) or self._read_remote(
                shard_index, where, start, stop
            )
        if len(data) != stop - start:
            message = f"{where}: sample {sample_index} should span bytes {start} to {stop}, only {len(data)} are there"
            raise ShardReadError(f"{message}; restore the shard, or rebuild the index: python -m cloc data check")
        return data

    def read_members(self, place: Place, *, views: bool = False) -> tuple[str, dict[str, bytes]]:
        """Return the key of a sample and its file contents by extension in lower case.

        Args:
            place: where it is.
            views: the contents are memoryviews of what was read, not copies.

        Raises:
            ShardReadError: as :meth:`read`; or the bytes are no tar members.
            BadSample: as :meth:`read`.
        """
        raw = self.read(*place)
        if views:  # whatever reads a member takes the bytes of a view as bytes; a type for both would be all over data
            return cast(tuple[str, dict[str, bytes]], read_sample_members(memoryview(raw)))
        return read_sample_members(raw)

    def read_sample(
        self, place: Place, source: str | None = None, *, views: bool = False
    ) -> tuple[Sample, Counter[str]]:
        """Return a sample, and what was dropped or mended in it, by reason; see ``parse_sample``.

        Args:
            place: where it is.
            source: name of the data set where the sample names none; that of the folder where None.
            views: as for :meth:`read_members`; the picture is one then.

        Raises:
            ShardReadError: as :meth:`read_members`.
            BadSample: it cannot be used.
        """
        key, members = self.read_members(place, views=views)
        return parse_sample(members, key, self.manifest.folder.name if source is None else source)

    def prefetch(self, shard_index: int) -> None:
        """Bring a remote shard into the cache, where it fits.

        Raises:
            ShardReadError: it cannot be fetched.
        """
        shards = self.manifest.shards
        if self.manifest.remote and self._cached(shard_index):
            self.cache.fetch(self.manifest.location(shard_index), shards.size(shard_index), shards.sha256(shard_index))

    def load(self, places: Iterable[Place]) -> None:
        """Ask for samples (shard, index) of uncached remote shards at once; the next ``read`` of each is answered.

        What fails here is asked for again, alone, when it is read.
        """
        shards = self.manifest.shards
        wanted = [(shard, index) for shard, index in places if self.manifest.remote and not self._cached(shard)]
        shards.bring({shard for shard, _ in wanted})
        spans = [(self.manifest.location(shard), *shards.span(shard, index)) for shard, index in wanted]
        self._loaded = dict(zip(wanted, read_ranges(spans, self.cache.access) if spans else [], strict=True))

    def _cached(self, shard_index: int) -> bool:
        return self.manifest.shards.size(shard_index) <= self.cache.limit

    def close(self) -> None:
        """Close every file; a later ``read`` opens them again."""
        while self._files:
            self._files.popitem()[1].close()

    def _read_remote(self, shard_index: int, url: str, start: int, stop: int) -> bytes:
        until, reason = self._lost.get(shard_index, (0.0, ""))
        if time.monotonic() < until:
            raise ShardReadError(reason)
        shards = self.manifest.shards
        try:
            if not self._cached(shard_index):
                return read_range(url, start, stop, self.cache.access)
            # Opened anew each time: the cache may remove a shard, and an open file would keep its room.
            with self.cache.open(url, shards.size(shard_index), shards.sha256(shard_index)) as file:
                return os.pread(file.fileno(), stop - start, start)
        except ShardReadError as error:
            self._lost[shard_index] = time.monotonic() + RETRY_SECONDS, str(error)
            raise

    def _file(self, shard_index: int) -> BinaryIO:
        if shard_index in self._files:
            self._files.move_to_end(shard_index)
            return self._files[shard_index]
        shards = self.manifest.shards
        path = self.manifest.folder / shards.name(shard_index)
        try:
            file = open_file(path)
        except OSError as error:
            raise ShardReadError(f"{path}: the shard has vanished or cannot be opened ({error}); restore it") from error
        if not (shards.checked(shard_index) or shard_index in self._checked):
            self._check(shard_index, path, file)
        self._files[shard_index] = file
        if len(self._files) > self.max_open:
            self._files.popitem(last=False)[1].close()
        return file

    def _check(self, shard_index: int, path: Path, file: BinaryIO) -> None:
        """Compare a shard with its manifest that another host was to look at when the set was opened."""
        try:
            check_opened(path, file.fileno(), self.manifest.shards[shard_index])
        except ShardError as error:
            file.close()
            raise ShardReadError(str(error)) from error
        self._checked.add(shard_index)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict(), "_lost": {}, "_loaded": {}}
