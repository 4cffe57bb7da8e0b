"""Train: `python train.py experiment=demo_cloc`, `torchrun --nproc-per-node=8 train.py …`, `python train.py -m …`."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    """Compose, build, run; see :func:`cloc.engine.run.train`."""
    from cloc.config import ConfigError
    from cloc.data.shards import ShardError
    from cloc.data.stream import SkipLimitError
    from cloc.engine.run import train

    try:
        train(config)
    except (ConfigError, ShardError, SkipLimitError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
