"""The groups of ``conf/`` as dataclasses: every key, its type, its default and what it means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from omegaconf import MISSING

from cloc.config.domains import (
    Amount,
    Choice,
    Count,
    Decay,
    DeviceName,
    Devices,
    Drawn,
    Finite,
    Host,
    Interval,
    LearningRate,
    Length,
    Line,
    Name,
    NameOrNode,
    NumberOrAuto,
    OneOf,
    Path,
    Pictures,
    PositiveShare,
    Rate,
    Seed,
    Share,
    Sources,
    Streams,
    Threads,
    Weight,
    Width,
)

PARTS = ("image", "region", "grounding", "relations")
METRICS = (
    "zero_shot",
    "retrieval",
    "region_retrieval",
    "region_naming",
    "hard_negatives",
    "comprehension",
    "grounding",
    "average_precision",
    "relations",
)
SOURCES = ("prompter", "roi_align", "crop", "mask_pool", "native")
DEFAULT_SOURCES = SOURCES[:-1]
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
DTYPES = ("auto", "float32", "bfloat16", "float16")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16", "auto")
LOGGERS = ("csv", "tensorboard", "wandb")
RELATION_FORMATS = ("shards", "whatsup", "vsr", "sugarcrepe")


@dataclass
class DataConfig:
    """What to train on."""

    train: Annotated[Any, Sources()] = MISSING
    """Folder, ``.tar`` files (braces expand) or URL of shards; or several sources, each NAME: {path, weight}. See
    docs/shards.md#sources."""
    streams: Streams = 1
    """C, fixed streams into which the order is dealt, so that each host of a job reads its own shards alone: a multiple
    of the hosts that divides ``batch_size``. See docs/clusters.md#the-order-in-streams."""
    regions: Drawn = 4
    """M, regions drawn per image and step."""
    negatives: Annotated[int, Interval(0, 4096)] = 0
    """Hard negative texts drawn per region, where the shards hold them; they join its denominator. See
    docs/method.md."""
    crops: Annotated[int, Interval(0, 64)] = 0
    """Of the drawn regions of an image the first so many are also cut out, at the picture's own resolution, as further
    pictures for ``loss.crops``; 0 for none. See docs/training.md#regions-as-pictures."""
    min_size: Share = 0.0
    """Boxes with a shorter side than this share of the view are not drawn."""
    choice: Annotated[str, OneOf("uniform", "score")] = "uniform"
    """How regions are drawn: alike, or in proportion to their scores."""
    groups: Annotated[str, OneOf("all", "one", "skip")] = "all"
    """Phrases that own several boxes of a picture: all boxes may be drawn, one of them, or none."""
    names: bool = False
    """Take the name of the thing in each English phrase as a further phrase of its region: "dog" of "two dogs in the
    snow". See docs/training.md#names-of-things."""
    templates: list[str] = field(default_factory=list)
    """Texts around phrases, of which one is drawn for each region; ``{}`` is the phrase, ["{}", "a photo of a {}"]
    leaves half of them as they are. An article before ``{}`` gives way to the phrase's own."""
    crop: PositiveShare | None = None
    """Smallest share of the area that a random-resized crop keeps; null for resize-and-pad (the paper)."""
    min_visible: Share = 0.5
    """A box keeps its phrase while this share of it is inside the crop."""
    jitter: Annotated[list[Weight], Length(4, "brightness, contrast, saturation and hue")] | None = None
    """Amounts of brightness, contrast, saturation and hue, for example [0.4, 0.4, 0.4, 0.1]; null for none."""
    flip: Share = 0.0
    """Share of pictures that are mirrored; their texts exchange left and right."""
    workers: Annotated[Any, NumberOrAuto(0, 512)] = "auto"
    """Reading processes per training process; 0 reads in it. ``auto``: the cores of its share of the host less what it
    computes on, at least 1 and at most 16; on CPUs 1 unless ``trainer.threads`` is set. See docs/clusters.md#presets.
    """
    batch_timeout: Weight = 600.0
    """Seconds that a batch may take before the run stops with a checkpoint, not counted while a reader asks a store
    again; 0 waits for ever."""
    max_skip_share: Share = 0.01
    """The run stops when more than this share of a source's samples, or of its shards, is unusable."""
    cache_dir: Path | None = None
    """Cache of remote shards; null for ``~/.cache/cloc``."""
    cache_bytes: Amount = 1 << 36
    """Bound of the cache (64 GiB); 0 reads each remote sample by range requests."""
    timeout: Rate = 30.0
    """Seconds that a remote store may be silent on one request; then it is asked again."""
    retry_seconds: Weight = 600.0
    """Seconds for which a remote store that is busy, fails or is silent is asked again, in growing random pauses; then
    the run ends with a checkpoint, or, where the store answers for others, the shard has failed once."""
    max_requests: Annotated[int, Interval(1, 1024)] = 16
    """Requests of a reading process that remote stores answer at a time."""
    redirect_hosts: list[Annotated[str, Host()]] = field(default_factory=list)
    """Hosts (NAME or NAME:PORT) that HTTP redirects may lead to besides a URL's own."""
    token_cache: Path | None = None
    """Folder in which the outputs of frozen towers (``model.frozen_towers``), or of the frozen parts of towers (a
    backbone below trained blocks), are kept: each picture and each phrase is encoded once, and steps read no picture;
    null encodes them at each step. See docs/training.md#frozen-towers."""
    token_cache_bytes: Amount = 1 << 36
    """Bound of that folder (64 GiB); a run that needs more is refused before it begins."""
    token_precision: Annotated[str, OneOf("auto", "float16", "float32")] = "auto"
    """Of the patch tokens there; embeddings are float32. ``auto``: float16 of frozen towers, of frozen parts what they
    make in the run's own precision, as it is."""


@dataclass
class ModelConfig:
    """Parts of the model; each a ``_target_`` node."""

    joint_dim: Width = 512
    """D, width of the joint space."""
    logit_bias: Finite | None = None
    """Start of the bias that ``loss.contrast=sigmoid`` learns (SigLIP: −10); null for softmax."""
    crop_scale: bool = False
    """Give ``loss.crops`` an inverse temperature (and bias) of its own; false: it takes the captions'."""
    frozen_towers: bool = False
    """Keep both towers as they are, projections included: Prompter and grounding head alone are trained, and every
    image-level result stays what it was, to the bit."""
    image: dict[str, Any] = field(default_factory=dict)
    """The image tower: its class and that class's arguments (``cloc/models/image.py``); for ``pretrained`` see
    docs/export.md#starting-from-other-peoples-weights."""
    text: dict[str, Any] = field(default_factory=dict)
    """The text tower, likewise (``cloc/models/text.py``). A class of your own:
    docs/training.md#a-part-of-your-own."""
    prompter: dict[str, Any] | None = None
    """How a box is read (``cloc/models/prompter.py``); null is a plain CLIP."""
    grounding: dict[str, Any] | None = None
    """The box head (``cloc/models/grounding.py``); null for none."""


@dataclass
class OptimConfig:
    """Optimizer and schedule."""

    name: Annotated[str, OneOf("adamw", "muon")] = "adamw"
    """AdamW, or Muon (``torch.optim.Muon``) for the blocks' matrices and AdamW for the rest."""
    lr: LearningRate = 5e-4
    """AdamW's peak rate."""
    muon_lr: LearningRate = 4e-3
    """Muon's peak rate (``optim=muon``: 0.015)."""
    weight_decay: Weight = 0.2
    """AdamW's, on matrices and convolutions only; never on temperatures, norms, biases, tables."""
    muon_weight_decay: Weight = 0.01
    """Muon's; its rate is larger, so its decay is smaller."""
    muon_projections: bool = False
    """Let Muon have the projections into and out of the joint space too, not hidden layers alone."""
    betas: Annotated[list[Decay], Length(2, "the decays of both moments")] = field(default_factory=lambda: [0.9, 0.98])
    """AdamW's."""
    warmup: Amount = 65_536
    """Linear warm-up in **samples** (composed: the paper's 2,000 steps of 32,768)."""
    final: Share = 0.0
    """The rate at the end, as a share of the peak; cosine in between."""
    clip_grad: Weight = 1.0
    """Largest gradient norm; 0 for no clipping."""
    tower_rate: Weight = 1.0
    """Fine-tuning: factor on the rates of both towers; heads keep the full rate."""
    head_rate: Weight = 1.0
    """Factor on the rates of Prompter and grounding head; towers and temperatures keep the full rate."""
    layer_decay: PositiveShare = 1.0
    """Fine-tuning: each block of a tower has this share of the rate of the block above it; 1 for equal rates."""


@dataclass
class TrainerConfig:
    """Where and how to run; handed to Lightning."""

    accelerator: Annotated[str, OneOf(*ACCELERATORS)] = "auto"
    """Kind of device."""
    devices: Annotated[Any, Devices()] = 1
    """Number of devices per node, or a list of their indices; ``auto`` or -1 for all there are (``trainer=ddp``)."""
    num_nodes: Annotated[Any, NumberOrAuto(1, 999_999)] = "auto"
    """Nodes of the job; ``auto`` for those that the launcher started, whose number an elastic job changes."""
    strategy: Annotated[str, OneOf("auto", "ddp", "fsdp")] = "auto"
    """``ddp`` holds the model on every process; ``fsdp`` (FSDP2) shards parameters, gradients and optimizer state."""
    precision: Annotated[str, OneOf(*PRECISIONS)] = "32-true"
    """Lightning's name; float16 (``16-mixed``) needs a GPU; ``auto`` (the demo's and Flickr8k's) takes bfloat16 where
    the device computes it: a processor that imitates it is 40 times slower."""
    timeout: Annotated[float, Interval(1, 1_000_000)] = 1800.0
    """Seconds that a process waits for another, while starting, in a step, while process 0 saves; then the run ends."""
    threads: Threads = 0
    """CPU threads of the training process; 0 leaves PyTorch's choice."""
    log_every: Count = 10
    """Steps between log lines."""
    checkpoint_every: Count = 1_000_000
    """Samples between checkpoints."""
    checkpoint_minutes: Weight = 10.0
    """Longest time between checkpoints; 0 for none by time (the demo: 1; ``ddp`` and ``fsdp``: 30)."""
    keep_last: Count = 2
    """How many of the newest checkpoints are kept; the one before the newest serves where that is damaged."""
    max_skipped_steps: Count = 10
    """The run stops after so many steps in a row whose loss or gradient is not finite."""
    compile: bool = False
    """``torch.compile`` the towers, block by block; a run says how long it took (docs/benchmarks.md#compile, on CPU
    only)."""
    checkpoint_activations: bool = False
    """Recompute the towers' blocks in backward instead of keeping their activations."""
    accumulate: Count = 1
    """Micro-batches that a step passes through the model one after the other. The losses see the whole batch: features
    are cached, and each micro-batch is encoded a second time for its gradient."""
    ema: Decay = 0.0
    """Decay of a moving average of the weights, which checkpoints then hold; 0 for none. Not with ``fsdp``."""


@dataclass
class DatasetConfig:
    """One evaluation set; at least one of ``shards``, ``relations``, ``images`` and ``set``."""

    shards: Path | None = None
    """Folder of shards (docs/shards.md): captions, boxes, phrases, categories, negatives."""
    relations: Path | None = None
    """Folder of relation shards, or the annotation file of a published relation set."""
    relation_format: Annotated[str, OneOf(*RELATION_FORMATS)] = "shards"
    """``shards``, ``whatsup`` (controlled or COCO/GQA-spatial), ``vsr`` or ``sugarcrepe``."""
    pictures: Path | None = None
    """Folder of the pictures that a published relation set names."""
    images: Path | None = None
    """Pictures to classify: ``FOLDER/CLASS/*.jpg``; a folder of shards (``jpg`` and ``cls``, with ``classnames.txt``);
    or ``torchvision:NAME:FOLDER`` for a set of torchvision that is already there."""
    classes: Path | None = None
    """File of class names, one a line (with or without a synset in front) or JSON; ``imagenet`` for open_clip's list
    with ImageNet's synsets; null takes the set's own."""
    templates: list[str] = field(default_factory=lambda: ["{}"])
    """Class texts; ``{}`` is the class name. One embedding a class: the mean over templates. A set with templates is
    also measured by names alone."""
    template_file: Path | None = None
    """File of templates, one a line or a JSON list, instead of ``templates``; ``openai`` for the 80 of CLIP's ImageNet
    evaluation."""
    frequency: Path | None = None
    """LVIS' annotation file, or a JSON object of class → ``r``, ``c`` or ``f``, for rare, common and frequent classes;
    null for none."""
    set: dict[str, Any] | None = None
    """A kind of set of your own: ``_target_`` of a class with its arguments (SetReader in
    ``cloc/evaluation/sets/eval_set.py``), instead of the three or beside them."""
    lead: Name | None = None
    """Metric of the set's own protocol, which the report opens with (``region/best/mAcc`` reads boxes by each model's
    best source); null takes one by what the set holds."""
    description: str = ""
    """One line for the report."""


@dataclass
class EvaluationConfig:
    """What is measured, in training and by ``eval.py``."""

    every: Amount = 0
    """Samples between evaluations in training; 0 for none."""
    at_start: bool = False
    """Also measure the weights that a run starts from."""
    data: list[Name] = field(default_factory=list)
    """Names (keys of ``datasets``) measured in training."""
    limit: Amount = 500
    """At most so many pictures of each set; 0 for all."""
    best: Name | None = None
    """Metric (``val/SET/METRIC``, larger is better) whose best checkpoint is kept; null for none."""
    parts: list[Annotated[str, OneOf(*PARTS)]] = field(default_factory=lambda: list(PARTS))
    """``image`` is classification and retrieval."""
    metrics: list[Annotated[Any, NameOrNode(*METRICS)]] = field(default_factory=lambda: list(METRICS))
    """What is measured: names of ours, or nodes with the ``_target_`` of a class of your own."""
    sources: list[Annotated[str, OneOf(*SOURCES)]] = field(default_factory=lambda: list(DEFAULT_SOURCES))
    """Region sources; those that a model lacks are left out, and ``crop`` and ``native`` while training."""
    batch_size: Pictures = 64
    """Pictures a forward pass."""
    bootstrap: Annotated[int, Interval(0, 1_000_000)] = 1000
    """Resamples behind the 95 % intervals of ``eval.py``; 0 for no intervals."""


@dataclass
class RunConfig:
    """What the engine reads of the configuration of any task; a task's own schema adds what it reads itself."""

    task: Name | None = None
    """Class of another task than pretraining, see docs/training.md#other-tasks; null for pretraining."""
    name: Annotated[str, Line("name")] = MISSING
    """Of the run, and of its folder."""
    run_dir: Path = MISSING
    """Run folder, where all its files go; a path, or a URL of an object store."""
    seed: Seed = 0
    """Of weights, order and every random choice."""
    samples: Count = MISSING
    """Budget, in pictures; steps are ``samples / batch_size``, rounded up."""
    batch_size: Pictures = MISSING
    """B, the **global** batch, over all processes."""
    resume: bool = True
    """Continue from the newest whole checkpoint in the run folder; false refuses a folder that holds one."""
    dry_run: bool = False
    """Print the plan (steps, passes, readers, memory, whether reading keeps up with the step, which takes seconds to
    measure), and stop."""
    profile: bool = False
    """Write ``profile/trace.json.gz`` and a table of where a step's time goes, then train on."""
    objective: Name | None = None
    """Metric of ``metrics.csv`` (``val/SET/METRIC``) that ``train.py`` returns to a sweep."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: Annotated[dict[str, Any], Choice(*LOGGERS)] = field(default_factory=dict)
    """``name`` is ``csv``, ``tensorboard`` or ``wandb``; other keys go to that logger."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass
class TrainConfig(RunConfig):
    """Everything that ``train.py`` takes for pretraining."""

    base: Path | None = None
    """Model that fine-tuning starts from, named once: ``open_clip:NAME:TAG_OR_FILE``, ``hf://OWNER/NAME``, a folder of
    open_clip or of a Hugging Face CLIP or SigLIP, an export, a run. Both towers, their sizes, tokenizer, pixel
    statistics, temperature and weights are its own; with ``model=base``. See docs/finetuning.md."""
    init_from: Path | None = None
    """Run, checkpoint or export whose weights a new run starts from; parts that it lacks start fresh. Its towers are
    those that ``model`` names."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: dict[str, Any] = field(default_factory=dict)
    """The objective: its class and that class's arguments, below."""
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    """Evaluation sets by name, see docs/evaluation.md#sets."""


@dataclass
class EvalConfig:
    """Everything that ``eval.py`` takes."""

    checkpoint: Path = MISSING
    """The model on trial: a run, a checkpoint, an export, or a model of others."""
    baseline: list[Path] = field(default_factory=list)
    """Models beside it."""
    trusted: list[Name] = field(default_factory=list)
    """Classes besides ours that they may name (``mypackage.towers.MyTower``)."""
    data: list[Path] = field(default_factory=list)
    """Names of ``datasets``, or folders of shards."""
    out: Path | None = None
    """Folder of the results; null for the checkpoint's parent folder."""
    cache: Path | None = None
    """Folder of embeddings, by model and data; null for none."""
    limit: Amount = 0
    """At most so many pictures of each set; 0 for all."""
    pictures: Annotated[int, Interval(0, 10_000)] = 12
    """In the report's gallery."""
    cost: Annotated[int, Interval(0, 10_000)] = 16
    """Pictures on which each model is timed, in one batch; 0 for no cost."""
    device: Annotated[str, DeviceName()] = "auto"
    """``auto`` or PyTorch's name; of several processes each takes a GPU of its own."""
    precision: Annotated[str, OneOf(*DTYPES)] = "auto"
    """Of the models' weights; ``auto`` is bfloat16 on a GPU that computes it, else float32. The results say which."""
    seed: Seed = 0
    """Of the resamples and of the gallery."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    """Evaluation sets by name."""
