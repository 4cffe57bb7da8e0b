"""Which of several weighted sources stands at a position of the endless stream (beside ``order``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


class Mixture:
    """Which source stands at a position, and how many of its samples came before.

    The j-th sample of a source with share f is due at position (j + ½) / f; positions are taken in the order of these
    dates, the earlier source first on a tie (Webster's method of apportionment). So the first n samples hold each
    source's share to within a few, counting needs no history, and sources whose weights are their sizes
    all end their pass together.

    Args:
        weights: share of each source among the samples drawn, in any unit.

    Raises:
        ValueError: there is no weight, or one is not a positive finite number.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(f"weights {list(weights)}: positive finite numbers are needed, one for each source")
        exact = [Fraction(str(weight)) for weight in weights]  # by its decimal digits: 0.1 means a tenth
        scale = math.lcm(*(weight.denominator for weight in exact))
        self.weights = [int(weight * scale) for weight in exact]
        self.total = sum(self.weights)
        common = math.lcm(*self.weights)
        self._period = [common // weight for weight in self.weights]

    def locate(self, position: int) -> tuple[int, int]:
        """Return (source, number of the source's earlier samples) of a position."""
        if len(self.weights) == 1:
            return 0, position
        counts = self.counts(position)
        source = self._next(counts)
        return source, counts[source]

    def counts(self, position: int) -> list[int]:
        """How many samples of each source stand before a position."""
        # No more than `position` samples are due before this date, and nearly so many.
        date = max(0, position - len(self.weights) // 2)
        counts = [-((self.total - 2 * weight * date) // (2 * self.total)) for weight in self.weights]
        for _ in range(position - sum(counts)):
            counts[self._next(counts)] += 1
        return counts

    def _next(self, counts: list[int]) -> int:
        return min(range(len(counts)), key=lambda source: (2 * counts[source] + 1) * self._period[source])
