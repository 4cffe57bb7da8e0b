"""Hydra's hook before ``train.py -m``: what Hydra and its plug-ins write by names of their own goes through no link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from cloc.files import clear

NAMES = ("multirun.yaml", "optuna.db", ".submitit")  # of Hydra, of conf/sweep/optuna.yaml, of conf/hydra/launcher


class ClearWay(Callback):
    """Clears the sweep's folder of links under those names (``hydra.callbacks`` of ``conf/train.yaml``)."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called before the sweeper writes."""
        for name in NAMES:
            clear(Path(config.hydra.sweep.dir) / name)
