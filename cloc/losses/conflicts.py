"""Conflicts: texts that mean the same, which a contrast must not push apart."""

from __future__ import annotations

import torch
from torch import Tensor

from cloc.losses.global_batch import Texts
from cloc.losses.tiles import Conflicts

OUTLYING = 3.0  # standard deviations above the mean cosine from which on two texts are unusually alike


@torch.no_grad()
def alike_texts(texts: Texts, threshold: float) -> Conflicts:
    """Conflicts of texts that mean the same (CLOC, Sec. 3.4): cosine above a threshold, in float32, without gradient.

    A text tower that has not learned yet holds all texts, or groups of unlike ones, close together. What the rule
    silences then is never told apart. So the cosine must also stand out: lie three standard deviations above the mean
    of all pairs of distinct texts.

    Args:
        texts: of the global batch.
        threshold: CLOC uses 0.9.

    Returns:
        The conflicts, the same on every process.
    """
    text = texts.embedding.detach().float()
    mean, deviation = cosine_moments(text)
    return Conflicts(texts.own, text, (mean + OUTLYING * deviation).clamp(min=threshold))


def cosine_moments(text: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the cosines of all pairs of ``[K,D]`` texts, without making the pairs.

    With m the mean text and t = m + d, a cosine is ``|m|² + m·dᵢ + m·dⱼ + dᵢ·dⱼ``. Products of the parts vanish in a
    sum over all i and j, so small differences of texts that are nearly the same are not lost among ones.
    """
    count = len(text)
    pairs = max(1, count * (count - 1))
    mean = text.sum(0) / max(1, count)
    rest = text - mean
    along = rest @ mean
    itself = 2 * along + rest.square().sum(1)  # how far |t|² lies above |m|²: the pairs i = j, which do not count
    shift = -itself.sum() / pairs
    square = 2 * count * along.square().sum() + (rest.T @ rest).square().sum() - itself.square().sum()
    return mean.square().sum() + shift, (square / pairs - shift.square()).clamp(min=0).sqrt()
