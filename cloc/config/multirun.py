"""Hydra's hooks around ``train.py -m``: links out of the way, which job of how many, what to do when all are done."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from cloc.config.secrets import public
from cloc.files import clear
from cloc.usage import clock, override, print_next

NAMES = ("multirun.yaml", "optuna.db", ".submitit")  # of Hydra, of conf/sweep/optuna.yaml, of conf/hydra/launcher


class ClearWay(Callback):
    """Clears the sweep's folder of links under those names (``hydra.callbacks`` of ``conf/train.yaml``)."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called before the sweeper writes: what Hydra and its plug-ins write by these names goes through no link."""
        for name in NAMES:
            clear(Path(config.hydra.sweep.dir) / name)


class Jobs(Callback):
    """Tells how far a sweep is, and what comes after it (``hydra.callbacks`` of ``conf/train.yaml``)."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.swept: set[str] | None = None
        self.begun = time.monotonic()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Count the jobs."""
        given = parsed(config)
        self.total = count_jobs(config, given)
        if self.total is not None and "n_trials" not in config.hydra.sweeper:
            self.swept = {one.get_key_element() for one in given if one.is_sweep_override()}

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """One line: which job begins, with which values, and how long the rest takes if it takes as long."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        number, passed = int(config.hydra.job.num), time.monotonic() - self.begun
        values = [one for one in config.hydra.overrides.task if self.swept is None or one.split("=")[0] in self.swept]
        line = f"job {number}" + (f" ({number + 1} of {self.total})" if self.total else "")
        line += f": {public(' '.join(values))}" if values else ""
        if number and self.total:
            line += f"  ({clock(passed / number * (self.total - number))} left)"
        print(line, flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Name the command that measures jobs which measured nothing; of others there is a report (``SweepFolder``)."""
        folder = Path(config.hydra.sweep.dir)
        if any(_measured(file) for file in folder.glob("*/metrics*.csv")):
            return
        if jobs := sorted(str(file.parent) for file in folder.glob("*/config.yaml")):
            beside = [override("baseline", jobs[1:])] if jobs[1:] else []
            data = override("data", _there(config) or ["FOLDER"])
            print_next(" ".join(["python eval.py", override("checkpoint", jobs[0]), *beside, data]))


def _there(config: DictConfig) -> list[str]:
    """The first evaluation set whose shards are here."""
    sets = config.get("datasets") or {}
    return [name for name, one in sets.items() if one.get("shards") and Path(one.shards).is_dir()][:1]


def _measured(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as lines:
        return "val/" in lines.readline()


def parsed(config: DictConfig) -> list[Override]:
    """What a sweep was given, as Hydra reads it."""
    params = config.hydra.sweeper.get("params") or {}
    try:
        return OverridesParser.create().parse_overrides(
            [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)
        )
    except HydraException:  # Hydra tells it in a moment
        return []


def count_jobs(config: DictConfig, given: Sequence[Override]) -> int | None:
    """Jobs of a sweep; None where its sweeper alone knows."""
    sweeper = config.hydra.sweeper
    if "n_trials" in sweeper:
        return int(sweeper.n_trials)
    if not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        return None
    try:
        return math.prod(len(list(one.sweep_string_iterator())) for one in given if one.is_sweep_override())
    except (HydraException, AttributeError):  # a pattern, for whose names the sweeper looks into conf/
        return None
