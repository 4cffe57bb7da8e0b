"""Typed schema of ``conf/``: unknown keys and contradictions fail with the key's name, before anything is built.

Fixed groups are dataclasses (``schema``). Parts that can be exchanged (towers, Prompter, loss, …) are nodes with a
``_target_``, a class of ours or of the user's (``nodes``); their keys are checked against the target's signature, so
that adding a part needs no change here. ``domains`` says which values a leaf may have, ``checks`` what the values of
one run must agree on.
"""

from contextlib import suppress

from cloc.config.checks import check_keys, data_config, register_eval, validate
from cloc.config.command_line import check_overrides
from cloc.config.domains import ConfigError
from cloc.config.fields import from_fields, register_defaults
from cloc.config.nodes import find_class, instantiate, resolve
from cloc.config.schema import (
    DataConfig,
    DatasetConfig,
    EvalConfig,
    EvaluationConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    TrainerConfig,
)
from cloc.config.values import check_arguments

__all__ = [
    "ConfigError",
    "DataConfig",
    "DatasetConfig",
    "EvalConfig",
    "EvaluationConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TrainConfig",
    "TrainerConfig",
    "check_arguments",
    "check_keys",
    "check_overrides",
    "data_config",
    "find_class",
    "from_fields",
    "instantiate",
    "register_eval",
    "resolve",
    "validate",
]

with suppress(ModuleNotFoundError):  # without Hydra, which the extra `train` brings, nothing is composed
    register_defaults()
