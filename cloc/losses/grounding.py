"""Grounding: the box that a phrase prompts against the box that it owns (CLOC, Eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from torchvision.ops import generalized_box_iou_loss

from cloc.contracts import Batch, Features
from cloc.losses.global_batch import GlobalBatch, local_mean


def grounding_loss(
    features: Features, batch: Batch, gathered: GlobalBatch, kind: str = "l2", shared_phrase: str = "skip"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Distance between predicted and true boxes, as a mean over the global count of grounded regions.

    Args:
        features: ``grounded`` ``[B,M,4]`` must be there.
        batch: the batch it was made of.
        gathered: see :func:`cloc.losses.global_batch.meet`.
        kind: ``l2``: squared distance over 4 (Eq. 3 with the square that its 1/4 suggests); ``l1_giou``: smooth L1 with
            a small knee plus generalized IoU.
        shared_phrase: what a phrase that owns several boxes of one picture is compared with: ``skip`` leaves it out,
            ``nearest`` takes the drawn box of that phrase closest to the prediction, ``union`` the union of all.

    Returns:
        This rank's part of the global mean, and statistics (``grounded``).

    Raises:
        ValueError: unknown ``kind`` or ``shared_phrase``.
    """
    target, valid, count = batch.boxes, batch.region_valid, gathered.regions
    if shared_phrase == "skip":
        valid, count = valid & ~batch.phrase_is_shared, gathered.unshared
    elif shared_phrase == "union":
        target = batch.target_boxes
    elif shared_phrase == "nearest":
        target = _nearest(features.grounded.detach(), batch)
    else:
        raise ValueError(f"loss.shared_phrase={shared_phrase!r}: give skip, nearest or union")
    # Slots without a region get the prediction itself as target: distance and gradient are zero, never NaN.
    target = torch.where(valid.unsqueeze(-1), target, features.grounded.detach())
    if kind == "l2":
        distance = (features.grounded - target).square().mean(-1)
    elif kind == "l1_giou":
        flat, goal = features.grounded.flatten(0, 1), target.flatten(0, 1)
        giou = generalized_box_iou_loss(flat, goal, eps=1e-6).unflatten(0, valid.shape)
        distance = 4 * smooth_l1_loss(features.grounded, target, beta=0.02, reduction="none").mean(-1) + giou
    else:
        raise ValueError(f"loss.box={kind!r}: give l2 or l1_giou")
    loss = local_mean(torch.where(valid, distance, 0.0).sum(), count)
    return loss, {"grounded": count}


def _nearest(predicted: Tensor, batch: Batch) -> Tensor:
    """For each region, the drawn box of the same phrase in the same picture that is closest to the prediction."""
    phrase = batch.region_phrase
    same = (phrase.unsqueeze(2) == phrase.unsqueeze(1)) & batch.region_valid.unsqueeze(1)
    distance = (predicted.unsqueeze(2) - batch.boxes.unsqueeze(1)).abs().sum(-1).masked_fill(~same, float("inf"))
    choice = distance.argmin(2)
    return batch.boxes.gather(1, choice.unsqueeze(-1).expand(-1, -1, 4))
