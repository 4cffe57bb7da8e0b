"""Optimizers and the schedule. Rates are a pure function of samples seen, so resuming needs no scheduler state.

Of a checkpoint an optimizer takes its moments alone; its settings are those of the configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from omegaconf import OmegaConf
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from cloc.config import OptimConfig
from cloc.models.protocols import hidden, layers, undecayed

TOWERS = ("image", "text")
HEADS = ("prompter.", "grounding.")


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


@dataclass(frozen=True)
class Group:
    """Parameters that share an optimizer and its settings.

    Attributes:
        optimizer: ``muon`` or ``adamw``.
        weight_decay: theirs.
        peak_lr: their peak rate.
        names: of the parameters, in the order in which the optimizer counts them.
    """

    optimizer: str
    weight_decay: float
    peak_lr: float
    names: tuple[str, ...]


def parameter_groups(model: nn.Module, config: OptimConfig, former: bool = False) -> list[Group]:
    """Which optimizer moves which trained parameter, and how; Muon's groups come first.

    Hidden are the matrices of transformer blocks, Prompter and grounding head. The projections into and out of the
    joint space and of a frozen backbone's features stay with AdamW unless ``muon_projections``: Muon moves every
    direction alike, noise of frozen features as well.

    No weight decay on norms, biases, temperatures, tables of embeddings, and what a part declares
    (:func:`cloc.models.protocols.undecayed`). Rates are scaled by :func:`rate_factors`.

    Args:
        model: whose parameters are moved.
        config: how.
        former: as earlier versions had it, where a tower of ours says that it was otherwise.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    declared = {f"{part}.{name}" for part, module in model.named_children() for name in undecayed(module)}
    factors, inner = rate_factors(model, config, former), _hidden(model)
    also = _formerly_trained(model) if former else set()
    found: dict[tuple[str, float], list[str]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and name not in also:
            continue
        # Matrices and convolutions decay; vectors, per-head factors, and tables of embeddings or positions do not.
        if parameter.ndim not in (2, 4) or id(parameter) in tables or name in declared:
            kind = "plain"
        elif config.name == "muon" and parameter.ndim == 2 and (config.muon_projections or name in inner):
            kind = "matrix"
        else:
            kind = "decayed"
        found.setdefault((kind, factors[name]), []).append(name)
    settings = {
        "matrix": ("muon", config.muon_weight_decay, config.muon_lr),
        "decayed": ("adamw", config.weight_decay, config.lr),
        "plain": ("adamw", 0.0, config.lr),
    }
    ordered = sorted(found.items(), key=lambda item: -item[0][1])  # largest rate first: the first group's is logged
    return [
        Group(optimizer, decay, lr * factor, tuple(names))
        for kind, (optimizer, decay, lr) in settings.items()
        for (own, factor), names in ordered
        if own == kind
    ]


def _formerly_trained(model: nn.Module) -> set[str]:
    return {f"{part}.{name}" for part, own in model.named_children() for name in getattr(own, "formerly_trained", ())}


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """AdamW alone, or Muon for the matrices of hidden layers and AdamW for the rest, by :func:`parameter_groups`.

    Loading a state takes its moments and step counts. Rates, decay and betas stay those of the configuration.
    """
    named, groups = dict(model.named_parameters()), parameter_groups(model, config)

    def of(optimizer: str) -> list[dict[str, Any]]:
        return [
            {"params": [named[name] for name in g.names], "weight_decay": g.weight_decay, "peak_lr": g.peak_lr}
            for g in groups
            if g.optimizer == optimizer
        ]

    first, second = config.betas
    adamw = AdamW(of("adamw"), lr=config.lr, betas=(first, second), eps=1e-8, fused=True)
    adamw.register_load_state_dict_pre_hook(_keep_settings)
    adamw.register_load_state_dict_post_hook(_lay_out_as_parameters)
    if not of("muon"):
        return adamw
    muon = Muon(of("muon"), lr=config.muon_lr)
    muon.register_load_state_dict_pre_hook(_keep_settings)
    return Combined([muon, adamw])


def _keep_settings(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Replace the settings of a stored state's groups by the optimizer's own; PyTorch would take the stored ones."""
    stored, own = state["param_groups"], optimizer.param_groups
    if len(stored) != len(own):
        return state  # PyTorch refuses it
    groups = [mine | {"params": group["params"]} for mine, group in zip(own, stored, strict=True)]
    return state | {"param_groups": groups}


def optim_config(stored: Mapping[str, Any]) -> OptimConfig:
    """The optimizer's part of a configuration that a checkpoint holds, with the schema's types.

    Keys that it does not know yet have defaults.
    """
    known = {field.name for field in fields(OptimConfig)}
    own = {key: value for key, value in stored["optim"].items() if key in known}
    found: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(OptimConfig), own))
    return cast(OptimConfig, found)


def rearranged(state: dict[str, Any], model: nn.Module, before: OptimConfig, now: OptimConfig) -> dict[str, Any]:
    """The stored state of an optimizer in the groups of another configuration: moments stay with their parameter.

    Other factors on the rates (``tower_rate``, ``head_rate``, ``layer_decay``) group the parameters otherwise, and so
    did earlier versions: what they had moments of and is frozen by now is left out.

    Args:
        state: what ``state_dict()`` of the optimizer built by ``before`` returned.
        model: whose parameters it moved.
        before: the configuration that the state was made with.
        now: that of the optimizer that will load it.

    Returns:
        The state for the optimizer built by ``now``; the same object where nothing moves.

    Raises:
        ValueError: a parameter belongs to another optimizer, whose moments mean something else; or the state is of
            other parameters.
    """
    old, new = _groups_of(state, model, before), parameter_groups(model, now)
    if [(group.optimizer, group.names) for group in old] == [(group.optimizer, group.names) for group in new]:
        return state
    if not _fits(state, old, model):
        sizes = [len(group["params"]) for part in state.get("parts", [state]) for group in part["param_groups"]]
        raise ValueError(
            f"its moments are of {sum(sizes)} parameters in {len(sizes)} groups, here are "
            f"{sum(len(group.names) for group in old)} in {len(old)}"
        )
    there, here = ({name: group.optimizer for group in groups for name in group.names} for groups in (old, new))
    moved = [name for name in here if here[name] != there[name]]
    if moved:
        name = moved[0]
        raise ValueError(f"{len(moved)} parameters change their optimizer, {name} from {there[name]} to {here[name]}")
    parts = state.get("parts", [state])
    kinds = list(dict.fromkeys(group.optimizer for group in old))
    done = [_regrouped(part, _of(old, kind), _of(new, kind)) for kind, part in zip(kinds, parts, strict=True)]
    return {"parts": done} if "parts" in state else done[0]


def _groups_of(state: dict[str, Any], model: nn.Module, config: OptimConfig) -> list[Group]:
    """The groups that a state was made with: those of today, or those of earlier versions where only they fit."""
    groups = parameter_groups(model, config)
    if not _fits(state, groups, model):
        former = parameter_groups(model, config, former=True)
        if _fits(state, former, model):
            return former
    return groups


def _fits(state: dict[str, Any], groups: Sequence[Group], model: nn.Module) -> bool:
    """Whether a state has these groups' numbers of parameters, and moments of their shapes."""
    parts, kinds = state.get("parts", [state]), list(dict.fromkeys(group.optimizer for group in groups))
    if len(parts) != len(kinds):
        return False
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for part, kind in zip(parts, kinds, strict=True):
        own, stored = _of(groups, kind), [group["params"] for group in part.get("param_groups", ())]
        if [len(names) for names in own] != [len(numbers) for numbers in stored]:
            return False
        pairs = zip([name for names in own for name in names], [n for numbers in stored for n in numbers], strict=True)
        for name, number in pairs:
            moments = part["state"].get(number, {}).values()
            if any(torch.is_tensor(one) and one.ndim and one.shape != shapes[name] for one in moments):
                return False
    return True


def _of(groups: Iterable[Group], optimizer: str) -> list[tuple[str, ...]]:
    return [group.names for group in groups if group.optimizer == optimizer]


def _regrouped(
    state: dict[str, Any], before: Sequence[tuple[str, ...]], now: Sequence[tuple[str, ...]]
) -> dict[str, Any]:
    """One optimizer's state, its groups of names ``before`` made those of ``now``."""
    stored = [number for group in state["param_groups"] for number in group["params"]]
    numbers = dict(zip([name for names in before for name in names], stored, strict=True))
    places = {name: place for place, name in enumerate(name for names in now for name in names)}
    values = {place: state["state"][numbers[name]] for name, place in places.items() if numbers[name] in state["state"]}
    groups = [state["param_groups"][0] | {"params": [places[name] for name in names]} for names in now]
    return {"state": values, "param_groups": groups}


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Give loaded state the memory layout of its parameter.

    PyTorch keeps the layout of the checkpoint, where FSDP2's convolutions are contiguous and ours channels-last. The
    fused step walks through memory: of two layouts it pairs the wrong elements on a CPU and refuses to step on a GPU.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def rate_factors(model: nn.Module, config: OptimConfig, former: bool = False) -> dict[str, float]:
    """Factor of each parameter on the peak rate: of its part, and layer-wise decay (BEiT, arXiv 2106.08254, App. H).

    The last layer of a tower (:func:`cloc.models.protocols.layers`) has the full ``tower_rate``, and each layer below
    ``layer_decay`` times the rate above it. Prompter and grounding head have ``head_rate``, temperatures factor 1.

    Args:
        model: whose parameters are moved.
        config: how.
        former: as earlier versions counted the layers of a tower of ours.
    """
    named = [name for name, _ in model.named_parameters()]
    factors = {name: config.head_rate if name.startswith(HEADS) else 1.0 for name in named}
    for part, tower in model.named_children():
        if part in TOWERS:
            own, last = layers(tower, ask=not former or getattr(tower, "formerly_asked_layers", True))
            factors |= {
                f"{part}.{name}": config.tower_rate * config.layer_decay ** (last - layer)
                for name, layer in own.items()
            }
    return factors


def _hidden(model: nn.Module) -> set[str]:
    """Names of the parameters in the towers' blocks, in the Prompter but its projection, and in the grounding head."""
    towers = {f"{part}.{name}" for part, own in model.named_children() if part in TOWERS for name in hidden(own)}
    heads = {name for name, _ in model.named_parameters() if name.startswith(HEADS)}
    return towers | heads - {"prompter.proj.weight"}


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
