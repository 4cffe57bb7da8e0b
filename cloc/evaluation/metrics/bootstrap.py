"""95 % intervals and paired differences by resampling pictures.

Questions about one picture are not independent, so pictures are drawn with replacement and all questions of a drawn
picture come with it (the cluster bootstrap; percentile intervals, Efron & Tibshirani 1993, ch. 13). Two models are
compared on the same draws. Seeded: the same outcomes give the same intervals.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cloc.evaluation.metrics.outcome import Outcomes, Sampled

LEVELS = (2.5, 97.5)
BLOCK = 100  # resamples at a time


def draws(pictures: int, samples: int, seed: int, block: int = 0) -> Tensor:
    """How often each picture is drawn: ``[S,G]`` float64; each row sums to G. A pure function of its arguments."""
    rng = np.random.default_rng([seed, pictures, block])
    rows = [np.bincount(rng.integers(pictures, size=pictures), minlength=pictures) for _ in range(samples)]
    return torch.from_numpy(np.stack(rows)).double()


def resample(outcomes: Outcomes, samples: int, seed: int) -> dict[str, Tensor]:
    """Every metric on the same resamples: metric → ``[samples]`` float64. Metrics without a question are left out."""
    asked = {name: found for name, found in outcomes.items() if len(found.values)}
    parts: dict[str, list[Tensor]] = {name: [] for name in asked}
    for size in sorted({_size(found) for found in asked.values()}):
        for block, start in enumerate(range(0, samples, BLOCK)):
            weights = draws(size, min(BLOCK, samples - start), seed, block)
            for name, found in asked.items():
                if _size(found) == size:
                    parts[name].append(found.resampled(weights))
    return {name: torch.cat(found) if found else torch.zeros(0) for name, found in parts.items()}


def intervals(resamples: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """95 % interval [low, high] of every metric, from :func:`resample`."""
    return {name: _percentiles(rows) for name, rows in resamples.items() if not rows.isnan().all()}


def difference(ours: Sampled, theirs: Sampled, our_rows: Tensor, their_rows: Tensor) -> list[float]:
    """Paired difference of one metric.

    Args:
        ours: of the model on outputs.
        theirs: of another, on the same questions.
        our_rows: ``ours`` on every resample.
        their_rows: ``theirs`` on the same.

    Returns:
        ours less theirs, low, high.

    Raises:
        ValueError: the two were not asked the same questions.
    """
    if not torch.equal(ours.group, theirs.group):
        raise ValueError("the two models were not asked the same questions: their values cannot be paired")
    return [ours.value - theirs.value, *_percentiles(our_rows - their_rows)]


def _size(found: Sampled) -> int:
    return int(found.group.max()) + 1


def _percentiles(rows: Tensor) -> list[float]:
    return [float(value) for value in np.nanpercentile(rows.numpy(), LEVELS)]
