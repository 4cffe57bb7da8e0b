"""What ends a run before its time, and how it ends whole: signals, reading that fails (beside ``checkpointing``)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from types import FrameType
from typing import Any, Generic, TypeVar

import lightning
from lightning.pytorch.callbacks import Callback

from cloc.command import INTERRUPTED, STOPPED, Interrupt, Stop, announced, listen
from cloc.contracts import Batch
from cloc.data.shards.retries import ReadingInterrupted
from cloc.data.stream.workers import ReaderError
from cloc.engine.liveness import broke_off
from cloc.engine.process_group import any_process, gather_objects

T = TypeVar("T")  # a batch of whatever task
# Of several at a time the first one counts: the job goes back into the queue, or the user stands waiting.
SIGNALS = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopAtSignal(Callback):
    """SIGINT, SIGTERM, SIGHUP, SIGUSR1, or no batch to be had: finish the step, save together in all processes, stop.

    Stands before :class:`cloc.engine.durable.checkpointing.Checkpoints`. The handler only takes a note. Lightning's own
    handlers are replaced: they save and communicate from inside the handler, in the middle of whatever the process is
    doing. A second Ctrl-C ends the process at once (:mod:`cloc.command`).

    Attributes:
        asks: another question whose answer all processes take from this one's exchange after every step.
        answer: to it, whether it is so in any process.
        received: the signal that stopped the run; None while none did.
        failure: why reading ended, in any process; None while it goes on.
    """

    def __init__(self) -> None:
        self.asks: Callable[[], bool] = bool  # False
        self.answer = False
        self.noted: signal.Signals | None = None
        self.received: signal.Signals | None = None
        self.failure: Exception | None = None
        self.previous: dict[signal.Signals, Any] = {}
        self.held = ExitStack()
        self.loader: Any = None

    def reading(self, loader: Iterable[T]) -> Iterable[T]:
        """The batches of a loader. Where it fails, the step in hand still ends, and is saved.

        Lightning fetches a batch ahead: it asks for the one after the next step. In the place of a batch that cannot
        be had the last one is given again; it is never trained on, for the run stops before. So it is where a signal
        comes while a batch is waited for.
        """
        self.loader = loader
        return _Reading(self, loader)

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Take over the signals (Lightning has set its handlers by now)."""
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: the run is meant to outlive the terminal
            self.previous[number] = signal.signal(number, self._note)
        listen()
        self.held.enter_context(announced("Ctrl-C: ends after this step, with a checkpoint; once more ends at once"))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = signal.Signals(number)
        if hasattr(self.loader, "interrupt"):  # it may be waiting for a disk or store that does not answer
            self.loader.interrupt()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Batch, index: int
    ) -> None:
        """One process that was told, or has nothing to read, is enough."""
        mine = self.noted is not None or self.failure is not None
        if trainer.should_stop:
            return
        stops, self.answer = any_process(mine, self.asks())
        if not stops:
            return
        told = gather_objects((self.noted, None if self.failure is None else str(self.failure)))
        self.received = next((number for number in SIGNALS if any(noted == number for noted, _ in told)), None)
        failures = [f"process {rank}: {text}" for rank, (_, text) in enumerate(told) if text is not None]
        if failures and self.failure is None:
            self.failure = ReaderError(failures[0])
        trainer.should_stop = True

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        """Give the signals back; where another process is gone, ending must not take long."""
        broke_off(exception)
        self._restore()

    def _restore(self) -> None:
        self.held.close()
        for number, handler in self.previous.items():
            # A handler that was not set from Python cannot be set back; the default is what it was for the user.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self.previous = {}

    def says(self, name: str, trainer: lightning.Trainer) -> str:
        """One line on a run that was stopped, and how it goes on; puts a SLURM job back into the queue at SIGUSR1."""
        by = "an error in reading" if self.failure is not None or self.received is None else self.received.name
        requeued = self.failure is None and self.received == signal.SIGUSR1
        then = requeue() if requeued else "run the same command again to continue"
        saved = f"step {trainer.global_step} of {trainer.max_steps}, which is saved"
        return f"{name}: stopped by {by} at {saved}; {then}"

    @property
    def code(self) -> int:
        """Exit code of a run that a signal stopped."""
        return INTERRUPTED if self.received == signal.SIGINT else STOPPED


class _Reading(Generic[T]):
    def __init__(self, stop: StopAtSignal, loader: Iterable[T]) -> None:
        self.stop, self.loader = stop, loader

    def __iter__(self) -> Iterator[T]:
        last: T | None = None
        try:
            for last in self.loader:
                yield last
        except ReadingInterrupted:
            if last is None:  # no step to save
                raise Interrupt if self.stop.noted == signal.SIGINT else Stop from None
            yield last
            raise
        except Exception as error:  # noqa: BLE001  (raised again after a checkpoint)
            if last is None:
                raise
            self.stop.failure = error
            yield last
            raise


def requeue() -> str:
    """Put the SLURM job that this process belongs to back into the queue, once, by its first process.

    Returns:
        What was done, in words.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return "run the same command again to continue"
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if shutil.which("scontrol") is None:
        return f"there is no scontrol here to requeue job {job} with; submit it again to continue"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        return f"`scontrol requeue {job}` failed ({done.stderr.strip()}); submit it again to continue"
    return f"job {job} is in the queue again"
