"""One training run from a validated configuration: build, check, resume, fit."""

from __future__ import annotations

import logging
import signal
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from cloc.config import ConfigError, TrainConfig, validate
from cloc.config.secrets import public
from cloc.data.stream.batches import Stream, make_loader
from cloc.data.stream.collate import make_chooser
from cloc.data.stream.shared_buffers import release_ended_workers
from cloc.data.stream.sources import ShardSources, open_sources
from cloc.data.tokenizer import Tokenizer
from cloc.engine.agreement import check_same
from cloc.engine.callbacks import CompileTime, Cursor, Evaluate, ProgressLine, Throughput
from cloc.engine.durable.checkpoint_file import CheckpointError, CheckpointFiles, Stored, inspect
from cloc.engine.durable.checkpointing import Checkpoints, RandomState
from cloc.engine.durable.initial_weights import take_weights
from cloc.engine.durable.resume import begin
from cloc.engine.durable.run_folder import RunFolder
from cloc.engine.durable.signals import StopAtSignal
from cloc.engine.loggers import build_loggers
from cloc.engine.machine import (
    precision_of,
    prepare_run,
    shield_workers,
    use_threads,
    without_requeue,
)
from cloc.engine.module import Pretrain
from cloc.engine.moving_average import AveragedWeights
from cloc.engine.nonfinite import FiniteGuard
from cloc.engine.process_group import (
    agree,
    connect,
    decide,
    disconnect,
    gather_objects,
    rank_and_world,
    share_file,
    together,
)
from cloc.engine.profile import StepProfile
from cloc.engine.strategy import build_strategy
from cloc.engine.sweep.jobs import hide_secrets, job_folder, note_overrides, refuse_torchrun
from cloc.files import into_folder, make_folder
from cloc.models.weights.digests import weights_digest
from cloc.models.weights.pretrained import complete

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
        ReaderError, ShardError, SkipLimitError: reading failed; what was trained is in a checkpoint.
        SystemExit: a signal stopped the run after a checkpoint, code 130 (Ctrl-C) or 75.
    """
    composed = _one_folder_a_job(composed)
    config, resolved, data = together(lambda: _open(composed))
    rank, world = rank_and_world()
    folder = RunFolder(config.run_dir, config.data.timeout)
    if world > 1:
        check_same(resolved, data.digest)
    if config.dry_run:
        _print_plan(config, data, world, stored=_look(folder))
        return None
    use_threads(config.trainer.threads)
    connect(config.trainer.accelerator)
    lightning.seed_everything(config.seed, verbose=False)
    module, stream = together(lambda: _build(config, resolved, data))
    with ExitStack() as held:
        stored = decide(lambda: begin(folder, config, module, data.digest, held))
        _check_nodes(folder)
        if stored is not None and stored.info["samples_seen"] >= config.samples:
            if rank == 0:
                seen = f"already trained on {stored.info['samples_seen']} samples (samples={config.samples})"
                console.print(f"{folder.location}: {seen}; remove it to start anew", soft_wrap=True)
            return folder.local
        if stored is not None:
            stream.cursor = stored.info["cursor"]
            if rank == 0:
                _print_resume(config, stored, world)
        elif config.init_from is not None:
            module.notes.append(together(lambda: take_weights(module.model, config.init_from)))
        if rank == 0:
            prepare_run(folder.local, resolved, data.digest)
            if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
                note_overrides(folder.local, HydraConfig.get().overrides.task)
            _save_text_files(module, folder.local)
            folder.push()
        if stored is None and rank == 0:
            _print_plan(config, data, world, module)
        _fit(config, folder, module, stream, stored)
        if rank == 0:
            folder.push()
    return folder.local


def _open(composed: DictConfig) -> tuple[TrainConfig, dict[str, Any], ShardSources]:
    """The configuration, checked, and the data that it names."""
    config: TrainConfig = validate(composed)
    resolved = OmegaConf.to_container(composed, resolve=True)
    resolved["model"] = complete(resolved["model"])  # what initial weights bring: a checkpoint is rebuilt without them
    _quiet_lightning()
    data = open_sources(config.data)
    _check_data(config, data)
    _, world = rank_and_world()
    parts = world * config.trainer.accumulate
    if config.batch_size % parts:
        micro = f" × trainer.accumulate={config.trainer.accumulate} micro-batches" * (config.trainer.accumulate > 1)
        raise ConfigError(
            f"batch_size={config.batch_size} does not divide over {world} processes{micro}; give a multiple of {parts}"
        )
    return config, resolved, data


def _build(config: TrainConfig, resolved: dict[str, Any], data: ShardSources) -> tuple[Pretrain, Stream]:
    module = Pretrain(config, resolved)
    _check_vocabulary(module)
    return module, build_stream(config, module, data, *rank_and_world())


def _look(folder: RunFolder) -> Stored | None:
    """The newest whole checkpoint of a run, for a command that changes nothing."""
    for name in [] if folder.is_remote else folder.names():
        with suppress(CheckpointError):
            return inspect(folder.fetch(name))
    return None


def _fit(config: TrainConfig, folder: RunFolder, module: Pretrain, stream: Stream, stored: Stored | None) -> None:
    rank, world = rank_and_world()
    trainer = build_trainer(config, folder, module, stored)
    if trainer.world_size != world:
        raise ConfigError(
            f"trainer.devices={config.trainer.devices} asks for {trainer.world_size} processes, {world} were launched: "
            f"start them with `torchrun --nproc-per-node={trainer.world_size} train.py …` or by srun"
        )
    module.train()  # Lightning leaves every module in the mode it finds; frozen parts stay in evaluation mode
    shield = shield_workers() if config.data.workers else {}
    workers, timeout = config.data.workers, config.data.batch_timeout
    loader = make_loader(stream, workers, timeout, pin_memory=torch.cuda.is_available(), **shield)
    checkpoint = share_file(stored.path if stored and rank == 0 else None, folder.local)
    stop = next(callback for callback in trainer.callbacks if isinstance(callback, StopAtSignal))
    try:
        trainer.fit(module, stop.reading(loader), ckpt_path=checkpoint, weights_only=True)
    finally:
        loader.end()
    release_ended_workers()
    _stop_if_told(config, folder, trainer, stop)
    if config.trainer.strategy != "fsdp":  # where each process holds all weights, they are the same
        digest = weights_digest(module.model)
        agree("the weights at the end", digest, "a process has trained on its own; please report this")
        console.print(f"{config.name}: process {rank} of {world}, weights {digest}", highlight=False, soft_wrap=True)
    disconnect()


def _stop_if_told(config: TrainConfig, folder: RunFolder, trainer: lightning.Trainer, stop: StopAtSignal) -> None:
    """End with an exit code of its own after a signal: the run is whole, but not at its end."""
    if stop.received is None and stop.failure is None:
        return
    if trainer.is_global_zero:
        gone = stop.received == signal.SIGHUP  # with the terminal, or the reader of standard output
        Console(stderr=gone).print(stop.says(config.name, trainer), highlight=False, soft_wrap=True)
        folder.push()
    trainer.strategy.barrier("stopped")  # a launcher ends the others as soon as one process is gone
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


def _print_resume(config: TrainConfig, stored: Stored, world: int) -> None:
    seen, left = stored.info["samples_seen"], steps_left(config, stored)
    what = f"{left:,} steps of {config.batch_size:,} to sample {seen + left * config.batch_size:,}"
    said = f"[bold]{config.name}[/]: continues at sample {seen} from {stored.path}: {what}"
    console.print(said, soft_wrap=True)
    if stored.world_size != world:
        console.print(
            f"{stored.world_size} processes trained it, {world} continue: the same samples; sums and dropout differ"
        )


def _one_folder_a_job(composed: DictConfig) -> DictConfig:
    """In a sweep (``train.py -m``) every job gets a run folder of its own."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return composed
    refuse_torchrun()
    job = HydraConfig.get()
    hide_secrets(Path(job.sweep.dir) / "multirun.yaml")
    run_dir = job_folder(composed.run_dir, job.job.num, job.overrides.task)
    if not RunFolder(run_dir).is_remote:
        make_folder(Path(composed.run_dir), Path(run_dir).name)
    return OmegaConf.merge(composed, {"run_dir": run_dir})


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


def build_stream(config: TrainConfig, module: Pretrain, data: ShardSources, rank: int, world: int) -> Stream:
    """The training stream that fits a model: its tokenizer, its view."""
    text = module.model.text
    return Stream(
        data,
        Tokenizer.of(text),
        make_chooser(config.data, module.model.image.image_size, module.model.image.resize),
        config.batch_size,
        seed=config.seed,
        rank=rank,
        world_size=world,
        max_skip_share=config.data.max_skip_share,
    )


def build_trainer(
    config: TrainConfig, folder: RunFolder, module: Pretrain, stored: Stored | None = None
) -> lightning.Trainer:
    """Lightning's trainer with our callbacks. Budgets count steps: there are no epochs."""
    throughput, files, evaluate = Throughput(), CheckpointFiles(), None
    callbacks: list[Callback] = [
        Cursor(),
        throughput,
        FiniteGuard(folder, config.trainer.max_skipped_steps),
        ProgressLine(config.name),
        RandomState(config.seed),
        StopAtSignal(),
    ]
    if config.trainer.ema:
        callbacks.insert(1, AveragedWeights(config.trainer.ema))
    if config.evaluation.every and config.evaluation.data:
        from cloc.evaluation.suite import TrainingSuite

        measured = config.evaluation
        suite = TrainingSuite(measured, config.datasets, module.model)
        evaluate = Evaluate(measured.every, config.batch_size, suite, throughput, measured.at_start)
        callbacks.insert(2, evaluate)
    if config.profile:
        callbacks.insert(2, StepProfile(folder.local))
    if config.trainer.compile:
        callbacks.insert(0, CompileTime())  # first: an evaluation behind a step is no compilation
    options = config.trainer
    turns = options.checkpoint_every, options.checkpoint_minutes
    callbacks.append(Checkpoints(folder, files, *turns, options.keep_last, config.evaluation.best, evaluate))
    return lightning.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=build_strategy(options),
        precision=precision_of(options.precision, options.accelerator),
        max_steps=(stored.step if stored else 0) + steps_left(config, stored),
        max_epochs=-1,
        gradient_clip_val=config.optim.clip_grad or None,
        log_every_n_steps=options.log_every,
        logger=build_loggers(config, folder, stored.step, stored.info["samples_seen"])
        if stored
        else build_loggers(config, folder),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder.local,
        plugins=[files, *without_requeue()],
    )


def steps(config: TrainConfig) -> int:
    """Optimizer steps of the whole budget; a last partial batch is a whole step."""
    return -(-config.samples // config.batch_size)


def steps_left(config: TrainConfig, stored: Stored | None) -> int:
    """Steps from a checkpoint to the end of the budget, in batches of the present size; all of them without one."""
    if stored is None:
        return steps(config)
    return max(0, -(-(config.samples - stored.info["samples_seen"]) // config.batch_size))


def _check_data(config: TrainConfig, data: ShardSources) -> None:
    data.check_cache(config.seed)
    wants = {name: config.loss.get(name, 0) for name in ("region", "grounding") if config.loss.get(name, 0)}
    if wants and data.regions == 0:
        weights = ", ".join(f"loss.{name}={value}" for name, value in wants.items())
        besides = "".join(f"; {name}: {text}" for name, text in data.left_out().items())
        raise ConfigError(
            f"{weights}, but data.train={config.data.train} holds {data.samples} samples and no region{besides}; take "
            "data with boxes, or set these weights to 0 and model.prompter=null for a CLIP run"
        )


def _check_vocabulary(module: Pretrain) -> None:
    text = module.model.text
    size, rows = Tokenizer.of(text).vocab_size, text.vocab_size
    if size > rows:
        raise ConfigError(
            f"model.text.tokenizer={text.tokenizer!r} has {size} token ids, the tower's table {rows} rows; "
            f"set model.text.options.vocab_size={size}"
        )


def _save_text_files(module: Pretrain, folder: Path) -> None:
    """Keep the tokenizer and architecture of a Hugging Face text tower beside the weights: the run loads anywhere."""
    text = module.model.text
    if text.tokenizer != "open_clip":
        Tokenizer.of(text).save(folder / "text")
    if hasattr(text.tower, "config"):
        with into_folder(folder, "text") as room:
            text.tower.config.save_pretrained(room)


def _print_plan(
    config: TrainConfig, data: ShardSources, world: int, module: Pretrain | None = None, stored: Stored | None = None
) -> None:
    """The arithmetic of a run, before it starts."""
    precision = precision_of(config.trainer.precision, config.trainer.accelerator)
    rows: dict[str, Any] = {
        "run folder": public(config.run_dir),
        "samples": f"{config.samples:,} = {steps(config):,} steps × global batch {config.batch_size:,}",
        **data.plan(config.seed, config.samples, config.trainer.num_nodes),
        "regions": f"{data.regions:,} in the data, up to {config.data.regions} drawn per image and step",
        **data.left_out(),
        "readers": f"{world} rank(s) × {max(1, config.data.workers)} reader(s), {config.batch_size // world} a rank",
        "precision": f"{precision}, {config.trainer.threads or torch.get_num_threads()} threads",
    }
    model = module.model if module else None
    if model is None:
        from cloc.models.build import build_model
        from cloc.models.positions.fourier import check_covered

        model = build_model(OmegaConf.to_container(OmegaConf.structured(config.model)), pretrained=False)
        check_covered(model.image)
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state = 4 * count + 12 * trained
    rows["model"] = f"{count / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained"
    rows["memory"] = f"{state / 2**20:.0f} MiB for weights, gradients and optimizer (float32), activations besides"
    if module and module.notes:
        rows["settled"] = "; ".join(module.notes)
    if stored:
        at = f"at sample {stored.info['samples_seen']:,} of {stored.path.name}"
        rows["continues"] = f"{at}: {steps_left(config, stored):,} steps are left"
    table = Table(title=config.name, title_justify="left", show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(f"[dim]{name}", str(value))
    console.print(table)
