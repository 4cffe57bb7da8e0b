"""Large contrastive batches in the memory of small ones (beside ``module``): gradients through cached features.

Adding up the gradients of micro-batches, as ``accumulate_grad_batches`` does, is wrong for a contrastive loss: each
would see its own negatives alone. Here the features of all micro-batches are made first, without a graph; the loss sees
them together and says what the gradient of every feature is; then each micro-batch is encoded again, with a graph and
the same random numbers, and passes its part of that gradient on ("GradCache", arXiv 2101.06983; here with regions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from cloc.contracts import Batch, Features, LossTerms, Per, per
from cloc.engine.random_state import generators, set_generators
from cloc.models.model import Cloc

FIELDS = tuple(one.name for one in fields(Features) if per(one) is not Per.BATCH)


def split(batch: Batch, parts: int) -> tuple[list[Batch], list[Tensor]]:
    """Cut a batch of one process into micro-batches, each with the phrases of its own regions.

    Args:
        batch: of B images.
        parts: number of micro-batches.

    Returns:
        The micro-batches, and for each ``[P_i]`` the indices of its phrases in the whole batch.

    Raises:
        ValueError: B does not divide.
    """
    size = len(batch.images)
    if size % parts:
        raise ValueError(f"trainer.accumulate={parts} does not divide the {size} pictures of a process")
    micros, phrases = [], []
    for start in range(0, size, size // parts):
        rows = slice(start, start + size // parts)
        own = _used_phrases(batch, rows)
        micros.append(replace(batch, **_cut(batch, rows, own)))
        phrases.append(own)
    return micros, phrases


def _used_phrases(batch: Batch, rows: slice) -> Tensor:
    """Indices of the phrases that the regions of some pictures point to."""
    valid = batch.region_valid[rows]
    used = [value[rows][valid].flatten() for one in fields(batch) if (value := _pointer(batch, one)) is not None]
    every = torch.cat(used)
    own: Tensor = every[every >= 0].unique()
    # Without a region one phrase stands in, so that every parameter takes part.
    return own if len(own) else own.new_zeros(1)


def _pointer(batch: Batch, one: Field[Any]) -> Tensor | None:
    value: Tensor | None = getattr(batch, one.name) if one.metadata.get("into_phrases") else None
    return value


def _cut(batch: Batch, rows: slice, own: Tensor) -> dict[str, Any]:
    """Each field of a micro-batch, by what the field says of its rows; what belongs to the whole batch stays."""
    place = torch.zeros(len(batch.phrases), dtype=torch.int64, device=own.device)
    place[own] = torch.arange(len(own), device=own.device)
    found: dict[str, Any] = {}
    for one in fields(batch):
        value, kind = getattr(batch, one.name), per(one)
        if value is None or kind is Per.BATCH:
            continue
        value = value[own] if kind is Per.PHRASE else value[rows]
        if one.metadata.get("into_phrases"):
            value = torch.where(value < 0, value, place[value.clamp(min=0)])
        found[one.name] = value
    return found


def join(features: Sequence[Features], phrases: Sequence[Tensor], count: int) -> Features:
    """Features of the whole batch from those of its micro-batches; a phrase is that of the first which has it.

    Args:
        features: of the micro-batches; temperatures are taken from the first.
        phrases: as :func:`split` returns them.
        count: P of the whole batch.
    """
    joined: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in features]) if getattr(features[0], name) is not None else None
        for name in FIELDS
    }
    every = torch.cat(list(phrases))
    rows = torch.arange(len(every), device=every.device)
    first = torch.zeros(count, dtype=torch.int64, device=every.device)
    first.scatter_reduce_(0, every, rows, "amin", include_self=False)
    for one in fields(Features):
        if per(one) is Per.PHRASE and joined[one.name] is not None:
            joined[one.name] = joined[one.name][first]
    return replace(features[0], **joined)


def accumulated(model: Cloc, loss: nn.Module, batch: Batch, parts: int) -> LossTerms:
    """The loss of the whole batch, in the memory of one micro-batch.

    Args:
        model: in the precision that autocast gives it here; every parameter on this process whole (not FSDP2).
        loss: Features and Batch → LossTerms.
        batch: of this process.
        parts: number of micro-batches.

    Returns:
        The terms. ``total`` has the loss's value, and one backward pass through it places the gradient of the loss, as
        the same micro-batches in one graph would. Data-parallel hooks fire once for each parameter.
    """
    kind = batch.images.device.type
    micros, phrases = split(batch, parts)
    states, cached = [], []
    with torch.no_grad():
        for micro in micros:
            states.append(generators(kind))
            cached.append(model(micro))
    # Autocast keeps the weights that it has cast; those of the pass without gradient must not serve the next.
    torch.clear_autocast_cache()
    leaves = [
        replace(part, **{n: getattr(part, n).detach().requires_grad_() for n in FIELDS if getattr(part, n) is not None})
        for part in cached
    ]
    biases = {name: value.clone() for name, value in model.biases.items()}
    whole = replace(join(leaves, phrases, len(batch.phrases)), scales=model.scales(), biases=biases)
    wanted = [getattr(part, n) for part in leaves for n in FIELDS if getattr(part, n) is not None]
    scalars = [one for one in (*model.log_scales.values(), *model.biases.values()) if one.requires_grad]
    with torch.autocast(kind, enabled=False):
        terms = loss(whole, batch)
        found = list(torch.autograd.grad(terms.total, [*wanted, *scalars], allow_unused=True))
    trained = [p for p in model.parameters() if p.requires_grad]
    gradient = {id(p): torch.zeros_like(p) for p in trained}
    for scalar, value in zip(scalars, found[len(wanted) :], strict=True):
        if value is not None:
            gradient[id(scalar)] += value
    surrogate = terms.total.new_zeros(())
    for number, (micro, state) in enumerate(zip(micros, states, strict=True)):
        set_generators(kind, state)
        surrogate = _weighted(model(micro), found, number * len(wanted) // parts)
        if number < parts - 1:
            with torch.autocast(kind, enabled=False):
                values = torch.autograd.grad(surrogate, trained, allow_unused=True)
            for parameter, value in zip(trained, values, strict=True):
                if value is not None:
                    gradient[id(parameter)] += value
        torch.clear_autocast_cache()
    # The last micro-batch carries the others' gradients: a sum of products whose derivative they are.
    surrogate = surrogate + sum((p * gradient[id(p)]).sum() for p in trained)
    total = terms.total.detach() + (surrogate - surrogate.detach())
    return LossTerms(total, terms.terms, terms.stats)


def _weighted(features: Features, gradients: Sequence[Tensor | None], start: int) -> Tensor:
    """Sum of the features' products with their gradients, from the place ``start`` of the list on."""
    parts = [value for name in FIELDS if (value := getattr(features, name)) is not None]
    own = gradients[start : start + len(parts)]
    found: Tensor = sum((part * weight).sum() for part, weight in zip(parts, own, strict=True) if weight is not None)
    return found
