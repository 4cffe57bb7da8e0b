"""Evaluate: `python eval.py checkpoint=runs/demo/cloc 'data=[openmoji]' 'baseline=[runs/demo/clip]'`."""

from __future__ import annotations

import os
import sys

from cloc.command import in_a_line, prepare, require, run

if __name__ == "__main__":
    prepare(tell_closed_pipe=True)  # before the imports that take time
    require("eval")
    from cloc.config.help import EVAL, front

    front(EVAL, sys.argv[1:])

import hydra  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from cloc.config import EvalConfig, check_overrides, register_eval, validate  # noqa: E402
from cloc.config.secrets import guard_output  # noqa: E402
from cloc.launchers import started_with_others  # noqa: E402

register_eval()


@hydra.main(version_base="1.3", config_path=None, config_name="eval")
def main(config: DictConfig) -> None:
    """Compose, measure, write; see :func:`cloc.evaluation.compare.compare`."""
    with in_a_line():
        checked = validate(config, EvalConfig)  # before the heavy imports
        if started_with_others():  # who is gone is told in a line, not by warnings of PyTorch's sockets
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from cloc.evaluation.compare import compare

        compare(checked)


if __name__ == "__main__":
    guard_output()  # Hydra repeats the command line where it fails
    with in_a_line():
        sys.argv[1:] = check_overrides(sys.argv[1:], EvalConfig)
        run(main)
