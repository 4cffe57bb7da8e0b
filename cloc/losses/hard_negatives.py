"""The contrast of each region with its own phrase and its own hard negatives alone (FG-CLIP's third term)."""

from __future__ import annotations

import torch
from torch import Tensor

from cloc.config.terms import Need
from cloc.contracts import Batch, Features
from cloc.losses.gather import exchange
from cloc.losses.global_batch import GlobalBatch, local_mean
from cloc.losses.region import hard_negatives
from cloc.losses.term import Term
from cloc.losses.tiles import floor


class HardNegativeContrast(Term):
    """``mean_r −log( exp(s z_r·t_r) / (exp(s z_r·t_r) + Σ_k exp(s z_r·n_rk)) )`` over the regions with hard negatives.

    After FG-CLIP (arXiv 2505.05071), which weighs it 0.5 beside a region contrast of weight 0.1: one question a region,
    in which no other region's text takes part. It has the temperature of the region contrast, and is a softmax whatever
    ``loss.contrast`` says. The mean is over all valid regions of the global batch that have a hard negative, and 0
    where none has.

    Its statistic is ``hard_negatives``, how many such regions there are.
    """

    needs = frozenset({Need.REGIONS, Need.PHRASES, Need.PROMPTER, Need.NEGATIVES})
    label = "hard"

    def forward(self, features: Features, batch: Batch, gathered: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`cloc.losses.term.Term.forward`.

        Raises:
            ValueError: the batch holds no hard negatives.
        """
        if batch.negatives is None or features.phrase is None or features.region is None:
            raise ValueError("loss.hard_negatives: the batch holds no hard negatives; set data.negatives")
        own = features.phrase[batch.region_phrase[batch.region_valid]]
        rows = features.scales["region"] * features.region[batch.region_valid]
        hard = hard_negatives(features.phrase, batch.negatives, batch, batch.region_valid)
        right = (rows * own).sum(1, keepdim=True)
        wrong = (hard.text @ rows.unsqueeze(2)).squeeze(2).masked_fill(~hard.there, floor(rows.dtype))
        asked = hard.there.any(1)
        loss = torch.cat([right, wrong], 1).logsumexp(1) - right.squeeze(1)
        count = exchange(asked.sum().reshape(1)).sum()
        return local_mean((loss * asked).sum(), count), {"hard_negatives": count}
