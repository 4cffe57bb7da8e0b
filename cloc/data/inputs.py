"""Turns what a caller gives (one or many, of any kind) into lists of pictures, texts and boxes (serves ``encoder``).

A string is one text and never a sequence of letters; a picture is one picture and never a sequence of rows. What has
one meaning is taken, what has none is refused with what to give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cloc.contracts import BadSample
from cloc.data.decode import decode_rgb, pillow_rgb

Picture = Image.Image | Tensor | np.ndarray | str | Path
Pictures = Picture | Sequence[Picture]
Phrases = str | Sequence[str] | Sequence[Sequence[str]]
NO_LISTS = (bytes, bytearray, memoryview, Mapping, Set)  # can be iterated over, and are no lists of anything
TO_BYTES = "scale it to 0..255 and convert it: (picture * 255).round().to(torch.uint8), or .astype('uint8')"


def as_texts(texts: Any, name: str = "texts") -> list[str]:
    """One text or many → a list.

    Args:
        texts: a string, or strings in a list, tuple, array, column or generator.
        name: of the argument, for messages.

    Raises:
        TypeError: anything else.
    """
    if isinstance(texts, np.ndarray):
        texts = texts.tolist()  # one of no dimension holds one text
    if isinstance(texts, str):
        return [str(texts)]
    listed = _listed(texts, name, "a string, or a list of strings")
    for i, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{i}] is {_kind(text)}; give one flat list of strings")
    return [str(text) for text in listed]


def as_phrases(phrases: Any, pictures: int, lone: bool) -> list[list[str]]:
    """Phrases of pictures → a list of texts for each picture.

    Args:
        phrases: a string, which is looked for in every picture; strings, where there is one picture; or a list of texts
            for each picture.
        pictures: how many there are.
        lone: there is one, given by itself and not in a list.

    Raises:
        TypeError: no texts, or strings that may belong to any of several pictures.
    """
    if isinstance(phrases, str):
        return [[str(phrases)] for _ in range(pictures)]
    rows = _listed(phrases, "phrases", "a list of texts for each picture")
    if pictures == 1 and all(isinstance(row, str) for row in rows) and (rows or lone):
        return [as_texts(rows, "phrases")]
    for i, row in enumerate(rows):
        if isinstance(row, str):
            raise TypeError(
                f"phrases[{i}]={row[:40]!r} is a string; give a list of texts for each picture: [[{row[:40]!r}], …]"
            )
    return [as_texts(row, f"phrases[{i}]") for i, row in enumerate(rows)]


def is_picture(value: Any) -> bool:
    """Whether a value stands for one picture by itself."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim in (2, 3) and value.dtype != object
    return isinstance(value, Image.Image | str | Path)


def as_pictures(pictures: Any) -> list[Tensor]:
    """One picture or many → ``[3,H,W]`` uint8 each, upright.

    Args:
        pictures: a :data:`Picture`; several in a list, tuple, column or generator; or a batch, as tensor ``[B,3,H,W]``
            or array ``[B,H,W,3]``.

    Raises:
        TypeError: anything else, as :func:`to_tensor`.
        ValueError: as :func:`to_tensor`.
    """
    if is_picture(pictures):
        return [to_tensor(pictures)]
    listed = _listed(pictures, "pictures", "a picture, or a list of pictures")
    return [to_tensor(picture, f"pictures[{i}]") for i, picture in enumerate(listed)]


def to_tensor(picture: Picture, name: str = "the picture") -> Tensor:
    """Any picture → upright RGB ``[3,H,W]`` uint8.

    Args:
        picture: a PIL image, a tensor ``[3,H,W]`` uint8, an array ``[H,W,3]`` or ``[H,W]`` uint8, or a file's path.
        name: of the argument, for messages.

    Raises:
        TypeError: neither of them.
        FileNotFoundError: a path without file.
        ValueError: a file that holds no picture, or a picture without pixels.
    """
    if isinstance(picture, str | Path):
        return _read(picture, name)
    if isinstance(picture, np.ndarray):
        picture = _from_array(picture, name)
    if isinstance(picture, Image.Image):
        picture = pillow_rgb(picture)
    if not isinstance(picture, Tensor):
        raise TypeError(f"{name} must be a PIL image or a tensor, got {_kind(picture)}; an array or a path will do too")
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
        remedy = TO_BYTES if picture.dtype.is_floating_point else "channels come first"
        shape = list(picture.shape)
        raise TypeError(f"{name}: a picture tensor must be [3,H,W] uint8, got {shape} {picture.dtype}; {remedy}")
    if not picture.numel():
        raise ValueError(f"{name} has no pixel: {list(picture.shape)}")
    return picture


def _from_array(picture: np.ndarray, name: str) -> Image.Image:
    if (
        picture.dtype != np.uint8
        or picture.ndim not in (2, 3)
        or (picture.ndim == 3 and picture.shape[2] not in (3, 4))
    ):
        remedy = TO_BYTES if picture.dtype.kind == "f" else "channels come last"
        raise TypeError(
            f"{name}: a picture array must be [H,W,3] or [H,W] uint8, got {list(picture.shape)} {picture.dtype}; "
            f"{remedy}"
        )
    if not picture.size:
        raise ValueError(f"{name} has no pixel: {list(picture.shape)}")
    return Image.fromarray(np.ascontiguousarray(picture))


def _read(path: str | Path, name: str) -> Tensor:
    file = Path(path).expanduser()
    if not file.is_file():
        if isinstance(path, str):  # more often a text, a URL or base64 than a path that was mistyped
            raise TypeError(f"{name} must be a PIL image or a tensor, got str {path[:60]!r}, which is no file's path")
        raise FileNotFoundError(f"{name}: {path} is not there")
    try:
        return decode_rgb(file.read_bytes())
    except BadSample as error:
        raise ValueError(f"{name}: {path}: {error}") from error


def as_boxes(boxes: Any, lone: bool, check: bool = True) -> list[Tensor]:
    """Boxes of pictures → ``[K,4]`` for each, xyxy normalized to the picture.

    Args:
        boxes: for each picture ``[K_i,4]`` as nested lists, array or tensor; for a lone picture also these alone, or
            one box of four numbers.
        lone: there is one picture, given by itself and not in a list.
        check: look at the values too; boxes that a model has found may be without area.

    Raises:
        TypeError: no list.
        ValueError: as :func:`check_boxes`.
    """
    rows = _listed(boxes, "boxes", "a list of boxes for each picture")
    if lone and not (len(rows) == 1 and _depth(rows[0]) == 2):
        rows = [rows]
    read = check_boxes if check else box_rows
    return [read(row, f"boxes[{i}]") for i, row in enumerate(rows)]


def check_boxes(boxes: Any, name: str) -> Tensor:
    """Validate ``[K,4]`` normalized xyxy boxes; one box of four numbers is ``[1,4]``.

    Raises:
        TypeError: no numbers.
        ValueError: of another shape, inverted, without area, not finite or not normalized.
    """
    rows = box_rows(boxes, name)
    if not torch.isfinite(rows).all() or (rows < -0.01).any() or (rows > 1.01).any():
        raise ValueError(
            f"{name}={rows.tolist()[:3]}…: boxes must be finite and normalized to 0..1 of the picture, xyxy"
        )
    if (rows[:, 2:] <= rows[:, :2]).any():
        raise ValueError(f"{name}: a box has no area or is inverted; give x0 < x1 and y0 < y1")
    return rows.clamp(0, 1)


def box_rows(boxes: Any, name: str) -> Tensor:
    """Numbers of boxes → ``[K,4]`` float32 on the CPU.

    Raises:
        TypeError: no numbers.
        ValueError: of another shape.
    """
    try:
        if isinstance(boxes, Sequence) and boxes and all(isinstance(box, Tensor | np.ndarray) for box in boxes):
            boxes = torch.stack([torch.as_tensor(box).cpu() for box in boxes])
        rows = torch.as_tensor(boxes, dtype=torch.float32).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        kind = ValueError if isinstance(boxes, Sequence) and not isinstance(boxes, str) else TypeError
        raise kind(f"{name} is {_kind(boxes)}; give [K,4] numbers, and [] for no box ({error})") from error
    if rows.numel() and (rows.ndim not in (1, 2) or rows.shape[-1] != 4):
        raise ValueError(f"{name} has the shape {list(rows.shape)}; give [K,4]: x0, y0, x1, y1 of each box")
    return rows.reshape(-1, 4)


def _depth(value: Any) -> int:
    """How deep a list of boxes is nested: 0 for a number, 1 for a box, 2 for boxes; an empty list may hold any."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim
    if isinstance(value, Sequence):
        return 1 + (_depth(value[0]) if value else 1)
    return 0


def _listed(values: Any, name: str, wanted: str) -> list[Any]:
    dimensions = getattr(values, "ndim", 1)
    table = dimensions > 1 and not isinstance(values, Tensor | np.ndarray)  # gives the names of its columns
    if table or not dimensions or not isinstance(values, Iterable) or isinstance(values, NO_LISTS):
        raise TypeError(f"{name} is {_kind(values)}; give {wanted}")
    return list(values)


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
