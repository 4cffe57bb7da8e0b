"""``export … --resize``: another view than that of the training, with what it changes in figures.

Between ``run_weights`` and the writer. The whole folder then has the new view: image processor, ``cloc.load`` and the
code for AutoModel. How far answers move is measured before anything is written, and stands in ``cloc.json``,
``parity.json`` and the card.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.ops import box_iou

from cloc.data.preprocess import Preprocess
from cloc.encoder import Encoder
from cloc.export.verify import BOXES, PICTURE_SIZES, TEXTS, Probe, Row, make_probe

GENERATED = len(PICTURE_SIZES)  # pictures of a probe that come before those of a folder


@dataclass(frozen=True)
class Figure:
    """How far one kind of answer moved.

    Attributes:
        what: kind of answer, and on which pictures.
        unit: ``cosine``, or ``IoU`` for boxes that were found; 1 is no change.
        mean: over all answers.
        least: of any answer.
    """

    what: str
    unit: str
    mean: float
    least: float


@dataclass(frozen=True)
class ViewChange:
    """One view in place of another.

    Attributes:
        trained: ``pad`` or ``squash``: how pictures became square in training.
        exported: the same in the export.
        figures: how far answers moved.
    """

    trained: str
    exported: str
    figures: list[Figure]

    def stored(self) -> dict[str, Any]:
        """For ``cloc.json``."""
        return asdict(self)

    def rows(self) -> list[Row]:
        """Rows of parity that inform only: the largest of 1 - cosine, or of 1 - IoU."""
        said = f"{self.exported} instead of {self.trained}"
        return [Row(f"{said}: 1 - {one.unit} of {one.what}", 1 - one.least, 1.0, None) for one in self.figures]

    def markdown(self) -> str:
        """Section of the card."""
        lines = [f"| {one.what} | {one.unit} | {one.mean:.4f} | {one.least:.4f} |" for one in self.figures]
        return "\n".join(
            [
                f"\n## Another view than in training\nTrained on views made by `{self.trained}`, exported with "
                f"`{self.exported}` (`--resize {self.exported}`). Answers to the new view against those to the view of "
                "the training; 1 is no change:\n",
                "| answers | | mean | least |\n|---|---|---|---|",
                *lines,
                "",
            ]
        )


def change_view(encoder: Encoder, resize: str, pictures: Path | None = None) -> ViewChange | None:
    """Give a model another view, and measure what that changes.

    Args:
        encoder: gets the new view.
        resize: ``pad`` or ``squash``.
        pictures: folder to measure on besides the generated pictures.

    Returns:
        None where the model has this view already.
    """
    trained = encoder.preprocess.mode
    if resize == trained:
        return None
    probe = make_probe(encoder, pictures)
    before = _answers(encoder, probe)
    encoder.preprocess = Preprocess(resize)
    tower: Any = encoder.model.image
    tower.resize = resize
    return ViewChange(trained, resize, list(_figures(before, _answers(encoder, probe))))


def _answers(encoder: Encoder, probe: Probe) -> dict[str, list[Tensor]]:
    """For each picture its embedding, those of its boxes, and the boxes of phrases."""
    shown: Sequence[Image] = probe.pictures
    seen = encoder.see(probe.pictures)
    found = {"pictures": list(seen.features.pooled.unsqueeze(1))}
    if encoder.model.prompter is not None:
        found["boxes"] = encoder.regions(seen, [torch.tensor(BOXES)] * len(shown))
    if encoder.can_ground:
        found["phrases"] = encoder.grounded(seen, [encoder.encode_text(TEXTS)] * len(shown))
    return {name: [rows.cpu() for rows in answers] for name, answers in found.items()}


def _figures(before: dict[str, list[Tensor]], after: dict[str, list[Tensor]]) -> Iterator[Figure]:
    for name, ours in before.items():
        unit = "IoU" if name == "phrases" else "cosine"
        likeness = [_alike(one, other, unit) for one, other in zip(ours, after[name], strict=True)]
        groups = {"generated": likeness[:GENERATED], "of --pictures": likeness[GENERATED:]}
        for which, values in groups.items():
            if values:
                joined = torch.cat(values)
                yield Figure(f"{name}, {len(values)} {which}", unit, joined.mean().item(), joined.min().item())


def _alike(one: Tensor, other: Tensor, unit: str) -> Tensor:
    # Two boxes without area have no IoU; they count as apart.
    return box_iou(one, other).diagonal().nan_to_num(0.0) if unit == "IoU" else (one * other).sum(-1)
