"""One run of a task from a composed configuration: build, check, resume, fit."""

from __future__ import annotations

import logging
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from cloc.config import ConfigError, RunConfig, find_class, validate
from cloc.config.secrets import public
from cloc.console import print_line
from cloc.engine.agreement import check_same
from cloc.engine.durable.checkpoint_file import CheckpointError, Stored, inspect
from cloc.engine.durable.resume import begin, compare, is_finished
from cloc.engine.durable.run_folder import RunFolder
from cloc.engine.durable.signals import StopAtSignal
from cloc.engine.liveness import told
from cloc.engine.loggers import ended, start
from cloc.engine.machine import (
    precision_of,
    prepare_run,
    use_threads,
)
from cloc.engine.module import Pretrain
from cloc.engine.process_group import (
    agree,
    barrier,
    connect,
    decide,
    disconnect,
    gather_objects,
    rank_and_world,
    share_file,
    together,
)
from cloc.engine.readers import host_share, share_with
from cloc.engine.rendezvous import TIMEOUT, use_timeout
from cloc.engine.start import check_folder, check_machine, device_count, launcher_of, planned, planned_world
from cloc.engine.sweep.agent import trial
from cloc.engine.sweep.jobs import hide_secrets, job_folder, note_overrides, refuse_torchrun
from cloc.engine.task import Task, TaskData, TaskStream, chosen_metrics
from cloc.engine.trainer import build_trainer, steps, steps_left
from cloc.engine.trainer_state import callbacks_of
from cloc.files import make_folder
from cloc.models.weights.digests import weights_digest
from cloc.usage import print_next

console = Console()


def train(composed: DictConfig) -> Path | None:
    """Run (or continue) the training that a composed configuration describes.

    Args:
        composed: by Hydra, or by hand.

    Returns:
        The run folder; None for ``dry_run=true``.

    Raises:
        ConfigError: the configuration cannot be run.
        FileNotFoundError: the shards are not there.
        CheckpointError: no checkpoint of the run is whole, or the last one cannot be written.
        LaunchError: what started this process is not understood.
        LostProcess: another process has ended, or hangs for longer than ``trainer.timeout``.
        ReaderError, ShardError, SkipLimitError: reading failed; what was trained is in a checkpoint.
        SystemExit: a signal stopped the run after a checkpoint, code 130 (Ctrl-C) or 75.
    """
    use_timeout(_timeout(composed))
    with told():
        return _train(_one_folder_a_job(composed))


def _timeout(composed: DictConfig) -> float:
    """``trainer.timeout``, before the configuration is checked: who has a wrong one tells the others."""
    given = OmegaConf.select(composed, "trainer.timeout")
    return float(given) if isinstance(given, int | float) and given > 0 else TIMEOUT


def _train(composed: DictConfig) -> Path | None:
    kind, config, resolved = together(lambda: _prepare(composed))
    data: TaskData = together(lambda: kind.open_data(config))  # apart: its processes speak to each other
    rank, world = rank_and_world()
    folder = RunFolder(config.run_dir, kind.store_timeout(config))
    if world > 1:
        check_same(resolved, data.digest)
        host_share()  # all processes say what they have, at the same place
    if config.dry_run:
        together(lambda: _rehearse(kind, config, resolved, data, folder))  # and leave together: rank 0 takes longer
        if rank == 0:
            _print_launch(config)
        return None
    use_threads(config.trainer.threads)
    connect(config.trainer.accelerator)
    lightning.seed_everything(config.seed, verbose=False)
    task, stream = together(lambda: _build(kind, config, resolved, data))
    with ExitStack() as held:
        stored = decide(lambda: begin(folder, config, task, data.digest, held))
        _check_nodes(folder)
        if stored is not None and is_finished(stored, config):
            if rank == 0:
                _print_after(task)
            return folder.local
        together(lambda: check_machine(config, world))  # what a finished run has passed by
        if stored is not None:
            stream.cursor = stored.info["cursor"]
            info = stored.info
            together(lambda: task.go_on(info))
            if rank == 0:
                _print_resume(config, stored, world)
        else:
            together(task.begin)
        if rank == 0:
            prepare_run(folder.local, resolved, data.digest)
            if _is_job():
                note_overrides(folder.local, HydraConfig.get().overrides.task)
            task.save_beside(folder.local)
            folder.push()
        if stored is None and rank == 0:
            _print_plan(config, kind.plan(config, data, world), task.model, task.notes)
        _fit(folder, task, stream, stored)
        if rank == 0:
            folder.push()
            print_line(console, f"wrote {folder.location}")
            _print_after(task)
    return folder.local


def _print_launch(config: RunConfig) -> None:
    """The command that trains what was planned; a sweep has planned several."""
    script, *arguments = sys.argv
    if Path(script).name == "train.py" and rank_and_world()[1] == 1 and not _is_job():
        given = [one.removeprefix("++") for one in arguments]  # as it was typed: `check_overrides` puts them there
        kept = [one for one in given if not re.match(r"\+?dry_run=", one)]
        print_next(public(shlex.join([*launcher_of(config), script, *kept])))


def _print_after(task: Task) -> None:
    """What to do with a run; a sweep says so when all of its jobs are done."""
    if not _is_job():
        print_next(*task.next_commands())


def _is_job() -> bool:
    """Whether this is one of several runs of a sweep (``train.py -m``)."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _prepare(composed: DictConfig) -> tuple[type[Task], RunConfig, dict[str, Any]]:
    """The task and its configuration, checked."""
    kind = task_of(composed)
    composed = kind.follow(composed)
    config: RunConfig = validate(composed, kind.schema)
    world = planned_world(config)
    share_with(device_count(config.trainer) if world > 1 and config.dry_run else 1)
    folder = RunFolder(config.run_dir, kind.store_timeout(config))
    check_folder(folder)
    try:
        check_machine(config, world)  # before anything is built
    except ConfigError:
        if not _may_be_finished(folder, config):
            raise
    given, typed = (
        OmegaConf.to_container(one, resolve=True)
        for one in (composed, OmegaConf.merge(OmegaConf.structured(kind.schema), composed))
    )
    resolved: Any = _as_typed(given, typed)  # mappings, as validate has seen
    kind.complete(resolved)
    if chosen := chosen_metrics(config):
        for note in kind.check_chosen(config, chosen):
            console.print(note, markup=False, soft_wrap=True)
    _quiet_lightning()
    parts = world * config.trainer.accumulate
    if config.batch_size % parts:
        micro = f" × trainer.accumulate={config.trainer.accumulate} micro-batches" * (config.trainer.accumulate > 1)
        raise ConfigError(
            f"batch_size={config.batch_size} does not divide over {world} processes{micro}; give a multiple of {parts}"
        )
    return kind, config, resolved


def _as_typed(given: Any, typed: Any) -> Any:
    """The keys that were given, with the values that the schema makes of them: "8" from the environment is 8."""
    if not isinstance(given, dict):
        return typed
    return {key: _as_typed(value, typed[key]) for key, value in given.items()}


def task_of(composed: DictConfig) -> type[Task]:
    """The task that a configuration names; pretraining where it names none.

    Raises:
        ConfigError: no such class, or it is no task.
    """
    name = composed.get("task")
    found = find_class(name, "task") if name is not None else Pretrain
    if not issubclass(found, Task):
        raise ConfigError(f"task={name}: no task; give a subclass of cloc.engine.task.Task, or null for pretraining")
    return found


def _build(kind: type[Task], config: RunConfig, resolved: dict[str, Any], data: TaskData) -> tuple[Task, TaskStream]:
    task = kind(config, resolved)
    return task, task.open_stream(data, *rank_and_world())


def _rehearse(kind: type[Task], config: RunConfig, resolved: dict[str, Any], data: TaskData, folder: RunFolder) -> None:
    """Build what a run would build, up to its first step, so that it refuses what a run would; write nothing."""
    task, stored = kind.rehearse(config, resolved), _look(folder)
    (rank, started), world = rank_and_world(), planned_world(config)
    stream = task.open_stream(data, rank, world)
    if stored is not None:
        compare(stored, config, task, data.digest, folder)
        if not is_finished(stored, config):
            task.go_on(stored.info)
    else:
        task.begin()
    if stored is None or not is_finished(stored, config):
        check_machine(config, world)
        task.configure_optimizers()
        build_trainer(folder, task, stored, logs=False)
    if rank == 0:
        rows = kind.plan(config, data, world) | task.rates(data, stream, world)
        if started != world:
            rows = {"processes": planned(config, world)} | rows
        _print_plan(config, rows, task.model, task.notes, stored)


def _look(folder: RunFolder) -> Stored | None:
    """The newest whole checkpoint of a run, for a command that changes nothing."""
    for name in [] if folder.is_remote else folder.names():
        with suppress(CheckpointError):
            return inspect(folder.fetch(name))
    return None


def _may_be_finished(folder: RunFolder, config: RunConfig) -> bool:
    """Whether a run may be at its end; of one in an object store its checkpoint says so, which is fetched later."""
    stored = _look(folder)
    return bool(folder.is_remote and folder.names()) or (stored is not None and is_finished(stored, config))


def _fit(folder: RunFolder, task: Task, stream: TaskStream, stored: Stored | None) -> None:
    (rank, world), config = rank_and_world(), task.config
    trainer = build_trainer(folder, task, stored)
    if trainer.world_size != world:
        raise ConfigError(
            f"trainer.devices={config.trainer.devices} asks for {trainer.world_size} processes, {world} were launched: "
            f"start them with `torchrun --nproc-per-node={trainer.world_size} train.py …` or by srun"
        )
    task.train()  # Lightning leaves every module in the mode it finds; frozen parts stay in evaluation mode
    stop = next(callback for callback in callbacks_of(trainer) if isinstance(callback, StopAtSignal))
    together(lambda: start(trainer.loggers, task.resolved, stored))
    with ended(trainer), task.reading(stream) as batches:
        checkpoint = share_file(stored.path if stored and rank == 0 else None, folder.local)
        trainer.fit(task, stop.reading(batches), ckpt_path=checkpoint, weights_only=True)
    _stop_if_told(config, folder, trainer, stop)
    if config.trainer.strategy != "fsdp":  # where each process holds all weights, they are the same
        digest = weights_digest(task.model)
        agree("the weights at the end", digest, "a process has trained on its own; please report this")
        console.print(f"{config.name}: process {rank} of {world}, weights {digest}", highlight=False, soft_wrap=True)
    disconnect()


def _stop_if_told(config: RunConfig, folder: RunFolder, trainer: lightning.Trainer, stop: StopAtSignal) -> None:
    """End with an exit code of its own after a signal: the run is whole, but not at its end."""
    if stop.received is None and stop.failure is None:
        return
    if trainer.is_global_zero:
        gone = stop.received == signal.SIGHUP  # with the terminal, or the reader of standard output
        Console(stderr=gone).print(stop.says(config.name, trainer), highlight=False, soft_wrap=True)
        folder.push()
    barrier()  # a launcher ends the others as soon as one process is gone
    raise stop.failure or SystemExit(stop.code)


def _check_nodes(folder: RunFolder) -> None:
    """Nodes with run folders of their own must start in the same order: process 0's checkpoints are taken."""
    latest = gather_objects("" if folder.is_remote else next(iter(folder.names()), ""))
    ahead = latest.index(max(latest))
    if latest[ahead] > latest[0]:
        raise ConfigError(
            f"the run folder of process {ahead} holds {latest[ahead]}, newer than process 0's {latest[0] or 'none'}; "
            "start the nodes in the same order (--node-rank) as before, or give them one folder"
        )


def _print_resume(config: RunConfig, stored: Stored, world: int) -> None:
    seen, left = stored.info["samples_seen"], steps_left(config, stored)
    what = f"{left:,} steps of {config.batch_size:,} to sample {seen + left * config.batch_size:,}"
    said = f"[bold]{config.name}[/]: continues at sample {seen} from {stored.path}: {what}"
    console.print(said, soft_wrap=True)
    if stored.world_size != world:
        console.print(
            f"{stored.world_size} processes trained it, {world} continue: the same samples; sums and dropout differ"
        )


def _one_folder_a_job(composed: DictConfig) -> DictConfig:
    """In a sweep (``train.py -m``, or ``wandb agent``) every job gets a run folder of its own."""
    if _is_job():
        refuse_torchrun()
        job = HydraConfig.get()
        hide_secrets(Path(job.sweep.dir) / "multirun.yaml")
        run_dir = job_folder(composed.run_dir, job.job.num, job.overrides.task)
    elif (name := trial()) is not None:
        run_dir = f"{composed.run_dir}/{name}"
    else:
        return composed
    if not RunFolder(run_dir).is_remote:
        make_folder(Path(composed.run_dir), Path(run_dir).name)
    own = OmegaConf.merge(composed, {"run_dir": run_dir})
    assert isinstance(own, DictConfig)  # what a mapping is merged into
    return own


def _quiet_lightning() -> None:
    """Its banners say nothing about this run; warnings still come through."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # the run folder holds more than the log
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*model that overrides the configure_model.*")  # it does nothing without FSDP2
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")  # `trainer.ema` was turned off
    warnings.filterwarnings("ignore", ".*not created with WeightAveraging.*")  # or on: what changed is listed
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # frozen parts are meant to be


def _print_plan(
    config: RunConfig,
    rows: Mapping[str, str],
    model: nn.Module,
    notes: Sequence[str] = (),
    stored: Stored | None = None,
) -> None:
    """The arithmetic of a run, before it starts.

    Args:
        config: of the run.
        rows: what the task has to say of it.
        model: of its size at least.
        notes: what was settled while it was built.
        stored: the checkpoint that it continues from.
    """
    precision = precision_of(config.trainer.precision, config.trainer.accelerator)
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state = 4 * count + 12 * trained
    lines: dict[str, Any] = {
        "run folder": public(config.run_dir),
        "samples": f"{config.samples:,} = {steps(config):,} steps × global batch {config.batch_size:,}",
        **rows,
        "precision": f"{precision}, {config.trainer.threads or torch.get_num_threads()} threads",
        "model": f"{count / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained",
        "memory": f"{state / 2**20:.0f} MiB for weights, gradients and optimizer (float32), activations besides",
    }
    if notes:
        lines["settled"] = "; ".join(notes)
    if stored:
        at = f"at sample {stored.info['samples_seen']:,} of {stored.path.name}"
        lines["continues"] = f"{at}: {steps_left(config, stored):,} steps are left"
    table = Table(title=config.name, title_justify="left", show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines.items():
        table.add_row(f"[dim]{name}", Text(str(value)))
    console.print(table)
