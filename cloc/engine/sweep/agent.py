"""A trial of a sweep that W&B steers: ``wandb agent`` calls ``train.py`` again and again (beside ``run``)."""

from __future__ import annotations

import os
import re

from cloc.config import ConfigError


def trial() -> str | None:
    """The name that W&B has given to this trial; None outside of an agent.

    Raises:
        ConfigError: it is no name of a folder.
    """
    name = os.environ.get("WANDB_RUN_ID", "")
    if not os.environ.get("WANDB_SWEEP_ID") or not name:
        return None
    if not re.fullmatch(r"[\w-]{1,128}", name, re.ASCII):
        raise ConfigError(f"WANDB_RUN_ID={name!r}: letters, digits, _ and - are taken, for the trial's run folder")
    return name
