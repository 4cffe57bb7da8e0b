"""Runs that differ in their seed alone, as one: mean, standard error of the mean, and every single value.

Stands beside ``cost.py``, on metrics that are there. An interval over pictures says how sure a number is for *these*
weights; only several trainings say how sure it is for the recipe.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cloc.encoder import Encoder
from cloc.evaluation.metrics.catalog import ALL, Catalog, finite
from cloc.evaluation.metrics.regions import BEST, region_name
from cloc.evaluation.report.metrics_file import Seeds, Spread

OWN = ("seed", "name", "run_dir")  # what two runs of one recipe do not share
# Student's t, two-sided 95 %, for 1, 2, … degrees of freedom; of the normal distribution behind them.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
NORMAL95 = 1.96


def group_runs(encoders: Sequence[Encoder]) -> dict[str, dict[str, int]]:
    """Recipes with several runs: name → model → seed.

    Two runs are of one recipe where their configurations are equal but for seed, name and folder, and both have seen
    as many samples. Its name is the last part of the first run's.
    """
    found: dict[str, dict[str, int]] = {}
    names: dict[str, str] = {}
    for encoder in encoders:
        config = encoder.info.get("config") or {}
        if not isinstance(config, Mapping) or not isinstance(config.get("seed"), int):
            continue
        recipe = _recipe(config, encoder.info)
        names.setdefault(recipe, str(config.get("name") or encoder.name).rpartition("/")[2])
        found.setdefault(recipe, {})[encoder.name] = config["seed"]
    several = {recipe: own for recipe, own in found.items() if len(set(own.values())) > 1}
    called = [names[recipe] for recipe in several]
    return {
        name if called.count(name) < 2 else f"{name} ({next(iter(own))}, …)": own
        for name, own in zip(called, several.values(), strict=True)
    }


def _recipe(config: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    same = {key: value for key, value in config.items() if key not in OWN}
    return json.dumps([same, info.get("samples_seen")], sort_keys=True, default=str)


def over_seeds(
    models: Mapping[str, Mapping[str, float]], groups: Mapping[str, Mapping[str, int]], catalog: Catalog = ALL
) -> Seeds:
    """Every metric of one set over the runs of each recipe.

    Args:
        models: model → metric → value; the first model is the one on trial.
        groups: of :func:`group_runs`.
        catalog: metrics, which say which source of boxes serves a model best.

    Returns:
        ``groups``: recipe → its runs, and metric → mean, standard error, values in the order of the runs;
        ``region/best/MEASURE`` takes each run's own best source. ``differences``, where the model on trial is of a
        recipe: other recipe → metric → [mean difference, low, high] of 95 % by Student's t; runs are paired where both
        recipes have the same seeds.
    """
    values = {model: _with_best(metrics, catalog) for model, metrics in models.items()}
    found: Seeds = {"groups": {}, "differences": {}}
    for name, own in groups.items():
        shared = [metric for metric in values[next(iter(own))] if all(metric in values[model] for model in own)]
        spread_of = {metric: spread([values[model][metric] for model in own]) for metric in shared}
        found["groups"][name] = {"models": list(own), "seeds": list(own.values()), "metrics": spread_of}
    first = next(iter(models), None)
    trial = next((name for name, own in groups.items() if first in own), None)
    for other in groups:
        if trial is not None and other != trial:
            one, two = ({own: values[own] for own in groups[name]} for name in (trial, other))
            found["differences"][other] = _differences(one, two, groups[trial], groups[other])
    return found


def _with_best(metrics: Mapping[str, float], catalog: Catalog) -> dict[str, float]:
    known = {metric: value for metric in metrics if (value := finite(metrics, metric)) is not None}
    if len({region[0] for region in map(region_name, known) if region is not None}) > 1:
        known |= {
            f"{BEST}{measure}": known[f"region/{source}/{measure}"]
            for measure, source in catalog.best_sources(metrics).items()
        }
    return known


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard error of the mean (n - 1 below the root), and the values themselves."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {"mean": statistics.fmean(values), "error": error, "values": list(values)}


def _differences(
    one: Mapping[str, Mapping[str, float]],
    two: Mapping[str, Mapping[str, float]],
    seeds: Mapping[str, int],
    others: Mapping[str, int],
) -> dict[str, list[float]]:
    every = [*one.values(), *two.values()]
    shared = [metric for metric in every[0] if all(metric in own for own in every)]
    found = {}
    for metric in shared:
        ours = {seeds[model]: own[metric] for model, own in one.items()}
        theirs = {others[model]: own[metric] for model, own in two.items()}
        found[metric] = list(seed_difference(ours, theirs))
    return found


def seed_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[float, float, float]:
    """Mean difference with its 95 % interval by Student's t, of values by seed.

    Paired where the seeds are the same. Else the errors add in squares, and the degrees of freedom are those of the
    smaller group, which is never too sure of itself.
    """
    if ours.keys() == theirs.keys():
        found = spread([value - theirs[seed] for seed, value in ours.items()])
        value, error, free = found["mean"], found["error"], len(ours) - 1
    else:
        one, two = spread(list(ours.values())), spread(list(theirs.values()))
        value = one["mean"] - two["mean"]
        error, free = (one["error"] ** 2 + two["error"] ** 2) ** 0.5, min(len(ours), len(theirs)) - 1
    half = error * (T95[free - 1] if free <= len(T95) else NORMAL95)
    return value, value - half, value + half
