"""Region-text contrast over all regions of the global batch (CLOC, Eq. 2 and Sec. 3.4)."""

from __future__ import annotations

from torch import Tensor

from cloc.config.terms import Need
from cloc.contracts import Batch, Features
from cloc.losses.conflicts import alike_texts
from cloc.losses.contrastive import CONTRASTS, HardNegatives, contrast
from cloc.losses.global_batch import GlobalBatch, Texts, local_mean
from cloc.losses.term import Term, check_option
from cloc.losses.tiles import Conflicts

CONFLICTS = ("cosine", "exact", "none")


class RegionContrast(Term):
    """Contrast of regions and their phrases over the global batch.

    Eq. 2 runs over every sampled region's text. Phrases come de-duplicated, so a column that stands for k regions
    weighs k, and each region asks its phrase's row: the loss is that of the raw (MB × MB) matrix. Hard negatives of the
    batch join their own region's denominator (FG-CLIP).

    Its statistics are ``regions``; ``filtered``, the share of pairs that the cosine rule left out, and that rule's
    ``cosine_limit``.

    Args:
        contrast: ``softmax`` (Eq. 2) or ``sigmoid``, which takes the features' bias.
        conflicts: ``cosine`` (same text, or texts with a cosine above ``threshold`` that stands out), ``exact`` (same
            text), or ``none`` (the paper's ablation without filter).
        threshold: of the cosine rule.

    Raises:
        ConfigError: an unknown ``contrast`` or ``conflicts``.
    """

    needs = frozenset({Need.REGIONS, Need.PHRASES, Need.PROMPTER})

    def __init__(self, contrast: str = "softmax", conflicts: str = "cosine", threshold: float = 0.9) -> None:
        super().__init__()
        self.contrast = check_option("loss.contrast", contrast, CONTRASTS)
        self.conflicts = check_option("loss.conflicts", conflicts, CONFLICTS)
        self.threshold = threshold

    def forward(self, features: Features, batch: Batch, gathered: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`cloc.losses.term.Term.forward`."""
        texts, valid = gathered.phrases, batch.region_valid
        assert texts is not None and features.region is not None, "a term that needs regions and phrases"  # its needs
        summed, statistics = self.contrast_regions("region", features.region[valid], valid, texts, features, batch)
        return local_mean(summed, gathered.regions), {"regions": gathered.regions} | statistics

    def contrast_regions(
        self, name: str, rows: Tensor, valid: Tensor, texts: Texts, features: Features, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the loss over embeddings of regions, and statistics.

        Args:
            name: whose inverse temperature and bias.
            rows: ``[R,D]`` unit norm, of this process's valid regions.
            valid: ``[B,K]`` which of the first K regions of each picture those are.
            texts: their phrases, of the global batch.
            features: of this process.
            batch: they were made of.
        """
        statistics, rule = {}, self._rule(texts)
        if rule is not None and rule.limit is not None:
            statistics["cosine_limit"] = rule.limit
        hard = None if batch.negatives is None else _hard_negatives(features.phrase, batch.negatives, batch, valid)
        bias = features.biases[name] if self.contrast == "sigmoid" else None
        loss, left_out = contrast(rows, texts, features.scales[name], bias, rule, hard)
        statistics["filtered"] = left_out / max(1, len(rows) * len(texts.id))
        return loss.sum(), statistics

    def _rule(self, texts: Texts) -> Conflicts | None:
        if self.conflicts == "cosine":
            return alike_texts(texts, self.threshold)
        return Conflicts(texts.own) if self.conflicts == "exact" else None


def _hard_negatives(phrase: Tensor | None, negatives: Tensor, batch: Batch, valid: Tensor) -> HardNegatives:
    """Those of the valid ones among the first regions of each picture.

    A hard negative is near its region's phrase by design, so the cosine rule does not apply to it; the same text does.
    """
    assert phrase is not None, "a term that needs phrases"  # Need.PHRASES
    count = valid.shape[1]
    place = negatives[:, :count][valid]
    own = batch.phrase_id[batch.region_phrase[:, :count][valid]]
    index = place.clamp(min=0)
    return HardNegatives(phrase[index], (place >= 0) & (batch.phrase_id[index] != own.unsqueeze(1)))
