"""What a metric is made of: one value a question, and the picture that the question is about.

Between measuring and reporting: every metric is a mean over such values (over all questions, or first within each
class), so that one bootstrap serves them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Sampled(Protocol):
    """What a bootstrap needs of a metric: questions with their pictures, the value, and the value on resamples."""

    @property
    def values(self) -> Tensor:
        """One value for each question ``[Q]``."""

    @property
    def group(self) -> Tensor:
        """Picture of each question ``[Q]``."""

    @property
    def value(self) -> float:
        """The metric."""

    def resampled(self, weights: Tensor) -> Tensor:
        """The metric on every resample: ``[S,G]`` (how often each picture is drawn) → ``[S]`` float64."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The values that a metric is the mean of.

    Attributes:
        values: ``[Q]`` float64, one for each question (0 or 1, or an IoU).
        group: ``[Q]`` int64, the picture (or set of pictures) that is resampled as a whole.
        label: ``[Q]`` int64 class, for a mean over classes; None for the plain mean.
    """

    values: Tensor
    group: Tensor
    label: Tensor | None = None

    @property
    def value(self) -> float:
        """The metric; NaN without a question."""
        if not len(self.values):
            return float("nan")
        if self.label is None:
            return float(self.values.mean())
        count = torch.bincount(self.label)
        per_class = torch.bincount(self.label, weights=self.values)[count > 0] / count[count > 0]
        return float(per_class.mean())

    def resampled(self, weights: Tensor) -> Tensor:
        """``[S,G]`` → ``[S]``; NaN where a resample holds no question."""
        size = weights.shape[1]
        if self.label is None:
            total = torch.zeros(size, dtype=torch.float64).index_add_(0, self.group, self.values)
            count = torch.bincount(self.group, minlength=size).double()
            return (weights @ total) / (weights @ count)
        labels, compact = self.label.unique(return_inverse=True)
        shape = (len(labels), size)
        right = _sums(self.values, compact, self.group, shape) @ weights.T  # [classes, S]
        asked = _sums(torch.ones_like(self.values), compact, self.group, shape) @ weights.T
        share = torch.where(asked > 0, right / asked.clamp(min=1), 0.0)
        return share.sum(0) / (asked > 0).sum(0)


def _sums(values: Tensor, label: Tensor, group: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sums by class and picture, sparse: LVIS has 1,203 × 20,000 places and few are taken."""
    return torch.sparse_coo_tensor(torch.stack([label, group]), values, shape, check_invariants=False).coalesce()


Outcomes = dict[str, Sampled]


def outcome(values: Tensor, group: Tensor, label: Tensor | None = None) -> Outcome:
    """Bring any tensors into an :class:`Outcome`'s types, on the CPU."""
    label = None if label is None else label.cpu().long()
    return Outcome(values.detach().cpu().double(), group.cpu().long(), label)


def values(outcomes: Outcomes) -> dict[str, float]:
    """The metrics; one without a question is left out: an absence, not a number."""
    return {name: found.value for name, found in outcomes.items() if len(found.values)}
