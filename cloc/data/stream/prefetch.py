"""Fetches the shards that a reader will need, by a few threads (beside ``batches``)."""

from __future__ import annotations

import contextlib
import heapq
import os
import threading
from collections.abc import Sequence
from typing import Any

from cloc.data.shards.reader import ShardReader

FETCHING = "fetching ahead"
"""Name of the threads that do."""
FETCHERS = 4
"""Threads of a source in one reading process at most."""


class Prefetcher:
    """Shards that are wanted soon: those of present windows first, of all lanes, then those of the next ones.

    May be pickled or forked into workers, where it begins with nothing.

    Args:
        reader: fetches them.
        lanes: of the source; one is fetched for by one thread, many by a few.
    """

    def __init__(self, reader: ShardReader, lanes: int = 1) -> None:
        self.reader, self.lanes = reader, lanes
        self._wanted: list[tuple[int, int, int]] = []  # urgency, number in the order of wishes, shard
        self._threads: set[threading.Thread] = set()
        self._begin()

    def want(self, now: Sequence[int], later: Sequence[int]) -> None:
        """Fetch the shards of a window that is being read, and those of the one behind it."""
        if os.getpid() != self._process:  # threads do not come along
            self._begin()
        with self._lock:
            for urgency, shards in enumerate((now, later)):
                for shard in shards:
                    self._count += 1
                    heapq.heappush(self._wanted, (urgency, self._count, shard))
            self._threads = {thread for thread in self._threads if thread.is_alive()}
            while len(self._threads) < min(FETCHERS, self.lanes):
                thread = threading.Thread(target=self._run, name=FETCHING, daemon=True)
                self._threads.add(thread)
                thread.start()

    def _begin(self) -> None:
        self._process, self._lock, self._count = os.getpid(), threading.Lock(), 0
        self._wanted, self._threads = [], set()

    def _run(self) -> None:
        while (shard := self._next()) is not None:
            with contextlib.suppress(OSError, RuntimeError):  # comes again where the shard is read, and is told there
                self.reader.prefetch(shard)

    def _next(self) -> int | None:
        with self._lock:
            if self._wanted:
                return heapq.heappop(self._wanted)[2]
            self._threads.discard(threading.current_thread())
            return None

    def __reduce__(self) -> tuple[Any, ...]:
        return Prefetcher, (self.reader, self.lanes)
