"""What Lightning's trainer knows and does not declare: other objects set these attributes (beside ``callbacks``)."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback


def callbacks_of(trainer: lightning.Trainer) -> list[Callback]:
    """All callbacks of a trainer, in their order."""
    undeclared: Any = trainer
    found: list[Callback] = undeclared.callbacks
    return found


def is_log_step(trainer: lightning.Trainer) -> bool:
    """Whether the step that just ended writes a log line."""
    undeclared: Any = trainer
    return bool(trainer.global_step % undeclared.log_every_n_steps == 0)
