"""What the report shows: filled by ``compare.py`` and ``example_pictures.py``, rendered by ``page.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image

from cloc.evaluation.metrics.catalog import ALL, Catalog
from cloc.evaluation.report.metrics_file import Cost, Entry
from cloc.evaluation.report.picture_drawing import Box
from cloc.evaluation.report.splits import Classes, Split


class Answer(NamedTuple):
    """What a model calls a box, and whether that is one of its names."""

    text: str
    right: bool


@dataclass
class Case:
    """One held-out picture with what the models say about it.

    Attributes:
        key: name of the picture in its data set.
        image: the picture, unpadded, of any size.
        boxes: true boxes, xyxy, normalized to the picture.
        phrases: the true phrase of each box.
        named: model label (``"cloc · prompter"``) → what it calls each box.
        grounded: model label → the box it predicts for each phrase; may be empty.
        more: boxes of the picture that are not shown.
    """

    key: str
    image: Image.Image
    boxes: list[Box]
    phrases: list[str]
    named: dict[str, list[Answer]] = field(default_factory=dict)
    grounded: dict[str, list[Box]] = field(default_factory=dict)
    more: int = 0

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
class Heat:
    """How similar the places of a picture are to a phrase.

    Attributes:
        key: name of the picture.
        image: the picture.
        phrase: the text.
        boxes: true boxes of the phrase.
        maps: model label → cosines ``[h,w]`` over the whole picture.
    """

    key: str
    image: Image.Image
    phrase: str
    boxes: list[Box]
    maps: dict[str, np.ndarray]


@dataclass
class Gallery:
    """Some pictures, and in words how they were chosen."""

    title: str
    chosen: str
    cases: list[Case]


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
        entry: of ``metrics.json``: ``models``, ``counts``, and ``intervals`` and ``differences`` where they were
            computed; differences are taken from the first model.
        typical: the picture that opens the page.
        galleries: the pictures further down.
        heats: similarity maps of phrases.
        classes: wins and losses by class, or None where boxes have none.
        sizes: the same by box size.
    """

    name: str
    description: str
    entry: Entry
    typical: Case | None = None
    galleries: list[Gallery] = field(default_factory=list)
    heats: list[Heat] = field(default_factory=list)
    classes: Classes | None = None
    sizes: list[Split] = field(default_factory=list)

    @property
    def models(self) -> Mapping[str, Mapping[str, float]]:
        """Model → metric → value."""
        return self.entry["models"]

    @property
    def counts(self) -> Mapping[str, int]:
        """How much was measured on: images, captions, regions, phrases, classes."""
        return self.entry.get("counts", {})


@dataclass
class ReportData:
    """All that the page shows.

    Attributes:
        title: what was compared, on what.
        command: the command that made the report.
        data: one entry per data set; the first gives the headline.
        curves: learning curves of any metric and model.
        versions: where → package → version.
        notes: attributions and remarks; addresses in them become links.
        training: model → fact → value (samples seen, training seconds, parameters, …).
        bootstrap: resamples behind the intervals; 0 where there are none.
        catalog: metrics, which say of themselves how they are shown.
        cost: model → what it costs.
    """

    title: str
    command: str
    data: list[DatasetReport]
    curves: list[Curve] = field(default_factory=list)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    training: dict[str, dict[str, str | float]] = field(default_factory=dict)
    bootstrap: int = 0
    catalog: Catalog = ALL
    cost: Mapping[str, Cost] = field(default_factory=dict)
