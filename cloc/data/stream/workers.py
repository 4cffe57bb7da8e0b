"""Runs the reading processes, and says so in a line when one is killed or stands still (last step of ``stream``)."""

from __future__ import annotations

import errno
import multiprocessing
import re
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from cloc.command import is_users
from cloc.contracts import Batch
from cloc.data.shards.retries import ReadingInterrupted
from cloc.data.stream.shared_buffers import SharedBatch, no_room

PRELOADED = ("cloc.data.stream.reader_server", "__main__", "cloc.data.stream.batches", "open_clip.tokenizer")
"""What the server of reading processes imports once, for all of them; none of it starts a thread."""

_POLL = 1.0  # seconds between two looks at whether the processes live, and whether the run is to end


class ReaderError(RuntimeError):
    """A reading process is gone, or gives nothing; says what to do."""


def horizons(workers: int) -> Tensor:
    """Shared memory in which each reading process notes the monotonic time until which it has a reason to wait.

    Raises:
        SharedMemoryError: there is no room for it.
    """
    try:
        shared: Tensor = torch.zeros(workers, dtype=torch.float64).share_memory_()
    except RuntimeError as error:  # PyTorch's allocator raises it
        raise no_room(f"data.workers={workers} need a page") from error
    return shared


class Readers(DataLoader[Batch]):
    """A DataLoader over whole batches that misses a process which is killed or stands still.

    Args:
        stream: builds whole batches itself.
        workers: reading processes; 0 reads in this one, where nothing can be missed.
        timeout: seconds that a batch may take, not counted while a reader asks a store again; 0 waits for ever.
        options: further arguments of the DataLoader.

    Raises:
        ReaderError: while iterating.
        ReadingInterrupted: while iterating, after :meth:`interrupt`.
    """

    def __init__(
        self, stream: IterableDataset[Batch | SharedBatch], workers: int, timeout: float = 0, **options: Any
    ) -> None:
        self.patience, self.interrupted = timeout, False
        self.stream = stream
        self.processes: set[BaseProcess] = set()
        poll = (min(_POLL, timeout) if timeout else _POLL) if workers else 0
        batches = cast(IterableDataset[Batch], stream)  # a SharedBatch, which a process sends, arrives as a Batch
        super().__init__(batches, batch_size=None, num_workers=workers, timeout=poll, **options)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # PyTorch names its own, private class
        others = set(multiprocessing.active_children())
        try:
            batches = super().__iter__()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise ReaderError(str(no_room("the queues of reading processes need some kB"))) from error
        self.processes |= set(multiprocessing.active_children()) - others
        return self._watched(batches)

    def interrupt(self) -> None:
        """The run is to end: who waits for a batch stops waiting. For signal handlers."""
        self.interrupted = True
        if not self.num_workers and hasattr(self.stream, "interrupt"):
            self.stream.interrupt()

    def end(self) -> None:
        """End the processes: in order, and those that do not listen at once."""
        self._iterator = None
        for process in self.processes:
            process.kill()

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        waited = 0.0
        while True:
            try:
                batch = next(batches)
            except Exception as error:
                text = str(error)
                if text.startswith("DataLoader timed out"):  # asked again, the iterator goes on waiting
                    if self.interrupted:
                        raise ReadingInterrupted("a reader was waiting for its disk or store") from None
                    waited = 0.0 if self._has_reason() else waited + self.timeout
                    if not self.patience or waited < self.patience:
                        continue
                    raise self._silent(waited) from error
                if text.startswith("DataLoader worker"):
                    raise self._gone(text) from error
                if (plain := _in_own_words(error)) is not None:
                    raise plain from error
                raise
            waited = 0.0
            yield batch

    def _has_reason(self) -> bool:
        """Whether some process waits for a store that it will ask again."""
        known = getattr(self.stream, "horizons", None)
        return known is not None and float(known.max()) > time.monotonic()

    def _silent(self, seconds: float) -> ReaderError:
        pids = ", ".join(str(process.pid) for process in self.processes)
        return ReaderError(
            f"no batch for {seconds:.0f} s (data.batch_timeout): a reading process ({pids}) was stopped, or waits for "
            "a disk or store that does not answer; mend that, or allow more seconds (0: for ever)"
        )

    def _gone(self, text: str) -> ReaderError:
        pids = ", ".join(re.findall(r"\d+", text)[:1])
        return ReaderError(
            f"the reading process {pids} was killed, often for want of memory (the system's log tells); free some, or "
            f"take fewer than data.workers={self.num_workers}"
        )


def prefetched(workers: int) -> int:
    """Batches that each of so many reading processes makes ahead; many need fewer each, which saves memory."""
    return 4 if workers <= 4 else 2


def start_server() -> None:
    """Start the server that reading processes are forked from, unless it runs.

    It has imported by then what they need, so that each is there at once and shares that memory with the others.
    """
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()


def _in_own_words(error: Exception) -> Exception | None:
    """An error of a reading process that the user can mend: PyTorch makes its whole traceback there its text."""
    kind, text = type(error), str(error)
    if not text.startswith("Caught ") or not is_users(error):
        return None
    for name in (f"{kind.__module__}.{kind.__qualname__}", kind.__qualname__):
        _, found, words = text.rpartition(f"\n{name}: ")
        if found:
            return kind(words.strip())
    return None
