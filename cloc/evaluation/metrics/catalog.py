"""The metrics of an evaluation by name: what is measured, and what each says of the names in ``metrics.json``.

Above the single metrics, below the suite that loops over them and the report that reads what they say of themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cloc.config import ConfigError, instantiate
from cloc.evaluation.metrics.average_precision import AveragePrecision
from cloc.evaluation.metrics.classification import RegionNaming, ZeroShot
from cloc.evaluation.metrics.grounding import Grounding
from cloc.evaluation.metrics.metric import FRACTION, LAST, OTHER, Description, Lack, Metric, check_needs
from cloc.evaluation.metrics.region_choice import Comprehension, HardNegatives
from cloc.evaluation.metrics.regions import region_name
from cloc.evaluation.metrics.relations import Relations
from cloc.evaluation.metrics.retrieval import RegionRetrieval, Retrieval

# Name in ``evaluation.metrics`` → class. Texts are embedded in the order in which metrics ask for them.
METRICS: dict[str, Callable[[], Metric]] = {
    "zero_shot": ZeroShot,
    "retrieval": Retrieval,
    "region_retrieval": RegionRetrieval,
    "region_naming": RegionNaming,
    "hard_negatives": HardNegatives,
    "comprehension": Comprehension,
    "grounding": Grounding,
    "average_precision": AveragePrecision,
    "relations": Relations,
}


class Catalog:
    """Some metrics, and those of ours behind them, which also name what an older evaluation or a run has measured.

    Args:
        metrics: what is measured, in order; None for all of ours.
    """

    def __init__(self, metrics: Sequence[Metric] | None = None) -> None:
        ours = [make() for make in METRICS.values()]
        self.metrics = ours if metrics is None else list(metrics)
        self._known = self.metrics if metrics is None else [*self.metrics, *ours]
        for metric in self.metrics:
            check_needs(metric)

    @property
    def needs(self) -> set[str]:
        """What the metrics are made of, of :data:`cloc.evaluation.model_outputs.OUTPUTS`."""
        return {name for metric in self.metrics for name in metric.needs}

    def describe(self, name: str) -> Description:
        """What a metric says of a name; one that none knows goes to ``OTHER`` under its own name."""
        return self._owner(name)[1]

    def knows(self, name: str) -> bool:
        """Whether a name is one of a metric's."""
        return self._owner(name)[0] is not None

    def lacks(self, name: str, metrics: Mapping[str, float]) -> Lack | None:
        """The part that a model lacks, by its values, where it has none for a metric."""
        owner = self._owner(name)[0]
        return owner.lacks(name, metrics) if owner is not None and metrics.get(name) is None else None

    def why_missing(self, name: str, metrics: Mapping[str, float]) -> str:
        """Says in words why a model has no value for a metric."""
        if metrics.get(name) is not None:
            return "Not a number: there was nothing to average, or the model diverged."
        lack = self.lacks(name, metrics)
        return lack.why if lack is not None else "Not measured in this run."

    def best_sources(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Region measure → the source that does best by it."""
        found: dict[str, tuple[float, str]] = {}
        for name in metrics:
            region, value = region_name(name), finite(metrics, name)
            if region is None or value is None:
                continue
            source, measure = region
            if measure not in found or self.describe(name).better(value, found[measure][0]):
                found[measure] = (value, source)
        return {measure: source for measure, (_, source) in found.items()}

    def _owner(self, name: str) -> tuple[Metric | None, Description]:
        for metric in self._known:
            found = metric.describe(name)
            if found is not None:
                return metric, found
        return None, Description(name, OTHER, "", "Reported as measured.", name, FRACTION, order=(LAST,))


ALL = Catalog()


def build_catalog(nodes: Sequence[Any]) -> Catalog:
    """The metrics that a configuration names.

    Args:
        nodes: of ``evaluation.metrics``: names of ``METRICS``, or nodes with the ``_target_`` of a user's own class.

    Raises:
        ConfigError: an unknown name, one that comes twice, or a class that is no metric.
    """
    metrics: list[Metric] = []
    for index, node in enumerate(nodes):
        key = f"evaluation.metrics[{index}]"
        if not isinstance(node, str):
            metrics.append(instantiate(node, key))
        elif node not in METRICS:
            raise ConfigError(f"{key}={node!r}: known are {', '.join(METRICS)}; a class of your own goes by _target_")
        else:
            metrics.append(METRICS[node]())
        if not isinstance(metrics[-1], Metric):
            raise ConfigError(f"{key}: {type(metrics[-1]).__name__} is no cloc.evaluation.metrics.metric.Metric")
        if type(metrics[-1]) in map(type, metrics[:-1]) and isinstance(node, str):
            raise ConfigError(f"{key}={node!r}: named twice; leave one out")
    return Catalog(metrics)


def finite(metrics: Mapping[str, float], metric: str) -> float | None:
    """The value of a metric, or None where it is absent or not finite."""
    value = metrics.get(metric)
    return None if value is None or not math.isfinite(value) else float(value)
