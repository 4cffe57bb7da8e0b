"""Grounding metrics: where a phrase was found against the boxes that it owns."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from cloc.evaluation.metrics.metric import (
    FRACTION,
    GROUNDING,
    NO_HEAD,
    PERCENT,
    Breakdown,
    Description,
    KeyFact,
    Lack,
    Lead,
    Metric,
    Shown,
)
from cloc.evaluation.metrics.outcome import Outcomes, outcome
from cloc.evaluation.metrics.regions import pictures_of
from cloc.evaluation.model_outputs import Embedded, ModelOutputs
from cloc.evaluation.sets.eval_set import EvalSet

FAMILY = (
    "From a phrase to its box",
    "The model draws a box for a phrase. IoU is the overlap of two boxes, 0 to 1; acc@0.5 counts an IoU of 0.5 or "
    "more as right. A phrase that owns several boxes is right if it finds any of them, or their union. Pointing "
    "game: the center of the drawn box lies in a box of the phrase.",
)
ROWS = {
    "any/acc@0.5": "acc@0.5, any of its boxes",
    "union/acc@0.5": "acc@0.5, union of its boxes",
    "pointing": "Pointing game",
    "mIoU": "Mean IoU",
}
SHOWN = {
    "any/acc@0.5": Shown(
        Lead(90, "draws the right box for {} of the phrases"),
        overview=70,
        fact=KeyFact(10, "of phrases get the right box, at IoU 0.5 or more"),
        curve=True,
        breakdown=Breakdown(10, "Find the box of a phrase, acc@0.5", "phrases"),
    ),
    "pointing": Shown(overview=80),
    "mIoU": Shown(ranks_pictures=True),
}


def grounding_outcomes(predicted: Tensor, owned: Sequence[Tensor], group: Tensor) -> Outcomes:
    """Accuracy at IoU 0.5, mean IoU and pointing game over (picture, phrase) pairs.

    Args:
        predicted: ``[P,4]`` a box for each pair.
        owned: for each pair the boxes ``[K,4]`` that the phrase owns in that picture, in the same units.
        group: ``[P]`` picture of each pair.

    Returns:
        ``grounding/any/acc@0.5``: any of its boxes counts; ``grounding/union/acc@0.5``: their union is the target (the
        Flickr30k Entities convention); ``grounding/mIoU``: mean IoU with the best of its boxes; ``grounding/pointing``:
        the predicted box's center lies in any of its boxes. Empty without pairs.
    """
    if not len(predicted):
        return {}
    pair = torch.repeat_interleave(torch.arange(len(owned)), torch.tensor([len(boxes) for boxes in owned]))
    boxes, guess = torch.cat(list(owned)), predicted[pair]
    low, high = (torch.full((len(owned), 2), sign * torch.inf) for sign in (1, -1))
    places = pair[:, None].expand(-1, 2)
    union = torch.cat(
        [
            low.scatter_reduce(0, places, boxes[:, :2], "amin"),
            high.scatter_reduce(0, places, boxes[:, 2:], "amax"),
        ],
        1,
    )
    center = (guess[:, :2] + guess[:, 2:]) / 2
    inside = ((center >= boxes[:, :2]) & (center <= boxes[:, 2:])).all(1)
    best = torch.zeros(len(owned)).scatter_reduce(0, pair, overlap(guess, boxes), "amax")
    pointed = torch.zeros(len(owned)).scatter_reduce(0, pair, inside.float(), "amax")
    return {
        "grounding/any/acc@0.5": outcome(best >= 0.5, group),
        "grounding/union/acc@0.5": outcome(overlap(predicted, union) >= 0.5, group),
        "grounding/mIoU": outcome(best, group),
        "grounding/pointing": outcome(pointed, group),
    }


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """IoU of boxes pair by pair: ``[K,4]`` and ``[K,4]`` → ``[K]``."""
    size = (torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])).clamp(min=0)
    shared = size.prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (one, other)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-12)


def asked_pairs(data: EvalSet) -> tuple[list[Tensor], Tensor]:
    """For each (picture, phrase) pair of a set the boxes ``[K,4]`` that the phrase owns, and ``[P]`` its picture."""
    owned = [
        torch.tensor([region.box for region in sample.regions if phrase in region.phrases])
        for sample, phrases in zip(data.samples, data.phrases, strict=True)
        for phrase in phrases
    ]
    return owned, pictures_of(data.phrases)


class GroundingMetric(Metric):
    """A question asked of the boxes that a model draws for phrases."""

    needs = ("grounded",)

    def applies(self, outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> bool:
        """Where the model draws boxes and there are phrases."""
        return len(embedded.predicted) > 0

    def asks(self, data: EvalSet) -> bool:
        """Where there are phrases."""
        return any(region.phrases for sample in data.samples for region in sample.regions)

    def lacks(self, name: str, measured: Collection[str]) -> Lack | None:
        """A grounding head."""
        return lacks_head(measured)


def lacks_head(measured: Collection[str]) -> Lack | None:
    """The grounding head, where a model has no value of any metric of grounding."""
    return None if any(name.startswith("grounding/") for name in measured) else NO_HEAD


class Grounding(GroundingMetric):
    """Where a phrase was found against the boxes that it owns."""

    pattern = "grounding/MEASURE"

    def names(self, sources: Collection[str]) -> Collection[str]:
        """One a row."""
        return [f"grounding/{row}" for row in ROWS]

    def measure(self, outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> Outcomes:
        """Over all (picture, phrase) pairs."""
        return grounding_outcomes(embedded.predicted, *asked_pairs(data))

    def describe(self, name: str) -> Description | None:
        """One family."""
        rest = name.removeprefix("grounding/")
        if rest == name or rest not in ROWS:
            return None
        unit = FRACTION if rest == "mIoU" else PERCENT
        order, shown = (0, list(ROWS).index(rest)), SHOWN.get(rest, Shown())
        return Description(name, GROUNDING, *FAMILY, ROWS[rest], unit, order=order, shown=shown)
