"""Processes that call functions, each with something of its own (a loaded model) that it keeps from call to call.

Serves all that is done to shards by several processes: conversion, labeling, check. A process that is killed is
replaced, and its call made again; results come in the order of the calls, so that nothing depends on which process did
what.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from cloc.command import shielded
from cloc.data.shards.tars import ShardError

AHEAD = 2
"""Calls given out per process, by default: the next one is there when a process has finished."""

MAX_KILLS = 3
"""So many processes may be killed at one call; then it is the call that kills them, or there is no memory for it."""

_START = -1  # in place of a call's number: the process was killed while it started
_END_SECONDS = 10.0  # that an idle process may take to put away what it holds
_LOG = logging.getLogger(__name__)

Function = Callable[..., Any]
Call = tuple[Any, ...]
"""Arguments of one call."""
Numbered = tuple[int, Call]
"""A call with its place among the calls."""


class WorkerError(ShardError):
    """A worker process could not be prepared, or was killed too often; says why, and what to do."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a process sends: the result of a call or its error; ``unprepared`` says why there is no process."""

    result: Any = None
    error: Exception | None = None
    unprepared: str = ""


class WorkerPool:
    """Processes for calls; use it in a ``with``.

    Where the block ends by an exception, they are ended at once, in the middle of what they do.

    Args:
        workers: processes at most; they start when there are calls for them. 1 makes all calls in this process.
        initialize: called once in each process (in this one where ``workers`` is 1) before its first call, for instance
            to load a model. What it returns, unless None, is the last argument of every call made there. Pickled into
            the processes: a function of a module, or a ``partial`` of one.
    """

    def __init__(self, workers: int, initialize: Callable[[], Any] | None = None) -> None:
        self._limit, self._initialize = workers, initialize
        self._workers: list[_Worker] = []
        self._state: tuple[Any, ...] | None = None  # of this process

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker in self._workers:
            worker.end(at_once=kind is not None)
        self._workers.clear()

    def run(self, function: Function, calls: Iterable[Call], *, ahead: int = AHEAD) -> Iterator[Any]:
        """Call a function with each of some arguments, and yield the results in the order of the calls.

        Args:
            function: of a module, since it is pickled. May be called twice with the same arguments, where a process was
                killed in between.
            calls: taken one by one, when there is a process for the next one.
            ahead: calls per process that may be given out or done before the result of the first of them is taken: a
                bound on what waits, however many calls there are.

        Raises:
            WorkerError: ``initialize`` failed, or a call was in the hands of ``MAX_KILLS`` processes that were killed.
            Exception: what a call raises, with the worker's traceback as its note.
        """
        if self._limit <= 1:
            return (function(*call, *self._own_state()) for call in calls)
        return self._run(function, iter(calls), ahead * self._limit)

    def _own_state(self) -> tuple[Any, ...]:
        if self._state is None:
            try:
                self._state = _prepare(self._initialize)
            except Exception as error:
                raise WorkerError(_unprepared(error)) from error
        return self._state

    def _run(self, function: Function, calls: Iterator[Call], most: int) -> Iterator[Any]:
        """Keep every process busy while no more than ``most`` calls are drawn and not yet yielded."""
        numbered = enumerate(calls)
        waiting: deque[Numbered] = deque()
        answers: dict[int, _Answer] = {}
        kills: Counter[int] = Counter()  # by call
        drawn = yielded = 0
        try:
            while True:
                fresh = list(itertools.islice(numbered, most - (drawn - yielded)))
                waiting.extend(fresh)
                drawn += len(fresh)
                if yielded == drawn:
                    return
                self._give_out(function, waiting)
                self._gather(waiting, answers, kills, wait=yielded not in answers)
                if yielded in answers:
                    answer = answers.pop(yielded)
                    if answer.error is not None:  # now, when all that came before it has been taken
                        raise answer.error
                    yield answer.result
                    yielded += 1
        finally:
            self._end_busy()

    def _give_out(self, function: Function, waiting: deque[Numbered]) -> None:
        """Hand the calls to idle processes, and start others for what is left."""
        for worker in [worker for worker in self._workers if worker.idle][: len(waiting)]:
            worker.give(function, waiting.popleft())
        starting = sum(not worker.prepared for worker in self._workers)
        for _ in range(min(self._limit - len(self._workers), len(waiting) - starting)):
            self._workers.append(_Worker(self._initialize))

    def _gather(
        self, waiting: deque[Numbered], answers: dict[int, _Answer], kills: Counter[int], *, wait: bool
    ) -> None:
        """Take what processes have to say; the calls of those that are gone wait again, before all others."""
        # By Any: what waits for connections is declared to return sockets and numbers too.
        spoken: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers if not worker.idle}
        for ready in connection.wait(list(spoken), None if wait else 0):
            worker = spoken[ready]
            if worker.take(answers):
                continue
            self._workers.remove(worker)
            number = _START if worker.task is None else worker.task[0]
            kills[number] += 1
            _tell_kill(worker, kills[number])
            if worker.task is not None:
                waiting.appendleft(worker.task)

    def _end_busy(self) -> None:
        """Results of calls that nobody waits for any more must not be taken for those of later ones."""
        for worker in [worker for worker in self._workers if worker.task is not None]:
            self._workers.remove(worker)
            worker.end(at_once=True)


class _Worker:
    """One process.

    Attributes:
        prepared: it has said that it takes calls; before that, a large one would have to wait for it.
        task: the call that it is busy with.
    """

    def __init__(self, initialize: Callable[[], Any] | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(theirs, initialize))
        self.prepared = False
        self.task: Numbered | None = None
        with shielded({signal.SIGINT}):  # Ctrl-C is the parent's, also while they start
            self.process.start()
        theirs.close()  # else its end would not be seen

    @property
    def idle(self) -> bool:
        """Whether it takes a call."""
        return self.prepared and self.task is None

    def give(self, function: Function, task: Numbered) -> None:
        """Hand out a call. That the process is gone is seen where its answer is taken."""
        self.task = task
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((function, task[1]))

    def take(self, answers: dict[int, _Answer]) -> bool:
        """Note that it is prepared, or put the answer to its call among the others; False where it is gone.

        Raises:
            WorkerError: it cannot be prepared.
        """
        try:
            answer: _Answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.end(at_once=True)
            return False
        if answer.unprepared:
            raise WorkerError(answer.unprepared)
        if self.task is not None:
            answers[self.task[0]] = answer
        self.prepared, self.task = True, None
        return True

    def end(self, *, at_once: bool) -> None:
        """End the process; one that is idle may put away what it holds."""
        self.connection.close()  # it reads the end of its calls
        if self.idle and not at_once:
            self.process.join(_END_SECONDS)
        self.process.kill()
        self.process.join()


def _tell_kill(worker: _Worker, kills: int) -> None:
    """Warn that a process is gone.

    Raises:
        WorkerError: it was the last one that may be.
    """
    code = worker.process.exitcode or 0
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    why = f"a worker process was killed ({how}), often for want of memory (the system's log tells)"
    if kills == MAX_KILLS:
        raise WorkerError(
            f"{why}, {kills} times at the same task; run the same command again, with fewer --workers if it happens "
            "again"
        )
    _LOG.warning("%s; another one does its task again", why)


def _prepare(initialize: Callable[[], Any] | None) -> tuple[Any, ...]:
    """What every call of a process gets besides its own arguments."""
    state = None if initialize is None else initialize()
    return () if state is None else (state,)


def _unprepared(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"a worker cannot be prepared: {type(error).__name__}: {first}; mend that, and run the same command again"


def _work(calls: Connection, initialize: Callable[[], Any] | None) -> None:
    """Make calls until there are no more: what a process runs."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        state = _prepare(initialize)
    except Exception as error:
        calls.send(_Answer(unprepared=_unprepared(error)))
        return
    calls.send(_Answer())
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            calls.send_bytes(_answer(calls.recv_bytes(), state))


def _answer(pickled: bytes, state: tuple[Any, ...]) -> memoryview:
    """Make one call."""
    try:
        function, call = ForkingPickler.loads(pickled)
        return ForkingPickler.dumps(_Answer(function(*call, *state)))
    except Exception as error:
        return ForkingPickler.dumps(_Answer(error=_portable(error)))


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, in a form that another process can read."""
    note = "".join(traceback.format_exception(error))
    try:
        copied = copy.copy(error)
        ForkingPickler.dumps(copied)
    except Exception as reason:
        copied = RuntimeError(f"{type(error).__name__}: {error} (cannot be passed on: {reason})")
    copied.add_note(f"in a worker process:\n{note}")
    return copied


def _die_with_parent() -> None:
    """A kill -9 gives the parent no time to stop its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only processes that were started run this"
    connection.wait([parent.sentinel])
    os._exit(1)
