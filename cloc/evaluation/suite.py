"""The suite: one model over one evaluation set → metrics. CLIP and CLOC go through the same lines.

Fourth step of evaluation (``sets → model_outputs → metrics → suite → report → compare``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from cloc.config import ConfigError, DatasetConfig, EvaluationConfig
from cloc.console import progress_console
from cloc.encoder import AS_PICTURES, Encoder
from cloc.evaluation.metrics.catalog import ALL, Catalog, build_catalog
from cloc.evaluation.metrics.metric import Metric, listed_names
from cloc.evaluation.metrics.outcome import Outcomes, values
from cloc.evaluation.model_outputs import OUTPUTS, Embedded, ModelOutputs
from cloc.evaluation.reduce import Ranks
from cloc.evaluation.sets.eval_set import EvalSet
from cloc.evaluation.sets.kinds import load_eval_set
from cloc.models.model import Cloc

NAMED = 4  # names in a message
# Of a set that is not read yet: what an entry of that key may hold (`OUTPUTS`).
HOLDS = {"shards": {"images", "regions", "grounded"}, "relations": {"relations"}, "images": {"classified"}}


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


def check_chosen(
    chosen: Mapping[str, str],
    config: EvaluationConfig,
    datasets: Mapping[str, DatasetConfig],
    catalog: Catalog,
    lacking: Collection[str] = (),
    read: Mapping[str, EvalSet] | None = None,
) -> list[str]:
    """Refuse the name of a metric that the evaluation in training cannot give: it would be missed hours later.

    Args:
        chosen: key of the configuration → ``val/SET/METRIC``.
        config: which sets, parts and sources are measured.
        datasets: all known sets.
        catalog: the metrics.
        lacking: what the model cannot be asked for: of its sources of boxes, and ``grounded``.
        read: the sets, where they have been read; without them only what their entries name is known.

    Returns:
        What to say of names that may be right: a metric of the user's own need not list its names.

    Raises:
        ConfigError: names the key, and what looks like it.
    """
    notes = []
    for key, name in chosen.items():
        start, _, rest = name.partition("/")
        data, _, metric = rest.partition("/")
        if start != "val" or not metric:
            raise ConfigError(f"{key}={name!r}: give val/SET/METRIC, as metrics.csv has it")
        if data not in config.data:
            close = _close(name, [f"val/{own}/{metric}" for own in config.data])
            sets = ", ".join(config.data) or "nothing"
            raise ConfigError(f"{key}={name!r}: {data} is not measured in training, evaluation.data has {sets}{close}")
        held = read.get(data) if read else None
        asked = list(_asked(config, datasets[data], catalog, lacking, held))
        sources = [source for source in config.sources if source not in AS_PICTURES and source not in lacking]
        listed = [listed_names(own, sources) for own in asked]
        names = [known for own in listed if own is not None for known in own]
        silent = [own for own, told in zip(asked, listed, strict=True) if told is None]
        if metric not in names and not any(own.describe(metric) for own in silent):
            close = _close(name, [f"val/{data}/{known}" for known in names])
            why = _why(metric, catalog)
            if not silent:
                raise ConfigError(f"{key}={name!r}: {why}{close}")
            own = ", ".join(type(own).__name__ for own in silent)
            notes.append(f"{key}={name}: {why}, unless {own} gives that name{close}")
        elif key == "evaluation.best" and not catalog.describe(metric).higher_is_better:
            raise ConfigError(f"{key}={name!r}: less is better of it, and the checkpoint with the most is kept")
    return notes


def _asked(
    config: EvaluationConfig, entry: DatasetConfig, catalog: Catalog, lacking: Collection[str], data: EvalSet | None
) -> Iterator[Metric]:
    """The metrics that may be measured on a set."""
    held = {name for key, names in HOLDS.items() if getattr(entry, key) for name in names}
    for metric in catalog.metrics:
        needs = set(metric.needs)
        on = all(OUTPUTS[need] in config.parts for need in needs) and not needs & set(lacking)
        if on and (metric.asks(data) if data is not None else entry.set is not None or needs <= held):
            yield metric


def _why(metric: str, catalog: Catalog) -> str:
    if not ALL.knows(metric) and not catalog.knows(metric):
        return "no metric has that name"
    return "not measured in training, by the set, the model, evaluation.metrics, evaluation.parts or evaluation.sources"


def _close(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, NAMED, 0.8) or known[:NAMED]
    return f"; did you mean {' or '.join(near)}?" if near else ""


class TrainingSuite:
    """A small suite on the weights in training: the learning curve. Ranks that train share it.

    Args:
        config: which sets and metrics, how many pictures.
        datasets: all known sets.
        model: the model in training; its weights are read where they are.
        chosen: key of the configuration → a name that must be measured, see :func:`check_chosen`.

    Raises:
        ValueError: an unknown set or metric.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        datasets: dict[str, DatasetConfig],
        model: Cloc,
        chosen: Mapping[str, str] | None = None,
    ) -> None:
        unknown = [name for name in config.data if name not in datasets]
        if unknown:
            raise ValueError(f"evaluation.data={unknown}: unknown; known sets are {sorted(datasets)}")
        self.catalog = build_catalog(config.metrics)
        for name in config.data:
            check_lead(name, datasets[name], self.catalog)
        self.config = replace(config, sources=[s for s in config.sources if s not in AS_PICTURES])
        self.sets = [load_eval_set(name, datasets[name], config.limit) for name in config.data]
        encoder = Encoder(model, {}, "cpu")
        lacking = [source for source in config.sources if source not in encoder.every_source]
        lacking += [] if encoder.can_ground else ["grounded"]
        read = {data.name: data for data in self.sets}
        check_chosen(chosen or {}, config, datasets, self.catalog, lacking, read)

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
