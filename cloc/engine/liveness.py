"""Processes that end or hang while others wait for them: noticed, told in a line, and no reason to hang as well.

Above ``rendezvous``. What waits for a process that is gone learns of it in one of two ways. A collective over Gloo
breaks off: at once where the other's socket is closed, else after ``trainer.timeout``. Or, where this process stands in
code that nothing interrupts (a GPU's queue, a collective of NCCL), a thread hears no sign of life from the other any
more, and ends this process from outside.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
import traceback
from collections.abc import Iterator

from cloc.config.secrets import public
from cloc.engine.rendezvous import Meeting, timeout

INTERVAL = 1.0  # seconds between two signs of life
SERVER = "process 0, or torchrun's agent beside it,"
GRACE = 8.0  # seconds in which the main thread may end by itself
REMEDY = "look at the output of that process; the same command goes on from the last checkpoint"
_BROKEN = re.compile(r"\bgloo\b|\bNCCL\b|TCPStore|Broken pipe", re.IGNORECASE)
_watch: Watch | None = None


class LostProcess(RuntimeError):
    """Another process of the run has ended or hangs; says which, as far as is known, and what was waited for."""


class Watch:
    """Gives signs of life, looks for those of others, and ends this process where it waits for one that is gone.

    Process 0 looks at all others, and they at process 0. A store whose server is stopped never answers: one thread
    talks to it, and another looks at the clock.

    Args:
        met: the meeting of all processes.
    """

    def __init__(self, met: Meeting) -> None:
        self.rank, self.world, self.hosts = met.found.rank, met.found.world, met.hosts
        self.seconds = timeout().total_seconds()
        self.store, self.inquiry = met.store.clone(), met.store.clone()  # each answers one thread at a time
        self.ended, self.beats, self.asked = threading.Event(), 0, time.monotonic()
        self.seen: dict[int, tuple[bytes, float]] = {}
        self.lost: str | None = None
        self.since = 0.0
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._talk, self._judge)]
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        """The run ends; a thread that is still waiting for the store is left behind."""
        self.ended.set()
        for thread in self.threads:
            thread.join(2 * INTERVAL)

    def notice(self, lost: str) -> None:
        """From now on the main thread has a while to end by itself."""
        if self.lost is None:
            self.since, self.lost = time.monotonic(), lost

    def _talk(self) -> None:
        while not self.ended.wait(INTERVAL):
            try:
                self._look()
                self.asked = time.monotonic()
            except RuntimeError:  # of the store: whoever served it has ended
                self.notice(f"{SERVER} has ended")
                return

    def _judge(self) -> None:
        while not self.ended.wait(INTERVAL):
            now = time.monotonic()
            if now - self.asked > self.seconds:
                self.notice(f"{SERVER} has not answered for trainer.timeout={self.seconds:g} seconds")
            if self.lost is not None and now - self.since > GRACE:
                self._leave(self.lost)

    def _look(self) -> None:
        self.beats += 1
        self.store.set(f"alive/{self.rank}", str(self.beats))
        watched = range(self.world) if self.rank == 0 else (0,)
        values = self.store.multi_get([f"alive/{rank}" for rank in watched])
        silent = [rank for rank, value in zip(watched, values, strict=True) if self._is_silent(rank, value)]
        if silent:
            self.store.set("lost", ",".join(map(str, silent)))
        elif self.store.check(["lost"]):
            silent = [int(rank) for rank in self.store.get("lost").decode().split(",")]
        if silent:
            self.notice(f"{self.named(silent)}: no sign of life for trainer.timeout={self.seconds:g} seconds")

    def _is_silent(self, rank: int, value: bytes) -> bool:
        now = time.monotonic()
        if self.seen.get(rank, (b"", 0.0))[0] != value:
            self.seen[rank] = value, now
        return now - self.seen[rank][1] > self.seconds

    def named(self, ranks: list[int]) -> str:
        """Processes by number and machine."""
        shown = [f"{rank} ({self.hosts[rank].partition(' ')[0]})" for rank in ranks[:4]] + ["…"] * (len(ranks) > 4)
        return f"process{'es' * (len(ranks) > 1)} {', '.join(shown)} of {self.world}"

    def _leave(self, lost: str) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"LostProcess: {lost}; {REMEDY}\n".encode())
        os._exit(1)

    def missing(self) -> str:
        """Who gives no sign of life now or has said why it ends, in words; takes a few seconds."""
        found: list[str] = []

        def ask() -> None:
            try:
                found.append(self._missing())
            except RuntimeError:
                found.append(f"{SERVER} has ended")

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(6 * INTERVAL)
        return found[0] if found else f"{SERVER} does not answer"

    def _missing(self) -> str:
        store, keys = self.inquiry, [f"alive/{rank}" for rank in range(self.world)]
        store.set(f"ended/{self.rank}", "")
        before = store.multi_get(keys)
        time.sleep(3 * INTERVAL)
        after = store.multi_get(keys)
        others = [rank for rank in range(self.world) if rank != self.rank]
        ended = [rank for rank in others if store.check([f"ended/{rank}"])]
        said = {rank: store.get(f"ended/{rank}").decode() for rank in ended}
        reasons = [f"{self.named([rank])} has ended: {text}" for rank, text in said.items() if text]
        still = [rank for rank in others if rank not in said and before[rank] == after[rank]]
        if still:
            reasons.append(f"{self.named(still)} {'give' if len(still) > 1 else 'gives'} no sign of life")
        if self.rank == 0:
            time.sleep(2 * INTERVAL)  # who is a little later asks the store, which may be this process's
        return "; ".join(reasons) or "another process has ended"

    def says(self, error: BaseException) -> None:
        """Tell the others why this process ends."""
        with contextlib.suppress(RuntimeError):  # of a store that is gone
            self.inquiry.set(f"ended/{self.rank}", public(f"{type(error).__name__}: {error}")[:400])


def watch(met: Meeting) -> None:
    """Begin to give signs of life, and to look for those of others."""
    global _watch
    if _watch is None:
        _watch = Watch(met)


def unwatch() -> None:
    """No process waits for this one any more, nor this one for another."""
    global _watch
    if _watch is not None:
        _watch.close()
        _watch = None


def is_lost(error: BaseException | None) -> bool:
    """Whether an error is that of a collective whose other end is gone."""
    return isinstance(error, RuntimeError) and bool(_BROKEN.search(str(error)))


def broke_off(error: BaseException) -> None:
    """Where an error comes from a collective, the main thread has a while to end by itself."""
    if _watch is not None and is_lost(error):
        _watch.notice(f"{_place(error)} broke off")


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Say in a line who is missing where a collective of the block breaks off; tell the others why this process ends.

    Raises:
        LostProcess: in the place of PyTorch's error.
    """
    try:
        yield
    except Exception as error:
        if _watch is None:
            raise
        if not is_lost(error):
            _watch.says(error)
            raise
        late = re.search(r"timed? ?out", str(error), re.IGNORECASE)
        waited = f" after trainer.timeout={_watch.seconds:g} seconds" if late else ""
        text = f"{_watch.missing()}; {_place(error)} broke off{waited}; {REMEDY}"
        raise LostProcess(text) from error
    finally:
        unwatch()


def _place(error: BaseException) -> str:
    """Which collective it was, and where in cloc; the sum of gradients stands in no code of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/cloc/" in frame.filename]
    calls = [frame.name for frame in frames if "/torch/distributed/" in frame.filename and frame.name != "wrapper"]
    where = f" in {ours[-1].name} ({ours[-1].filename.rpartition('/cloc/')[2]})" if ours else ""
    return f"{calls[0] if calls else 'a collective'}{where}"
