"""Evaluate: `python eval.py checkpoint=runs/demo/cloc 'data=[openmoji]' 'baseline=[runs/demo/clip]'`."""

from __future__ import annotations

import sys

from cloc.command import prepare, require, run

if __name__ == "__main__":
    prepare(tell_closed_pipe=True)  # before the imports that take time
    require("eval")

import hydra  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from cloc.config import register_eval  # noqa: E402
from cloc.config.secrets import guard_output  # noqa: E402

register_eval()


@hydra.main(version_base="1.3", config_path=None, config_name="eval")
def main(config: DictConfig) -> None:
    """Compose, measure, write; see :func:`cloc.evaluation.compare.compare`."""
    from cloc.config import ConfigError, EvalConfig, validate
    from cloc.data.shards.tars import ShardError
    from cloc.evaluation.compare import compare

    try:
        compare(validate(config, EvalConfig))
    except (ConfigError, ShardError, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    guard_output()  # Hydra repeats the command line where it fails
    run(main)
