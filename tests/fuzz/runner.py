"""One input after another in a child process that may crash, hang or run out of memory."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from .kinds import Kind, Watch, judge

MEMORY = 4 * 2**30  # bytes that an input may take beyond what the process has


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        index: its number; with the seed it makes the input again.
        kind: whose input it is.
        outcome: one of ``kinds.CLASSES``.
        what: how the input was made.
        detail: what was found.
    """

    index: int
    kind: str
    outcome: str
    what: str
    detail: str


def run(
    kinds: Sequence[Kind], seed: int, indices: Sequence[int], seconds: float, keep: Path | None = None
) -> Iterator[Outcome]:
    """Judge inputs, in order of their numbers.

    Args:
        kinds: whose inputs; the share of each decides which input is whose.
        seed: of all inputs.
        indices: numbers of the inputs.
        seconds: after so many without an answer an input hangs.
        keep: folder for the bytes of inputs that are neither accepted nor refused.
    """
    torch.set_num_threads(1)  # a child that is forked from a process with OpenMP's threads waits for them for ever
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        prepared = [kind.prepare(_new(Path(folder) / kind.name)) for kind in kinds]
        child = Child(kinds, prepared, seed, Path(folder) / "scratch", keep)
        try:
            for index in indices:
                yield child.ask(index, seconds)
        finally:
            child.end()


def choose(kinds: Sequence[Kind], seed: int, index: int) -> tuple[int, random.Random]:
    """Which kind an input is of, and the generator that it is made from."""
    rng = random.Random(f"{seed}:{index}")
    return rng.choices(range(len(kinds)), [kind.share for kind in kinds])[0], rng


class Child:
    """The process that reads; made anew whenever an input ends it."""

    def __init__(
        self, kinds: Sequence[Kind], prepared: Sequence[Any], seed: int, scratch: Path, keep: Path | None
    ) -> None:
        self.kinds, self.seed = kinds, seed
        self.work: Callable[[Connection], None] = lambda pipe: _serve(pipe, kinds, prepared, seed, scratch, keep)
        self.context = multiprocessing.get_context("fork")  # imports and preparations are shared
        self.process: Any = None

    def ask(self, index: int, seconds: float) -> Outcome:
        """Let the child read one input."""
        if self.process is None:
            self.pipe, theirs = self.context.Pipe()
            self.process = self.context.Process(target=self.work, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        self.pipe.send(index)
        what = "?"
        try:
            while self.pipe.poll(seconds):
                message = self.pipe.recv()
                if isinstance(message, Outcome):
                    return message
                what = message
        except (EOFError, ConnectionResetError):
            return self._ended(index, what)
        self.end()
        return Outcome(index, self._kind(index), "hang", what, f"no answer after {seconds:g} s")

    def _ended(self, index: int, what: str) -> Outcome:
        self.process.join()
        code = self.process.exitcode
        self.process = None
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Outcome(index, self._kind(index), "crash", what, name)

    def _kind(self, index: int) -> str:
        return self.kinds[choose(self.kinds, self.seed, index)[0]].name

    def end(self) -> None:
        """Kill the child."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _serve(
    pipe: Connection, kinds: Sequence[Kind], prepared: Sequence[Any], seed: int, scratch: Path, keep: Path | None
) -> None:
    """The child: answer every number with what became of its input."""
    for stream in (0, 1, 2):  # readers may warn; none may ask
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    faulthandler.disable()  # the parent tells of a crash
    _limit_memory()
    watch = Watch()
    while True:
        index = pipe.recv()
        place, rng = choose(kinds, seed, index)
        case = kinds[place].make(rng, _new(scratch), prepared[place])
        if keep:  # before it is read: it may be the last that this process does
            _kept(keep, seed, index).write_bytes(case.content)
        pipe.send(case.what)
        outcome, detail = judge(case, watch)
        if keep and outcome in ("accepted", "refused"):
            _kept(keep, seed, index).unlink()
        pipe.send(Outcome(index, kinds[place].name, outcome, case.what, detail))


def _kept(keep: Path, seed: int, index: int) -> Path:
    keep.mkdir(parents=True, exist_ok=True)
    return keep / f"seed-{seed}-input-{index}"


def _limit_memory() -> None:
    """A bomb shall meet a wall rather than take the machine with it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _new(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
