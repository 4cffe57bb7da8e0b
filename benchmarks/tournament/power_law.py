"""Power laws of an error: ``error = a · samples^-b · parameters^-g``, with Student's intervals of the exponents.

Three samples times three sizes leave six degrees of freedom beside ``a``, ``b`` and ``g``. A floor (``+ c``) or a
saturating form has a parameter more that three places on an axis do not tell from the exponent; instead a term in
``log² samples`` is tried by itself, and a law that bends is said to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.tournament.spread import student

Point = tuple[float, float, float]
"""Samples, parameters, error."""


@dataclass(frozen=True)
class Exponent:
    """How fast the error falls: its value, and half of its 95 % interval."""

    value: float
    half: float

    def doubled(self) -> tuple[float, float, float]:
        """What the error is multiplied by when the axis doubles: value, and both ends of its interval."""
        return 2**-self.value, 2 ** -(self.value + self.half), 2 ** -(self.value - self.half)


@dataclass(frozen=True)
class Law:
    """A fitted power law.

    Attributes:
        log_a: natural logarithm of ``a``.
        samples: exponent ``b``; None where all runs saw as many.
        parameters: exponent ``g``; None where all models are of a size.
        points: runs that it was fitted to.
        residual: standard deviation of the logarithm of the error around it.
        bends: exponent of ``log² samples`` where its interval leaves out zero: above it, the error falls faster and
            faster; below, it levels off. None where it cannot be told.
    """

    log_a: float
    samples: Exponent | None
    parameters: Exponent | None
    points: int
    residual: float
    bends: float | None

    def error(self, samples: float, parameters: float) -> float:
        """The error that the law gives."""
        found = self.log_a
        for axis, exponent in ((samples, self.samples), (parameters, self.parameters)):
            found -= exponent.value * math.log(axis) if exponent else 0.0
        return math.exp(found)


def fit(points: Sequence[Point]) -> Law | None:
    """Least squares in logarithms.

    Args:
        points: of positive errors.

    Returns:
        The law; None where there are too few points for an interval, nothing varies, or samples and parameters only
        grow together, so that no exponent is the one's or the other's.
    """
    logs = np.log(np.asarray(points, float).reshape(-1, 3))
    axes = [axis for axis in (0, 1) if len(np.unique(logs[:, axis])) > 1]
    if not axes or len(logs) < len(axes) + 2:
        return None
    columns = [np.ones(len(logs)), *(-logs[:, axis] for axis in axes)]
    if not _is_told_apart(design := np.stack(columns, 1)):
        return None
    values, halves, residual = _solved(design, logs[:, 2])
    found = {axis: Exponent(values[place], halves[place]) for place, axis in enumerate(axes, 1)}
    return Law(values[0], found.get(0), found.get(1), len(logs), residual, _bend(columns, logs))


def _bend(columns: list[np.ndarray], logs: np.ndarray) -> float | None:
    if len(np.unique(logs[:, 0])) < 3 or len(logs) < len(columns) + 2:
        return None
    centered = logs[:, 0] - logs[:, 0].mean()
    if not _is_told_apart(design := np.stack([*columns, -(centered**2)], 1)):
        return None
    values, halves, _ = _solved(design, logs[:, 2])
    return values[-1] if abs(values[-1]) > halves[-1] else None


def _is_told_apart(design: np.ndarray) -> bool:
    """Whether no column is made of others."""
    return int(np.linalg.matrix_rank(design / np.linalg.norm(design, axis=0), tol=1e-8)) == design.shape[1]


def _solved(design: np.ndarray, target: np.ndarray) -> tuple[list[float], list[float], float]:
    """Coefficients, halves of their intervals, and the residuals' standard deviation."""
    values, *_ = np.linalg.lstsq(design, target, rcond=None)
    free = len(target) - design.shape[1]
    residual = float(np.sqrt(((target - design @ values) ** 2).sum() / free))
    errors = residual * np.sqrt(np.diag(np.linalg.pinv(design.T @ design)))
    return list(map(float, values)), list(map(float, student(free) * errors)), residual
