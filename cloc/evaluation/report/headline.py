"""The result in words: one sentence, the gap, and a few key facts, all computed from the numbers.

Stands between the metrics, which say in which words they open the page, and ``page.py``. It exists so that a sentence
can never say more than the metrics do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloc.evaluation.metrics.catalog import ALL, Catalog, finite
from cloc.evaluation.metrics.metric import Description, Lead
from cloc.evaluation.metrics.regions import BEST, SOURCES, region_name
from cloc.evaluation.report.formats import format_range, format_value, plain_number, plain_seconds, short_number
from cloc.evaluation.report.metrics_file import Entry, runs_of
from cloc.evaluation.report.table import Interval, gap_words, make_gap

Metrics = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Headline:
    """What a data set shows: a ``sentence``, and the ``gap`` to the best other reading in words."""

    sentence: str
    gap: str


@dataclass(frozen=True, slots=True)
class Fact:
    """A number with its 95 % interval, what it counts, and how the best other model does."""

    value: str
    counts: str
    model: str
    against: str
    interval: str = ""


def name_model(model: str) -> str:
    """``clip`` and ``cloc`` as they are written in a sentence; other names stay."""
    return model.upper() if model.lower() in {"clip", "cloc"} else model


def _gap(value: float, rival: float, rival_name: str, own: Description, paired: Sequence[float] | None = None) -> str:
    """The difference in words; ``paired`` is [gap, low, high] of ``metrics.json``, or None."""
    interval = (paired[1], paired[2]) if paired is not None else None
    gap = make_gap(value - rival, rival_name, interval, own.percent, own.higher_is_better)
    points = gap.text.lstrip("+−") + (" points" if own.percent else "")
    said = f"That is {points} {'more' if gap.text.startswith('+') else 'less'} than {rival_name}"
    if not gap.text.startswith(("+", "−")):
        said = f"That is level with {rival_name}"
    if interval is None:
        return f"{said}."
    doubt = "" if gap.ahead is not None else ": the two cannot be told apart on this set"
    return f"{said} (95 % interval {gap_words(gap, own.percent)}){doubt}."


def _readings(models: Metrics, own: Description, measure: str) -> list[tuple[float, str, str]]:
    """(value, model, source) of a region measure, best first."""
    found = []
    for model, metrics in models.items():
        for metric in metrics:
            region, value = region_name(metric), finite(metrics, metric)
            if region is not None and region[1] == measure and value is not None:
                found.append((value, model, region[0]))
    return sorted(found, key=lambda reading: -own.goodness(reading[0]))


def _paired(
    entry: Entry, measure: str, ours: tuple[str, str], theirs: tuple[str, str], catalog: Catalog
) -> Sequence[float] | None:
    """[gap, low, high] of two readings (model, source) of a region measure; None where they were not paired."""
    if ours[0] != next(iter(entry["models"])) or theirs[0] == ours[0]:
        return None
    gaps = entry.get("differences", {}).get(theirs[0], {})
    if ours[1] == theirs[1]:
        return gaps.get(f"region/{ours[1]}/{measure}")
    best = all(catalog.best_sources(entry["models"][model]).get(measure) == source for model, source in (ours, theirs))
    return gaps.get(f"{BEST}{measure}") if best else None


def _interval(entry: Entry, model: str, metric: str) -> Interval | None:
    found = entry.get("intervals", {}).get(model, {}).get(metric)
    return None if found is None else (found[0], found[1])


def _region_headline(
    entry: Entry, measure: str, readings: list[tuple[float, str, str]], own: Description, catalog: Catalog
) -> Headline:
    prompted = [reading for reading in readings if reading[2] == "prompter"]
    with_prompter = {model for _, model, _ in prompted}
    value, model, source = (prompted or readings)[0]
    subject = "The Prompter" if prompted else f"{name_model(model)} with {SOURCES.get(source, source)}"
    if len(with_prompter) > 1:
        subject += f" of {name_model(model)}"
    strangers = [reading for reading in readings if reading[1] not in (with_prompter or runs_of(entry, model))]
    rivals = strangers or [reading for reading in readings if reading[1:] != (model, source)]
    lead = own.shown.lead or Lead(0, f"reaches {{}} in “{own.family}”")
    said = f"{subject} {lead.sentence.format(format_value(value, own.percent))}"
    gap = ""
    if rivals:
        rival = rivals[0]
        owner = f"{name_model(rival[1])} source" if strangers else "other source"
        said += f"; the best {owner} {lead.rival.format(format_value(rival[0], own.percent))}"
        rival_name = f"{name_model(rival[1])} with {SOURCES.get(rival[2], rival[2])}"
        paired = _paired(entry, measure, (model, source), rival[1:], catalog)
        gap = _gap(value, rival[0], rival_name, own, paired)
    return Headline(said + ".", f"{gap} {_chance(entry, own)}".strip())


def _chance(entry: Entry, own: Description) -> str:
    """What guessing gets, where the metric tells it: ``"Chance, 1 of 128 classes, is 0.8%."``."""
    counts, lead, chance = entry.get("counts", {}), own.shown.lead, own.chance
    if chance is None or lead is None or not lead.tells_chance or (level := chance.of(counts)) is None:
        return ""
    among = f"{chance.hits} of {counts[chance.among]:,} {chance.among}"
    return f"Chance, {among}, is {format_value(level, own.percent)}."


def headline(entry: Entry, catalog: Catalog = ALL) -> Headline:
    """Says the key result of one data set.

    Args:
        entry: of one set in ``metrics.json``: ``models``, ``lead``, the metric of the set's own protocol, and
            ``counts``, ``intervals`` and ``differences`` where they are known.
        catalog: metrics, which say how they open the page.

    Returns:
        The set's own metric where it was measured. Else the Prompter against the best reading of models without one
        where regions were measured; otherwise the first of grounding, retrieval, classification and relations that was;
        at last whatever was.
    """
    models: Metrics = entry["models"]
    for metric in _leads(entry, catalog):
        own, measure = catalog.describe(metric), metric.removeprefix(BEST)
        if measure != metric and (readings := _readings(models, own, measure)):
            return _region_headline(entry, measure, readings, own, catalog)
        known = {model: finite(metrics, metric) for model, metrics in models.items()}
        ranked = [(value, model) for model, value in known.items() if value is not None]
        if ranked:
            ranked.sort(key=lambda pair: (own.goodness(pair[0]), pair[1]), reverse=True)
            return _metric_headline(entry, own, ranked)
    return Headline("Nothing was measured.", "")


def lead_metric(entry: Entry, catalog: Catalog = ALL) -> str:
    """The metric that a set is judged by: its own where it was measured, else the first that opens its page."""
    for metric in _leads(entry, catalog):
        own, measure = catalog.describe(metric), metric.removeprefix(BEST)
        if measure != metric and _readings(entry["models"], own, measure):
            return metric
        if any(finite(metrics, metric) is not None for metrics in entry["models"].values()):
            return metric
    return ""


def _leads(entry: Entry, catalog: Catalog) -> list[str]:
    """Metrics that may open the page, the best first: the set's own, then regions, a Prompter's before all."""
    names = list(dict.fromkeys(name for metrics in entry["models"].values() for name in metrics))
    regions = {name: found for name in names if (found := region_name(name)) is not None}
    whole = [f"{BEST}{regions[name][1]}" if name in regions else name for name in names]
    prompted = {f"{BEST}{measure}" for source, measure in regions.values() if source == "prompter"}
    leads = {name: lead for name in dict.fromkeys(whole) if (lead := catalog.describe(name).shown.lead) is not None}
    ordered = sorted(leads, key=lambda name: (name not in prompted, not name.startswith(BEST), leads[name].place))
    return [*filter(None, [entry.get("lead")]), *ordered, *whole]


def _metric_headline(entry: Entry, own: Description, ranked: list[tuple[float, str]]) -> Headline:
    """The best model by a metric, and the next."""
    generic = f"reaches {{}} in “{own.words}”" if own.family else f"reaches {{}} in {own.label}"
    value, best = ranked[0]
    verb = own.shown.lead.sentence if own.shown.lead else generic
    said = f"{name_model(best)} {verb.format(format_value(value, own.percent))}"
    strangers = [(other, model) for other, model in ranked[1:] if model not in runs_of(entry, best)]
    rest = [f"{name_model(model)} {format_value(other, own.percent)}" for other, model in strangers[:1]]
    gap = ""
    if rest:
        other, rival = strangers[0]
        first = next(iter(entry["models"]))
        differences = entry.get("differences", {})
        paired = differences.get(rival, {}).get(own.metric) if best == first else None
        if rival == first and (turned := differences.get(best, {}).get(own.metric)):
            paired = [-turned[0], -turned[2], -turned[1]]
        gap = _gap(value, other, name_model(rival), own, paired)
    return Headline("; ".join([said, *rest]) + ".", gap)


def _absent(metric: str, models: Metrics, missing: list[str], catalog: Catalog) -> str:
    lacks = [catalog.lacks(metric, models[model]) for model in missing]
    part = lacks[0].part if lacks[0] is not None and len(set(lacks)) == 1 else ""
    if len(missing) > 1:
        return f"of {len(missing)} others none has a {part or 'value'}"
    return f"{missing[0]} has no {part or 'value'}"


def key_facts(entry: Entry, catalog: Catalog = ALL) -> list[Fact]:
    """Up to four numbers of the best model each, with the next model's beside."""
    facts = []
    models: Metrics = entry["models"]
    names = dict.fromkeys(name for metrics in models.values() for name in metrics)
    described = [(own, fact) for own in map(catalog.describe, names) if (fact := own.shown.fact) is not None]
    for own, fact in sorted(described, key=lambda pair: pair[1].place):
        metric = own.metric
        known = [(value, model) for model, metrics in models.items() if (value := finite(metrics, metric)) is not None]
        if not known:
            continue
        ranked = sorted(known, key=lambda pair: -own.goodness(pair[0]))
        missing = [model for model in models if finite(models[model], metric) is None]
        against = f"{ranked[1][1]} {format_value(ranked[1][0], own.percent)}" if len(ranked) > 1 else ""
        if not against and missing:
            against = _absent(metric, models, missing, catalog)
        interval = _interval(entry, ranked[0][1], metric)
        shown = format_range(*interval, percent=own.percent) if interval else ""
        facts.append(Fact(format_value(ranked[0][0], own.percent), fact.counts, ranked[0][1], against, shown))
    return facts[:4]


def trained(training: Mapping[str, Mapping[str, str | float]]) -> list[str]:
    """What was trained, a sentence a model: ``"cloc: 1.5M parameters, 38,016 samples in 178 s."``."""
    sentences = []
    for model, facts in training.items():
        parts = []
        if isinstance(count := facts.get("parameters"), int | float):
            parts.append(f"{short_number(count)} parameters")
        samples, seconds = facts.get("samples seen"), facts.get("training seconds")
        if isinstance(samples, int | float) and samples > 0:
            timed = f" in {plain_seconds(seconds)}" if isinstance(seconds, int | float) else ""
            parts.append(f"trained on {plain_number(samples)} samples{timed}")
        if parts:
            sentences.append(f"{model}: {', '.join(parts)}.")
    return sentences
