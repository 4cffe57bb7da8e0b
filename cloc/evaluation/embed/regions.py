"""Regions for pictures that come without boxes: phrases that are looked for in each, and cells of a grid."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

from cloc.encoder import EncodedPictures, Encoder
from cloc.evaluation.cache import digest_of
from cloc.files import read_file

Box = tuple[float, float, float, float]
MAX_CELLS = 1_000
_TOGETHER = 256  # phrases that are looked for in a pass over the pictures of a batch
_CELL = -2.0  # below any likeness: where a cell and a found box coincide, the box stays


@dataclass(frozen=True, slots=True)
class RegionChoice:
    """Which regions of a picture are embedded; with neither phrases nor cells those that the data has.

    Attributes:
        phrases: looked for in every picture.
        cells: boxes that every picture has, xyxy in 0..1.
        top: most boxes of phrases a picture.
        min_score: boxes of phrases that fit less (:meth:`cloc.models.model.Cloc.likeness`) are left out.
        overlap: of two boxes whose intersection over union is more, the better one stays.

    Raises:
        ValueError: a limit out of its range.
    """

    phrases: tuple[str, ...] = ()
    cells: tuple[Box, ...] = ()
    top: int = 10
    min_score: float = -1.0
    overlap: float = 0.9

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"--top {self.top}: at least one box a picture")
        if not -1 <= self.min_score <= 1:
            raise ValueError(f"--min-score {self.min_score}: must be in -1..1")
        if not 0 < self.overlap <= 1:
            raise ValueError(f"--overlap {self.overlap}: must be above 0 and at most 1")

    @property
    def asked(self) -> bool:
        """Whether regions are made, in place of those that the data has."""
        return bool(self.phrases or self.cells)

    def plan(self) -> dict[str, Any]:
        """What the regions depend on, for the plan of the work; nothing where the data's own are taken."""
        if not self.asked:
            return {}
        limits = {"top": self.top, "min_score": self.min_score} if self.phrases else {}
        known = {"phrases": len(self.phrases), "cells": len(self.cells), "overlap": self.overlap} | limits
        return {"regions": known | {"digest": digest_of(self.phrases, self.cells)}}


@dataclass(frozen=True, slots=True)
class Proposal:
    """A box of a picture, the phrase that it was found by (empty for a cell), and how well it fits (NaN for a cell)."""

    box: Box
    phrase: str
    score: float


def read_phrases(given: str) -> tuple[str, ...]:
    """Phrases of an option: the lines of a file whose name ends in ``.txt``, else what commas part.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no phrase, or a file that is not UTF-8.
    """
    if given.lower().endswith(".txt"):
        try:
            parts = read_file(Path(given)).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"--phrases {given}: not UTF-8 ({error.reason} at byte {error.start})") from error
    else:
        parts = given.split(",")
    phrases = tuple(dict.fromkeys(" ".join(part.split()) for part in parts if part.strip()))
    if not phrases:
        raise ValueError(f"--phrases {given!r}: no phrase; give 'a dog,a red car' or a .txt file with one a line")
    return phrases


def parse_grid(given: str) -> tuple[Box, ...]:
    """Cells of one or more grids: ``3x2`` is three columns of two cells, ``4`` is ``4x4``; commas part several.

    Returns:
        Boxes from left to right and from the top down, each once.

    Raises:
        ValueError: none of these, or more than ``MAX_CELLS``.
    """
    cells: dict[Box, None] = {}
    for part in given.split(","):
        found = re.fullmatch(r"\s*(\d{1,3})(?:[x×](\d{1,3}))?\s*", part)
        columns, rows = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not columns or not rows:
            raise ValueError(f"--grid {given!r}: {part.strip()!r} is no grid; give 3x2 (columns x rows) or 1,2,4")
        if columns * rows + len(cells) > MAX_CELLS:
            raise ValueError(f"--grid {given!r}: more than {MAX_CELLS:,} cells a picture")
        for row in range(rows):
            for column in range(columns):
                cells[(column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)] = None
    return tuple(cells)


class Proposer:
    """Makes the regions of pictures.

    Args:
        encoder: finds the phrases.
        choice: which regions.

    Raises:
        ValueError: phrases, and a model that does not ground.
    """

    def __init__(self, encoder: Encoder, choice: RegionChoice) -> None:
        if choice.phrases and not can_score(encoder):
            reason = "its Prompter takes no phrases" if encoder.can_ground else "it has no Prompter and grounding head"
            raise ValueError(
                f"--phrases: {encoder.name} does not find phrases ({reason}); take --grid 3x3, or a CLOC model"
            )
        self.encoder, self.choice = encoder, choice
        self.text = encoder.encode_text(list(choice.phrases))

    def propose(self, seen: EncodedPictures) -> list[list[Proposal]]:
        """Regions of each picture: found phrases, the best first, then cells."""
        count = len(seen.pictures)
        boxes, scores = [torch.zeros(count, 0, 4)], [torch.zeros(count, 0)]
        for text in self.text.split(_TOGETHER):
            if len(text):
                found, fits = self.encoder.grounded(seen, [text] * count, return_scores=True)
                boxes.append(torch.stack(found).cpu())
                scores.append(torch.stack(fits).cpu())
        return [
            self._kept(own.clamp(0, 1), fit) for own, fit in zip(torch.cat(boxes, 1), torch.cat(scores, 1), strict=True)
        ]

    def _kept(self, boxes: Tensor, scores: Tensor) -> list[Proposal]:
        """Of one picture's boxes ``[T,4]`` and scores ``[T]`` those that stay, with the cells."""
        choice = self.choice
        usable = (scores >= choice.min_score) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        places = usable.nonzero().flatten()
        places = places[nms(boxes[places], scores[places], choice.overlap)][: choice.top]
        found, cells = boxes[places], torch.tensor(choice.cells).reshape(-1, 4)
        both = torch.cat([found, cells])
        ranks = torch.cat([scores[places], torch.full((len(cells),), _CELL)])
        stay = sorted(nms(both, ranks, choice.overlap).tolist())
        texts = [choice.phrases[place] for place in places.tolist()]
        return [_proposal(both[row], ranks[row], texts[row] if row < len(texts) else "") for row in stay]


def _proposal(box: Tensor, score: Tensor, phrase: str) -> Proposal:
    x0, y0, x1, y1 = box.tolist()
    return Proposal((x0, y0, x1, y1), phrase, float(score) if phrase else math.nan)


def can_score(encoder: Encoder) -> bool:
    """Whether a model finds phrases and says how well each box fits."""
    prompter = encoder.model.prompter
    return encoder.can_ground and prompter is not None and bool(prompter.supports_phrases)
