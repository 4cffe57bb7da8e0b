"""Which pictures the report shows: random ones, and those that the first model does best and worst on.

Below ``example_pictures.py``, which makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cloc.evaluation.metrics.catalog import Catalog
from cloc.evaluation.metrics.outcome import Outcomes, Sampled
from cloc.evaluation.model_outputs import Embedded, ModelOutputs
from cloc.evaluation.report.splits import Best, box_measure
from cloc.evaluation.sets.eval_set import EvalSet


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Everything about one set: the models with what they made of it. Lists are in the same order."""

    models: Sequence[ModelOutputs]
    data: EvalSet
    embedded: Sequence[Embedded]
    outcomes: Mapping[str, Outcomes]
    best: Best
    catalog: Catalog

    def source(self, model: str) -> str | None:
        """The source that names a model's boxes best; None where it was asked for none."""
        measure = box_measure({model: self.best[model]}, self.catalog)
        return None if measure is None else self.best[model][measure]


def picture_scores(found: Evaluated) -> np.ndarray:
    """How well the first model does on each picture, ``[pictures]`` in 0..1; NaN where it was asked nothing.

    The mean of the share of boxes named rightly by its best source and of the metrics that say they rank pictures (the
    mean IoU of the boxes that it draws).
    """
    model, size = found.models[0].encoder.name, len(found.data.samples)
    own, best = found.outcomes[model], found.best[model]
    measure = box_measure({model: best}, found.catalog)
    names = [] if measure is None else [f"region/{best[measure]}/{measure}"]
    names += [name for name in own if found.catalog.describe(name).shown.ranks_pictures]
    rows = [_by_picture(own[name], size) for name in names]
    if not rows:
        return np.full(size, np.nan)
    stacked = np.stack(rows)
    asked = np.isfinite(stacked)
    return np.where(asked.any(0), np.where(asked, stacked, 0).sum(0) / np.maximum(asked.sum(0), 1), np.nan)


def _by_picture(found: Sampled, size: int) -> np.ndarray:
    total = np.bincount(found.group.numpy(), weights=found.values.numpy(), minlength=size)
    count = np.bincount(found.group.numpy(), minlength=size)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def choose(scores: np.ndarray, boxes: Sequence[int], pictures: int, seed: int) -> dict[str, list[int]]:
    """Which pictures the galleries hold.

    Args:
        scores: of :func:`picture_scores`.
        boxes: how many each picture has; those without are never shown.
        pictures: in all; a third each, the random ones take what is left over.
        seed: of the random ones.

    Returns:
        ``random``, ``best`` (the best first) and ``worst`` (the worst first). The latter two are taken from pictures
        with two boxes or more where there are enough; none stands in both.
    """
    usable = [index for index, count in enumerate(boxes) if count]
    part = pictures // 3
    drawn = np.random.default_rng(seed).permutation(usable)[: pictures - 2 * part].tolist() if usable else []
    rich = [index for index in usable if boxes[index] > 1 and np.isfinite(scores[index])]
    ranked = rich if len(rich) >= 2 * part else [index for index in usable if np.isfinite(scores[index])]
    ranked = sorted(ranked, key=lambda index: (-scores[index], -boxes[index], index))
    part = min(part, len(ranked) // 2)
    return {"random": drawn, "best": ranked[:part], "worst": ranked[::-1][:part]}
