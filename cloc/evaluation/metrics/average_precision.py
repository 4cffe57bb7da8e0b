"""Average precision of grounded boxes by pycocotools' COCOeval, and its resamples.

Every (picture, phrase) pair is an image of its own to COCOeval, with one predicted box and the boxes that the phrase
owns there; all pairs make one category. A prediction is right or wrong as for ``acc@0.5``, and precision asks whether
the scores tell right ones from wrong ones. One box a phrase cannot recall two: the report says so.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cloc.evaluation.metrics.grounding import GroundingMetric, asked_pairs
from cloc.evaluation.metrics.metric import FRACTION, GROUNDING, Description, Shown
from cloc.evaluation.metrics.outcome import Outcomes
from cloc.evaluation.model_outputs import Embedded, ModelOutputs
from cloc.evaluation.sets.eval_set import EvalSet

NAMES = {"grounding/AP": slice(None), "grounding/AP50": slice(0, 1), "grounding/AP75": slice(5, 6)}
FAMILY = (
    "Average precision of the drawn boxes",
    "COCO's AP: whether the score of a drawn box, its similarity to the phrase, tells right boxes from wrong ones. "
    "AP is the mean over IoU thresholds of 0.5 to 0.95. One box is drawn for a phrase, so a phrase that owns two "
    "cannot find both.",
)
ROWS = {"grounding/AP": "AP", "grounding/AP50": "AP at IoU 0.5", "grounding/AP75": "AP at IoU 0.75"}
RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True)
class Precision:
    """An average precision that can be resampled; stands beside :class:`cloc.evaluation.metrics.outcome.Outcome`.

    Attributes:
        value: COCOeval's own.
        values: ``[P]`` score of each prediction.
        group: ``[P]`` picture of each pair.
        right: ``[T,P]`` bool, whether the prediction is right at each IoU threshold.
        owned: ``[P]`` boxes that each pair's phrase owns.
    """

    value: float
    values: Tensor
    group: Tensor
    right: Tensor
    owned: Tensor

    def resampled(self, weights: Tensor) -> Tensor:
        """The average precision on every resample ``[S,G]`` → ``[S]``."""
        order = np.argsort(-self.values.numpy(), kind="mergesort")
        right, owned, group = self.right.numpy()[:, order], self.owned.numpy(), self.group.numpy()
        rows = []
        for drawn in weights.numpy():
            weight = drawn[group]
            rows.append(weighted_precision(right, weight[order], float((weight * owned).sum())))
        return torch.tensor(rows, dtype=torch.float64)


def weighted_precision(right: np.ndarray, weight: np.ndarray, positives: float) -> float:
    """Average precision as COCOeval accumulates it, each prediction counted ``weight`` times.

    Args:
        right: ``[T,P]`` predictions from the highest score down, at each threshold.
        weight: ``[P]``.
        positives: boxes there are to find.
    """
    if positives <= 0:
        return float("nan")
    true = np.cumsum(right * weight, 1)
    precision = true / (np.cumsum(weight) + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    total = 0.0
    for row, found in zip(precision, true / positives, strict=True):
        places = np.searchsorted(found, RECALLS, side="left")
        reached = places < len(row)
        total += float(row[places[reached]].sum()) / len(RECALLS)
    return total / len(right)


def precision_outcomes(predicted: Tensor, scores: Tensor, owned: Sequence[Tensor], group: Tensor) -> Outcomes:
    """``grounding/AP`` (IoU 0.5 to 0.95), ``grounding/AP50``, ``grounding/AP75``.

    Args:
        predicted: ``[P,4]`` xyxy, one box for each (picture, phrase) pair.
        scores: ``[P]`` similarity of the predicted box's embedding to the phrase.
        owned: for each pair the boxes ``[K,4]`` that the phrase owns.
        group: ``[P]`` picture of each pair.

    Raises:
        ImportError: pycocotools is not installed.
    """
    if not len(predicted):
        return {}
    evaluator = coco_eval(predicted, scores, owned)
    table = evaluator.eval["precision"][:, :, 0, 0, 0]  # [T,R]
    known = {image["image_id"]: image for image in evaluator.evalImgs if image is not None}
    right = np.stack([known[pair]["dtMatches"][:, 0] > 0 for pair in range(len(predicted))], 1)
    return {
        name: Precision(
            float(table[rows].mean()),
            scores.cpu().double(),
            group.cpu().long(),
            torch.from_numpy(right[rows]),
            torch.tensor([len(boxes) for boxes in owned]),
        )
        for name, rows in NAMES.items()
    }


class CocoResult(Protocol):
    """What is read of a COCOeval that ran; pycocotools has no types.

    Attributes:
        eval: ``precision`` ``[T,R,categories,areas,detections]`` and other tables.
        evalImgs: of each image ``image_id``, ``dtMatches`` ``[T,detections]`` and more; None for one without boxes.
    """

    eval: dict[str, Any]
    evalImgs: list[dict[str, Any] | None]


def coco_eval(predicted: Tensor, scores: Tensor, owned: Sequence[Tensor]) -> CocoResult:
    """Run COCOeval over pairs; its ``eval`` and ``evalImgs`` are filled."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError("average precision needs pycocotools: pip install pycocotools") from error
    truth, found = COCO(), COCO()
    category = {"categories": [{"id": 1, "name": "phrase"}]}
    images = [{"id": pair} for pair in range(len(predicted))]
    boxes = [(pair, box) for pair, own in enumerate(owned) for box in own.double().tolist()]
    truth.dataset = category | {"images": images, "annotations": [_row(n, *box) for n, box in enumerate(boxes, 1)]}
    rows = zip(predicted.cpu().double().tolist(), scores.cpu().double().tolist(), strict=True)
    guesses = [_row(pair + 1, pair, box) | {"score": score} for pair, (box, score) in enumerate(rows)]
    found.dataset = category | {"images": images, "annotations": guesses}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found.createIndex()
        evaluator = COCOeval(truth, found, "bbox")
        evaluator.params.maxDets, evaluator.params.areaRng = [1], [[0, 1e10]]
        evaluator.params.areaRngLbl = ["all"]
        evaluator.evaluate()
        evaluator.accumulate()
    ran: CocoResult = evaluator
    return ran


def _row(number: int, pair: int, box: Sequence[float]) -> dict[str, object]:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    shape = {"bbox": [left, top, width, height], "area": width * height, "iscrowd": 0}
    return {"id": number, "image_id": pair, "category_id": 1} | shape


class AveragePrecision(GroundingMetric):
    """COCO's average precision over (picture, phrase) pairs."""

    pattern = "grounding/AP"

    def names(self, sources: Collection[str]) -> Collection[str]:
        """One a row."""
        return list(ROWS)

    def measure(self, outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> Outcomes:
        """Over all pairs."""
        return precision_outcomes(embedded.predicted, embedded.scores, *asked_pairs(data))

    def describe(self, name: str) -> Description | None:
        """One family, by custom no percentages."""
        if name not in ROWS:
            return None
        shown = Shown(overview=90) if name == "grounding/AP50" else Shown()
        order = 1, list(ROWS).index(name)
        return Description(name, GROUNDING, *FAMILY, ROWS[name], FRACTION, order=order, shown=shown)
