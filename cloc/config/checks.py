"""Is a composed configuration one that can be run: keys and types first, then what the values must agree on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from cloc.config.domains import ConfigError, check_schema
from cloc.config.nodes import resolve
from cloc.config.schema import DataConfig, RunConfig, TrainConfig
from cloc.config.terms import check_needs, check_negatives, terms_of

_CONF = Path(__file__).resolve().parents[2] / "conf"
_KEY = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)


def check_keys(config: DictConfig | Mapping[str, Any], schema: type) -> Any:
    """Check keys, types, presence and domains of a composed configuration; cheap, without the imports of the parts.

    Returns:
        The schema's dataclass.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing value or one outside of its domain; names the key.
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
    check_schema(result, "data." if schema is DataConfig else "")
    return result


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
    merged = OmegaConf.merge({"train": ""}, given)
    assert isinstance(merged, DictConfig)
    found: DataConfig = validate(merged, DataConfig)
    return found


def check_overrides(arguments: Sequence[str], schema: type) -> None:
    """Look at the keys of a command line before Hydra does, whose own words for an unknown one are seven lines.

    Groups (``model/prompter=paper``), additions (``+key=…``), keys of nodes and command lines with a folder of
    configurations (``--config-dir``) are left to Hydra and to :func:`check_keys`.

    Args:
        arguments: as in ``sys.argv``, behind the program.
        schema: of the composed configuration.

    Raises:
        ConfigError: the schema has no such key; names it, and one that looks like it.
    """
    if any(argument.startswith(("-c", "--config")) for argument in arguments):  # groups of the user's own
        return
    for argument in arguments:
        key, given, _ = argument.partition("=")
        if not given or not _KEY.fullmatch(key) or key.startswith("hydra.") or (_CONF / key).is_dir():
            continue
        cls: Any = schema
        for name in key.split("."):
            if not isinstance(cls, type) or not is_dataclass(cls):
                break
            known = get_type_hints(cls)
            if name not in known:
                raise ConfigError(
                    f"configuration key {key!r}: Key {name!r} not in {cls.__name__!r}{_hint(schema, key)}"
                )
            cls = known[name]


def _hint(schema: type, key: str) -> str:
    parent, _, name = key.rpartition(".")
    structured = OmegaConf.structured(schema)
    known = OmegaConf.select(structured, parent) if parent else structured  # none inside an entry of a user's own name
    close = difflib.get_close_matches(name, list(known or ()), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _check_train(config: TrainConfig) -> None:
    _check_view(config.data)
    terms = terms_of(config.loss)
    check_needs(config, terms)
    check_negatives(config, terms)
    _check_contrast(config)
    _check_measured(config)
    model = config.model
    for part, node in (("image", model.image), ("text", model.text)):
        resolve(node, f"model.{part}")
    for part, choice in (("prompter", model.prompter), ("grounding", model.grounding)):
        if choice is not None:
            resolve(choice, f"model.{part}")


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
            close = difflib.get_close_matches(name, list(config.datasets), 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(config.datasets) or 'none'}"
            raise ConfigError(f"evaluation.data: no set {name!r} in datasets; {hint}")
    given = {"objective": config.objective, "evaluation.best": evaluation.best}
    wants = [name for name, on in (given | {"evaluation.at_start": evaluation.at_start}).items() if on]
    if wants and not (evaluation.every and evaluation.data):
        raise ConfigError(
            f"{', '.join(wants)}: nothing is measured in training; set evaluation.every (samples) and evaluation.data"
        )


def _check_view(data: DataConfig) -> None:
    if data.jitter is not None and data.jitter[3] > 0.5:
        raise ConfigError(f"data.jitter={data.jitter}: the last, of the hue, is at most 0.5")


def register_eval() -> None:
    """Make ``conf/eval.yaml`` and the groups that it uses known to Hydra, and no other group.

    ``eval.py`` takes ``data=[NAME,…]``; beside the training group ``conf/data`` Hydra would take that
    for a choice of file.
    """
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="eval", node=OmegaConf.load(_CONF / "eval.yaml"))
    for group in ("evaluation", "datasets"):
        for file in sorted((_CONF / group).glob("*.yaml")):
            store.store(group=group, name=file.stem, node=OmegaConf.load(file))
