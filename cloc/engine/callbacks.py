"""Callbacks: cursor, progress, throughput, evaluation in training. What guards a run: ``durable``, ``nonfinite``."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cloc.engine.moving_average import weights_to_measure
from cloc.engine.process_group import gather_objects
from cloc.engine.task import Measure, Reading, Task, TaskBatch, as_task
from cloc.engine.trainer_state import is_log_step
from cloc.usage import clock


def is_due(every: int, seen: int, batch_size: int) -> bool:
    """Whether the step that ended at sample ``seen`` reached a multiple of ``every``; 0 is never.

    Counted in samples and not in steps, so that turns stay where they are when a resumed run has another batch size.
    """
    return bool(every) and seen // every > (seen - batch_size) // every


class Cursor(Callback):
    """Tell the module that a step is done, before any other callback looks at it or saves it.

    Lightning calls a module's own hook only after those of all callbacks.
    """

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: TaskBatch, index: int
    ) -> None:
        """Advance."""
        task = as_task(module)
        task.advance(batch)


class Throughput(Callback):
    """Samples per second and the health of the data, over the steps since the last log line and all processes."""

    def __init__(self) -> None:
        self.start = self.waiting_since = time.perf_counter()
        self.waited, self.steps, self.trained = 0.0, 0, 0.0
        self.counts: Counter[str] = Counter()
        self.peaks: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Training time goes on in a resumed run."""
        return {"trained": self.trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.trained = state["trained"]

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Start the clocks."""
        self.start = self.waiting_since = time.perf_counter()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: TaskBatch, index: int
    ) -> None:
        """The batch is here: the wait is over."""
        task = as_task(module)
        self.waited += time.perf_counter() - self.waiting_since
        for name in task.peaks & batch.stats.keys():  # no counters: they must not be summed
            self.peaks[name] = max(self.peaks.get(name, 0.0), batch.stats.pop(name))
        self.counts.update(batch.stats)
        self.counts["samples"] += len(batch.keys)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: TaskBatch, index: int
    ) -> None:
        """Log once every ``log_every_n_steps``."""
        task = as_task(module)
        self.steps += 1
        now = time.perf_counter()
        if is_log_step(trainer):
            elapsed = now - self.start
            self.trained += elapsed
            task.log_dict(
                {
                    "samples_per_second": task.config.batch_size * self.steps / elapsed,
                    "seconds": self.trained,
                    **task.health(gather_objects(Reading(self.counts, self.peaks, self.waited / elapsed))),
                }
            )
            self.start, self.waited, self.steps = now, 0.0, 0
            self.counts, self.peaks = Counter(), {}
        self.waiting_since = time.perf_counter()

    def pause(self) -> None:
        """Forget the time since the last batch (an evaluation ran)."""
        self.start += time.perf_counter() - self.waiting_since
        self.waiting_since = time.perf_counter()


class CompileTime(Callback):
    """Say how long compilation took, once steps run at their own speed.

    Args:
        steps: the first so many are looked at; compilation is what they took more than as many of the fastest.
    """

    def __init__(self, steps: int = 20) -> None:
        self.steps = steps
        self.times: list[float] = []
        self.start = 0.0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: TaskBatch, index: int
    ) -> None:
        """A step begins."""
        self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: TaskBatch, index: int
    ) -> None:
        """A step is done."""
        if len(self.times) == self.steps:
            return
        self.times.append(time.perf_counter() - self.start)
        if len(self.times) == self.steps and trainer.is_global_zero:
            fastest = min(self.times)
            Console().print(
                f"torch.compile took {sum(self.times) - fastest * self.steps:.0f} s of the first {self.steps} steps; "
                f"the first took {self.times[0]:.1f} s, the fastest {fastest:.2f} s",
                highlight=False,
                soft_wrap=True,
            )


class ProgressLine(Callback):
    """A live bar in a terminal, a plain line now and then elsewhere; both with samples/s and each loss."""

    def __init__(self, title: str, every: float = 15.0) -> None:
        self.title, self.every = title, every
        self.console = Console()
        self.live: Progress | None = None
        self.last = self.begun = time.perf_counter()
        self.first_step = 0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Open the bar, at the step a resumed run starts from."""
        if not trainer.is_global_zero:
            return
        self.begun, self.first_step = time.perf_counter(), trainer.global_step
        columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
        if self.console.is_terminal and sys.stdout.isatty():
            self.live = Progress(
                *columns, TimeRemainingColumn(), TextColumn("{task.fields[text]}"), console=self.console
            )
            self.live.start()
            self.task = self.live.add_task(self.title, total=trainer.max_steps, completed=trainer.global_step, text="")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: TaskBatch, index: int
    ) -> None:
        """Advance."""
        task = as_task(module)
        if not trainer.is_global_zero:
            return
        now, done = time.perf_counter(), trainer.global_step >= trainer.max_steps
        if self.live is not None:
            self.live.update(self.task, completed=trainer.global_step, text=self._text(trainer, task))
        elif now - self.last >= self.every or done:
            self.last = now
            share = min(1.0, task.samples_seen / task.config.samples)
            text = f"{self.title}  {share:4.0%}  step {trainer.global_step}/{trainer.max_steps}"
            if not done:
                text += f"  {self._left(trainer, now)} left"
            self.console.print(f"{text}  {self._text(trainer, task)}", highlight=False, soft_wrap=True)

    def _left(self, trainer: lightning.Trainer, now: float) -> str:
        """Time to the end at the pace so far, with all that goes on between steps."""
        made = max(1, trainer.global_step - self.first_step)
        return clock((now - self.begun) / made * (trainer.max_steps - trainer.global_step))

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._close()

    def _close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    @staticmethod
    def _text(trainer: lightning.Trainer, module: Task) -> str:
        metrics = trainer.callback_metrics
        parts = [f"{metrics['samples_per_second']:.0f} samples/s"] if "samples_per_second" in metrics else []
        parts += [f"{short} {metrics[name]:.3f}" for name, short in module.shown.items() if name in metrics]
        return "  ".join(parts)


class Evaluate(Callback):
    """A small suite every so many samples, and at the end: the learning curve."""

    def __init__(
        self, every: int, batch_size: int, measure: Measure, throughput: Throughput, at_start: bool = False
    ) -> None:
        self.every, self.batch_size = every, batch_size
        self.measure, self.throughput, self.at_start = measure, throughput, at_start
        self.measured_at = -1
        self.values: dict[str, float] = {}  # the last measurement, for what chooses the best checkpoint

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Measure what a run starts from; a resumed one has done so."""
        task = as_task(module)
        if self.at_start and trainer.global_step == 0:
            self._measure(trainer, task)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: TaskBatch, index: int
    ) -> None:
        """Measure the weights as they are; on several ranks each measures the same."""
        task = as_task(module)
        left = (trainer.max_steps - trainer.global_step) * self.batch_size
        # The end is always measured; a turn that falls shortly before it would measure the same thing twice.
        due = left == 0 or (left >= self.every / 2 and is_due(self.every, task.samples_seen, self.batch_size))
        if self.every and due:
            self._measure(trainer, task)

    def _measure(self, trainer: lightning.Trainer, module: Task) -> None:
        mode = module.training
        module.eval()
        with torch.no_grad():
            values = self.measure(weights_to_measure(trainer, module))
        module.train(mode)
        named = {f"val/{name}": float(value) for name, value in values.items()}
        self.measured_at, self.values = trainer.global_step, named
        # Straight to the loggers: a metric of one step must not be repeated in the lines of the next.
        row = named | {"samples": float(module.samples_seen), "seconds": self.throughput.trained}
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in named.items()})
        self.throughput.pause()
