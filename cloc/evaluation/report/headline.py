"""The result in words: one sentence, the gap, and a few key facts, all computed from the numbers.

Stands between ``meaning.py``, which knows what a metric means, and ``page.py``, which opens the page with it. It
exists so that a sentence can never say more than the metrics do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloc.evaluation.report.formats import format_range, format_value, plain_number, plain_seconds, short_number
from cloc.evaluation.report.meaning import SOURCES, best_sources, describe, finite, why_missing
from cloc.evaluation.report.table import Interval, gap_words, make_gap

Metrics = Mapping[str, Mapping[str, float]]
Entry = Mapping[str, Any]  # of one set in metrics.json

BEST = "region/best/"

# Region measure, first that was measured leads → (what the subject does, how the rival's number follows).
REGION_WORDS = {
    "top1": ("names {} of the held-out boxes", "{}"),
    "mAcc": ("names {} of the held-out boxes, averaged over classes", "{}"),
    "text_to_region_R@10": ("ranks the right region among its first ten for {} of the phrases", "for {}"),
    "region_to_text_R@10": ("ranks a right phrase among its first ten for {} of the regions", "for {}"),
    "text_to_region_R@1": ("ranks the right region first for {} of the phrases", "for {}"),
    "region_to_text_R@1": ("ranks a right phrase first for {} of the regions", "for {}"),
    "comprehension": ("chooses the right box of its picture for {} of the phrases", "for {}"),
    "hard_negatives": ("prefers the true phrase to look-alikes for {} of the boxes", "for {}"),
}
# Without regions, the first of these that was measured leads.
OTHER_WORDS = {
    "grounding/any/acc@0.5": "draws the right box for {} of the phrases",
    "image_text/text_to_image_R@1": "ranks the right image first for {} of the captions",
    "image_text/image_to_text_R@1": "ranks a right caption first for {} of the images",
    "image/zero_shot_top1": "classifies {} of the images rightly without labels",
    "relations/similarity/accuracy": "chooses the caption with the true relation for {} of the images",
    "relations/grounded/accuracy": "tells {} of the relations rightly by grounding",
}
FACTS = {
    "grounding/any/acc@0.5": "of phrases get the right box, at IoU 0.5 or more",
    "relations/grounded/accuracy": "of relations are told apart by grounding",
    "image_text/text_to_image_R@1": "of captions find their image at first rank",
    "image_text/image_to_text_R@1": "of images find a caption of theirs at first rank",
    "image/zero_shot_top1": "of images are classified rightly without labels",
    "relations/similarity/accuracy": "of relations are told apart by similarity",
}


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


def _shown(model: str) -> str:
    return model.upper() if model.lower() in {"clip", "cloc"} else model


def _gap(value: float, rival: float, rival_name: str, paired: Any = None, percent: bool = True) -> str:
    """The difference in words; ``paired`` is [gap, low, high] of ``metrics.json``, or None."""
    interval = (paired[1], paired[2]) if paired is not None else None
    gap = make_gap(value - rival, rival_name, interval, percent)
    points = gap.text.lstrip("+−") + (" points" if percent else "")
    said = f"That is {points} {'more' if gap.text.startswith('+') else 'less'} than {rival_name}"
    if not gap.text.startswith(("+", "−")):
        said = f"That is level with {rival_name}"
    if interval is None:
        return f"{said}."
    doubt = "" if gap.ahead is not None else ": the two cannot be told apart on this set"
    return f"{said} (95 % interval {gap_words(gap, percent)}){doubt}."


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


def _paired(entry: Entry, measure: str, ours: tuple[str, str], theirs: tuple[str, str]) -> Any:
    """[gap, low, high] of two readings (model, source) of a region measure; None where they were not paired."""
    if ours[0] != next(iter(entry["models"])) or theirs[0] == ours[0]:
        return None
    gaps = entry.get("differences", {}).get(theirs[0], {})
    if ours[1] == theirs[1]:
        return gaps.get(f"region/{ours[1]}/{measure}")
    best = all(best_sources(entry["models"][model]).get(measure) == source for model, source in (ours, theirs))
    return gaps.get(f"region/best/{measure}") if best else None


def _interval(entry: Entry, model: str, metric: str) -> Interval | None:
    found = entry.get("intervals", {}).get(model, {}).get(metric)
    return None if found is None else (found[0], found[1])


def _region_headline(entry: Entry, measure: str, readings: list[tuple[float, str, str]], classes: int) -> Headline:
    prompted = [reading for reading in readings if reading[2] == "prompter"]
    with_prompter = {model for _, model, _ in prompted}
    value, model, source = (prompted or readings)[0]
    subject = "The Prompter" if prompted else f"{_shown(model)} with {SOURCES.get(source, source)}"
    if len(with_prompter) > 1:
        subject += f" of {_shown(model)}"
    strangers = [reading for reading in readings if reading[1] not in (with_prompter or {model})]
    rivals = strangers or [reading for reading in readings if reading[1:] != (model, source)]
    verb, follows = REGION_WORDS.get(measure, (f"reaches {{}} in “{describe(f'region/best/{measure}').family}”", "{}"))
    said = f"{subject} {verb.format(format_value(value, True))}"
    gap = ""
    if rivals:
        rival = rivals[0]
        owner = f"{_shown(rival[1])} source" if strangers else "other source"
        said += f"; the best {owner} {follows.format(format_value(rival[0], True))}"
        rival_name = f"{_shown(rival[1])} with {SOURCES.get(rival[2], rival[2])}"
        gap = _gap(value, rival[0], rival_name, _paired(entry, measure, (model, source), rival[1:]))
    if measure == "top1" and classes > 1:
        gap = f"{gap} Chance, 1 of {classes:,} classes, is {format_value(1 / classes, True)}.".lstrip()
    return Headline(said + ".", gap)


def headline(entry: Entry, classes: int = 0) -> Headline:
    """Says the key result of one data set.

    Args:
        entry: of one set in ``metrics.json``: ``models``, ``lead``, the metric of the set's own protocol, and
            ``intervals`` and ``differences`` where they are known.
        classes: number of classes of the data set, for the chance level; 0 where there are none.

    Returns:
        The set's own metric where it was measured. Else the Prompter against the best reading of models without one
        where regions were measured; otherwise the first of grounding, retrieval, classification and relations that was;
        at last whatever was.
    """
    models: Metrics = entry["models"]
    for metric in _leads(entry):
        measure = metric.removeprefix(BEST)
        if measure != metric and (readings := _readings(models, measure)):
            return _region_headline(entry, measure, readings, classes)
        known = {model: finite(metrics, metric) for model, metrics in models.items()}
        ranked = sorted(((value, model) for model, value in known.items() if value is not None), reverse=True)
        if ranked:
            return _metric_headline(entry, metric, ranked)
    return Headline("Nothing was measured.", "")


def _leads(entry: Entry) -> list[str]:
    """Metrics that may open the page, the best first."""
    models: Metrics = entry["models"]
    names = list(dict.fromkeys(name for metrics in models.values() for name in metrics))
    prompted = [
        f"{BEST}{name}" for name in REGION_WORDS if any(f"region/prompter/{name}" in own for own in models.values())
    ]
    regions = [f"{BEST}{name}" for name in REGION_WORDS]
    others = [f"{BEST}{name.split('/', 2)[2]}" if name.startswith("region/") else name for name in names]
    return [*filter(None, [entry.get("lead")]), *prompted, *regions, *OTHER_WORDS, *others]


def _metric_headline(entry: Entry, metric: str, ranked: list[tuple[float, str]]) -> Headline:
    """The best model by a metric, and the next."""
    meaning = describe(metric)
    generic = f"reaches {{}} in “{meaning.family}: {meaning.label}”" if meaning.family else f"reaches {{}} in {metric}"
    value, best = ranked[0]
    verb = OTHER_WORDS.get(metric, generic)
    said = f"{_shown(best)} {verb.format(format_value(value, meaning.percent))}"
    rest = [f"{_shown(model)} {format_value(other, meaning.percent)}" for other, model in ranked[1:2]]
    gap = ""
    if rest:
        other, rival = ranked[1]
        first = next(iter(entry["models"]))
        differences = entry.get("differences", {})
        paired = differences.get(rival, {}).get(metric) if best == first else None
        if rival == first and (turned := differences.get(best, {}).get(metric)):
            paired = [-turned[0], -turned[2], -turned[1]]
        gap = _gap(value, other, _shown(rival), paired, meaning.percent)
    return Headline("; ".join([said, *rest]) + ".", gap)


def _absent(metric: str, models: Metrics, missing: list[str]) -> str:
    headless = all("no grounding head" in why_missing(metric, models[model]) for model in missing)
    if len(missing) > 1:
        return f"of {len(missing)} others none {'has a grounding head' if headless else 'has a value'}"
    return f"{missing[0]} {'has no grounding head' if headless else 'has no value'}"


def key_facts(entry: Entry) -> list[Fact]:
    """Up to four numbers of the best model each, with the next model's beside."""
    facts = []
    models: Metrics = entry["models"]
    for metric, counts in FACTS.items():
        known = [(value, model) for model, metrics in models.items() if (value := finite(metrics, metric)) is not None]
        if not known:
            continue
        ranked = sorted(known, key=lambda pair: -pair[0])
        missing = [model for model in models if finite(models[model], metric) is None]
        against = f"{ranked[1][1]} {format_value(ranked[1][0], True)}" if len(ranked) > 1 else ""
        if not against and missing:
            against = _absent(metric, models, missing)
        interval = _interval(entry, ranked[0][1], metric)
        shown = format_range(*interval, percent=True) if interval else ""
        facts.append(Fact(format_value(ranked[0][0], True), counts, ranked[0][1], against, shown))
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
