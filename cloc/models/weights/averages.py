"""Arithmetic of whole models: the mean of checkpoints, and the blend of a model with its base (WiSE-FT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def average(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of state dicts, summed in float64; counters are those of the first."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def blend(
    base: Mapping[str, Tensor], run: Mapping[str, Tensor], alpha: float, name: str
) -> tuple[dict[str, Tensor], list[str]]:
    """``(1 - alpha) · base + alpha · run``.

    Args:
        base: state dict of the base model.
        run: of the run.
        alpha: share of the run.
        name: of the base, for messages.

    Returns:
        The blend, and the parts (``prompter``, …) that the base does not have and that stay the run's.

    Raises:
        ValueError: the towers differ.
    """
    wrong = [
        weight
        for weight, value in run.items()
        if (weight in base and base[weight].shape != value.shape)
        or (weight not in base and weight.startswith(("image.", "text.")))
    ]
    if wrong:
        raise ValueError(
            f"--base {name} has other towers: {len(wrong)} weights differ, the first is {wrong[0]}; give the model "
            "that the run was fine-tuned from"
        )
    mixed = {
        weight: torch.lerp(base[weight].double(), value.double(), alpha).to(value.dtype)
        if weight in base and value.is_floating_point()
        else value
        for weight, value in run.items()
    }
    return mixed, sorted({weight.partition(".")[0] for weight in run if weight not in base})
