"""Train: `python train.py experiment=demo_cloc`, `torchrun --nproc-per-node=8 train.py …`, `python train.py -m …`."""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cloc.config.secrets import guard_output


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float | None:
    """Compose, build, run; see :func:`cloc.engine.run.train`."""
    from cloc.config import ConfigError, TrainConfig, check_keys

    try:
        check_keys(config, TrainConfig)  # before the heavy imports: a wrong value is told within a second
    except ConfigError as error:
        sys.exit(f"ConfigError: {error}")
    from cloc.data.shards import ShardError
    from cloc.data.stream import SkipLimitError
    from cloc.engine.checkpoint import CheckpointError
    from cloc.engine.run import train
    from cloc.engine.sweep import objective

    try:
        folder = train(config)
        return objective(folder, config.objective) if folder and config.objective else None
    except (ConfigError, CheckpointError, ShardError, SkipLimitError, FileNotFoundError, FloatingPointError) as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # one job of a sweep: the others go on, and Hydra tells at the end
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    guard_output()  # Hydra repeats the command line where it fails
    main()
