"""Runs what a study asks for and the ledger does not have: search first, then seed by seed, several runs at once."""

from __future__ import annotations

import fcntl
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from benchmarks.tournament.child import Children
from benchmarks.tournament.ledger import Book, Line, read_book, write_line
from benchmarks.tournament.plan import Job, final, is_measured, search, trains
from benchmarks.tournament.runs import Place, StoppedError, Work
from benchmarks.tournament.study import Study
from cloc.usage import clock

POLL = 0.5  # seconds between looks at what others do with the same study


@dataclass(frozen=True)
class Wanted:
    """What one call is to run: methods (all unless named), seeds, stages; and failed runs again or not."""

    only: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    stages: tuple[str, ...] = ("search", "final")
    retry: bool = False


class Runner:
    """Runs a study.

    Args:
        study: what.
        ledger: its file.
        place: where runs lie.
        wanted: which of them.
        jobs: at once.
        minutes: after which no run is begun; 0 for no limit.
    """

    def __init__(self, study: Study, ledger: Path, place: Place, wanted: Wanted, jobs: int, minutes: float = 0) -> None:
        self.study, self.ledger, self.place, self.wanted, self.jobs = study, ledger, place, wanted, jobs
        self.until = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.children = Children()
        self.done = self.failed = 0
        self._tried: set[str] = set()
        self._elsewhere: set[str] = set()
        self._running: dict[Future[None], Job] = {}
        self._writing = threading.Lock()

    def run(self) -> dict[str, int]:
        """Run until nothing is left, the time is over, or a signal comes.

        Returns:
            How many runs were done and failed now, how many could be begun, and whether a signal came: what was begun
            then goes on with the next call.
        """
        with ThreadPoolExecutor(self.jobs) as pool, self._stopped_by_signals():
            while self._fill(pool):
                wait(self._running, timeout=POLL, return_when=FIRST_COMPLETED)
                for future in [one for one in self._running if one.done()]:
                    del self._running[future]
                    future.result()
        if self.children.stopping:
            self._tell("stopped; the same command goes on")
        book = self._book()
        result = {"done": self.done, "failed": self.failed, "left": len(self._left(book))}
        if not result["left"]:
            self._tell_waiting(book)
        return {**result, "stopped": self.children.stopping}

    def _fill(self, pool: ThreadPoolExecutor) -> bool:
        """Begin what can be begun; whether anything is going on."""
        if self.children.stopping or time.monotonic() > self.until:
            return bool(self._running)
        book = self._book()
        left = self._left(book)
        for job in left:
            if len(self._running) >= self.jobs:
                break
            if job.id not in {one.id for one in self._running.values()} and (lock := self._claim(job)):
                self._running[pool.submit(self._work, job, lock)] = job
        if not self._running and left:  # all of them run in another tournament
            time.sleep(POLL)
        return bool(self._running or left)

    def _book(self) -> Book:
        """The ledger; with ``retry`` as if those that failed earlier had not been tried."""
        book = read_book(self.ledger)
        for key, record in book.items():
            if self.wanted.retry and record.failed and key not in self._tried:
                record.line["status"] = "again"
        return book

    def _left(self, book: Book) -> list[Job]:
        """Jobs that could be run now, in their order."""
        found: list[Job] = []
        if "search" in self.wanted.stages:
            for method in self.study.in_order(self.wanted.only):
                found += search(self.study, book, method).pending
        if "final" in self.wanted.stages:
            jobs = final(self.study, book, self.wanted.only, self.wanted.seeds or self.study.seeds)
            open_jobs = [job for job in jobs if not is_measured(book.get(job.id), job, self.study)]
            found += [job for job in open_jobs if not (job.id in book and book[job.id].failed)]
        return list({job.id: job for job in found}.values())

    def _claim(self, job: Job) -> TextIO | None:
        """Hold a job for this process; None where another tournament has it, or has just done it."""
        path = self.place.runs / self.study.name / ".claims" / f"{job.method}-{job.slug}"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            if job.id not in self._elsewhere:
                self._elsewhere.add(job.id)
                self._tell(f"{job.title} runs in another tournament")
            return None
        if job.id not in {one.id for one in self._left(self._book())}:
            lock.close()
            return None
        return lock

    def _work(self, job: Job, lock: TextIO) -> None:
        with lock:
            started = time.monotonic()
            work = Work(self.study, job, self.place, read_book(self.ledger).get(job.id), self.children)
            try:
                line = work.line()
            except StoppedError:
                if not self.children.stopping:  # somebody stopped this run alone: it is the next to go on
                    self._tell(f"{job.title} was stopped by itself, and goes on")
                return
            with self._writing:
                cut = write_line(self.ledger, line)
                self._tried.add(job.id)
                self._report(job, line, work.tail, cut, time.monotonic() - started)

    def _report(self, job: Job, line: Line, tail: str, cut: int, seconds: float) -> None:
        if cut:
            self._tell(f"{self.ledger.name}: cut off {cut} bytes of a line that was never finished")
        runs, left = self._estimate()
        rest = f"left {runs} runs, about {left}"
        if line["status"] == "failed":
            self.failed += 1
            self._tell(f"{job.title} FAILED: {line['reason']}; {rest}\n{tail}")
            return
        self.done += 1
        trained = f"trained in {clock(line['train_seconds'])}, " if "train_seconds" in line else ""
        self._tell(f"{job.title} done: {trained}{clock(seconds)} in all; {rest}")

    def _tell_waiting(self, book: Book) -> None:
        """Say which methods have no settings, and so no seeds, though nothing is left to run."""
        for method in self.study.in_order(self.wanted.only) if "final" in self.wanted.stages else ():
            found = search(self.study, book, method)
            if found.failed:
                self._tell(f"{method} has no settings: {found.failed}")
            elif found.waits_for:
                self._tell(f"{method} waits for the search of {found.waits_for}, which is not done")
            elif found.pending:
                self._tell(f"{method} has no settings: its search is not done; run it without --stage final")

    def _estimate(self) -> tuple[int, str]:
        """Runs that are left to train, and the time they take by what the others of this ledger took."""
        book, methods = read_book(self.ledger), self.study.methods
        finished = [record for record in book.values() if record.line.get("method") in methods]
        known = [record.line for record in finished if "trained_seconds" in record.line]
        spent = [(line["trained_seconds"], methods[line["method"]].cost) for line in known]
        unit = sum(seconds for seconds, _ in spent) / max(sum(cost for _, cost in spent), 1e-9)
        left = {
            name: max(0, trains(self.study, name) - sum(r.line["method"] == name for r in finished))
            for name in self.study.in_order(self.wanted.only)
        }
        seconds = unit * sum(count * methods[name].cost for name, count in left.items()) / self.jobs
        return sum(left.values()), clock(seconds)

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask the programs to end, and let the rest go on to its end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        former = [signal.signal(one, lambda *_: self.children.stop()) for one in signals]
        try:
            yield
        finally:
            for one, handler in zip(signals, former, strict=True):
                with suppress(TypeError):  # a handler that Python did not set
                    signal.signal(one, handler)

    def _tell(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
