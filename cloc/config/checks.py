"""Is a composed configuration one that can be run: keys and types first, then what the values must agree on."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from cloc.config.nodes import resolve
from cloc.config.schema import (
    CHOICES,
    GROUPS,
    PARTS,
    ConfigError,
    DataConfig,
    EvalConfig,
    EvaluationConfig,
    TrainConfig,
)


def check_keys(config: DictConfig | Mapping[str, Any], schema: type) -> Any:
    """Check keys, types and presence of a composed configuration; cheap, without the imports that the parts need.

    Returns:
        The schema's dataclass.

    Raises:
        ConfigError: an unknown key, a wrong type or a missing value; names the key.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), config)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(
                f"no value for {', '.join(missing)}: give it on the command line or in an experiment file"
            )
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        hint = _hint(schema, key) if isinstance(error, ConfigKeyError) else ""
        raise ConfigError(f"configuration key {key!r}: {str(error).splitlines()[0]}{hint}") from error


def validate(config: DictConfig | Mapping[str, Any], schema: type = TrainConfig) -> Any:
    """Check a composed configuration against its schema and against itself.

    Returns:
        The schema's dataclass.

    Raises:
        ConfigError: as :func:`check_keys`, or a contradiction; names the key.
    """
    result = check_keys(config, schema)
    if schema is TrainConfig:
        _check_train(result)
    if schema in (TrainConfig, EvalConfig):
        _check_evaluation(result.evaluation)
    if schema is DataConfig:
        _check_view(result)
    return result


def data_config(overrides: Sequence[str]) -> DataConfig:
    """The ``data`` group by itself, from overrides as on the command line of ``train.py``; ``data.`` may be left out.

    Raises:
        ConfigError: an unknown key or a wrong value; names the key.
    """
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"{override!r}: give KEY=VALUE, for example crop=0.4")
    given = OmegaConf.from_dotlist([override.removeprefix("data.") for override in overrides])
    return validate(OmegaConf.merge({"train": ""}, given), DataConfig)


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
    _check_view(config.data)
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
    _check_contrast(config)
    if config.optim.name not in ("adamw", "muon"):
        raise ConfigError(f"optim.name={config.optim.name!r}: give adamw or muon")
    _check_scale(config)
    for node, path in ((config.model.image, "model.image"), (config.model.text, "model.text"), (config.loss, "loss")):
        resolve(node, path)
    for node, path in ((config.model.prompter, "model.prompter"), (config.model.grounding, "model.grounding")):
        if node is not None:
            resolve(node, path)


def _check_contrast(config: TrainConfig) -> None:
    contrast, bias, negatives = config.loss.get("contrast", "softmax"), config.model.logit_bias, config.data.negatives
    if (contrast == "sigmoid") != (bias is not None):
        raise ConfigError(
            f"loss.contrast={contrast} with model.logit_bias={bias}: the sigmoid loss learns a bias, softmax has none; "
            "give loss.contrast=sigmoid model.logit_bias=-10, or loss.contrast=softmax model.logit_bias=null"
        )
    if negatives < 0 or (negatives and not config.loss.get("region", 0)):
        raise ConfigError(
            f"data.negatives={negatives} with loss.region={config.loss.get('region', 0)}: hard negatives are at "
            "least 0 and belong to the region loss; set data.negatives=0, or a weight"
        )
    if config.trainer.accumulate < 1 or config.batch_size % config.trainer.accumulate:
        raise ConfigError(
            f"trainer.accumulate={config.trainer.accumulate}: must be at least 1 and divide batch_size="
            f"{config.batch_size}"
        )
    if config.trainer.accumulate > 1 and config.trainer.strategy == "fsdp":
        raise ConfigError(
            f"trainer.accumulate={config.trainer.accumulate} with trainer.strategy=fsdp: gradients of cached "
            "features are added on whole parameters, and fsdp holds shards of them; use trainer=ddp, or "
            "trainer.checkpoint_activations=true"
        )


def _check_scale(config: TrainConfig) -> None:
    """What spreads, averages or fine-tunes a run."""
    trainer, optim, evaluation = config.trainer, config.optim, config.evaluation
    if trainer.strategy not in ("auto", "ddp", "fsdp"):
        raise ConfigError(f"trainer.strategy={trainer.strategy!r}: give auto, ddp or fsdp")
    if trainer.strategy == "fsdp" and optim.name == "muon":
        raise ConfigError(
            "optim.name=muon with trainer.strategy=fsdp: Muon orthogonalizes whole matrices and fsdp holds shards of "
            "them; use optim=adamw, or trainer=ddp"
        )
    if trainer.strategy == "fsdp" and trainer.ema:
        raise ConfigError(
            f"trainer.ema={trainer.ema} with trainer.strategy=fsdp: Lightning's average is of whole weights, not of "
            "shards; set trainer.ema=0, or use trainer=ddp"
        )
    if not 0 <= trainer.ema < 1:
        raise ConfigError(f"trainer.ema={trainer.ema}: a decay below 1, such as 0.999; 0 for none")
    if not (0 < optim.layer_decay <= 1 and optim.tower_rate >= 0):
        raise ConfigError(
            f"optim.layer_decay={optim.layer_decay}, optim.tower_rate={optim.tower_rate}: "
            "layer_decay is in (0, 1], tower_rate at least 0"
        )
    for key in ("keep_last", "max_skipped_steps"):
        if getattr(trainer, key) < 1:
            raise ConfigError(f"trainer.{key}={getattr(trainer, key)}: must be at least 1")
    given = {"objective": config.objective, "evaluation.best": evaluation.best}
    wants = [name for name, on in (given | {"evaluation.at_start": evaluation.at_start}).items() if on]
    if wants and not (evaluation.every and evaluation.data):
        raise ConfigError(
            f"{', '.join(wants)}: nothing is measured in training; set evaluation.every (samples) and evaluation.data"
        )


def _check_evaluation(evaluation: EvaluationConfig) -> None:
    for key, known in (("parts", PARTS), ("sources", ("prompter", "roi_align", "crop", "mask_pool"))):
        unknown = [name for name in getattr(evaluation, key) if name not in known]
        if unknown:
            raise ConfigError(f"evaluation.{key}={unknown}: known are {', '.join(known)}")
    for key, least in (("batch_size", 1), ("bootstrap", 0), ("limit", 0)):
        if getattr(evaluation, key) < least:
            raise ConfigError(f"evaluation.{key}={getattr(evaluation, key)}: must be at least {least}")


def _check_view(data: DataConfig) -> None:
    for key, value, known in (("choice", data.choice, CHOICES), ("groups", data.groups, GROUPS)):
        if value not in known:
            raise ConfigError(f"data.{key}={value!r}: give {', '.join(known[:-1])} or {known[-1]}")
    for key in ("min_size", "min_visible", "flip"):
        if not 0 <= getattr(data, key) <= 1:
            raise ConfigError(f"data.{key}={getattr(data, key)}: give a share in 0..1")
    if data.crop is not None and not 0 < data.crop <= 1:
        raise ConfigError(f"data.crop={data.crop}: give a share of the area above 0 and up to 1, or null")
    jitter = data.jitter
    if jitter is not None and (len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5):
        raise ConfigError(
            f"data.jitter={jitter}: give four amounts ≥ 0, brightness, contrast, saturation and hue (≤ 0.5), or null"
        )


def register_eval() -> None:
    """Make ``conf/eval.yaml`` and the groups that it uses known to Hydra, and no other group.

    ``eval.py`` takes ``data=[NAME,…]``; beside the training group ``conf/data`` Hydra would take that
    for a choice of file.
    """
    folder = Path(__file__).resolve().parents[2] / "conf"
    store = ConfigStore.instance()
    store.store(name="eval", node=OmegaConf.load(folder / "eval.yaml"))
    for group in ("evaluation", "datasets"):
        for file in sorted((folder / group).glob("*.yaml")):
            store.store(group=group, name=file.stem, node=OmegaConf.load(file))
