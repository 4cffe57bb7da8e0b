"""Choices about boxes: a phrase against look-alikes (FG-OVD), and the box of a phrase in its picture (RefCOCO)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from cloc.evaluation.metrics.metric import BOXES, Description, Lead, Shown
from cloc.evaluation.metrics.outcome import Outcomes, outcome
from cloc.evaluation.metrics.regions import RegionMetric, pictures_of, regions_of
from cloc.evaluation.model_outputs import ModelOutputs
from cloc.evaluation.sets.eval_set import EvalSet


def hard_negative_outcome(
    regions: Tensor, phrase: Tensor, negatives: Sequence[Tensor], group: Tensor, prefix: str
) -> Outcomes:
    """How often a region's own phrase beats all of its hard negatives (FG-OVD's accuracy; ties lose).

    Args:
        regions: ``[K,D]`` regions that have negatives.
        phrase: ``[K,D]`` their own phrase.
        negatives: for each ``[N_i,D]``, N_i ≥ 1.
        group: ``[K]`` picture of each.
        prefix: of the metric name.
    """
    if not len(regions):
        return {}
    owner = torch.repeat_interleave(torch.arange(len(regions)), torch.tensor([len(rows) for rows in negatives]))
    rivals = (regions[owner] * torch.cat(list(negatives))).sum(1)
    worst = torch.full((len(regions),), -torch.inf).scatter_reduce(0, owner, rivals, "amax")
    return {f"{prefix}hard_negatives": outcome((regions * phrase).sum(1) > worst, group)}


def comprehension_outcome(
    regions: Sequence[Tensor], texts: Sequence[Tensor], owned: Sequence[Tensor], prefix: str
) -> Outcomes:
    """Choosing the box that a phrase means among all given boxes of its picture (RefCOCO with ground-truth boxes).

    Args:
        regions: for each picture ``[K_i,D]`` its boxes.
        texts: for each picture ``[T_i,D]`` its distinct phrases.
        owned: for each picture ``[T_i,K_i]`` bool, whether the phrase owns the box. A phrase that owns all of them
            leaves nothing to choose and is not asked.
        prefix: of the metric name.
    """
    right, group = [], []
    for picture, (boxes, phrases, own) in enumerate(zip(regions, texts, owned, strict=True)):
        asked = ~own.all(1)
        if asked.any():
            choice = (phrases[asked] @ boxes.T).argmax(1, keepdim=True).cpu()
            right.append(own[asked].gather(1, choice)[:, 0])
            group += [picture] * int(asked.sum())
    if not right:
        return {}
    return {f"{prefix}comprehension": outcome(torch.cat(right), torch.tensor(group))}


class HardNegatives(RegionMetric):
    """The first phrase of a box must beat all of its ``negatives``."""

    pattern = "region/SOURCE/hard_negatives"

    def asks(self, data: EvalSet) -> bool:
        """Where boxes have negatives."""
        return any(region.negatives for region in regions_of(data))

    def measures(self) -> Collection[str]:
        """One."""
        return ["hard_negatives"]

    def measure_rows(self, outputs: ModelOutputs, data: EvalSet, rows: Tensor, prefix: str) -> Outcomes:
        """Over the boxes that have negatives."""
        regions, group = regions_of(data), pictures_of([sample.regions for sample in data.samples])
        hard = [i for i, region in enumerate(regions) if region.negatives]
        negatives = [outputs.texts(regions[i].negatives).cpu() for i in hard]
        positive = outputs.texts([regions[i].phrases[0] for i in hard]).cpu()
        return hard_negative_outcome(rows[hard].cpu(), positive, negatives, group[hard], prefix)

    def describe_measure(self, name: str, measure: str, row: str, place: int) -> Description | None:
        """One family."""
        if measure != "hard_negatives":
            return None
        protocol = "The box's own phrase must beat phrases that differ from it in a word (FG-OVD's question)."
        shown = Shown(Lead(80, "prefers the true phrase to look-alikes for {} of the boxes", "for {}"), overview=40)
        return Description(
            name, BOXES, "Tell a phrase from look-alikes", protocol, row, order=(1, 0, place), shown=shown
        )


class Comprehension(RegionMetric):
    """A phrase chooses among the given boxes of its picture."""

    pattern = "region/SOURCE/comprehension"

    def measures(self) -> Collection[str]:
        """One."""
        return ["comprehension"]

    def measure_rows(self, outputs: ModelOutputs, data: EvalSet, rows: Tensor, prefix: str) -> Outcomes:
        """Over the phrases that do not own all boxes of their picture."""
        regions = rows.split([len(sample.regions) for sample in data.samples])
        owned = [
            torch.tensor([[phrase in region.phrases for region in sample.regions] for phrase in phrases])
            .reshape(len(phrases), len(sample.regions))
            .bool()
            for sample, phrases in zip(data.samples, data.phrases, strict=True)
        ]
        return comprehension_outcome(regions, [outputs.texts(own) for own in data.phrases], owned, prefix)

    def describe_measure(self, name: str, measure: str, row: str, place: int) -> Description | None:
        """One family."""
        if measure != "comprehension":
            return None
        protocol = "Each phrase chooses among the given boxes of its own picture (RefCOCO's question, with true boxes)."
        shown = Shown(Lead(70, "chooses the right box of its picture for {} of the phrases", "for {}"), overview=30)
        return Description(name, BOXES, "Choose the box of a phrase", protocol, row, order=(0, 0, place), shown=shown)
