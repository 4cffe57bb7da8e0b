"""The suite: one model over one evaluation set → metrics. CLIP and CLOC go through the same lines.

Fourth step of evaluation (``sets → model_outputs → metrics → suite → report → compare``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cloc.config import ConfigError, DatasetConfig, EvaluationConfig
from cloc.console import progress_console
from cloc.encoder import Encoder
from cloc.evaluation.metrics.catalog import ALL, Catalog, build_catalog
from cloc.evaluation.metrics.metric import Metric
from cloc.evaluation.metrics.outcome import Outcomes, values
from cloc.evaluation.model_outputs import Embedded, ModelOutputs
from cloc.evaluation.reduce import Ranks
from cloc.evaluation.sets.eval_set import EvalSet
from cloc.evaluation.sets.kinds import load_eval_set
from cloc.models.model import Cloc


def measure(
    outputs: ModelOutputs, data: EvalSet, embedded: Embedded, metrics: Sequence[Metric] = tuple(ALL.metrics)
) -> Outcomes:
    """All metrics that the set and the model allow; one that they do not is absent, or has no question."""
    found: Outcomes = {}
    for metric in metrics:
        if metric.applies(outputs, data, embedded):
            own = metric.measure(outputs, data, embedded)
            twice = sorted(found.keys() & own.keys())
            if twice:
                raise ValueError(f"{type(metric).__name__} measures {twice}, as another metric does; rename them")
            found |= own
    return found


def check_lead(name: str, config: DatasetConfig, catalog: Catalog) -> None:
    """Refuse a set whose ``lead`` no metric knows.

    Raises:
        ConfigError: names the key.
    """
    if config.lead and not catalog.knows(config.lead):
        raise ConfigError(f"datasets.{name}.lead={config.lead!r}: not a metric; docs/evaluation.md lists them")


class TrainingSuite:
    """A small suite on the weights in training: the learning curve. Ranks that train share it.

    Args:
        config: which sets and metrics, how many pictures.
        datasets: all known sets.
        model: the model in training; its weights are read where they are.

    Raises:
        ValueError: an unknown set or metric.
    """

    def __init__(self, config: EvaluationConfig, datasets: dict[str, DatasetConfig], model: Cloc) -> None:
        unknown = [name for name in config.data if name not in datasets]
        if unknown:
            raise ValueError(f"evaluation.data={unknown}: unknown; known sets are {sorted(datasets)}")
        self.catalog = build_catalog(config.metrics)
        for name in config.data:
            check_lead(name, datasets[name], self.catalog)
        self.config = replace(config, sources=[s for s in config.sources if s != "crop"])
        self.sets = [load_eval_set(name, datasets[name], config.limit) for name in config.data]

    def __call__(self, model: Cloc) -> dict[str, float]:
        """Metrics by ``SET/METRIC``."""
        console = progress_console()
        console.quiet |= console.is_terminal  # the run's own bar is there
        encoder = Encoder(model, {}, str(next(model.parameters()).device))
        outputs = ModelOutputs(encoder, Ranks(), console=console)
        return {
            f"{data.name}/{name}": value for data in self.sets for name, value in self._values(outputs, data).items()
        }

    def _values(self, outputs: ModelOutputs, data: EvalSet) -> dict[str, float]:
        embedded = outputs.embed(data, self.config, self.catalog.needs)
        return values(measure(outputs, data, embedded, self.catalog.metrics))
