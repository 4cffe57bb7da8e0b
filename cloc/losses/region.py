"""Region-text contrast over all regions of the global batch (CLOC, Eq. 2 and Sec. 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cloc.contracts import Batch, Features
from cloc.losses.contrastive import alike_texts, negatives, same_text, share
from cloc.losses.gather import gather, rank


def region_loss(
    features: Features, batch: Batch, conflicts: str = "cosine", threshold: float = 0.9
) -> tuple[Tensor, dict[str, Tensor]]:
    """Symmetric InfoNCE between regions and their phrases.

    Eq. 2 runs over every sampled region's text. Phrases come de-duplicated, so a column that stands for k regions
    weighs k, and each region asks its phrase's row: the loss is that of the raw (MB × MB) matrix.

    Args:
        features: ``region`` ``[B,M,D]`` and ``phrase`` ``[P,D]`` must be there.
        batch: the batch they were made of.
        conflicts: ``cosine`` (same text, or texts with cosine above ``threshold``), ``exact`` (same text), or ``none``
            (the paper's ablation without filter).
        threshold: of the cosine rule.

    Returns:
        This rank's part of the global mean, and statistics (``filtered``, ``regions``, ``mean_cosine``).
    """
    valid = batch.region_valid.flatten()
    own_region = features.region.flatten(0, 1)
    scale = features.scales["region"]
    own_id = batch.phrase_id[batch.region_phrase.flatten()]
    own_text = features.phrase[batch.region_phrase.flatten()]

    regions, _ = gather(own_region)
    every_valid, _ = gather(valid)
    every_id, _ = gather(own_id)
    columns, column_id, weight = _distinct(features.phrase, batch.phrase_id, every_id, every_valid)

    same = same_text(own_id, column_id)
    if conflicts == "cosine":
        alike, mean_cosine = alike_texts(own_text, columns, threshold, weight > 0)
        conflict = same | alike
        between_regions = conflict[:, torch.searchsorted(column_id, every_id)]  # ids are sorted and all there
    else:
        conflict, mean_cosine = same, own_text.new_zeros(())
        between_regions = same_text(own_id, every_id)
    if conflicts == "none":
        # Repeated texts stay as negatives of each other; only the positive itself leaves.
        weight = (weight - same.to(weight.dtype)).clamp(min=0)
        conflict = weight == 0
        between_regions = _self_only(len(own_region), len(regions), own_region.device)
    between_regions = between_regions | ~every_valid.unsqueeze(0)

    positive = scale * (own_region * own_text).sum(-1)
    to_text = softplus(negatives(own_region, columns, scale, conflict, weight.log()) - positive)
    to_region = softplus(negatives(own_text, regions, scale, between_regions) - positive)
    local = torch.where(valid, to_text + to_region, 0.0).sum() / 2
    loss, count = share(local, valid.sum())
    pairs = valid.unsqueeze(1) & (weight > 0)
    filtered = (conflict & ~same & pairs).sum() / pairs.sum().clamp(min=1)
    return loss, {"regions": count, "filtered": filtered, "mean_cosine": mean_cosine}


def _distinct(phrase: Tensor, phrase_id: Tensor, every_id: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct phrases of the global batch: embeddings ``[K,D]``, ids ``[K]``, and region counts ``[K]``."""
    columns, _ = gather(phrase)
    column_id, _ = gather(phrase_id)
    column_id, first = _first_of_each(column_id)
    count = (same_text(column_id, every_id) & valid.unsqueeze(0)).sum(1).to(columns.dtype)
    return columns[first], column_id, count


def _first_of_each(ids: Tensor) -> tuple[Tensor, Tensor]:
    distinct, inverse = torch.unique(ids, return_inverse=True)
    positions = torch.arange(len(ids), device=ids.device)
    first = torch.full((len(distinct),), len(ids), device=ids.device, dtype=torch.int64)
    return distinct, first.scatter_reduce(0, inverse, positions, "amin")


def _self_only(rows: int, columns: int, device: torch.device) -> Tensor:
    offset = rank() * rows  # B and M are equal on all ranks
    place = torch.arange(rows, device=device).unsqueeze(1) + offset
    return place == torch.arange(columns, device=device).unsqueeze(0)
