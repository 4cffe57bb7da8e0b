"""What the engine runs: a task. It builds model and stream and computes a step; all else is the engine's.

Run folder, resuming, checkpoints, progress, launching and sweeps know no other task than this class. Stands between
``durable``, ``optim``, ``strategy`` (which it uses) and ``run`` (which picks the task by its configuration).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import lightning
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer

from cloc import __version__
from cloc.config import ConfigError
from cloc.config.schema import RunConfig
from cloc.config.secrets import public_tree
from cloc.contracts import LossTerms
from cloc.engine.agreement import flat
from cloc.engine.durable.run_folder import RunFolder
from cloc.engine.durable.settings import ENGINE, After, look_up
from cloc.engine.nonfinite import clip, flag_nonfinite
from cloc.engine.optim import build_optimizer, optim_config, rate, rearranged, set_rate
from cloc.engine.strategy import is_sharded, shard


class TaskBatch(Protocol):
    """What the engine reads of a batch; the rest is between a task's stream and its step.

    Attributes:
        keys: names of this process's samples, for reports.
        cursor: global position of the first sample after this global batch.
        stats: counters of the reading process.
    """

    keys: list[str]
    cursor: int
    stats: dict[str, float]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TaskBatch:
        """The same with every tensor on a device."""


class TaskData(Protocol):
    """What a task reads, opened."""

    @property
    def digest(self) -> str:
        """Changes with its content."""


class TaskStream(Protocol):
    """The batches of this process, in an order that is a function of seed and position.

    Attributes:
        cursor: global position of the first sample that it gives; set before it is read.
    """

    cursor: int


@dataclass(frozen=True, slots=True)
class Reading:
    """How one process read since the last log line.

    Attributes:
        counts: counters of its batches, summed, and ``samples``.
        peaks: the largest of each of :attr:`Task.peaks`.
        wait: share of its time spent waiting for batches.
    """

    counts: Counter[str]
    peaks: dict[str, float]
    wait: float


# Options of the trainer that a task itself must see to, each with the value that asks for nothing.
OPTIONAL = {"accumulate": 1, "compile": False, "checkpoint_activations": False}
Measure = Callable[[Any], Mapping[str, float]]  # of the model of the task that gives it


def chosen_metrics(config: RunConfig) -> dict[str, str]:
    """Keys of the configuration that name a metric, with what they name."""
    given = {"evaluation.best": config.evaluation.best, "objective": config.objective}
    return {key: name for key, name in given.items() if name}


class Task(lightning.LightningModule):
    """A model, what it reads and what a step computes. A subclass sets ``model`` and gives what raises here.

    Args:
        config: of the class ``schema``, validated.
        resolved: the same as plain containers, stored in every checkpoint, without credentials.

    Attributes:
        schema: dataclass of the task's configuration.
        keys: what becomes of the keys that it adds to the engine's when a run goes on with another value.
        peaks: counters of a batch of which the largest counts, not the sum.
        heeds: which of :data:`OPTIONAL` its model or step makes use of.
        model: what is trained; parameters elsewhere are not.
        cursor: of the last batch that was trained.
        notes: what was settled on the way, in words, for the plan.
        skipped: whether the last step was left out.
        beside: what a checkpoint holds besides the engine's own, by key; set by :meth:`save_beside`.
        terms: of the last step.

    Raises:
        ConfigError: an option of the trainer that the task does not heed is on.
    """

    schema: ClassVar[type[RunConfig]] = RunConfig
    keys: ClassVar[Mapping[str, After]] = {}
    peaks: ClassVar[frozenset[str]] = frozenset()
    heeds: ClassVar[frozenset[str]] = frozenset()
    model: nn.Module

    def __init__(self, config: RunConfig, resolved: dict[str, Any]) -> None:
        super().__init__()
        self.config, self.resolved = config, public_tree(resolved)
        self.samples_seen = 0
        self.cursor = 0
        self.counters: dict[str, float] = {}
        self.terms: dict[str, Tensor] = {}
        self.skipped = False
        self.beside: dict[str, Any] = {}
        self.notes: list[str] = []
        for name, off in OPTIONAL.items():
            value = getattr(config.trainer, name)
            if value != off and name not in self.heeds:
                raise ConfigError(f"trainer.{name}={value}: {type(self).__name__} does not heed it; set it to {off}")

    # --- what a task is: before anything is built ---

    @classmethod
    def follow(cls, composed: DictConfig) -> DictConfig:
        """A configuration with what it leaves to something that it names, before it is checked."""
        return composed

    @classmethod
    def complete(cls, resolved: dict[str, Any]) -> None:
        """Fill in, in place, what a checkpoint must hold so that the model can be built from it alone: the defaults."""
        filled: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(cls.schema), resolved))
        resolved.update(filled)

    @classmethod
    def rehearse(cls, config: Any, resolved: dict[str, Any]) -> Task:
        """The task for a dry run, which builds what a run would; one that can leaves out weights that take time."""
        return cls(config, resolved)

    @classmethod
    def open_data(cls, config: Any) -> TaskData:
        """Open what the configuration names to be read, and refuse what cannot be trained on."""
        raise NotImplementedError(f"{cls.__name__}.open_data: a task says here what it reads")

    @classmethod
    def blank_model(cls, resolved: Mapping[str, Any]) -> nn.Module:
        """The model with weights of no meaning: to be counted, or to take weights that lie in shards."""
        raise NotImplementedError(f"{cls.__name__}.blank_model: a task builds its model here")

    @classmethod
    def plan(cls, config: Any, data: Any, world: int) -> dict[str, str]:
        """Lines of its own in the plan that is printed before a run."""
        return {}

    @classmethod
    def check_chosen(cls, config: Any, chosen: Mapping[str, str]) -> list[str]:
        """Refuse a metric that no measurement of this run will give; returns what to say of names that may be right.

        Args:
            config: of the class ``schema``, validated.
            chosen: ``evaluation.best``, ``objective`` → the name that the key gives.

        Raises:
            ConfigError: names the key.
        """
        return []

    @classmethod
    def store_timeout(cls, config: Any) -> float:
        """Seconds that a remote store of the run may be silent."""
        return 30.0

    # --- what a task is: of a run ---

    def rates(self, data: Any, stream: Any, world: int) -> dict[str, str]:
        """Lines of a dry run's plan that take seconds: whether reading keeps up with the step."""
        return {}

    def open_stream(self, data: Any, rank: int, world: int) -> TaskStream:
        """The stream of one of W processes."""
        raise NotImplementedError(f"{type(self).__name__}.open_stream: a task says here in what order it reads")

    def reading(self, stream: Any) -> AbstractContextManager[Iterable[TaskBatch]]:
        """The batches of a stream from its cursor on; what reads them ends with the context."""
        raise NotImplementedError(f"{type(self).__name__}.reading: a task says here how it reads")

    def step(self, batch: Any) -> LossTerms:
        """The loss of a batch, with its terms."""
        raise NotImplementedError(f"{type(self).__name__}.step: a task computes its loss here")

    def after_step(self) -> None:
        """Hold the weights to their limits."""

    def begin(self) -> None:
        """Take the weights that a new run starts from, where the configuration names any."""

    def go_on(self, info: Mapping[str, Any]) -> None:
        """Get what a step needs besides a checkpoint that holds ``info`` of the run."""

    def save_beside(self, folder: Path) -> None:
        """Write into the run folder what weights and configuration do not hold. Called in the first process."""

    def measurement(self) -> Measure | None:
        """What measures the model while it trains, larger is better: metrics by name; None for nothing."""
        return None

    def next_commands(self) -> list[str]:
        """What to do with a run that is done, as command lines to copy."""
        return []

    @classmethod
    def health(cls, parts: Sequence[Reading]) -> dict[str, float]:
        """What to log of the data since the last line, of all processes."""
        return {"data_wait_share": max(part.wait for part in parts)}

    @property
    def shown(self) -> dict[str, str]:
        """Metrics on the progress line, with their short names there."""
        return {"loss": "loss"}

    @property
    def data_name(self) -> str:
        """What it reads, in words."""
        return "the data"

    # --- when a run goes on ---

    @classmethod
    def table(cls) -> dict[str, After]:
        """What becomes of every key of the schema; a group whose keys are free stands for all of them."""
        return ENGINE | dict(cls.keys)

    @classmethod
    def after(cls, key: str, resolved: Mapping[str, Any]) -> After:
        """What becomes of a key whose value has changed.

        Raises:
            KeyError: the table does not know it.
        """
        return look_up(key, cls.table())

    @classmethod
    def defaults(cls, resolved: Mapping[str, Any]) -> dict[str, Any]:
        """Values of keys that an older checkpoint lacks, by dotted key."""
        return flat(asdict(cls.schema()))

    @classmethod
    def completed(cls, stored: Mapping[str, Any], resolved: Mapping[str, Any]) -> Mapping[str, Any]:
        """A checkpoint's configuration with what :meth:`complete` writes by now; ``resolved`` is the command's."""
        return stored

    def check_resume(self, folder: RunFolder, changed: Mapping[str, str]) -> None:
        """Refuse what the table cannot tell.

        Args:
            folder: of the run.
            changed: keys, each with a line that says how.

        Raises:
            ConfigError: the run cannot go on with these settings.
        """

    # --- the engine's own ---

    def configure_model(self) -> None:
        """Shard the model where the strategy asks for it; Lightning calls this in every process."""
        if self.config.trainer.strategy == "fsdp" and not is_sharded(self.model):
            model: Any = self.model
            mesh: Any = self.device_mesh
            shard(model, mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Refuse a trainer that adds up gradients of parts.

        Raises:
            ConfigError: each part would see its own negatives alone, which is another loss.
        """
        parts = self.trainer.accumulate_grad_batches
        if parts != 1:
            raise ConfigError(
                f"accumulate_grad_batches={parts}: each part would be contrasted with itself alone; set "
                f"trainer.accumulate={parts}, whose loss sees the whole batch"
            )

    def training_step(self, batch: TaskBatch, index: int) -> Tensor:
        """The task's step, and a log line every ``trainer.log_every`` steps."""
        terms = self.step(batch)
        for name, value in batch.stats.items():
            self.counters[name] = self.counters.get(name, 0.0) + value
        if (self.global_step + 1) % self.config.trainer.log_every == 0:  # the step at whose end Lightning writes
            self._log(terms.total, terms.terms, terms.stats)
        self.terms = {f"loss/{k}": v for k, v in terms.terms.items()} | {"loss": terms.total.detach()}
        return flag_nonfinite(terms.total)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip. A step whose gradient is not finite is skipped: optimizers leave alone what has no gradient."""
        self.skipped = not math.isfinite(clip(self.parameters(), gradient_clip_val or 0.0))
        if self.skipped:
            optimizer.zero_grad(set_to_none=True)

    def _log(self, total: Tensor, terms: dict[str, Tensor], stats: dict[str, Tensor]) -> None:
        values: dict[str, Any] = {"loss": total.detach()} | {f"loss/{k}": v for k, v in terms.items()}
        values |= {f"train/{k}": v for k, v in stats.items()}
        values |= {f"data/{k}": v for k, v in self.counters.items()}
        values["samples"] = float(self.samples_seen + self.config.batch_size)
        optimizer: Any = self.optimizers()
        values["lr"] = optimizer.param_groups[0]["lr"]
        self.log_dict({name: torch.as_tensor(value, dtype=torch.float32) for name, value in values.items()})
        self.counters = {}

    def transfer_batch_to_device(self, batch: TaskBatch, device: torch.device, index: int) -> TaskBatch:
        """One asynchronous copy a tensor."""
        return batch.to(device, non_blocking=True)

    def on_train_batch_start(self, batch: TaskBatch, index: int) -> None:
        """Set the rates from the samples seen so far."""
        optim = self.config.optim
        factor = rate(self.samples_seen, self.config.samples, optim.warmup, optim.final)
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        set_rate(optimizer, factor)

    def advance(self, batch: TaskBatch) -> None:
        """Advance the cursor after a step: only a batch that was trained counts, never one that was prefetched."""
        with torch.no_grad():
            self.after_step()
        self.samples_seen += self.config.batch_size
        self.cursor = batch.cursor

    def configure_optimizers(self) -> Optimizer:
        """Groups of parameters and their optimizers, see :func:`cloc.engine.optim.build_optimizer`."""
        return build_optimizer(self.model, self.config.optim)

    def regroup(self, state: dict[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
        """An optimizer's stored state in the groups of this configuration; ``stored`` is that which it was made with.

        Raises ValueError as :func:`cloc.engine.optim.rearranged` does.
        """
        return rearranged(state, self.model, optim_config(stored), self.config.optim)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what a loader needs, as plain containers."""
        checkpoint["cloc"] = {
            "version": __version__,
            "config": self.resolved,
            "cursor": self.cursor,
            "samples_seen": self.samples_seen,
            "counters": self.counters,
        }
        checkpoint.update(self.beside)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue where the stored batch ended, with the settings of this configuration."""
        if not is_sharded(self.model):  # FSDP2 has read weights and optimizer by now, through its strategy
            self.adopt(checkpoint)
        self.cursor = checkpoint["cloc"]["cursor"]
        self.samples_seen = checkpoint["cloc"]["samples_seen"]
        self.counters = dict(checkpoint["cloc"]["counters"])

    def adopt(self, checkpoint: dict[str, Any]) -> None:
        """Bring a checkpoint into the form that this configuration continues from, before it is loaded.

        A run that goes on without a moving average takes the weights in training, not their average; the optimizer's
        moments go to the groups in which this configuration has their parameters.
        """
        if not self.config.trainer.ema and "current_model_state" in checkpoint:
            checkpoint["state_dict"] = checkpoint.pop("current_model_state")
        stored = checkpoint["cloc"]["config"]
        checkpoint["optimizer_states"] = [self.regroup(state, stored) for state in checkpoint["optimizer_states"]]


def as_task(module: lightning.LightningModule) -> Task:
    """The module that Lightning hands to a callback, as the task that it is here.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(module, Task):
        raise TypeError(f"{type(module).__name__} is no task: give a subclass of cloc.engine.task.Task")
    return module
