"""The moving average of the weights, and which weights are measured."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
)

from cloc.engine.strategy import is_sharded
from cloc.engine.trainer_state import callbacks_of


class AveragedWeights(EMAWeightAveraging):
    """Lightning's moving average; checkpoints and evaluation take it.

    Args:
        decay: share of the average that a step keeps.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay)

    @property
    def model(self) -> nn.Module:
        """The averaged model."""
        assert self._average_model is not None  # Lightning makes it before the first step
        task: Any = self._average_model.module
        model: nn.Module = task.model
        return model


def weights_to_measure(trainer: lightning.Trainer, module: Any) -> nn.Module:
    """The model that evaluation in training measures: the average where there is one, whole where it is sharded."""
    if is_sharded(module.model):
        state = get_model_state_dict(module.model, options=StateDictOptions(full_state_dict=True))
        model: nn.Module = module.blank_model(module.resolved).to(module.device)
        model.load_state_dict(state)
        return model
    averages = [callback for callback in callbacks_of(trainer) if isinstance(callback, AveragedWeights)]
    trained: nn.Module = module.model
    return averages[0].model if averages else trained
