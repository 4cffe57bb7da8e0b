"""Means over seeds, differences paired by seed, and how sure they are: Student's intervals, Holm's correction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import special  # type: ignore[import-untyped]

LEVEL = 0.95
Seeds = Mapping[int, float]
"""Values by seed."""


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` seeds.

    Attributes:
        mean: of the values.
        half: of Student's 95 % interval; infinite for one value.
        n: values.
        p: chance of a mean at least as far from zero, were it zero; 1 for one value.
    """

    mean: float
    half: float
    n: int
    p: float


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, interval and p-value (two-sided t-test against zero) of one value or more."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Estimate(mean, math.inf, n, 1.0)
    error = statistics.stdev(values) / math.sqrt(n)
    half = student(n - 1) * error
    if error == 0:
        return Estimate(mean, half, n, 1.0 if mean == 0 else 0.0)
    return Estimate(mean, half, n, 2 * float(special.stdtr(n - 1, -abs(mean) / error)))


def student(free: int) -> float:
    """Half of Student's 95 % interval in standard errors, for so many degrees of freedom."""
    return float(special.stdtrit(free, (1 + LEVEL) / 2))


def difference(ours: Seeds, theirs: Seeds) -> Estimate | None:
    """The mean of ours less theirs over the seeds that both have; None where they share none."""
    shared = sorted(ours.keys() & theirs.keys())
    return estimate([ours[seed] - theirs[seed] for seed in shared]) if shared else None


def holm(p: Sequence[float], alpha: float = 1 - LEVEL) -> list[bool]:
    """Which hypotheses Holm's step-down correction rejects: one wrong rejection among all has a chance of ``alpha``."""
    order, rejected = sorted(range(len(p)), key=lambda place: p[place]), [False] * len(p)
    for rank, place in enumerate(order):
        if p[place] > alpha / (len(p) - rank):
            break
        rejected[place] = True
    return rejected
