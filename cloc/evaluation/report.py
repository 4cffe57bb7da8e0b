"""The evaluation report: one self-contained page from metrics, curves and held-out pictures.

The last step of ``evaluation``: ``eval.py`` measures, gathers a ``ReportData`` and calls ``write_report``. The page
exists for two readers: the researcher who compares numbers, and the newcomer who wants to see what a model says about
a picture. It needs no network, no script and no other file::

    write_report(ReportData(title="CLOC and CLIP on OpenMoji scenes", …), Path("runs/demo/report"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from cloc.evaluation import headline, pictures, table
from cloc.evaluation.pictures import Box, Encoded, Line, Shape

TEMPLATES = Path(__file__).parent / "templates"
PICTURE_BUDGET = 3_400_000  # characters of data URIs; leaves room for text and SVG below 4 MB
PICTURE_STEPS = ((640, 82), (520, 78), (420, 72), (320, 62))  # (long side in pixels, JPEG quality), tried in order
ARTICLES = ("a ", "an ", "the ")


@dataclass
class Case:
    """One held-out picture with what the models say about it.

    Attributes:
        key: name of the picture in its data set.
        image: the picture, unpadded, of any size.
        boxes: true boxes, xyxy, normalized to the picture.
        phrases: the true phrase of each box.
        named: model label (``"cloc · prompter"``) → the phrase or class it gives each box.
        grounded: model label → the box it predicts for each phrase; may be empty.
    """

    key: str
    image: Image.Image
    boxes: list[Box]
    phrases: list[str]
    named: dict[str, list[str]] = field(default_factory=dict)
    grounded: dict[str, list[Box]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses lists of unequal length."""
        lengths = {"phrases": len(self.phrases)}
        lengths |= {f"named[{model!r}]": len(answers) for model, answers in self.named.items()}
        lengths |= {f"grounded[{model!r}]": len(boxes) for model, boxes in self.grounded.items() if boxes}
        for name, length in lengths.items():
            if length != len(self.boxes):
                raise ValueError(
                    f"case {self.key!r}: {name} has {length} entries for {len(self.boxes)} boxes; give one for each box"
                )


@dataclass
class Curve:
    """A learning curve: ``values`` of a metric after so many ``samples`` and ``seconds`` of training."""

    model: str
    metric: str
    samples: list[float]
    seconds: list[float]
    values: list[float]

    def __post_init__(self) -> None:
        """Refuses lists of unequal length."""
        lengths = (len(self.samples), len(self.seconds), len(self.values))
        if len(set(lengths)) > 1:
            raise ValueError(
                f"curve of {self.metric!r} for {self.model!r}: samples, seconds and values have lengths {lengths}; "
                "they must be equal"
            )


@dataclass
class DatasetReport:
    """What was measured on one data set.

    Attributes:
        name: as in ``metrics.json``.
        description: one or two sentences for a newcomer.
        metrics: model → metric → value, names as in ``metrics.json``; differences are taken from the first model.
        cases: held-out pictures for the galleries.
        counts: how much was measured on: images, captions, regions, phrases, classes.
    """

    name: str
    description: str
    metrics: dict[str, dict[str, float]]
    cases: list[Case] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class ReportData:
    """All that the page shows.

    Attributes:
        title: what was compared, on what.
        command: the command that made the report.
        data: one entry per data set; the first gives the headline.
        curves: learning curves of any metric and model.
        versions: package → version.
        notes: attributions and remarks; addresses in them become links.
        training: model → fact → value (samples seen, seconds, parameters, step, …).
    """

    title: str
    command: str
    data: list[DatasetReport]
    curves: list[Curve] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    training: dict[str, dict[str, str | float]] = field(default_factory=dict)


def same_phrase(first: str, second: str) -> bool:
    """Whether two phrases are equal but for case, spaces and a leading article."""
    plain = []
    for phrase in (first, second):
        text = " ".join(phrase.casefold().split())
        plain.append(next((text.removeprefix(article) for article in ARTICLES if text.startswith(article)), text))
    return plain[0] == plain[1]


def _owner(label: str) -> str:
    """The model in a label such as ``"cloc · prompter"``."""
    return label.partition(" · ")[0]


def _styles(data: ReportData) -> dict[str, int]:
    """Model → number of its color and dashes, alike over the whole page."""
    names = [model for entry in data.data for model in entry.metrics]
    names += [curve.model for curve in data.curves]
    names += [_owner(label) for entry in data.data for case in entry.cases for label in (*case.named, *case.grounded)]
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _listing(case: Case) -> str:
    return ", ".join(f"{number} {phrase}" for number, phrase in enumerate(case.phrases, 1)) or "no box"


def _naming(case: Case, picture: Encoded) -> dict[str, Any]:
    """One card of "What is in the box?"."""
    answers = {
        label: [(text, same_phrase(text, truth)) for text, truth in zip(said, case.phrases, strict=True)]
        for label, said in case.named.items()
    }
    return {
        "key": case.key,
        "picture": picture,
        "overlay": pictures.overlay([Shape(n, box) for n, box in enumerate(case.boxes, 1)], *case.image.size),
        "alt": f"Picture {case.key} with numbered boxes: {_listing(case)}",
        "models": [(label, _owner(label), sum(ok for _, ok in given), len(given)) for label, given in answers.items()],
        "rows": [
            (number, truth, [(label, *given[number - 1]) for label, given in answers.items()])
            for number, truth in enumerate(case.phrases, 1)
        ],
    }


def _overlap(case: Case, index: int, predicted: Box) -> float | None:
    """IoU of a prediction with the best of the boxes that the phrase owns."""
    owned = [box for box, phrase in zip(case.boxes, case.phrases, strict=True) if phrase == case.phrases[index]]
    overlaps = [value for box in owned if (value := pictures.iou(box, predicted)) is not None]
    return max(overlaps, default=None)


def _grounding(case: Case, picture: Encoded) -> dict[str, Any]:
    """One card of "Where is it?"."""
    given = {label: boxes for label, boxes in case.grounded.items() if boxes}
    shapes = [Shape(number, box) for number, box in enumerate(case.boxes, 1)]
    for pattern, boxes in enumerate(given.values(), 1):
        near = [(pictures.iou(box, truth) or 0) >= 0.5 for box, truth in zip(boxes, case.boxes, strict=True)]
        shapes += [Shape(n, box, pattern, not hit) for n, (box, hit) in enumerate(zip(boxes, near, strict=True), 1)]
    overlaps = [
        [(label, _overlap(case, index, boxes[index])) for label, boxes in given.items()]
        for index in range(len(case.phrases))
    ]
    return {
        "key": case.key,
        "picture": picture,
        "overlay": pictures.overlay(shapes, *case.image.size),
        "alt": f"Picture {case.key} with true boxes (solid) and predicted boxes (dashed): {_listing(case)}",
        "models": [(label, _owner(label), pictures.DASHES[n]) for n, label in enumerate(given, 1)],
        "rows": [(index + 1, phrase, overlaps[index]) for index, phrase in enumerate(case.phrases)],
    }


def _uses(case: Case) -> int:
    """In how many galleries a picture stands."""
    return bool(case.named) + any(case.grounded.values())


def _encode(cases: Sequence[Case], budget: int) -> list[Encoded]:
    """Encodes as many of the cases as the budget holds, smaller and smaller before any is left out."""
    encoded: list[Encoded] = []
    for long_side, quality in PICTURE_STEPS:
        encoded = [pictures.encode_picture(case.image, long_side, quality) for case in cases]
        if sum(len(picture.uri) * _uses(case) for picture, case in zip(encoded, cases, strict=True)) <= budget:
            return encoded
    kept, spent = [], 0
    for picture, case in zip(encoded, cases, strict=True):
        spent += len(picture.uri) * _uses(case)
        if spent > budget:
            break
        kept.append(picture)
    return kept


def _galleries(data: ReportData) -> list[dict[str, Any]]:
    """The cards of both galleries for each data set; the budget is shared in equal parts."""
    galleries = []
    for entry in data.data:
        encoded = _encode(entry.cases, PICTURE_BUDGET // len(data.data))
        shown = list(zip(entry.cases, encoded, strict=False))
        naming = [_naming(case, picture) for case, picture in shown if case.named]
        grounding = [_grounding(case, picture) for case, picture in shown if any(case.grounded.values())]
        left_out = len(entry.cases) - len(encoded)
        galleries.append({"name": entry.name, "naming": naming, "grounding": grounding, "left_out": left_out})
    return galleries


def _curves(data: ReportData, styles: dict[str, int]) -> list[dict[str, Any]]:
    """One entry per metric: its charts over samples and seconds, and the last values in words."""
    charts = []
    for metric in dict.fromkeys(curve.metric for curve in data.curves):
        meaning = table.describe(metric)
        curves = [curve for curve in data.curves if curve.metric == metric]
        drawn: list[Markup] = []
        for axis in ("samples", "seconds"):
            lines = [Line(curve.model, styles[curve.model], getattr(curve, axis), curve.values) for curve in curves]
            chart = pictures.curve_chart(lines, axis, f"{metric} over {axis} of training", meaning.percent)
            drawn += [] if chart is None else [chart]
        last = [
            f"{curve.model} {table.format_value(curve.values[-1], meaning.percent)} after "
            f"{headline.plain_number(curve.samples[-1])} samples, {headline.plain_seconds(curve.seconds[-1])}"
            for curve in curves
            if curve.values
        ]
        title = f"{meaning.family} · {meaning.label}" if meaning.family else metric
        charts.append({"title": title, "reading": meaning.reading, "charts": drawn, "last": "; ".join(last)})
    return charts


def render(data: ReportData) -> str:
    """Renders the page as HTML text."""
    styles = _styles(data)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        report=data,
        style=lambda label: styles.get(_owner(label), 0) % 6,
        headlines=[headline.headline(entry.metrics, entry.counts.get("classes", 0)) for entry in data.data],
        facts=headline.key_facts(data.data[0].metrics) if data.data else [],
        comparisons=[table.compare(entry.metrics) for entry in data.data],
        absences=[table.absences(table.compare(entry.metrics)) for entry in data.data],
        source_meaning=table.SOURCE_MEANING,
        galleries=_galleries(data),
        curves=_curves(data, styles),
        training_keys=list(dict.fromkeys(key for facts in data.training.values() for key in facts)),
        number=headline.plain_number,
    )


def write_report(data: ReportData, folder: Path) -> Path:
    """Writes the report as one self-contained page of at most about 4 MB.

    Args:
        data: what to show; empty lists are stated on the page.
        folder: where ``index.html`` goes; made where it is missing.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    page.write_text(render(data), encoding="utf-8", errors="replace")
    return page
