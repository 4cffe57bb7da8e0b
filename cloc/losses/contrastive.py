"""Contrast with conflicts and multiplicities: the one routine behind the global and the region loss.

``negatives`` gives, for each row, the log of the summed exponentials over all columns that are true negatives. With it,
the InfoNCE loss of a row with positive similarity s is softplus(negatives − s): the positive is never filtered.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from cloc.losses.gather import gather, total, world_size

MIXED = 0.5  # while distinct texts are more alike than this on average, cosine says nothing about conflicts


def negatives(
    rows: Tensor, columns: Tensor, scale: Tensor, conflict: Tensor, log_weight: Tensor | None = None
) -> Tensor:
    """Log-sum-exp of each row's similarities to its negatives.

    Args:
        rows: ``[R,D]`` unit norm, of this rank.
        columns: ``[K,D]`` unit norm, of all ranks.
        scale: ``[1]`` inverse temperature.
        conflict: ``[R,K]`` bool, pairs that leave the denominator (the positive among them).
        log_weight: ``[K]`` log of how many raw columns each stands for; −inf for none.

    Returns:
        ``[R]``; −inf where a row has no negative.
    """
    logits = scale * rows @ columns.T
    if log_weight is not None:
        logits = logits + log_weight
    # A finite floor keeps the gradient of an empty row zero where -inf would make it NaN.
    floor = torch.finfo(logits.dtype).min / 4
    logits = logits.masked_fill(conflict, floor)
    return logits.clamp(min=floor).logsumexp(1)


def same_text(ids: Tensor, other: Tensor) -> Tensor:
    """``[R]`` and ``[K]`` text hashes → ``[R,K]`` bool: the same text."""
    return ids.unsqueeze(1) == other.unsqueeze(0)


@torch.no_grad()
def alike_texts(
    rows: Tensor, columns: Tensor, threshold: float, counted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Pairs of texts that mean the same (CLOC, Sec. 3.4): cosine above a threshold, in float32, without gradient.

    Random text embeddings are all alike, and the rule would silence every negative; so while the mean cosine of
    distinct texts is ≥ 0.5 nothing but exact equality counts.

    Args:
        rows: ``[R,D]`` text embeddings.
        columns: ``[K,D]`` text embeddings of all ranks.
        threshold: CLOC uses 0.9.
        counted: ``[K]`` bool, the columns that the mean is over (a text that stands in for none is not); None for all.

    Returns:
        ``[R,K]`` bool, and the mean cosine (scalar).
    """
    rows, columns = normalize(rows.float(), dim=-1), normalize(columns.float(), dim=-1)
    cosine = rows @ columns.T
    if counted is None:
        counted = torch.ones(len(columns), dtype=torch.bool, device=columns.device)
    count = counted.sum()
    # Mean over distinct pairs of all columns, equal on every rank: |Σ t|² = K + Σ_{i≠j} cos.
    mean = ((columns * counted.unsqueeze(1)).sum(0).square().sum() - count) / (count * (count - 1)).clamp(min=1)
    return (cosine > threshold) & (mean < MIXED), mean


def global_loss(image: Tensor, text: Tensor, caption_id: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE over the global batch (CLOC, Eq. 1); equal captions are not each other's negatives.

    Args:
        image: ``[B,D]`` unit norm.
        text: ``[B,D]`` unit norm.
        caption_id: ``[B]`` caption hashes.
        scale: ``[1]`` inverse temperature.

    Returns:
        This rank's part of the global mean, scaled so that averaging over ranks gives it, and the share of pairs that
        were filtered as conflicts.
    """
    images, _ = gather(image)
    texts, _ = gather(text)
    ids, _ = gather(caption_id)
    conflict = same_text(caption_id, ids)
    positive = scale * (image * text).sum(-1)
    rows = softplus(negatives(image, texts, scale, conflict) - positive)
    columns = softplus(negatives(text, images, scale, conflict) - positive)
    mean = (rows + columns).mean() / 2
    return mean, (conflict.sum() - len(image)).float() / conflict.numel()


def share(local: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a local sum into this rank's part of a global mean.

    Args:
        local: scalar sum over this rank's valid elements.
        count: how many they are.

    Returns:
        ``local · W / Σcount`` (which the averaging of gradients over ranks turns into the global mean), and Σcount.
    """
    everyone = total(count.to(local.dtype))
    return local * world_size() / everyone.clamp(min=1), everyone
