"""The objectives: Features → LossTerms. CLOC's (Eq. 4), and CLIP's, which is the same with both weights zero."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn

from cloc.config.domains import ConfigError, Interval, Weight, check_arguments
from cloc.contracts import Batch, Features, LossTerms
from cloc.losses.contrastive import global_loss
from cloc.losses.global_batch import gather_batch
from cloc.losses.grounding import grounding_loss
from cloc.losses.region import region_loss


class ClocLoss(nn.Module):
    """``L = w_g L_CLIP + λ (w_r L_CLOC + w_b L_grounding)``, λ the share of images of the global batch with regions.

    Args:
        global_: weight of the image-caption contrast.
        region: weight of the region-phrase contrast; 0 leaves it out.
        grounding: weight of the box distance; 0 leaves it out.
        contrast: ``softmax`` (CLOC), or ``sigmoid`` (SigLIP; needs ``model.logit_bias``), of both contrasts.
        conflicts: ``cosine``, ``exact`` or ``none`` (see :func:`cloc.losses.region.region_loss`).
        threshold: of the cosine rule.
        box: ``l2`` (paper) or ``l1_giou``.
        shared_phrase: ``skip``, ``nearest`` or ``union``.

    Raises:
        ConfigError: a name that is not known, a weight that is negative or no number, or all of them zero.
    """

    def __init__(
        self,
        global_: Weight = 1.0,
        region: Weight = 1.0,
        grounding: Weight = 1.0,
        contrast: str = "softmax",
        conflicts: str = "cosine",
        threshold: Annotated[float, Interval(-1, 1)] = 0.9,
        box: str = "l2",
        shared_phrase: str = "skip",
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("contrast", contrast, ("softmax", "sigmoid")),
            ("conflicts", conflicts, ("cosine", "exact", "none")),
            ("box", box, ("l2", "l1_giou")),
            ("shared_phrase", shared_phrase, ("skip", "nearest", "union")),
        ):
            if value not in known:
                raise ConfigError(f"loss.{name}={value!r}: give one of {', '.join(known)}")
        self.weights = {"global": global_, "region": region, "grounding": grounding}
        check_arguments(
            ClocLoss, {"global_": global_, "region": region, "grounding": grounding, "threshold": threshold}, "loss"
        )
        if not any(self.weights.values()):
            raise ConfigError(f"loss: {self.weights}: all weights are zero, nothing would be trained; give one above 0")
        self.contrast, self.conflicts, self.threshold, self.box, self.shared_phrase = (
            contrast,
            conflicts,
            threshold,
            box,
            shared_phrase,
        )

    @property
    def needs_regions(self) -> bool:
        """Whether any term compares regions."""
        return self.weights["region"] > 0 or self.weights["grounding"] > 0

    def forward(self, features: Features, batch: Batch) -> LossTerms:
        """Compute every term with a positive weight; a batch without any region is a normal case."""
        gathered = gather_batch(features, batch, self.weights["region"] > 0)
        clip, stats = global_loss(features, gathered, self.contrast)
        terms = {"global": clip}
        for name, value in features.scales.items():
            stats[f"scale_{name}"] = value.detach().squeeze(0)
        factor = torch.ones((), device=clip.device)
        if self.needs_regions:
            factor = gathered.with_regions / gathered.pictures
            stats["lambda"] = factor
        if self.weights["region"] > 0:
            terms["region"], more = region_loss(
                features, batch, gathered, self.contrast, self.conflicts, self.threshold
            )
            stats |= more
        if self.weights["grounding"] > 0:
            terms["grounding"], more = grounding_loss(features, batch, gathered, self.box, self.shared_phrase)
            stats |= more
        loss = self.weights["global"] * clip
        for name in ("region", "grounding"):
            if name in terms:
                loss = loss + factor * self.weights[name] * terms[name]
        # A head whose term has no weight still takes part, with gradient zero: distributed training needs all of them.
        scalars = (*features.scales.values(), *features.biases.values())
        for unused in (features.region, features.phrase, features.grounded, *scalars):
            if unused is not None:
                loss = loss + 0.0 * unused.sum()
        return LossTerms(loss, {k: v.detach() for k, v in terms.items()}, {k: v.detach() for k, v in stats.items()})
