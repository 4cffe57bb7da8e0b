"""Callbacks that let no run be lost: checkpoints, random state (beside ``callbacks``; what stops a run: ``signals``).

All processes decide together, and every checkpoint describes the end of a step: module, optimizer, cursor, counters and
random state belong to the same moment.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback, Checkpoint
from rich.console import Console
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from cloc.checkpoints import file_name
from cloc.config import ConfigError
from cloc.contracts import Batch
from cloc.engine.callbacks import Evaluate, is_due
from cloc.engine.durable.checkpoint_file import CheckpointError, CheckpointFiles, commit, point
from cloc.engine.durable.run_folder import RunFolder
from cloc.engine.durable.signals import StopAtSignal
from cloc.engine.moving_average import AveragedWeights
from cloc.engine.nonfinite import not_finite, trained_values
from cloc.engine.process_group import barrier, broadcast, gather_objects
from cloc.engine.random_state import random_state, seed_generators, set_random_state
from cloc.engine.trainer_state import callbacks_of, is_log_step
from cloc.files import discard, hidden

console = Console(soft_wrap=True)  # a message is a line, however long its paths are


class Checkpoints(Checkpoint):
    """A checkpoint every so many samples or minutes, at the best evaluation, at the end and where a signal stops a run.

    The newest ``keep`` and the best are kept; an old one goes only after the new one is complete. One that cannot be
    written (a full disk) does not end the run: it is reported and counted, what was written of it is removed, and the
    next one is tried in its turn. At the end of a run, where there is no next one, it is an error. Weights that are not
    finite are not written, in the same way. Checkpoints between steps that are skipped may hold weights that no loss
    comes from any more: they take each other's place, and never that of one made after a step that was taken.

    Args:
        folder: of the run.
        files: the trainer's plugin; knows why a file could not be written.
        every: samples.
        minutes: since the last one, by the clock of process 0; 0 for none by time.
        keep: so many of the newest.
        best: metric of the evaluation in training, larger is better; None keeps no best.
        evaluate: the callback that measures it.
        stop: asks, in its exchange after every step, whether process 0 finds that the time has come.
    """

    def __init__(
        self,
        folder: RunFolder,
        files: CheckpointFiles,
        every: int,
        minutes: float,
        keep: int,
        best: str | None = None,
        evaluate: Evaluate | None = None,
        stop: StopAtSignal | None = None,
    ) -> None:
        self.stop = StopAtSignal() if stop is None else stop
        self.stop.asks = self._is_time
        self.folder, self.files, self.every, self.minutes, self.keep = folder, files, every, minutes, keep
        self.metric, self.evaluate = best, evaluate
        self.best: dict[str, Any] = {}  # name of the best checkpoint, and its value
        self.doubtful: list[str] = []  # names of those made where a step was skipped
        self.saved, self.failed = -1, 0
        self.tried, self.clock = time.monotonic(), False

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"metric": self.metric, "best": self.best, "failed": self.failed, "doubtful": self.doubtful}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The best so far, unless another metric decides now or its checkpoint is gone."""
        self.failed, self.doubtful = state["failed"], state.get("doubtful", [])
        if state["metric"] == self.metric and state["best"].get("checkpoint") in self.folder.names():
            self.best = state["best"]

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Start the clock, which is process 0's."""
        self.tried, self.clock = time.monotonic(), bool(self.minutes) and trainer.is_global_zero

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Batch, index: int
    ) -> None:
        """Save where a checkpoint is due; Lightning calls this callback after all others."""
        step = trainer.global_step
        if step == self.saved:  # a micro-batch that did not end a step
            return
        last, better = step >= trainer.max_steps or trainer.should_stop, self._better(trainer)
        due = last or better is not None or is_due(self.every, module.samples_seen, module.config.batch_size)
        if due or self.stop.answer:
            self._save(trainer, module, last, better)
            self.tried = time.monotonic()
        if self.failed and is_log_step(trainer):
            module.log("train/failed_checkpoints", float(self.failed))

    def _is_time(self) -> bool:
        return self.clock and time.monotonic() - self.tried >= 60 * self.minutes

    def _better(self, trainer: lightning.Trainer) -> float | None:
        """The new best value, if this step was measured and is best."""
        if self.metric is None or self.evaluate is None or self.evaluate.measured_at != trainer.global_step:
            return None
        values = self.evaluate.values
        if self.metric not in values:
            raise ConfigError(f"evaluation.best={self.metric!r} is not measured; choose of {', '.join(values)}")
        value = values[self.metric]
        # One process decides: sums may differ in the last bit, and the best may be in its folder alone.
        return broadcast(value if value > self.best.get("value", -float("inf")) else None)

    def _save(self, trainer: lightning.Trainer, module: Any, last: bool, better: float | None) -> None:
        name = file_name(trainer.global_step)
        before = self.best, self.doubtful
        if better is not None:
            self.best = {"checkpoint": name, "value": better}  # belongs to the state that is saved
        if module.skipped:
            self.doubtful = [*self.doubtful, name]
        broken = next(filter(None, gather_objects(not_finite(_weights(trainer, module)))), None)
        reason = f"{broken} is not finite" if broken else self._write(trainer, name)
        if reason is None:
            self.saved = trainer.global_step
            return
        self.best, self.doubtful = before
        self.failed += 1
        kept = next(iter(self.folder.names()), "none") if trainer.is_global_zero else ""
        remedy = "lower optim.lr, set optim.clip_grad" if broken else "make room"
        message = f"{self.folder.location}: {name} could not be written: {reason}. The newest whole one is {kept}"
        if last:
            raise CheckpointError(f"{message}; {remedy} and run the same command again")
        if trainer.is_global_zero:
            console.print(f"[bold red]{message}. Training goes on and tries again in its turn; {remedy}[/]")

    def _write(self, trainer: lightning.Trainer, name: str) -> str | None:
        """Write a checkpoint, all processes together; why it could not be done, None where it was."""
        part = hidden(self.folder.checkpoints / name)
        failure: BaseException | None = None
        self.files.failure = None
        try:
            trainer.save_checkpoint(part)
        except CheckpointException as error:  # raised in every process
            failure = error
        except OSError as error:  # raised in the first process alone, while the others wait in the barrier
            failure = error
            barrier()
        failure = failure or self.files.failure
        if trainer.is_global_zero and failure is None:
            failure = self._publish(name, part)
        reason = broadcast(str(failure) if failure else None)
        if reason and trainer.is_global_zero and part.exists():
            discard(part)
        return reason

    def _publish(self, name: str, part: Path) -> Exception | None:
        """Name the checkpoint that lies complete aside, let the links name it, and only then remove old ones."""
        folder = self.folder.checkpoints
        try:
            commit(part, folder / name)
            self.folder.publish(name)
            point(folder / "last.ckpt", folder / name)
            if self.best.get("checkpoint") == name:
                point(folder / "best.ckpt", folder / name)
            kept = self._kept(name, self.folder.names())
            for other in self.folder.names():
                if other not in kept:
                    discard(folder / other)
                    self.folder.remove(other)
        except OSError as error:
            return error
        self.doubtful = [other for other in self.doubtful if other in kept]
        return None

    def _kept(self, name: str, names: list[str]) -> set[str | None]:
        """Of all checkpoints, newest first, those that stay beside the new one."""
        doubtful = [other for other in names if other in self.doubtful]
        sound = [other for other in names if other not in self.doubtful][: self.keep]
        return {name, self.best.get("checkpoint"), *sound, *doubtful[: self.keep - len(sound)]}


def _weights(trainer: lightning.Trainer, module: Any) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint holds of the model: what training changes, and its moving average where there is one."""
    averages = [callback.model for callback in callbacks_of(trainer) if isinstance(callback, AveragedWeights)]
    for kind, model in (("", module.model), *(("average of ", average) for average in averages)):
        for name, value in trained_values(model):
            yield f"{kind}{name}", value


class RandomState(Callback):
    """Python's, NumPy's and PyTorch's generators of every process, so that dropout goes on as if nothing happened."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.stored: list[dict[str, Any]] = []

    def on_save_checkpoint(self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Every process takes part; the first one writes all states."""
        checkpoint["random_states"] = gather_objects(random_state())

    def on_load_checkpoint(self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Set later: what Lightning still prepares draws numbers."""
        self.stored = checkpoint["random_states"]

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Batch, index: int) -> None:
        """Before the first step of a resumed run."""
        if not self.stored:
            return
        if len(self.stored) == trainer.world_size:
            set_random_state(self.stored[trainer.global_rank])
        else:  # other processes: other masks of dropout, but the same ones whenever this happens
            seed = np.random.SeedSequence([self.seed, trainer.global_step, trainer.global_rank]).generate_state(1)[0]
            seed_generators(int(seed))
        self.stored = []
