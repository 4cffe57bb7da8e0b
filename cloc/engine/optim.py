"""Optimizers and the schedule. Rates are a pure function of samples seen, so resuming needs no scheduler state."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from cloc.config import OptimConfig

BLOCK = re.compile(r"(.+?\.(?:blocks|resblocks|layers?|block))\.(\d+)\.")
INPUT = re.compile(r"embed|cls_token|reg_token|\.(conv1|conv_stem|bn1|ln_pre|norm_pre|norm_in)\.|adapter\.proj\.")
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

    No weight decay on norms, biases, temperatures, embedding and position tables. Rates are scaled by
    :func:`rate_factors`.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    factors = rate_factors([name for name, _ in model.named_parameters()], config)
    found: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # Matrices and convolutions decay; vectors, per-head factors, and tables of embeddings or positions do not.
        if parameter.ndim not in (2, 4) or id(parameter) in tables or name.endswith(TABLES):
            kind = "plain"
        elif config.name == "muon" and parameter.ndim == 2 and (config.muon_projections or _hidden(name)):
            kind = "matrix"
        else:
            kind = "decayed"
        found.setdefault((kind, factors[name]), []).append(parameter)

    def groups(kind: str, lr: float, decay: float) -> list[dict[str, Any]]:
        # Largest rate first: the first group's is logged.
        of_kind = sorted(((f, params) for (k, f), params in found.items() if k == kind), key=lambda pair: -pair[0])
        return [{"params": params, "weight_decay": decay, "peak_lr": lr * f} for f, params in of_kind]

    vectors = groups("decayed", config.lr, config.weight_decay) + groups("plain", config.lr, 0.0)
    adamw = AdamW(vectors, lr=config.lr, betas=tuple(config.betas), eps=1e-8, fused=True)
    adamw.register_load_state_dict_post_hook(_lay_out_as_parameters)
    matrices = groups("matrix", config.muon_lr, config.muon_weight_decay)
    if not matrices:
        return adamw
    return Combined([Muon(matrices, lr=config.muon_lr), adamw])


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Give loaded state the memory layout of its parameter.

    PyTorch keeps the layout of the checkpoint, where FSDP2's convolutions are contiguous and ours channels-last. The
    fused step walks through memory: of two layouts it pairs the wrong elements on a CPU and refuses to step on a GPU.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def rate_factors(names: Iterable[str], config: OptimConfig) -> dict[str, float]:
    """Factor of each parameter on the peak rate: ``tower_rate`` and layer-wise decay (BEiT, arXiv 2106.08254, App. H).

    In each tower the blocks are numbered in forward order, through a backbone and an adapter upon it. What feeds a
    stack of blocks (embeddings, stem) counts as the layer below its first block, what follows (norms, projections) as
    the layer above its last. The top has the full ``tower_rate``, and each layer below ``layer_decay`` times the rate
    above it. Prompter, grounding head and temperatures have factor 1.
    """
    names = list(names)
    factors = dict.fromkeys(names, 1.0)
    for tower in ("image.", "text."):
        own = [name for name in names if name.startswith(tower)]
        layers: dict[tuple[str, str], int] = {}  # (stack, index of the block) → layer, counted from 1
        for name in own:
            if found := BLOCK.match(name):
                layers.setdefault(found.groups(), len(layers) + 1)
        for name in own:
            if found := BLOCK.match(name):
                layer = layers[found.groups()]
            else:
                near = [n for (stack, _), n in layers.items() if name.startswith(stack.rpartition(".")[0] + ".")]
                near = near or list(layers.values()) or [0]
                layer = min(near) - 1 if INPUT.search(name) else max(near) + 1
            factors[name] = config.tower_rate * config.layer_decay ** (len(layers) + 1 - max(0, layer))
    return factors


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
