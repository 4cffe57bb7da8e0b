"""Reading processes that are killed, stand still, or fail."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from torch.utils.data import IterableDataset

from cloc.command import Interrupt, Stop
from cloc.data.shards.retries import ReadingInterrupted
from cloc.data.stream.workers import ReaderError, Readers, horizons
from cloc.engine.durable.signals import StopAtSignal
from tests.kit.paths import ROOT

FORK = {"multiprocessing_context": "fork", "prefetch_factor": 1, "persistent_workers": True}


class Numbers(IterableDataset):
    """0, 1, …; at ``last`` the process sends itself a signal, or raises."""

    def __init__(self, last: int, number: int | None) -> None:
        self.last, self.number = last, number

    def __iter__(self) -> Iterator[int]:
        yield from range(self.last)
        if self.number is None:
            raise OSError("no such shard")
        os.kill(os.getpid(), self.number)
        yield -1


def read(readers: Readers) -> list[int]:
    """All that comes until an error; the error is raised again."""
    found: list[int] = []
    try:
        for value in readers:
            found.append(value)
    finally:
        assert found == list(range(4))
    return found


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGKILL, r"^the reading process \d+ was killed, often for want of memory.*fewer than data.workers=1$"),
        (signal.SIGSTOP, r"^no batch for \d s \(data.batch_timeout\): a reading process \(\d+\) was stopped"),
    ],
)
def test_a_process_that_is_killed_or_stopped_is_missed(number: int, told: str) -> None:
    others = set(multiprocessing.active_children())
    readers = Readers(Numbers(4, number), 1, timeout=2, **FORK)
    with pytest.raises(ReaderError, match=told):
        read(readers)
    readers.end()
    for process in set(multiprocessing.active_children()) - others:
        process.join(10)
    assert not set(multiprocessing.active_children()) - others


class Waiting(IterableDataset):
    """One number, then a long wait, with or without a reason, then another."""

    def __init__(self, seconds: float, reason: float, first: float = 0) -> None:
        self.seconds, self.reason, self.first, self.horizons = seconds, reason, first, horizons(1)

    def __iter__(self) -> Iterator[int]:
        time.sleep(self.first)
        yield 0
        self.horizons[0] = time.monotonic() + self.reason
        time.sleep(self.seconds)
        yield 1


def test_a_reader_that_asks_a_store_again_has_a_reason_to_wait() -> None:
    readers = Readers(Waiting(5, 6), 1, timeout=2, **FORK)
    assert list(islice(readers, 2)) == [0, 1]
    readers.end()
    readers = Readers(Waiting(30, 0.3), 1, timeout=2, **FORK)
    with pytest.raises(ReaderError, match="data.batch_timeout"):
        list(islice(readers, 2))
    readers.end()


def test_a_signal_ends_the_wait_for_a_batch_and_the_step_in_hand_is_kept() -> None:
    stop = StopAtSignal()
    readers = Readers(Waiting(60, 60), 1, timeout=600, **FORK)
    batches = iter(stop.reading(readers))
    assert next(batches) == 0
    began = time.monotonic()
    threading.Timer(0.5, stop._note, (signal.SIGTERM, None)).start()
    assert next(batches) == 0 and time.monotonic() - began < 10  # in the place of the one that is waited for
    assert stop.noted == signal.SIGTERM and stop.failure is None
    batches.close()
    readers.end()


class Interrupted:
    """Batches that a signal ended before the first came."""

    def __iter__(self) -> Iterator[int]:
        raise ReadingInterrupted("a reader was waiting")


@pytest.mark.parametrize(("number", "end"), [(signal.SIGINT, Interrupt), (signal.SIGTERM, Stop)])
def test_a_signal_before_the_first_batch_ends_the_command(number: signal.Signals, end: type[SystemExit]) -> None:
    stop = StopAtSignal()
    stop.noted = number
    with pytest.raises(end):
        next(iter(stop.reading(Interrupted())))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_stream_is_passed_on(workers: int) -> None:
    with pytest.raises(OSError, match="no such shard"):
        read(Readers(Numbers(4, None), workers, **(FORK if workers else {})))


def test_where_reading_ends_the_step_in_hand_is_not_lost() -> None:
    """Lightning fetches one batch ahead; in the place of the one that is missing comes one that nobody trains on."""
    stop = StopAtSignal()
    batches = iter(stop.reading(Readers(Numbers(4, None), 0)))
    assert [next(batches) for _ in range(5)] == [0, 1, 2, 3, 3] and str(stop.failure) == "no such shard"
    with pytest.raises(OSError, match="no such shard"):
        next(batches)
    with pytest.raises(OSError, match="no such shard"):  # no step to save
        next(iter(StopAtSignal().reading(Readers(Numbers(0, None), 0))))


def test_an_error_of_a_reading_process_comes_in_its_own_words() -> None:
    with pytest.raises(OSError) as raised:
        read(Readers(Numbers(4, None), 1, **FORK))
    assert str(raised.value) == "no such shard" and "Original Traceback" in str(raised.value.__cause__)


SERVER = """
import multiprocessing, os, sys
from multiprocessing import forkserver
from cloc.data.stream.workers import start_server
if __name__ == "__main__":  # a reader imports this file again
    start_server()
    process = forkserver.get_forkserver() if hasattr(forkserver, "get_forkserver") else forkserver._forkserver
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        print(*pool.map(eval, ["'cloc.data.stream.batches' in __import__('sys').modules"]))
        print(len(os.listdir(f"/proc/{process._forkserver_pid}/task")))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
@pytest.mark.slow
def test_the_server_of_readers_has_imported_all_and_has_one_thread(tmp_path: Path) -> None:
    """A fork of a process with threads may inherit a lock that nobody gives back."""
    script = tmp_path / "script.py"
    script.write_text(SERVER)
    done = subprocess.run(
        [sys.executable, str(script)],
        **{"capture_output": True, "text": True, "cwd": ROOT, "timeout": 120},
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "4"},
    )
    assert done.stdout.split() == ["True", "1"], done.stdout + done.stderr
