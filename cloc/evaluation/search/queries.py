"""What is looked for: texts, pictures, boxes of pictures; each as one embedding."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cloc.data.inputs import to_tensor
from cloc.encoder import Encoder

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for.

    Attributes:
        label: a text as it was given, or a picture's name, with its box.
        embedding: ``[D]`` on the CPU, unit norm.
        text: empty for a picture.
    """

    label: str
    embedding: Tensor
    text: str = ""


def parse_box(given: str) -> Box:
    """``x0,y0,x1,y1`` in 0..1 of the picture.

    Raises:
        ValueError: no such box.
    """
    try:
        x0, y0, x1, y1 = (float(part) for part in given.split(","))
    except ValueError as error:
        raise ValueError(f"--box {given!r}: give x0,y0,x1,y1") from error
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ValueError(
            f"--box {given!r}: numbers must be in 0..1 with x0 < x1 and y0 < y1; divide pixels by width and height"
        )
    return x0, y0, x1, y1


def check_asked(texts: Sequence[str], pictures: Sequence[Path], boxes: Sequence[Box]) -> None:
    """Refuse what cannot be looked for, before anything is loaded.

    Raises:
        ValueError: nothing is asked, an empty text, or boxes of no picture or of several.
        FileNotFoundError: no such picture.
    """
    if not texts and not pictures:
        raise ValueError("nothing to search for: give a text, or --picture FILE")
    for text in texts:
        if not text.strip():
            raise ValueError("a query is empty; give a text such as 'a brown dog'")
    if boxes and len(pictures) != 1:
        raise ValueError(f"--box: of which picture? give one --picture with it, not {len(pictures)}")
    for picture in pictures:
        if not picture.is_file():
            raise FileNotFoundError(f"--picture {picture}: no such file")


def embed_queries(
    encoder: Encoder, texts: Sequence[str], pictures: Sequence[Path], boxes: Sequence[Box], source: str
) -> list[Query]:
    """Embed what is asked, in the order given: texts, then pictures or boxes of one.

    Args:
        encoder: the model of the index.
        texts: as they are: no template is put around them.
        pictures: files.
        boxes: of the one picture; it is then not looked for as a whole.
        source: how boxes are embedded.

    Raises:
        ValueError: a file that holds no picture.
    """
    queries = [Query(text, row, text) for text, row in zip(texts, encoder.encode_text(list(texts)).cpu(), strict=True)]
    for path in pictures:
        picture = to_tensor(path, "--picture")
        if boxes:
            (rows,) = encoder.encode_regions([picture], [torch.tensor(boxes)], source)
            labels = [f"{path.name} [{_told(box)}]" for box in boxes]
        else:
            rows, labels = encoder.encode_image([picture]), [path.name]
        queries += [Query(label, row) for label, row in zip(labels, rows.cpu(), strict=True)]
    return queries


def _told(box: Box) -> str:
    return ",".join(f"{value:g}" for value in box)


def quoted(query: Query) -> str:
    """A query as it is told to people."""
    return f"“{query.label}”" if query.text else shlex.quote(query.label)
