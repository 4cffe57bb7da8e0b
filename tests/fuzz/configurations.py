"""Values of a training configuration; the reference holds that all numbers are finite and no weight is negative."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from cloc.config import ConfigError, validate

from . import mutate
from .kinds import Case, Kind

CONF = Path(__file__).resolve().parents[2] / "conf"
WEIGHTS = ("global", "region", "grounding")
NUMBERS = (math.nan, math.inf, -math.inf, -1, 0, -1e-9, 1e400, 2**80, 1.5, "1e3", "nan", "${name}", "???")


def compose(*overrides: str) -> dict[str, Any]:
    """The resolved configuration of a small run."""
    GlobalHydra.instance().clear()
    base = ("name=x", "samples=64", "batch_size=8", "data.train=x")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(hydra_compose("train", [*base, *overrides]), resolve=True)


def prepare(folder: Path) -> dict[str, Any]:
    """One configuration that is right."""
    return compose()


def make(rng: random.Random, folder: Path, prepared: dict[str, Any]) -> Case:
    """A value or two of the configuration changed."""
    config = copy.deepcopy(prepared)
    if rng.random() < 0.5:
        group = rng.choice(("loss", "optim", "trainer", "data", "evaluation", ""))
        owner = config[group] if group else config
        key = rng.choice(sorted(owner))
        owner[key] = rng.choice(NUMBERS)
        what = f"{group}.{key}={owner[key]!r}"
    else:
        what = mutate.edit(config, rng)
    return Case(what, lambda: _read(config), list, (ConfigError,), repr(config).encode())


def _read(config: dict[str, Any]) -> list[str]:
    """Numbers of the accepted configuration that no run can use."""
    accepted = asdict(validate(OmegaConf.create(config)))
    found = []
    for path in mutate.places(accepted):
        value = accepted
        for key in path:
            value = value[key]
        if isinstance(value, float) and not math.isfinite(value):
            found.append(".".join(map(str, path)))
    weights = [accepted["loss"][name] for name in WEIGHTS if name in accepted["loss"]]
    wrong = min(map(float, weights), default=0) < 0 or not any(map(float, weights))
    return found + ["the weights of the loss"] * wrong


CONFIGURATIONS = Kind("configuration", 0.08, prepare, make)
