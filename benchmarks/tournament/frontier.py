"""Does region quality cost image quality? Every run of a study as a point, one metric against another."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tournament.results import Results
from cloc.config import ConfigError

IMAGE, REGION = "image_text/text_to_image_R@1", "own:top1"


@dataclass(frozen=True)
class Spot:
    """A method with one setting: the mean over its seeds of both metrics.

    Attributes:
        is_best: no other spot is at least as good in both and better in one.
    """

    method: str
    settings: str
    image: float
    region: float
    seeds: int
    is_best: bool = False


def spots(results: Results, image: str = IMAGE, region: str = REGION, dataset: str = "") -> list[Spot]:
    """All settings of all methods for which the ledger has both metrics on a set.

    Args:
        results: a study and its ledger.
        image: metric of pictures; ``own:`` as in a study's columns.
        region: metric of regions.
        dataset: set that both were measured on; the validation set, on which every setting was, unless given.

    Raises:
        ConfigError: no run has both.
    """
    study = results.study
    place = dataset or study.validation or study.test[0]
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for method in study.in_order():
        names = study.metric(method, image), study.metric(method, region)
        for record in results.all_runs(method):
            measured = record.metrics.get(place, {})
            if names[0] in measured and names[1] in measured:
                settings = " ".join(f"{_short(results, key)} {value}" for key, value in record.line["settings"].items())
                groups.setdefault((method, settings), []).append((measured[names[0]], measured[names[1]]))
    if not groups:
        raise ConfigError(f"no run of {study.name} has both {image} and {region} on {place}")
    found = [
        Spot(*name, statistics.fmean(a for a, _ in both), statistics.fmean(b for _, b in both), len(both))
        for name, both in groups.items()
    ]
    return [_judged(one, found) for one in found]


def _judged(one: Spot, others: list[Spot]) -> Spot:
    beaten = any(
        other.image >= one.image
        and other.region >= one.region
        and (other.image, other.region) != (one.image, one.region)
        for other in others
    )
    return Spot(one.method, one.settings, one.image, one.region, one.seeds, not beaten)


def _short(results: Results, key: str) -> str:
    axis = results.study.axes.get(key)
    return (axis.name if axis else "") or key.rpartition(".")[2]


def draw(results: Results, found: list[Spot], out: Path, image: str = IMAGE, region: str = REGION) -> None:
    """A scatter, a color a family, labeled by settings; a line through those that no other beats in both."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    panel = figure.subplots()
    for place, (family, methods) in enumerate(results.study.families().items()):
        own = [one for one in found if one.method in methods]
        if own:
            panel.scatter(
                [one.image for one in own], [one.region for one in own], s=22, color=f"C{place}", label=family
            )
        for one in own:
            panel.annotate(
                one.settings or one.method, (one.image, one.region), (3, 3), textcoords="offset points", fontsize=6
            )
    best = sorted((one for one in found if one.is_best), key=lambda one: one.image)
    panel.plot([one.image for one in best], [one.region for one in best], color="gray", linewidth=0.8, linestyle="--")
    panel.set(xlabel=image, ylabel=region)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def numbers(found: list[Spot]) -> list[dict[str, Any]]:
    """The spots for a JSON line."""
    return [
        {"method": one.method, "settings": one.settings, "image": round(one.image, 5), "region": round(one.region, 5)}
        | {"seeds": one.seeds, "best": one.is_best}
        for one in found
    ]
