"""Is a composed configuration one that can be run: keys and types first, then what the values must agree on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from cloc.config.command_line import CONF, hint
from cloc.config.domains import ConfigError
from cloc.config.nodes import resolve
from cloc.config.schema import DataConfig, RunConfig, TrainConfig
from cloc.config.terms import Need, check_crops, check_needs, check_negatives, terms_of, weights_of
from cloc.config.values import KINDS, check_schema, check_value, kind_of, written
from cloc.usage import meant

FLAG = r"true|false|yes|no|on|off|y|n|1|0|\?\?\?|.*\$\{.*"  # as YAML has it, left open, or another key's


def check_keys(config: DictConfig | Mapping[str, Any], schema: type) -> Any:
    """Check keys, types, presence and domains of a composed configuration; cheap, without the imports of the parts.

    Returns:
        The schema's dataclass.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing value or one outside of its domain; names the key.
    """
    path = "data." if schema is DataConfig else ""
    raw: Any = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else config
    check_value(dict, raw, path.rstrip("."))
    _check_kinds(schema, raw, path)
    try:
        merged = OmegaConf.merge(_structured(schema), config)
        missing = sorted(OmegaConf.missing_keys(merged) | OmegaConf.missing_keys(config))
        if missing:
            raise ConfigError(
                f"no value for {', '.join(missing)}: give it on the command line or in an experiment file"
            )
        result = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        if "is not a ListConfig" in str(error):
            raise ConfigError(f"{key}: must be a list; give '{key}=[VALUE]', quoted for the shell") from error
        known = hint(schema, key) if isinstance(error, ConfigKeyError) else ""
        raise ConfigError(f"configuration key {key!r}: {str(error).splitlines()[0][:300]}{known}") from error
    except RecursionError as error:
        raise ConfigError("an interpolation (${…}) of the configuration leads back to itself; mend it") from error
    check_schema(result, path)
    return result


@cache
def _structured(schema: type) -> Any:
    """A schema as OmegaConf has it; to be merged into a copy."""
    return OmegaConf.structured(schema)


def _check_kinds(schema: type, config: Mapping[str, Any], path: str) -> None:
    """Refuse what OmegaConf would make something else of: ``name=true`` would train in ``runs/True``, ``resume=3`` so.

    Args:
        schema: of the group.
        config: its values as they are given.
        path: of it, with its dot.
    """
    hints = get_type_hints(schema)
    for field in fields(schema):
        value, wanted, key = config.get(field.name), hints[field.name], f"{path}{field.name}"
        if isinstance(wanted, type) and is_dataclass(wanted) and isinstance(value, Mapping):
            _check_kinds(wanted, value, f"{key}.")
        elif isinstance(value, Mapping) and is_dataclass(entry := (get_args(wanted) or (None,))[-1]):
            assert isinstance(entry, type)  # of what a name stands for
            for name, own in value.items():
                _check_kinds(entry, own if isinstance(own, Mapping) else {}, f"{key}.{name}.")
        elif isinstance(value, bool) and str in (kind_of(wanted), *map(kind_of, get_args(wanted))):
            raise ConfigError(f"{key}={written(value)}: must be {KINDS[str]}; in quotes, '{key}=\"{value}\"'")
        elif wanted is bool and isinstance(value, int | str) and not re.fullmatch(FLAG, str(value), re.IGNORECASE):
            raise ConfigError(f"{key}={written(value)}: must be {KINDS[bool]}")


def validate(config: DictConfig | Mapping[str, Any], schema: type = TrainConfig) -> Any:
    """Check a composed configuration against its schema and against itself.

    Returns:
        The schema's dataclass.

    Raises:
        ConfigError: as :func:`check_keys`, or a contradiction; names the key.
    """
    result = check_keys(config, schema)
    if issubclass(schema, TrainConfig):
        _check_train(result)
    if issubclass(schema, RunConfig):
        _check_run(result)
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
    merged = OmegaConf.merge({"train": "-"}, given)  # what is read is named elsewhere
    assert isinstance(merged, DictConfig)
    found: DataConfig = validate(merged, DataConfig)
    return found


def _check_train(config: TrainConfig) -> None:
    _check_view(config.data)
    if config.base is None and not (config.model.image and config.model.text):
        raise ConfigError("model names no towers: model=base takes them from base=MODEL; give that, or another model")
    terms = terms_of(config.loss)
    check_needs(config, terms)
    check_negatives(config, terms)
    check_crops(config, terms)
    _check_frozen(config)
    _check_contrast(config)
    _check_measured(config)
    model = config.model
    for part, node in (("image", model.image), ("text", model.text)):
        if "_target_" in node or config.base is None:  # else it is that of the base
            resolve(node, f"model.{part}")
    for part, choice in (("prompter", model.prompter), ("grounding", model.grounding)):
        if choice is not None:
            resolve(choice, f"model.{part}")


def _check_frozen(config: TrainConfig) -> None:
    """Frozen towers leave something to train, and what they make can be kept where they always see the same."""
    data, model = config.data, config.model
    if model.frozen_towers and model.prompter is None:
        raise ConfigError(
            "model.frozen_towers=true with model.prompter=null: nothing would be trained; choose model/prompter=shared"
        )
    if model.frozen_towers and config.loss.get("distill"):
        raise ConfigError(
            f"loss.distill={config.loss['distill']} with model.frozen_towers=true: towers that stay as they are have "
            "nothing to keep to; set loss.distill=0"
        )
    if data.token_cache is None:
        return
    taught = [one for one in terms_of(config.loss) if one.needs(Need.TEACHER)]
    if taught:
        raise ConfigError(
            f"data.token_cache={data.token_cache} with {weights_of(taught)}: a teacher sees the pictures, which are "
            "not read; set data.token_cache=null, or the weight to 0"
        )
    drawn = {"crop": data.crop, "jitter": data.jitter, "flip": data.flip}
    for key, value in drawn.items():
        if value:
            raise ConfigError(
                f"data.token_cache={data.token_cache} with data.{key}={value}: a view that is drawn at random is "
                f"another one each time; set data.{key}={'0' if key == 'flip' else 'null'}, or data.token_cache=null"
            )
    if config.trainer.strategy == "fsdp":
        raise ConfigError(
            f"data.token_cache={data.token_cache} with trainer.strategy=fsdp: what is trained behind frozen towers is "
            "small, and needs no shards; use trainer=ddp"
        )


def _check_contrast(config: TrainConfig) -> None:
    contrast, bias = config.loss.get("contrast", "softmax"), config.model.logit_bias
    if (contrast == "sigmoid") != (bias is not None):
        raise ConfigError(
            f"loss.contrast={contrast} with model.logit_bias={bias}: the sigmoid loss learns a bias, softmax has none; "
            "give loss.contrast=sigmoid model.logit_bias=-10, or loss.contrast=softmax model.logit_bias=null"
        )


def _check_run(config: RunConfig) -> None:
    """What spreads, accumulates or averages a run of any task."""
    trainer, optim = config.trainer, config.optim
    if config.batch_size % config.trainer.accumulate:
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


def _check_measured(config: TrainConfig) -> None:
    """What is chosen by a measurement needs one, and sets that are measured are known."""
    evaluation = config.evaluation
    for name in evaluation.data:
        if name not in config.datasets:
            raise ConfigError(f"evaluation.data: no set {name!r} in datasets{meant(name, config.datasets)}")
    given = {"objective": config.objective, "evaluation.best": evaluation.best}
    wants = [name for name, on in (given | {"evaluation.at_start": evaluation.at_start}).items() if on]
    if wants and not (evaluation.every and evaluation.data):
        raise ConfigError(
            f"{', '.join(wants)}: nothing is measured in training; set evaluation.every (samples) and evaluation.data"
        )


def _check_view(data: DataConfig) -> None:
    if data.crops > data.regions:
        raise ConfigError(
            f"data.crops={data.crops} with data.regions={data.regions}: the first of the drawn regions are cut out; "
            f"give data.regions={data.crops}, or fewer crops"
        )
    for template in data.templates:
        if template.count("{}") != 1:
            raise ConfigError(f"data.templates: {template!r} must hold {{}} once, in the place of the phrase")
    if data.jitter is not None and data.jitter[3] > 0.5:
        raise ConfigError(f"data.jitter={data.jitter}: the last, of the hue, is at most 0.5")


def register_eval() -> None:
    """Make ``conf/eval.yaml`` and the groups that it uses known to Hydra, and no other group.

    ``eval.py`` takes ``data=[NAME,…]``; beside the training group ``conf/data`` Hydra would take that
    for a choice of file.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="eval", node=OmegaConf.load(CONF / "eval.yaml"))
    for group in ("evaluation", "datasets"):
        for file in sorted((CONF / group).glob("*.yaml")):
            store.store(group=group, name=file.stem, node=OmegaConf.load(file))
