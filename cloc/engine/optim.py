"""Optimizers and the schedule. Rates are a pure function of samples seen, so resuming needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from cloc.config import OptimConfig

TABLES = ("pos_embed", "positional_embedding", "class_embedding", "cls_token", "reg_token")


class Combined(Optimizer):
    """Several optimizers over disjoint parameters, stepped as one (Lightning's automatic optimization takes one)."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__([group for opt in self.optimizers for group in opt.param_groups], {})
        # The parts own the groups; sharing the very objects lets one schedule reach all of them.
        self.param_groups = [group for opt in self.optimizers for group in opt.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every part; the closure runs once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Plain containers: one state dict a part."""
        return {"parts": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        for optimizer, part in zip(self.optimizers, state["parts"], strict=True):
            optimizer.load_state_dict(part)
        self.param_groups = [group for opt in self.optimizers for group in opt.param_groups]


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """AdamW alone, or Muon for the matrices of hidden layers and AdamW for the rest.

    Hidden are those of transformer blocks, Prompter and grounding head. The projections into and out of the joint space
    and of a frozen backbone's features stay with AdamW unless ``muon_projections``: Muon moves every direction alike,
    noise of frozen features as well.

    No weight decay on norms, biases, temperatures, embedding and position tables.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices, decayed, plain = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # Matrices and convolutions decay; vectors, per-head factors, and tables of embeddings or positions do not.
        if parameter.ndim not in (2, 4) or id(parameter) in tables or name.endswith(TABLES):
            plain.append(parameter)
        elif config.name == "muon" and parameter.ndim == 2 and (config.muon_projections or _hidden(name)):
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": params, "weight_decay": decay, "peak_lr": config.lr}
        for params, decay in ((decayed, config.weight_decay), (plain, 0.0))
        if params
    ]
    adamw = AdamW(groups, lr=config.lr, betas=tuple(config.betas), eps=1e-8, fused=True)
    if not matrices:
        return adamw
    muon = Muon(
        [{"params": matrices, "peak_lr": config.muon_lr}], lr=config.muon_lr, weight_decay=config.muon_weight_decay
    )
    return Combined([muon, adamw])


def _hidden(name: str) -> bool:
    return "blocks." in name or (name.startswith(("prompter.", "grounding.")) and name != "prompter.proj.weight")


def rate(samples: int, total: int, warmup: int, final: float) -> float:
    """Factor on the peak rate: linear warm-up, then cosine to ``final`` (CLOC, Table A)."""
    if samples < warmup:
        return (samples + 1) / (warmup + 1)
    progress = min(1.0, (samples - warmup) / max(1, total - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimizer: Optimizer, factor: float) -> None:
    """Scale every group's own peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
