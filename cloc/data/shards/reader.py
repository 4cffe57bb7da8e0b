"""Reads any one sample of a folder of shards, on disk or behind URLs.

Stands at the start of ``data → models → losses → evaluation → engine``. A manifest beside plain webdataset tars says
where each sample's bytes are; so the set has a known length, any sample can be read alone, and the order of training
can be a pure function of (seed, pass). Nothing here unpickles or runs what a shard holds.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from cloc.config.secrets import public
from cloc.contracts import BadSample, Sample
from cloc.data.sample import MAX_MEMBER_BYTES, parse_sample
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest, Place, check_opened
from cloc.data.shards.retries import Access, StoreSilentError, UnansweredError, VanishedError, store_of
from cloc.data.shards.stores import join_url, lives, read_range, read_ranges
from cloc.data.shards.tars import ShardError, ShardReadError, read_sample_members
from cloc.files import open_file

T = TypeVar("T")
MAX_SAMPLE_BYTES = 4 * MAX_MEMBER_BYTES
"""Largest sample, all members together, that is read into memory."""
FAILURES = 3
"""A shard is given up after so many failures in a row, each a round of retries; one that has vanished at once."""
FIRST_PAUSE, LONGEST_PAUSE = 60.0, 3600.0
"""Seconds before a shard that was given up is asked for again, once; they double up to the longer one."""


@dataclass(slots=True)
class _Failures:
    """Of one shard, in a row: how many, and when it is asked for again."""

    count: int = 0
    until: float = 0.0
    pause: float = FIRST_PAUSE
    reason: str = ""

    @property
    def given_up(self) -> bool:
        return self.count >= FAILURES


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
        self._failures: dict[int, _Failures] = {}
        self._returned: list[int] = []
        self._loaded: dict[Place, bytes | ShardReadError] = {}

    def read(self, shard_index: int, sample_index: int) -> bytes:
        """Return the tar bytes of one sample, headers included, as ``read_sample_members`` takes them.

        Raises:
            ShardReadError: the shard is gone, or shorter than its manifest says; or it does not fit its manifest, where
                nobody has looked at it before; or its offsets are not the manifest's.
            StoreSilentError: nothing of its store has answered for ``data.retry_seconds``.
            CacheError: the cache's disk is full or cannot be written.
            BadSample: ``giant_member``: it is too large to be read at all.
        """
        where, place = self.manifest.location(shard_index), (shard_index, sample_index)
        start, stop, data = self._counted(shard_index, lambda access: self._read(place, where, access))
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
        if self.manifest.remote and self._cached(shard_index):
            self._counted(shard_index, lambda access: self._fetch(shard_index, access)).close()

    def load(self, places: Iterable[Place]) -> None:
        """Ask for samples (shard, index) of uncached remote shards at once; the next ``read`` of each is answered.

        Where the offsets of a shard cannot be had, its samples are asked for where they are read.
        """
        asked = [place for place in places if self._asked_by_range(place[0])] if self.manifest.remote else []
        shards, wanted, spans = self.manifest.shards, [], []
        shards.bring({shard for shard, _ in asked})
        for shard, index in asked:
            with contextlib.suppress(ShardReadError):
                start, stop = shards.span(shard, index, self.cache.access.within(0.0))
                if stop - start <= MAX_SAMPLE_BYTES:
                    wanted.append((shard, index))
                    spans.append((self.manifest.location(shard), start, stop))
        self._loaded = dict(zip(wanted, read_ranges(spans, self.cache.access) if spans else [], strict=True))

    def given_up(self, shard_index: int) -> bool:
        """Whether a shard that has just failed counts as lost; one that failed once or twice is asked for again."""
        failures = self._failures.get(shard_index)
        return failures is None or failures.given_up  # what was read, and is wrong, is not counted here

    def take_returned(self) -> list[int]:
        """Shards that had been given up and were read again since the last call."""
        found, self._returned = self._returned, []
        return found

    def _cached(self, shard_index: int) -> bool:
        return self.manifest.shards.size(shard_index) <= self.cache.limit

    def close(self) -> None:
        """Close every file; a later ``read`` opens them again."""
        while self._files:
            self._files.popitem()[1].close()

    def _counted(self, shard_index: int, read: Callable[[Access], T]) -> T:
        """Read of a shard, and count its failures in a row: rounds halve, and are one attempt once it is given up."""
        failures, access = self._failures.get(shard_index), self.cache.access
        before = failures.count if failures is not None else 0
        if failures is not None and failures.given_up and time.monotonic() < failures.until:
            raise ShardReadError(failures.reason)
        if failures is not None:
            access = replace(
                access, retry_seconds=0.0 if failures.given_up else access.retry_seconds / 2**failures.count
            )
        try:
            found = read(access)
        except OSError as error:
            self._fail(shard_index, error, before)
            raise
        if failures is not None and self._failures.pop(shard_index, failures).given_up:
            self._returned.append(shard_index)
        return found

    def _fail(self, shard_index: int, error: OSError, before: int) -> None:
        """Count a failure of a shard that had so many before it was read."""
        url, access = self.manifest.location(shard_index), self.cache.access
        failures = self._failures.setdefault(shard_index, _Failures())
        if isinstance(error, UnansweredError) and not failures.given_up:
            if not lives(join_url(self.manifest.remote, MANIFEST_NAME), access):
                raise StoreSilentError(
                    f"{store_of(url)} answers nothing, although it was asked for {access.retry_seconds:.0f} s "
                    f"(data.retry_seconds); run again when it does: no sample is lost; last: {error}"
                ) from error
        lost = failures.given_up
        if failures.count > before:  # a thread that fetches ahead has waited for it meanwhile
            return
        at_once = not self.manifest.remote or isinstance(error, VanishedError)
        failures.count = FAILURES if at_once else failures.count + 1
        failures.reason = str(error)
        if self.manifest.remote:
            failures.pause = min(2 * failures.pause, LONGEST_PAUSE) if lost else FIRST_PAUSE
            failures.until = time.monotonic() + failures.pause

    def _read(self, place: Place, where: str, access: Access) -> tuple[int, int, bytes]:
        """Where a sample begins and ends, and its bytes: all that may ask a store."""
        start, stop = self.manifest.shards.span(*place, access)
        if stop - start > MAX_SAMPLE_BYTES:
            detail = f"sample {place[1]} has {stop - start:,} bytes, the limit is {MAX_SAMPLE_BYTES:,}"
            raise BadSample("giant_member", f"{public(where)}: {detail}")
        if not self.manifest.remote:
            return start, stop, self._read_local(place[0], start, stop)
        if place in self._loaded:
            return start, stop, self._take_loaded(place)
        return start, stop, self._read_remote(place[0], start, stop, access)

    def _asked_by_range(self, shard_index: int) -> bool:
        """Whether samples of a shard are asked for ahead; not of one that was given up, which is asked for once."""
        failures = self._failures.get(shard_index)
        return not self._cached(shard_index) and (failures is None or not failures.given_up)

    def _take_loaded(self, place: Place) -> bytes:
        found = self._loaded.pop(place)
        if isinstance(found, ShardReadError):
            raise found
        return found

    def _read_local(self, shard_index: int, start: int, stop: int) -> bytes:
        try:
            return os.pread(self._file(shard_index).fileno(), stop - start, start)
        except OSError:
            if shard_index in self._files:  # of a network disk that was away: the open file would stay stale
                self._files.pop(shard_index).close()
            raise

    def _read_remote(self, shard_index: int, start: int, stop: int, access: Access) -> bytes:
        if not self._cached(shard_index):
            return read_range(self.manifest.location(shard_index), start, stop, access)
        # Opened anew each time: the cache may remove a shard, and an open file would keep its room.
        with self._fetch(shard_index, access) as file:
            return os.pread(file.fileno(), stop - start, start)

    def _fetch(self, shard_index: int, access: Access) -> BinaryIO:
        shards = self.manifest.shards
        size, digest = shards.size(shard_index), shards.sha256(shard_index)
        return self.cache.open(self.manifest.location(shard_index), size, digest, access)

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
        return self.__dict__ | {"_files": OrderedDict(), "_failures": {}, "_returned": [], "_loaded": {}}
