"""Typed schema of ``conf/``: unknown keys and contradictions fail with the key's name, before anything is built.

Fixed groups are dataclasses. Parts that can be exchanged (towers, Prompter, loss, …) are nodes with a ``_target_``
inside this package; their keys are checked against the target's signature, so that adding a part needs no change here.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException


class ConfigError(ValueError):
    """A configuration that cannot be run; says which key, its value and what to do."""


@dataclass
class DataConfig:
    """What to train on.

    Attributes:
        train: folder of shards.
        regions: M, regions drawn per image and step.
        min_size: boxes with a shorter side than this share of the view are not drawn.
        crop: smallest share of the area that a random-resized crop keeps; null for resize-and-pad (the paper).
        min_visible: a box keeps its phrase while this share of it is inside the crop.
        workers: reading processes per rank.
        max_skip_share: stop when more than this share of the samples is unusable.
    """

    train: str = MISSING
    regions: int = 4
    min_size: float = 0.0
    crop: float | None = None
    min_visible: float = 0.5
    workers: int = 1
    max_skip_share: float = 0.01


@dataclass
class ModelConfig:
    """Parts of the model; each a ``_target_`` node. ``prompter: null`` is a plain CLIP."""

    joint_dim: int = 512
    image: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    prompter: dict[str, Any] | None = None
    grounding: dict[str, Any] | None = None


@dataclass
class OptimConfig:
    """Optimizer and schedule.

    Attributes:
        name: ``adamw``, or ``muon`` (``torch.optim.Muon`` for the blocks' matrices, AdamW for the rest).
        lr: AdamW's peak rate.
        muon_lr: Muon's peak rate.
        weight_decay: AdamW's, on matrices and convolutions only; never on temperatures, norms, biases, tables.
        muon_weight_decay: Muon's; its rate is larger, so its decay is smaller.
        muon_projections: let Muon have the projections into and out of the joint space too, not hidden layers alone.
        betas: AdamW's.
        warmup: linear warm-up in samples.
        final: the rate at the end, as a share of the peak; cosine in between.
        clip_grad: largest gradient norm; 0 for no clipping.
    """

    name: str = "adamw"
    lr: float = 5e-4
    muon_lr: float = 4e-3
    weight_decay: float = 0.2
    muon_weight_decay: float = 0.01
    muon_projections: bool = False
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    warmup: int = 65_536
    final: float = 0.0
    clip_grad: float = 1.0


@dataclass
class TrainerConfig:
    """Where and how to run; handed to Lightning.

    Attributes:
        accelerator: ``auto``, ``cpu``, ``gpu``.
        devices: per node.
        num_nodes: of the job.
        strategy: ``auto`` or ``ddp``.
        precision: Lightning's name, ``32-true`` or ``bf16-mixed``.
        threads: CPU threads of the training process; 0 leaves PyTorch's choice.
        log_every: steps between log lines.
        checkpoint_every: samples between checkpoints.
        compile: ``torch.compile`` the towers (not measured on GPU).
    """

    accelerator: str = "auto"
    devices: Any = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    threads: int = 0
    log_every: int = 10
    checkpoint_every: int = 1_000_000
    compile: bool = False


@dataclass
class DatasetConfig:
    """One evaluation set.

    Attributes:
        shards: folder of shards; null for relation items alone.
        relations: folder of relation shards, or null.
        templates: class texts; ``{}`` is the class name. One embedding a class: the mean over templates.
        description: one line for the report.
    """

    shards: str | None = None
    relations: str | None = None
    templates: list[str] = field(default_factory=lambda: ["{}"])
    description: str = ""


@dataclass
class EvaluationConfig:
    """What is measured, in training and by ``eval.py``.

    Attributes:
        every: samples between evaluations in training; 0 for none.
        data: names (keys of ``datasets``) measured in training.
        limit: at most so many pictures of each set in training.
        sources: region sources; those that a model lacks are left out.
        batch_size: pictures a forward pass.
    """

    every: int = 0
    data: list[str] = field(default_factory=list)
    limit: int = 500
    sources: list[str] = field(default_factory=lambda: ["prompter", "roi_align", "crop", "mask_pool"])
    batch_size: int = 64


@dataclass
class TrainConfig:
    """Everything that ``train.py`` takes.

    Attributes:
        name: of the run.
        run_dir: where its files go.
        seed: of weights, order and every random choice.
        samples: budget, in pictures.
        batch_size: B, over all processes.
        resume: continue the run that the folder holds; false refuses one that is not empty.
        dry_run: print steps, passes, readers and memory, and stop.
        profile: write a trace of a few steps and a table of where their time went.
    """

    name: str = MISSING
    run_dir: str = MISSING
    seed: int = 0
    samples: int = MISSING
    batch_size: int = MISSING
    resume: bool = True
    dry_run: bool = False
    profile: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: dict[str, Any] = field(default_factory=dict)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: dict[str, Any] = field(default_factory=dict)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)


@dataclass
class EvalConfig:
    """Everything that ``eval.py`` takes."""

    checkpoint: str = MISSING
    baseline: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    out: str | None = None
    limit: int = 0
    pictures: int = 12
    device: str = "auto"
    seed: int = 0
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)


def validate(config: DictConfig | Mapping[str, Any], schema: type = TrainConfig) -> Any:
    """Check a composed configuration against its schema and against itself.

    Returns:
        The schema's dataclass.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing value or a contradiction; names the key.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), config)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(
                f"no value for {', '.join(missing)}: give it on the command line or in an experiment file"
            )
        result = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        hint = _hint(schema, key) if isinstance(error, ConfigKeyError) else ""
        raise ConfigError(f"configuration key {key!r}: {str(error).splitlines()[0]}{hint}") from error
    if schema is TrainConfig:
        _check_train(result)
    return result


def _hint(schema: type, key: str) -> str:
    parent, _, name = key.rpartition(".")
    structured = OmegaConf.structured(schema)
    close = difflib.get_close_matches(name, list(OmegaConf.select(structured, parent) if parent else structured), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _check_train(config: TrainConfig) -> None:
    for key, value in (("samples", config.samples), ("batch_size", config.batch_size)):
        if value < 1:
            raise ConfigError(f"{key}={value}: must be at least 1")
    if config.data.regions < 1:
        raise ConfigError(
            f"data.regions={config.data.regions}: must be at least 1; a CLIP run sets model.prompter=null"
        )
    region, grounding = (float(config.loss.get(name, 0)) for name in ("region", "grounding"))
    if config.model.prompter is None and (region > 0 or grounding > 0):
        raise ConfigError(
            f"loss.region={region}, loss.grounding={grounding} need a Prompter, but model.prompter is null; set both "
            "weights to 0 (CLIP) or choose model/prompter=shared"
        )
    if grounding > 0 and config.model.grounding is None:
        raise ConfigError(
            f"loss.grounding={grounding} needs a head, but model.grounding is null; set it to 0 or choose one"
        )
    if config.optim.name not in ("adamw", "muon"):
        raise ConfigError(f"optim.name={config.optim.name!r}: give adamw or muon")
    for node, path in ((config.model.image, "model.image"), (config.model.text, "model.text"), (config.loss, "loss")):
        resolve(node, path)
    for node, path in ((config.model.prompter, "model.prompter"), (config.model.grounding, "model.grounding")):
        if node is not None:
            resolve(node, path)


def register_eval() -> None:
    """Make ``conf/eval.yaml`` and the groups that it uses known to Hydra, and no other group.

    ``eval.py`` takes ``data=[NAME,…]``; beside the training group ``conf/data`` Hydra would take that
    for a choice of file.
    """
    folder = Path(__file__).resolve().parents[1] / "conf"
    store = ConfigStore.instance()
    store.store(name="eval", node=OmegaConf.load(folder / "eval.yaml"))
    for group in ("evaluation", "datasets"):
        for file in sorted((folder / group).glob("*.yaml")):
            store.store(group=group, name=file.stem, node=OmegaConf.load(file))


def resolve(node: Mapping[str, Any], path: str) -> tuple[Any, dict[str, Any]]:
    """Find a node's target and check its keys.

    Args:
        node: has ``_target_``, a dotted name inside the ``cloc`` package, and the target's arguments.
        path: of the node, for messages.

    Returns:
        The class, and the arguments.

    Raises:
        ConfigError: no target, one outside this package, or an argument that it does not take.
    """
    target = node.get("_target_")
    if not isinstance(target, str) or not target.startswith("cloc."):
        # A checkpoint carries its configuration: a free choice of target would let a file run any code.
        raise ConfigError(f"{path}._target_={target!r}: must name a class inside the cloc package")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{path}._target_={target!r}: {error}") from error
    if not inspect.isclass(found) or found.__module__ != module:
        # Nor what a module of the package imported, nor its functions, some of which write and delete files.
        raise ConfigError(f"{path}._target_={target!r}: must name a class inside the cloc package, by its own module")
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    known = inspect.signature(found).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return found, arguments
    for key in arguments:
        # `global` is a Python keyword; its argument is spelled `global_`.
        if key not in known and f"{key}_" not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}"
            raise ConfigError(f"{path}.{key}: {target} has no such argument; {hint}")
    return found, {key if key in known else f"{key}_": value for key, value in arguments.items()}


def instantiate(node: Mapping[str, Any], path: str, **context: Any) -> Any:
    """Build a node's target with its own arguments and those of the context (``joint_dim``, …)."""
    found, arguments = resolve(node, path)
    known = inspect.signature(found).parameters
    return found(**{key: value for key, value in context.items() if key in known} | arguments)
