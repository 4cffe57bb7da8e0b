"""Callbacks: progress, throughput, the finite guard, evaluation in training."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cloc.contracts import Batch

SHOWN = {"loss/global": "global", "loss/region": "region", "loss/grounding": "box"}


class Throughput(Callback):
    """Samples per second, and the share of time spent waiting for data, over the steps since the last log line."""

    def __init__(self) -> None:
        self.start = self.waiting_since = time.perf_counter()
        self.waited, self.steps, self.trained = 0.0, 0, 0.0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Start the clocks."""
        self.start = self.waiting_since = time.perf_counter()

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Batch, index: int) -> None:
        """The batch is here: the wait is over."""
        self.waited += time.perf_counter() - self.waiting_since

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Batch, index: int
    ) -> None:
        """Log once every ``log_every_n_steps``."""
        self.steps += 1
        now = time.perf_counter()
        if trainer.global_step % trainer.log_every_n_steps == 0:
            elapsed = now - self.start
            self.trained += elapsed
            module.log_dict(
                {
                    "samples_per_second": module.config.batch_size * self.steps / elapsed,
                    "data_wait_share": self.waited / elapsed,
                    "seconds": self.trained,
                }
            )
            self.start, self.waited, self.steps = now, 0.0, 0
        self.waiting_since = time.perf_counter()

    def pause(self) -> None:
        """Forget the time since the last batch (an evaluation ran)."""
        self.start += time.perf_counter() - self.waiting_since
        self.waiting_since = time.perf_counter()


class FiniteGuard(Callback):
    """Stop at a loss that is not finite, naming the samples of the batch."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Batch, index: int
    ) -> None:
        """Checked when the loss is logged anyway, so that a step needs no host synchronization of its own."""
        if trainer.global_step % trainer.log_every_n_steps:
            return
        bad = [name for name, value in trainer.callback_metrics.items() if "loss" in name and not torch.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"step {trainer.global_step}: {', '.join(bad)} not finite; keys of the batch: {batch.keys[:8]}…. "
                "Lower optim.lr, set optim.clip_grad, or use trainer.precision=32-true; resuming starts from the last "
                "checkpoint"
            )


class ProgressLine(Callback):
    """A live bar in a terminal, a plain line now and then elsewhere; both with samples/s and each loss."""

    def __init__(self, title: str, every: float = 15.0) -> None:
        self.title, self.every = title, every
        self.console = Console()
        self.live: Progress | None = None
        self.last = time.perf_counter()

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Open the bar, at the step a resumed run starts from."""
        if not trainer.is_global_zero:
            return
        columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
        if self.console.is_terminal and sys.stdout.isatty():
            self.live = Progress(
                *columns, TimeRemainingColumn(), TextColumn("{task.fields[text]}"), console=self.console
            )
            self.live.start()
            self.task = self.live.add_task(self.title, total=trainer.max_steps, completed=trainer.global_step, text="")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Batch, index: int
    ) -> None:
        """Advance."""
        if not trainer.is_global_zero:
            return
        now, done = time.perf_counter(), trainer.global_step >= trainer.max_steps
        if self.live is not None:
            self.live.update(self.task, completed=trainer.global_step, text=self._text(trainer))
        elif now - self.last >= self.every or done:
            self.last = now
            share = trainer.global_step / max(1, trainer.max_steps)
            text = f"{self.title}  {share:4.0%}  step {trainer.global_step}/{trainer.max_steps}  {self._text(trainer)}"
            self.console.print(text, highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close()

    def _close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    @staticmethod
    def _text(trainer: lightning.Trainer) -> str:
        metrics = trainer.callback_metrics
        parts = [f"{metrics['samples_per_second']:.0f} samples/s"] if "samples_per_second" in metrics else []
        parts += [f"{short} {metrics[name]:.3f}" for name, short in SHOWN.items() if name in metrics]
        return "  ".join(parts)


class Evaluate(Callback):
    """A small suite every so many samples: the learning curve."""

    def __init__(self, every: int, batch_size: int, measure: Any, throughput: Throughput) -> None:
        self.every = max(1, every // batch_size) if every else 0
        self.measure, self.throughput = measure, throughput

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Batch, index: int
    ) -> None:
        """Measure the weights as they are; on several ranks each measures the same."""
        left = trainer.max_steps - trainer.global_step
        # The end is always measured; a turn that falls shortly before it would measure the same thing twice.
        due = left == 0 or (left >= self.every / 2 and trainer.global_step % max(1, self.every) == 0)
        if not self.every or not due:
            return
        mode = module.training
        module.eval()
        with torch.no_grad():
            values = self.measure(module.model)
        module.train(mode)
        named = {f"val/{name}": float(value) for name, value in values.items()}
        # Straight to the loggers: a metric of one step must not be repeated in the lines of the next.
        row = named | {"samples": float(module.samples_seen), "seconds": self.throughput.trained}
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in named.items()})
        self.throughput.pause()
