"""Lightning's trainer for a run: our callbacks in their order, and how many steps are left (below ``run``)."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import Callback

from cloc.config import ConfigError, RunConfig
from cloc.engine.callbacks import CompileTime, Cursor, Evaluate, ProgressLine, Throughput
from cloc.engine.durable.checkpoint_file import CheckpointFiles, Stored
from cloc.engine.durable.checkpointing import Checkpoints, RandomState
from cloc.engine.durable.run_folder import RunFolder
from cloc.engine.durable.signals import StopAtSignal
from cloc.engine.loggers import build_loggers
from cloc.engine.machine import precision_of
from cloc.engine.moving_average import AveragedWeights
from cloc.engine.nonfinite import FiniteGuard
from cloc.engine.process_group import cluster, nodes
from cloc.engine.profile import StepProfile
from cloc.engine.strategy import build_strategy
from cloc.engine.task import Task


def build_callbacks(folder: RunFolder, task: Task, files: CheckpointFiles) -> list[Callback]:
    """All that goes on beside the steps, in the order in which it hears that one is done."""
    config, options = task.config, task.config.trainer
    throughput, evaluate = Throughput(), None
    if config.evaluation.every and (measure := task.measurement()) is not None:
        at_start = config.evaluation.at_start
        evaluate = Evaluate(config.evaluation.every, config.batch_size, measure, throughput, at_start)
    elif config.evaluation.best or config.evaluation.at_start or config.objective:
        raise ConfigError("evaluation.best, evaluation.at_start, objective: nothing is measured; set evaluation.every")
    turns = options.checkpoint_every, options.checkpoint_minutes
    stop = StopAtSignal()
    ordered = [
        CompileTime() if options.compile else None,  # the bare step: neither average nor evaluation are compilation
        Cursor(),  # the step counts as done for all that follow
        AveragedWeights(options.ema) if options.ema else None,  # part of the step
        throughput,  # before all that takes time of its own between steps
        StepProfile(folder.local) if config.profile else None,
        evaluate,  # of the weights and the average as they are now; it tells the throughput how long it took
        FiniteGuard(folder, options.max_skipped_steps),
        ProgressLine(config.name),
        RandomState(config.seed),
        stop,  # before the checkpoint that a signal asks for
        Checkpoints(folder, files, *turns, options.keep_last, config.evaluation.best, evaluate, stop),
    ]
    return [callback for callback in ordered if callback is not None]


def build_trainer(folder: RunFolder, task: Task, stored: Stored | None = None, logs: bool = True) -> lightning.Trainer:
    """Lightning's trainer with our callbacks. Budgets count steps: there are no epochs.

    Args:
        folder: of the run.
        task: to be trained.
        stored: the checkpoint that it goes on from.
        logs: write logs; False for a rehearsal.
    """
    config, options, files = task.config, task.config.trainer, CheckpointFiles()
    precision: Any = precision_of(options.precision, options.accelerator)  # of Lightning's names, which it checks
    trainer = lightning.Trainer(
        accelerator=options.accelerator,
        devices="auto" if options.devices in (-1, "-1") else options.devices,  # Lightning counts no CPUs by -1
        num_nodes=nodes(options.num_nodes),
        strategy=build_strategy(options),
        precision=precision,
        max_steps=(stored.step if stored else 0) + steps_left(config, stored),
        max_epochs=-1,
        gradient_clip_val=config.optim.clip_grad or None,
        log_every_n_steps=options.log_every,
        logger=logs and build_loggers(config, folder, task.resolved, stored),
        callbacks=build_callbacks(folder, task, files),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder.local,
        plugins=[files, cluster() or LightningEnvironment()],  # it must not find a launcher of its own
    )
    _without_signals(trainer)
    return trainer


def _without_signals(trainer: Any) -> None:
    """Signals are heard by ``StopAtSignal`` alone.

    Lightning would save and requeue by itself, talk to the other processes from inside the handler, and ask them before
    every step whether one has heard of SIGTERM, which makes the GPU wait.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def steps(config: RunConfig) -> int:
    """Optimizer steps of the whole budget; a last partial batch is a whole step."""
    return -(-config.samples // config.batch_size)


def steps_left(config: RunConfig, stored: Stored | None) -> int:
    """Steps from a checkpoint to the end of the budget, in batches of the present size; all of them without one."""
    if stored is None:
        return steps(config)
    seen: int = stored.info["samples_seen"]
    return max(0, -(-(config.samples - seen) // config.batch_size))
