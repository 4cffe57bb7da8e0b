"""The contrast of rows (pictures, regions) with texts: one routine behind the global and the region loss.

Texts are distinct and counted (``global_batch``); the pairs are streamed (``tiles``). A row's own text, and what is in
conflict with it, never is a negative; the positive is never filtered.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cloc.contracts import Batch, Features
from cloc.losses.gather import log_sum_exp_over_ranks
from cloc.losses.global_batch import GlobalBatch, Texts, local_mean
from cloc.losses.term import Term, check_option
from cloc.losses.tiles import Conflicts, floor, log_sum_exp, sum_softplus

CONTRASTS = ("softmax", "sigmoid")


@dataclass(slots=True)
class HardNegatives:
    """Further negatives of each row alone.

    Attributes:
        text: ``[R,H,D]`` unit norm.
        there: ``[R,H]`` bool; the others count for nothing.
    """

    text: Tensor
    there: Tensor


def contrast(
    rows: Tensor,
    texts: Texts,
    scale: Tensor,
    bias: Tensor | None = None,
    conflicts: Conflicts | None = None,
    hard: HardNegatives | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of each row, of the raw matrix in which every row brings a text of its own.

    Softmax (CLOC, Eq. 1 and 2): the mean of both directions. The row of a text that k rows own stands for k equal rows;
    each owner asks for it. Sigmoid (SigLIP, Zhai et al. 2023, Eq. 1): every pair by itself, summed over a row.

    Args:
        rows: ``[R,D]`` unit norm, of this process.
        texts: of the global batch.
        scale: ``[1]`` inverse temperature.
        bias: ``[1]`` for sigmoid; None for softmax.
        conflicts: pairs that are no negatives, each row's own text among them; None: all other rows' texts are.
        hard: they join the denominator of their own row; with sigmoid they are further pairs.

    Returns:
        ``[R]``, and how many pairs of a row and a distinct text the cosine rule left out.
    """
    rows = scale * rows
    positive = (rows * texts.embedding[texts.own]).sum(-1)
    if hard is not None:
        own = (hard.text @ rows.unsqueeze(2)).squeeze(2).masked_fill(~hard.there, floor(rows.dtype))
    count = texts.count.to(rows.dtype)
    if bias is not None:
        loss, left_out = sum_softplus(rows, texts.embedding, bias, count, conflicts)
        positive = positive + bias
        if conflicts is None:
            loss = loss + logsigmoid(-positive)  # the pair itself is among them
        if hard is not None:
            loss = loss - logsigmoid(-own - bias).sum(1)
        return loss - logsigmoid(positive), left_out
    to_text, to_rows, left_out = log_sum_exp(rows, texts.embedding, count.log(), conflicts)
    to_rows = log_sum_exp_over_ranks(to_rows)[texts.own]
    if hard is not None:
        to_text = torch.logaddexp(to_text, own.logsumexp(1))
    if conflicts is None:
        return (to_text + to_rows) / 2 - positive, left_out
    return -(logsigmoid(positive - to_text) + logsigmoid(positive - to_rows)) / 2, left_out


class GlobalContrast(Term):
    """Contrast of pictures and captions over the global batch; equal captions are not each other's negatives.

    Its statistic is ``filtered_captions``, the share of pairs filtered as conflicts.

    Args:
        contrast: ``softmax`` (CLOC, Eq. 1) or ``sigmoid``, which takes the features' bias.

    Raises:
        ConfigError: another ``contrast``.
    """

    def __init__(self, contrast: str = "softmax") -> None:
        super().__init__()
        self.contrast = check_option("loss.contrast", contrast, CONTRASTS)

    def forward(self, features: Features, batch: Batch, gathered: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`cloc.losses.term.Term.forward`."""
        texts = gathered.captions
        assert texts is not None, "a term that reads captions"  # ClocLoss.reads_captions
        bias = features.biases["global"] if self.contrast == "sigmoid" else None
        loss, _ = contrast(features.image, texts, features.scales["global"], bias, Conflicts(texts.own))
        filtered = (texts.count * (texts.count - 1)).sum() / gathered.pictures.square()
        return local_mean(loss.sum(), gathered.pictures), {"filtered_captions": filtered}
