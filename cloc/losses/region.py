"""Region-text contrast over all regions of the global batch (CLOC, Eq. 2 and Sec. 3.4)."""

from __future__ import annotations

from torch import Tensor

from cloc.contracts import Batch, Features
from cloc.losses.contrastive import HardNegatives, alike_texts, contrast
from cloc.losses.global_batch import GlobalBatch, local_mean
from cloc.losses.tiles import Conflicts


def region_loss(
    features: Features,
    batch: Batch,
    gathered: GlobalBatch,
    kind: str = "softmax",
    conflicts: str = "cosine",
    threshold: float = 0.9,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Contrast of regions and their phrases over the global batch.

    Eq. 2 runs over every sampled region's text. Phrases come de-duplicated, so a column that stands for k regions
    weighs k, and each region asks its phrase's row: the loss is that of the raw (MB × MB) matrix.

    Args:
        features: ``region`` ``[B,M,D]`` and ``phrase`` ``[P,D]`` must be there.
        batch: the batch they were made of. Its hard negatives join their own region's denominator (FG-CLIP).
        gathered: see :func:`cloc.losses.global_batch.meet`, with phrases.
        kind: ``softmax`` (Eq. 2) or ``sigmoid``, which takes the features' bias.
        conflicts: ``cosine`` (same text, or texts with a cosine above ``threshold`` that stands out), ``exact`` (same
            text), or ``none`` (the paper's ablation without filter).
        threshold: of the cosine rule.

    Returns:
        This process's part of the global mean, and statistics (``regions``; ``filtered``, the share of pairs
        that the cosine rule left out, and its ``cosine_limit``).
    """
    texts, rows = gathered.phrases, features.region[batch.region_valid]
    rule, statistics = None, {"regions": gathered.regions}
    if conflicts == "cosine":
        rule = alike_texts(texts, threshold)
        statistics["cosine_limit"] = rule.limit
    elif conflicts == "exact":
        rule = Conflicts(texts.own)
    hard = _hard_negatives(features, batch) if batch.negatives is not None else None
    bias = features.biases["region"] if kind == "sigmoid" else None
    loss, left_out = contrast(rows, texts, features.scales["region"], bias, rule, hard)
    statistics["filtered"] = left_out / max(1, len(rows) * len(texts.id))
    return local_mean(loss.sum(), gathered.regions), statistics


def _hard_negatives(features: Features, batch: Batch) -> HardNegatives:
    """Those of the valid regions.

    A hard negative is near its region's phrase by design, so the cosine rule does not apply to it; the same text does.
    """
    place = batch.negatives[batch.region_valid]
    own = batch.phrase_id[batch.region_phrase[batch.region_valid]]
    index = place.clamp(min=0)
    return HardNegatives(features.phrase[index], (place >= 0) & (batch.phrase_id[index] != own.unsqueeze(1)))
