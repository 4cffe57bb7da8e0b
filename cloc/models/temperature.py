"""Temperatures: one inverse temperature a contrast, learned as a logarithm, bounded at 100 as CLIP's.

``[1]`` rather than a scalar: sharding refuses 0-dim parameters. They are not decayed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MAX_SCALE = 100.0  # CLIP's clamp of the inverse temperature
_LOG_MAX = math.log(MAX_SCALE)
_CLIP, _SIGLIP = 1 / 0.07, 10.0  # where they start, without and with a bias


def new_log_scales(names: Iterable[str], biased: bool) -> nn.ParameterDict:
    """Logarithms of the inverse temperatures at their start: 1/0.07 (CLIP); 10 where the logits have a bias (SigLIP).

    Args:
        names: of the contrasts.
        biased: whether the logits have a bias.
    """
    start = math.log(_SIGLIP if biased else _CLIP)
    return nn.ParameterDict({name: nn.Parameter(torch.full((1,), start)) for name in names})


def inverse_temperatures(log_scales: nn.ParameterDict) -> dict[str, Tensor]:
    """Inverse temperatures as the losses use them, ``[1]`` each: exponentiated, at most 100."""
    return {name: value.exp().clamp(max=MAX_SCALE) for name, value in log_scales.items()}


@torch.no_grad()
def clamp_temperatures(log_scales: nn.ParameterDict) -> None:
    """Bound the parameters themselves, after a step: one beyond the bound would have no gradient to come back by."""
    for value in log_scales.values():
        value.clamp_(max=_LOG_MAX)


def clamped(log_scale: Tensor) -> Tensor:
    """One logarithm as in use: a scalar, float32, without gradient, as other libraries store it."""
    return log_scale.detach().float().clamp(max=_LOG_MAX).reshape(())
