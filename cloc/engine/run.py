"""One training run from a validated configuration: build, check, resume, fit."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from cloc.config import ConfigError, TrainConfig, validate
from cloc.data.collate import Chooser
from cloc.data.shards import Manifest, load_manifest
from cloc.data.stream import Stream, make_loader
from cloc.data.text import Tokenizer
from cloc.data.views import View
from cloc.engine.callbacks import Evaluate, FiniteGuard, ProgressLine, Throughput
from cloc.engine.module import Pretrain
from cloc.engine.profile import StepProfile
from cloc.engine.runtime import prepare_run, rank_and_world, use_threads

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
    """
    composed = _one_folder_a_job(composed)
    resolved = OmegaConf.to_container(composed, resolve=True)
    config: TrainConfig = validate(composed)
    _quiet_lightning()
    manifest = load_manifest(config.data.train)
    _check_data(config, manifest)
    use_threads(config.trainer.threads)
    lightning.seed_everything(config.seed, verbose=False)
    rank, world = rank_and_world()
    folder = Path(config.run_dir)
    if config.batch_size % world:
        raise ConfigError(
            f"batch_size={config.batch_size} does not divide over {world} processes; give a multiple of it"
        )
    if config.dry_run:
        _print_plan(config, manifest, world)
        return None
    module = Pretrain(config, resolved)
    _check_vocabulary(module)
    stream = build_stream(config, module, manifest, rank, world)
    checkpoint = _latest(folder)
    if checkpoint is not None:
        if not config.resume:
            raise ConfigError(f"resume=false, but {checkpoint} exists; choose another run_dir or remove {folder}")
        stored = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["cloc"]
        stream.cursor = stored["cursor"]
        if stored["samples_seen"] >= config.samples:
            console.print(f"{folder}: already trained on {stored['samples_seen']} samples; remove it to start anew")
            return folder
        console.print(f"[bold]{config.name}[/]: continues at sample {stored['samples_seen']} from {checkpoint}")
        if rank == 0:
            _keep_log(folder, stored["samples_seen"])
    if rank == 0:
        prepare_run(folder, resolved, manifest.digest)
        _save_text_files(module, folder)
    if checkpoint is None and rank == 0:
        _print_plan(config, manifest, world, module)
    trainer = build_trainer(config, folder, module)
    if trainer.world_size != world:
        raise ConfigError(
            f"trainer.devices={config.trainer.devices} asks for {trainer.world_size} processes, {world} were launched: "
            f"start them with `torchrun --nproc-per-node={trainer.world_size} train.py …` or by srun"
        )
    module.train()  # Lightning leaves every module in the mode it finds; frozen parts stay in evaluation mode
    loader = make_loader(stream, config.data.workers, pin_memory=torch.cuda.is_available())
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    return folder


def _one_folder_a_job(composed: DictConfig) -> DictConfig:
    """In a sweep (``train.py -m``) every job gets a run folder of its own: ``RUN_DIR/NUMBER``."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return composed
    own = {"run_dir": f"{composed.run_dir}/{HydraConfig.get().job.num}"}
    return OmegaConf.merge(composed, own)


def _quiet_lightning() -> None:
    """Its banners say nothing about this run; warnings still come through."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # the run folder holds more than the log
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # frozen parts are meant to be


def build_stream(config: TrainConfig, module: Pretrain, manifest: Manifest, rank: int, world: int) -> Stream:
    """The training stream that fits a model: its tokenizer, its view."""
    text = module.model.text
    view = View(module.model.image.image_size, config.data.crop, config.data.min_visible)
    return Stream(
        manifest,
        Tokenizer(text.tokenizer, text.context_length),
        Chooser(view, config.data.regions, config.data.min_size),
        config.batch_size,
        seed=config.seed,
        rank=rank,
        world_size=world,
        max_skip_share=config.data.max_skip_share,
    )


def build_trainer(config: TrainConfig, folder: Path, module: Pretrain) -> lightning.Trainer:
    """Lightning's trainer with our callbacks. Budgets count steps: there are no epochs."""
    throughput = Throughput()
    every = max(1, config.trainer.checkpoint_every // config.batch_size)
    callbacks = [
        throughput,
        FiniteGuard(),
        ProgressLine(config.name),
        ModelCheckpoint(
            folder / "checkpoints",
            "step-{step:08d}",
            auto_insert_metric_name=False,
            every_n_train_steps=every,
            save_last=True,
            enable_version_counter=False,
        ),
    ]
    if config.evaluation.every and config.evaluation.data:
        from cloc.evaluation.suite import TrainingSuite

        suite = TrainingSuite(config.evaluation, config.datasets, module.model)
        callbacks.insert(1, Evaluate(config.evaluation.every, config.batch_size, suite, throughput))
    if config.profile:
        callbacks.insert(1, StepProfile(folder))
    options = config.trainer
    return lightning.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=options.strategy,
        precision=options.precision,
        max_steps=steps(config),
        max_epochs=-1,
        gradient_clip_val=config.optim.clip_grad or None,
        log_every_n_steps=options.log_every,
        logger=_loggers(config, folder),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )


def steps(config: TrainConfig) -> int:
    """Optimizer steps of the whole budget; a last partial batch is a whole step."""
    return -(-config.samples // config.batch_size)


def _loggers(config: TrainConfig, folder: Path) -> list[Logger]:
    """CSV always; ``logger.name`` adds TensorBoard or Weights & Biases."""
    loggers: list[Logger] = [CSVLogger(folder, name="", version="", flush_logs_every_n_steps=50)]
    options = {key: value for key, value in config.logger.items() if key != "name"}
    name = config.logger.get("name", "csv")
    if name == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(folder, name="tensorboard", version="", **options))
    elif name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        loggers.append(WandbLogger(name=config.name, save_dir=folder, config={"run": config.name}, **options))
    elif name != "csv":
        raise ConfigError(f"logger.name={name!r}: give csv, tensorboard or wandb")
    return loggers


def _latest(folder: Path) -> Path | None:
    last = folder / "checkpoints" / "last.ckpt"
    return last if last.exists() else None


def _keep_log(folder: Path, samples: int) -> None:
    """Lightning's CSV logger starts its file anew; the lines until here stay in a file of their own."""
    log = folder / "metrics.csv"
    if log.is_file():
        log.rename(folder / f"metrics-{samples:012d}.csv")


def _check_data(config: TrainConfig, manifest: Manifest) -> None:
    wants = {name: config.loss.get(name, 0) for name in ("region", "grounding") if config.loss.get(name, 0)}
    if wants and manifest.regions == 0:
        weights = ", ".join(f"loss.{name}={value}" for name, value in wants.items())
        raise ConfigError(
            f"{weights}, but {manifest.folder} holds {manifest.samples} samples and no region; take data with boxes, "
            "or set these weights to 0 and model.prompter=null for a CLIP run"
        )


def _check_vocabulary(module: Pretrain) -> None:
    text = module.model.text
    size, rows = Tokenizer(text.tokenizer, text.context_length).vocab_size, text.vocab_size
    if size > rows:
        raise ConfigError(
            f"model.text.tokenizer={text.tokenizer!r} has {size} token ids, the tower's table {rows} rows; "
            f"set model.text.options.vocab_size={size}"
        )


def _save_text_files(module: Pretrain, folder: Path) -> None:
    """Keep the tokenizer and architecture of a Hugging Face text tower beside the weights: the run loads anywhere."""
    text = module.model.text
    if text.tokenizer != "open_clip":
        Tokenizer(text.tokenizer, text.context_length).save(folder / "text")
    if hasattr(text.tower, "config"):
        text.tower.config.save_pretrained(folder / "text")


def _print_plan(config: TrainConfig, manifest: Manifest, world: int, module: Pretrain | None = None) -> None:
    """The arithmetic of a run, before it starts."""
    shards = f"{len(manifest.shards)} shards"
    rows: dict[str, Any] = {
        "run folder": config.run_dir,
        "samples": f"{config.samples:,} = {steps(config):,} steps × global batch {config.batch_size:,}",
        "passes": f"{config.samples / manifest.samples:.1f} over {manifest.samples:,} samples in {shards}",
        "regions": f"{manifest.regions:,} in the data, up to {config.data.regions} drawn per image and step",
        "readers": f"{world} rank(s) × {max(1, config.data.workers)} reader(s), {config.batch_size // world} a rank",
        "precision": f"{config.trainer.precision}, {config.trainer.threads or torch.get_num_threads()} threads",
    }
    model = module.model if module else None
    if model is None:
        from cloc.models.build import build_model

        model = build_model(OmegaConf.to_container(OmegaConf.structured(config.model)), pretrained=False)
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state = 4 * count + 12 * trained
    rows["model"] = f"{count / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained"
    rows["memory"] = f"{state / 2**20:.0f} MiB for weights, gradients and optimizer (float32), activations besides"
    table = Table(title=config.name, title_justify="left", show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(f"[dim]{name}", str(value))
    console.print(table)
