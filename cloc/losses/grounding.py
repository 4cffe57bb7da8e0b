"""Grounding: the box that a phrase prompts against the box that it owns (CLOC, Eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from torchvision.ops import generalized_box_iou_loss

from cloc.config.terms import Need
from cloc.contracts import Batch, Features
from cloc.losses.global_batch import GlobalBatch, local_mean
from cloc.losses.term import Term, check_option

BOX = ("l2", "l1_giou")
SHARED_PHRASE = ("skip", "nearest", "union")


class Grounding(Term):
    """Distance between predicted and true boxes, as a mean over the global count of grounded regions.

    Its statistic is ``grounded``, that count.

    Args:
        box: ``l2``: squared distance over 4 (Eq. 3 with the square that its 1/4 suggests); ``l1_giou``: smooth L1 with
            a small knee plus generalized IoU.
        shared_phrase: what a phrase that owns several boxes of one picture is compared with: ``skip`` leaves it out,
            ``nearest`` takes the drawn box of that phrase closest to the prediction, ``union`` the union of all.

    Raises:
        ConfigError: an unknown ``box`` or ``shared_phrase``.
    """

    needs = frozenset({Need.REGIONS, Need.PROMPTER, Need.GROUNDING})
    label = "box"

    def __init__(self, box: str = "l2", shared_phrase: str = "skip") -> None:
        super().__init__()
        self.box = check_option("loss.box", box, BOX)
        self.shared_phrase = check_option("loss.shared_phrase", shared_phrase, SHARED_PHRASE)

    def forward(self, features: Features, batch: Batch, gathered: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`cloc.losses.term.Term.forward`; ``features.grounded`` ``[B,M,4]`` must be there."""
        grounded = features.grounded
        assert grounded is not None, "a term that needs grounding"  # Need.GROUNDING
        target, valid, count = batch.boxes, batch.region_valid, gathered.regions
        if self.shared_phrase == "skip":
            valid, count = valid & ~batch.phrase_is_shared, gathered.unshared
        elif self.shared_phrase == "union":
            target = batch.target_boxes
        else:
            target = _nearest(grounded.detach(), batch)
        # Slots without a region get the prediction itself as target: distance and gradient are zero, never NaN.
        target = torch.where(valid.unsqueeze(-1), target, grounded.detach())
        if self.box == "l2":
            distance = (grounded - target).square().mean(-1)
        else:
            flat, goal = grounded.flatten(0, 1), target.flatten(0, 1)
            giou = generalized_box_iou_loss(flat, goal, eps=1e-6).unflatten(0, valid.shape)
            distance = 4 * smooth_l1_loss(grounded, target, beta=0.02, reduction="none").mean(-1) + giou
        loss = local_mean(torch.where(valid, distance, 0.0).sum(), count)
        return loss, {"grounded": count}


def _nearest(predicted: Tensor, batch: Batch) -> Tensor:
    """For each region, the drawn box of the same phrase in the same picture that is closest to the prediction."""
    phrase = batch.region_phrase
    same = (phrase.unsqueeze(2) == phrase.unsqueeze(1)) & batch.region_valid.unsqueeze(1)
    distance = (predicted.unsqueeze(2) - batch.boxes.unsqueeze(1)).abs().sum(-1).masked_fill(~same, float("inf"))
    choice = distance.argmin(2)
    return batch.boxes.gather(1, choice.unsqueeze(-1).expand(-1, -1, 4))
