"""The groups of ``conf/`` as dataclasses: every key, its type, its default and what it means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from omegaconf import MISSING

from cloc.config.domains import (
    Amount,
    Count,
    Decay,
    Devices,
    Finite,
    Host,
    Length,
    OneOf,
    PositiveShare,
    Rate,
    Seed,
    Share,
    Weight,
)

PARTS = ("image", "region", "grounding", "relations")
SOURCES = ("prompter", "roi_align", "crop", "mask_pool")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "64", "32", "16", "bf16", "auto")


@dataclass
class DataConfig:
    """What to train on.

    Attributes:
        train: folder, ``.tar`` files (braces expand) or URL of shards; or several sources NAME: {path, weight}.
        regions: M, regions drawn per image and step.
        negatives: hard negative texts drawn per region, where the shards hold them; they join its denominator.
        min_size: boxes with a shorter side than this share of the view are not drawn.
        choice: ``uniform``, or ``score`` for regions in proportion to their scores.
        groups: phrases that own several boxes of a picture: ``all`` boxes may be drawn, ``one`` of them, or ``skip``.
        crop: smallest share of the area that a random-resized crop keeps; null for resize-and-pad (the paper).
        min_visible: a box keeps its phrase while this share of it is inside the crop.
        jitter: amounts of brightness, contrast, saturation and hue, for example [0.4, 0.4, 0.4, 0.1]; null for none.
        flip: share of pictures that are mirrored; their texts exchange left and right.
        workers: reading processes per rank.
        batch_timeout: seconds that a batch may take before the run stops with a checkpoint; 0 waits for ever.
        max_skip_share: stop when more than this share of the samples, or of the shards, of a source is unusable.
        cache_dir: of remote shards; null for ``~/.cache/cloc``.
        cache_bytes: its bound; 0 asks for each remote sample by itself.
        timeout: seconds that a remote store may be silent; then it is asked again, and counts as lost in the end.
        redirect_hosts: hosts (``name`` or ``name:port``) that HTTP redirects may lead to besides a URL's own.
    """

    train: Any = MISSING
    regions: Count = 4
    negatives: Amount = 0
    min_size: Share = 0.0
    choice: Annotated[str, OneOf("uniform", "score")] = "uniform"
    groups: Annotated[str, OneOf("all", "one", "skip")] = "all"
    crop: PositiveShare | None = None
    min_visible: Share = 0.5
    jitter: Annotated[list[Weight], Length(4, "brightness, contrast, saturation and hue")] | None = None
    flip: Share = 0.0
    workers: Amount = 1
    batch_timeout: Weight = 600.0
    max_skip_share: Share = 0.01
    cache_dir: str | None = None
    cache_bytes: Amount = 1 << 36
    timeout: Rate = 30.0
    redirect_hosts: list[Annotated[str, Host()]] = field(default_factory=list)


@dataclass
class ModelConfig:
    """Parts of the model; each a ``_target_`` node. ``prompter: null`` is a plain CLIP.

    ``logit_bias`` is the start of the bias that ``loss.contrast=sigmoid`` learns (SigLIP: −10); null for none.
    """

    joint_dim: Count = 512
    logit_bias: Finite | None = None
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
        tower_rate: factor on the rates of both towers; heads keep the full rate. Below 1 for pretrained towers.
        layer_decay: each block of a tower has this share of the rate of the block above it; 1 for equal rates.
    """

    name: Annotated[str, OneOf("adamw", "muon")] = "adamw"
    lr: Rate = 5e-4
    muon_lr: Rate = 4e-3
    weight_decay: Weight = 0.2
    muon_weight_decay: Weight = 0.01
    muon_projections: bool = False
    betas: Annotated[list[Decay], Length(2, "the decays of both moments")] = field(default_factory=lambda: [0.9, 0.98])
    warmup: Amount = 65_536
    final: Share = 0.0
    clip_grad: Weight = 1.0
    tower_rate: Weight = 1.0
    layer_decay: PositiveShare = 1.0


@dataclass
class TrainerConfig:
    """Where and how to run; handed to Lightning.

    Attributes:
        accelerator: ``auto``, ``cpu``, ``gpu``.
        devices: per node.
        num_nodes: of the job.
        strategy: ``auto``, ``ddp``, or ``fsdp`` (FSDP2: parameters, gradients and optimizer state sharded).
        precision: Lightning's name, ``32-true`` or ``bf16-mixed``; ``auto`` for bfloat16 where the device computes it.
        threads: CPU threads of the training process; 0 leaves PyTorch's choice.
        log_every: steps between log lines.
        checkpoint_every: samples between checkpoints.
        checkpoint_minutes: longest time between checkpoints; 0 for none by time.
        keep_last: so many of the newest checkpoints are kept; the one before the newest serves where that is damaged.
        max_skipped_steps: stop after so many steps in a row whose loss or gradient is not finite.
        compile: ``torch.compile`` the towers (not measured on GPU).
        checkpoint_activations: recompute the towers' blocks in backward rather than keep their activations.
        accumulate: micro-batches that a step passes through the model one after the other. The losses see the whole
            batch: features are cached and each micro-batch is encoded a second time for its gradient.
        ema: decay of a moving average of the weights, which checkpoints then hold; 0 for none.
    """

    accelerator: Annotated[str, OneOf(*ACCELERATORS)] = "auto"
    devices: Annotated[Any, Devices()] = 1
    num_nodes: Count = 1
    strategy: Annotated[str, OneOf("auto", "ddp", "fsdp")] = "auto"
    precision: Annotated[str, OneOf(*PRECISIONS)] = "32-true"
    threads: Amount = 0
    log_every: Count = 10
    checkpoint_every: Count = 1_000_000
    checkpoint_minutes: Weight = 10.0
    keep_last: Count = 2
    max_skipped_steps: Count = 10
    compile: bool = False
    checkpoint_activations: bool = False
    accumulate: Count = 1
    ema: Decay = 0.0


@dataclass
class DatasetConfig:
    """One evaluation set; at least one of ``shards``, ``relations`` and ``images``.

    Attributes:
        shards: folder of shards: captions, boxes, phrases.
        relations: folder of relation shards, or the annotation file of a published relation set.
        relation_format: ``shards``, ``whatsup`` (controlled or COCO/GQA-spatial), ``vsr`` or ``sugarcrepe``.
        pictures: folder of the pictures that a published relation set names.
        images: pictures to classify: a folder of folders by class, a folder of shards (``jpg`` and ``cls``), or
            ``torchvision:NAME:FOLDER`` for a set of torchvision that is already there.
        classes: file of class names, one a line (with or without a synset in front) or JSON; null takes the set's own,
            ``imagenet`` open_clip's list. Folders are joined to it by synset, name or number.
        templates: class texts; ``{}`` is the class name. One embedding a class: the mean over templates.
        template_file: file of templates, one a line or a JSON list, instead of ``templates``; ``openai`` for the 80 of
            CLIP's ImageNet evaluation.
        frequency: LVIS' annotation file, or a JSON object of class → ``r``, ``c`` or ``f``; null for none.
        lead: metric of the set's own protocol, which the report opens with (``region/best/mAcc`` reads boxes by each
            model's best source); null takes one by what the set holds.
        description: one line for the report.
    """

    shards: str | None = None
    relations: str | None = None
    relation_format: str = "shards"
    pictures: str | None = None
    images: str | None = None
    classes: str | None = None
    templates: list[str] = field(default_factory=lambda: ["{}"])
    template_file: str | None = None
    frequency: str | None = None
    lead: str | None = None
    description: str = ""


@dataclass
class EvaluationConfig:
    """What is measured, in training and by ``eval.py``.

    Attributes:
        every: samples between evaluations in training; 0 for none.
        at_start: also measure the weights that a run starts from.
        data: names (keys of ``datasets``) measured in training.
        limit: at most so many pictures of each set; 0 for all.
        best: metric (``val/SET/METRIC``, larger is better) whose best checkpoint is kept; null for none.
        parts: of ``image`` (classification, retrieval), ``region``, ``grounding``, ``relations``.
        sources: region sources; those that a model lacks are left out.
        batch_size: pictures a forward pass.
        bootstrap: resamples behind the 95 % intervals of ``eval.py``; 0 for no intervals.
    """

    every: Amount = 0
    at_start: bool = False
    data: list[str] = field(default_factory=list)
    limit: Amount = 500
    best: str | None = None
    parts: list[Annotated[str, OneOf(*PARTS)]] = field(default_factory=lambda: list(PARTS))
    sources: list[Annotated[str, OneOf(*SOURCES)]] = field(default_factory=lambda: list(SOURCES))
    batch_size: Count = 64
    bootstrap: Amount = 1000


@dataclass
class RunConfig:
    """What the engine reads of the configuration of any task; a task's own schema adds what it reads itself.

    Attributes:
        task: class of another task (a subclass of ``cloc.engine.task.Task``); null for pretraining.
        name: of the run.
        run_dir: where its files go.
        seed: of weights, order and every random choice.
        samples: budget, in pictures.
        batch_size: B, over all processes.
        resume: continue the run that the folder holds; false refuses one that is not empty.
        dry_run: print steps, passes, readers and memory, and stop.
        profile: write a trace of a few steps and a table of where their time went.
        objective: metric of ``metrics.csv`` (``val/SET/METRIC``) that ``train.py`` returns to a sweep.
    """

    task: str | None = None
    name: str = MISSING
    run_dir: str = MISSING
    seed: Seed = 0
    samples: Count = MISSING
    batch_size: Count = MISSING
    resume: bool = True
    dry_run: bool = False
    profile: bool = False
    objective: str | None = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: dict[str, Any] = field(default_factory=dict)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass
class TrainConfig(RunConfig):
    """Everything that ``train.py`` takes for pretraining.

    Attributes:
        init_from: run folder, checkpoint or export whose weights a new run starts from; parts it lacks start fresh.
    """

    init_from: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: dict[str, Any] = field(default_factory=dict)
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)


@dataclass
class EvalConfig:
    """Everything that ``eval.py`` takes.

    Attributes:
        checkpoint: the model on trial, as :func:`cloc.encoder.load` takes it.
        baseline: models beside it.
        trusted: classes besides ours that they may name (mypackage.towers.MyTower).
        data: names of ``datasets``, or folders of shards.
        out: folder of the results; null for the checkpoint's parent folder.
        cache: folder of embeddings, by model and data; null for none.
        limit: at most so many pictures of each set; 0 for all.
        pictures: in the report's gallery.
        device: ``auto`` or PyTorch's name.
        seed: of the resamples and of the gallery.
    """

    checkpoint: str = MISSING
    baseline: list[str] = field(default_factory=list)
    trusted: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    out: str | None = None
    cache: str | None = None
    limit: Amount = 0
    pictures: Amount = 12
    device: str = "auto"
    seed: Seed = 0
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
