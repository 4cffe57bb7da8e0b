"""Metrics of boxes: one value for each way to turn a box into an embedding (``region/SOURCE/MEASURE``).

Below the metrics that ask something of boxes. ``region/best/MEASURE`` stands for each model's own best source.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cloc.contracts import Region
from cloc.evaluation.metrics.metric import NO_PROMPTER, Description, Lack, Metric
from cloc.evaluation.metrics.outcome import Outcomes
from cloc.evaluation.model_outputs import Embedded, ModelOutputs
from cloc.evaluation.sets.eval_set import EvalSet

BEST = "region/best/"
SOURCES = {
    "best": "Best source of each",
    "prompter": "Prompter",
    "roi_align": "RoI-Align",
    "mask_pool": "Mask pool",
    "crop": "Crop",
    "native": "Native",
}
SOURCE_MEANING = (
    "The rows are ways to turn a box into an embedding. Prompter: the trained prompt module reads the patch tokens. "
    "RoI-Align: tokens interpolated inside the box. Mask pool: the mean of the tokens that the box covers. "
    "Crop: the box is cut out and encoded as a picture of its own. Native, where asked for: as a picture too, but all "
    "around the box is blanked and a thing keeps its place and size. Best source of each: every model by the one that "
    "serves it best."
)


def region_name(metric: str) -> tuple[str, str] | None:
    """Source and measure of a metric of boxes; None for any other metric."""
    head, _, rest = metric.partition("/")
    source, _, measure = rest.partition("/")
    return (source, measure) if head == "region" else None


class RegionMetric(Metric):
    """A question asked of boxes; :meth:`measure_rows` answers it for one source, :meth:`describe_measure` names it."""

    needs = ("regions",)

    def applies(self, outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> bool:
        """Where there are boxes that it asks about."""
        return bool(embedded.regions) and self.asks(data)

    def asks(self, data: EvalSet) -> bool:
        """Where there are boxes."""
        return any(sample.regions for sample in data.samples)

    def names(self, sources: Collection[str]) -> Collection[str] | None:
        """Every measure by every source."""
        measures = self.measures()
        return None if measures is None else [f"region/{source}/{name}" for source in sources for name in measures]

    def measures(self) -> Collection[str] | None:
        """All that it may measure, the names behind the source; None: not listed."""
        return None

    def measure(self, outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> Outcomes:
        """By every source."""
        found: Outcomes = {}
        for source, rows in embedded.regions.items():
            found |= self.measure_rows(outputs, data, rows.to(outputs.encoder.device), f"region/{source}/")
        return found

    @abstractmethod
    def measure_rows(self, outputs: ModelOutputs, data: EvalSet, rows: Tensor, prefix: str) -> Outcomes:
        """Measure one source.

        Args:
            outputs: the model.
            data: the set.
            rows: ``[K,D]`` embeddings of the set's boxes, in order.
            prefix: of the names.
        """

    def describe(self, name: str) -> Description | None:
        """By source: the row is the source's."""
        found = region_name(name)
        if found is None:
            return None
        source, measure = found
        place = list(SOURCES).index(source) if source in SOURCES else len(SOURCES)
        own = self.describe_measure(name, measure, SOURCES.get(source, source), place)
        if own is None or not own.shown.curve_sources:
            return own
        return replace(own, shown=replace(own.shown, curve=source in own.shown.curve_sources))

    @abstractmethod
    def describe_measure(self, name: str, measure: str, row: str, place: int) -> Description | None:
        """What it says of one of its names.

        Args:
            name: whole.
            measure: the name behind the source.
            row: label of the source.
            place: of the source, last in the order of rows.
        """

    def lacks(self, name: str, measured: Collection[str]) -> Lack | None:
        """A Prompter, where a model has no value by it."""
        prompter = "region/prompter/"
        missing = name.startswith(prompter) and not any(own.startswith(prompter) for own in measured)
        return NO_PROMPTER if missing else None


def regions_of(data: EvalSet) -> list[Region]:
    """All boxes of a set, in order."""
    return [region for sample in data.samples for region in sample.regions]


def pictures_of(rows: Sequence[Sequence[object]]) -> Tensor:
    """``[Q]`` int64: the picture of each question, where ``rows`` holds those of each picture."""
    return torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row) for row in rows]))
