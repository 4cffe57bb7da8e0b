"""Train: `python train.py experiment=demo_cloc`, `torchrun --nproc-per-node=8 train.py …`, `python train.py -m …`."""

from __future__ import annotations

import os
import sys

from cloc.command import in_a_line, prepare, require, run

if __name__ == "__main__":
    prepare(tell_closed_pipe=True)  # before the imports that take time
    require("train")
    from cloc.config.help import TRAIN, front

    front(TRAIN, sys.argv[1:])

import hydra  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.types import RunMode  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from cloc.config import ConfigError, TrainConfig, check_keys, check_overrides, find_class  # noqa: E402
from cloc.config.secrets import guard_output  # noqa: E402
from cloc.launchers import launch, started_with_others  # noqa: E402


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> float | None:
    """Compose, build, run; see :func:`cloc.engine.run.train`."""
    if _in_sweep():  # `cloc.engine.sweep.hook` tells why a job failed, and goes on
        return _train(config)
    with in_a_line():  # before Hydra sees an error, and adds a line of its own
        return _train(config)


def _train(config: DictConfig) -> float | None:
    launch()  # refuses what it does not understand
    if started_with_others():  # who is gone is told in a line, not by warnings of PyTorch's sockets
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        # Another task brings a schema of its own.
        named = config.get("task")
        schema = TrainConfig if named is None else getattr(find_class(named, "task"), "schema", TrainConfig)
        checked = check_keys(config, schema)  # before the heavy imports: a wrong value is told within a second
    except ConfigError:
        if _in_sweep() or not started_with_others():
            raise
        # else the others wait to hear of it, and `train` tells them
    else:
        if checked.evaluation.every or _in_sweep():  # else it would be told hours later
            require("eval")
    from cloc.engine.run import train
    from cloc.engine.sweep.jobs import objective

    folder = train(config)
    wanted = config.get("objective")
    return objective(folder, wanted) if folder and wanted else None


def _in_sweep() -> bool:
    """Whether this is one job of several."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


if __name__ == "__main__":
    guard_output()  # Hydra repeats the command line where it fails
    with in_a_line():
        sys.argv[1:] = check_overrides(sys.argv[1:], TrainConfig)
        run(main)
