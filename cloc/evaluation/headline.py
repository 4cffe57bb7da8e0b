"""The result in words: one sentence, a ranking of box readings and a few key facts, all computed from the numbers.

Stands between ``table.py``, which knows what a metric means, and ``report.py``, which opens the page with it. It exists
so that a sentence can never say more than the metrics do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cloc.evaluation.table import SOURCES, describe, finite, format_value, why_missing

Metrics = Mapping[str, Mapping[str, float]]

MAX_BARS = 10

# Region measure, first that was measured leads → (what the subject does, how the rival's number follows).
REGION_WORDS = {
    "top1": ("names {} of the held-out boxes", "{}"),
    "mAcc": ("names {} of the held-out boxes, averaged over classes", "{}"),
    "text_to_region_R@10": ("ranks the right region among its first ten for {} of the phrases", "for {}"),
    "region_to_text_R@10": ("ranks a right phrase among its first ten for {} of the regions", "for {}"),
    "text_to_region_R@1": ("ranks the right region first for {} of the phrases", "for {}"),
    "region_to_text_R@1": ("ranks a right phrase first for {} of the regions", "for {}"),
}
# Without regions, the first of these that was measured leads.
OTHER_WORDS = {
    "grounding/any/acc@0.5": "draws the right box for {} of the phrases",
    "image_text/text_to_image_R@1": "ranks the right image first for {} of the captions",
    "image_text/image_to_text_R@1": "ranks a right caption first for {} of the images",
    "image/zero_shot_top1": "classifies {} of the images rightly without labels",
}
FACTS = {
    "image_text/text_to_image_R@1": "captions find their image at first rank",
    "image_text/image_to_text_R@1": "images find a caption of theirs at first rank",
    "grounding/any/acc@0.5": "phrases get the right box, at IoU 0.5 or more",
    "relations/grounded/accuracy": "relations are told apart by grounding",
    "relations/similarity/accuracy": "relations are told apart by similarity",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of the opening chart; ``model`` is None for chance."""

    model: str | None
    label: str
    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Headline:
    """What a data set shows: ``sentence``, the ``gap`` in words, and the ``bars`` that it rests on."""

    sentence: str
    gap: str
    caption: str
    bars: list[Bar]


@dataclass(frozen=True, slots=True)
class Fact:
    """A number with what it counts and how the best other model does."""

    value: str
    counts: str
    model: str
    against: str


def _shown(model: str) -> str:
    return model.upper() if model.lower() in {"clip", "cloc"} else model


def _gap(value: float, rival: float, rival_name: str) -> str:
    points = round(100 * (value - rival), 1)
    if points == 0:
        return f"That is level with {rival_name}."
    return f"That is {abs(points):.1f} points {'more' if points > 0 else 'less'} than {rival_name}."


def _readings(models: Metrics, measure: str) -> list[tuple[float, str, str]]:
    """(value, model, source) of a region measure, best first."""
    found = []
    for model, metrics in models.items():
        for metric in metrics:
            head, _, rest = metric.partition("/")
            source, _, name = rest.partition("/")
            value = finite(metrics, metric)
            if head == "region" and name == measure and value is not None:
                found.append((value, model, source))
    return sorted(found, key=lambda reading: -reading[0])


def _region_headline(models: Metrics, measure: str, readings: list[tuple[float, str, str]], classes: int) -> Headline:
    prompted = [reading for reading in readings if reading[2] == "prompter"]
    with_prompter = {model for _, model, _ in prompted}
    value, model, source = (prompted or readings)[0]
    subject = "The Prompter" if prompted else f"{_shown(model)} with {SOURCES.get(source, source)}"
    if len(with_prompter) > 1:
        subject += f" of {_shown(model)}"
    strangers = [reading for reading in readings if reading[1] not in (with_prompter or {model})]
    rivals = strangers or [reading for reading in readings if reading[1:] != (model, source)]
    verb, follows = REGION_WORDS[measure]
    said = f"{subject} {verb.format(format_value(value, True))}"
    gap = ""
    if rivals:
        rival = rivals[0]
        owner = f"{_shown(rival[1])} source" if strangers else "other source"
        said += f"; the best {owner} {follows.format(format_value(rival[0], True))}"
        gap = _gap(value, rival[0], f"{_shown(rival[1])} with {SOURCES.get(rival[2], rival[2])}")
    shown = readings
    if len(readings) > MAX_BARS:  # best first, so the first of a model is its best
        shown = [
            reading for n, reading in enumerate(readings) if reading[1] not in {name for _, name, _ in readings[:n]}
        ]
    bars = [Bar(name, f"{name} · {SOURCES.get(src, src)}", val, format_value(val, True)) for val, name, src in shown]
    if measure == "top1" and classes > 1:
        bars.append(Bar(None, f"chance, 1 of {classes:,} classes", 1 / classes, format_value(1 / classes, True)))
    reading = describe(f"region/prompter/{measure}")
    which = "each model and way to read a box" if shown is readings else "each model, with its best way to read a box"
    return Headline(said + ".", gap, f"{reading.family}. {reading.reading} One bar for {which}.", bars)


def headline(models: Metrics, classes: int = 0) -> Headline:
    """Says the key result of one data set.

    Args:
        models: model → metric → value.
        classes: number of classes of the data set, for the chance level; 0 where there are none.

    Returns:
        The Prompter against the best reading of models without one where regions were measured; otherwise the first
        of grounding, retrieval and classification that was.
    """
    measured = {measure: readings for measure in REGION_WORDS if (readings := _readings(models, measure))}
    prompted = [
        measure for measure, readings in measured.items() if any(source == "prompter" for *_, source in readings)
    ]
    for measure in (prompted or list(measured))[:1]:
        return _region_headline(models, measure, measured[measure], classes)
    for metric, verb in OTHER_WORDS.items():
        known = {model: finite(metrics, metric) for model, metrics in models.items()}
        ranked = sorted(((value, model) for model, value in known.items() if value is not None), reverse=True)
        if ranked:
            said = f"{_shown(ranked[0][1])} {verb.format(format_value(ranked[0][0], True))}"
            rest = [f"{_shown(model)} {format_value(value, True)}" for value, model in ranked[1:2]]
            meaning = describe(metric)
            bars = [Bar(model, model, value, format_value(value, True)) for value, model in ranked]
            gap = _gap(ranked[0][0], ranked[1][0], _shown(ranked[1][1])) if rest else ""
            return Headline("; ".join([said, *rest]) + ".", gap, f"{meaning.family}. {meaning.reading}", bars)
    return Headline("Nothing was measured.", "", "", [])


def _absent(metric: str, models: Metrics, missing: list[str]) -> str:
    headless = all("no grounding head" in why_missing(metric, models[model]) for model in missing)
    if len(missing) > 1:
        return f"of {len(missing)} others none {'has a grounding head' if headless else 'has a value'}"
    return f"{missing[0]} {'has no grounding head' if headless else 'has no value'}"


def key_facts(models: Metrics) -> list[Fact]:
    """Up to four numbers of the best model each, with the next model's beside."""
    facts = []
    for metric, counts in FACTS.items():
        known = [(value, model) for model, metrics in models.items() if (value := finite(metrics, metric)) is not None]
        if not known:
            continue
        ranked = sorted(known, key=lambda pair: -pair[0])
        missing = [model for model in models if finite(models[model], metric) is None]
        against = f"{ranked[1][1]} {format_value(ranked[1][0], True)}" if len(ranked) > 1 else ""
        if not against and missing:
            against = _absent(metric, models, missing)
        facts.append(Fact(format_value(ranked[0][0], True), counts, ranked[0][1], against))
    return facts[:4]


def plain_number(value: str | float) -> str:
    """``80000 → "80,000"``, ``0.004 → "0.004"``; NaN is ``"–"``; a text stays as it is."""
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return "–"
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"


def plain_seconds(seconds: float) -> str:
    """``57.14 → "57 s"``, ``7500 → "2.1 h"``; NaN is ``"–"``."""
    if not math.isfinite(seconds):
        return "–"
    for limit, size, unit in ((3 * 3600, 3600, "h"), (300, 60, "min")):
        if seconds > limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
