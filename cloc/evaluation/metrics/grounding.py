"""Grounding metrics: where a phrase was found against the boxes that it owns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cloc.evaluation.metrics.outcome import Outcomes, outcome


def grounding_outcomes(predicted: Tensor, owned: Sequence[Tensor], group: Tensor) -> Outcomes:
    """Accuracy at IoU 0.5, mean IoU and pointing game over (picture, phrase) pairs.

    Args:
        predicted: ``[P,4]`` a box for each pair.
        owned: for each pair the boxes ``[K,4]`` that the phrase owns in that picture, in the same units.
        group: ``[P]`` picture of each pair.

    Returns:
        ``grounding/any/acc@0.5``: any of its boxes counts; ``grounding/union/acc@0.5``: their union is the target (the
        Flickr30k Entities convention); ``grounding/mIoU``: mean IoU with the best of its boxes; ``grounding/pointing``:
        the predicted box's center lies in any of its boxes. Empty without pairs.
    """
    if not len(predicted):
        return {}
    pair = torch.repeat_interleave(torch.arange(len(owned)), torch.tensor([len(boxes) for boxes in owned]))
    boxes, guess = torch.cat(list(owned)), predicted[pair]
    low, high = (torch.full((len(owned), 2), sign * torch.inf) for sign in (1, -1))
    places = pair[:, None].expand(-1, 2)
    union = torch.cat(
        [
            low.scatter_reduce(0, places, boxes[:, :2], "amin"),
            high.scatter_reduce(0, places, boxes[:, 2:], "amax"),
        ],
        1,
    )
    center = (guess[:, :2] + guess[:, 2:]) / 2
    inside = ((center >= boxes[:, :2]) & (center <= boxes[:, 2:])).all(1)
    best = torch.zeros(len(owned)).scatter_reduce(0, pair, overlap(guess, boxes), "amax")
    pointed = torch.zeros(len(owned)).scatter_reduce(0, pair, inside.float(), "amax")
    return {
        "grounding/any/acc@0.5": outcome(best >= 0.5, group),
        "grounding/union/acc@0.5": outcome(overlap(predicted, union) >= 0.5, group),
        "grounding/mIoU": outcome(best, group),
        "grounding/pointing": outcome(pointed, group),
    }


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """IoU of boxes pair by pair: ``[K,4]`` and ``[K,4]`` → ``[K]``."""
    size = (torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])).clamp(min=0)
    shared = size.prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (one, other)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-12)


def hard_negative_outcome(
    regions: Tensor, phrase: Tensor, negatives: Sequence[Tensor], group: Tensor, prefix: str
) -> Outcomes:
    """How often a region's own phrase beats all of its hard negatives (FG-OVD's accuracy; ties lose).

    Args:
        regions: ``[K,D]`` regions that have negatives.
        phrase: ``[K,D]`` their own phrase.
        negatives: for each ``[N_i,D]``, N_i ≥ 1.
        group: ``[K]`` picture of each.
        prefix: of the metric name.
    """
    if not len(regions):
        return {}
    owner = torch.repeat_interleave(torch.arange(len(regions)), torch.tensor([len(rows) for rows in negatives]))
    rivals = (regions[owner] * torch.cat(list(negatives))).sum(1)
    worst = torch.full((len(regions),), -torch.inf).scatter_reduce(0, owner, rivals, "amax")
    return {f"{prefix}hard_negatives": outcome((regions * phrase).sum(1) > worst, group)}


def comprehension_outcome(
    regions: Sequence[Tensor], texts: Sequence[Tensor], owned: Sequence[Tensor], prefix: str
) -> Outcomes:
    """Choosing the box that a phrase means among all given boxes of its picture (RefCOCO with ground-truth boxes).

    Args:
        regions: for each picture ``[K_i,D]`` its boxes.
        texts: for each picture ``[T_i,D]`` its distinct phrases.
        owned: for each picture ``[T_i,K_i]`` bool, whether the phrase owns the box. A phrase that owns all of them
            leaves nothing to choose and is not asked.
        prefix: of the metric name.
    """
    right, group = [], []
    for picture, (boxes, phrases, own) in enumerate(zip(regions, texts, owned, strict=True)):
        asked = ~own.all(1)
        if asked.any():
            choice = (phrases[asked] @ boxes.T).argmax(1, keepdim=True).cpu()
            right.append(own[asked].gather(1, choice)[:, 0])
            group += [picture] * int(asked.sum())
    if not right:
        return {}
    return {f"{prefix}comprehension": outcome(torch.cat(right), torch.tensor(group))}
