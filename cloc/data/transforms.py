"""Makes the square view of a picture, and moves its boxes along (``order → decode → views → collate → stream``).

A view is what a tower sees. Pixels go through the kernels of ``torchvision.transforms.v2``. Boxes follow by one affine
map, the ``content`` box: the place of the *picture* inside the view. The tests hold this map against torchvision's own
for ``tv_tensors.BoundingBoxes``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

PAD_VALUE = 114  # near the mean of natural pictures: padding is neither black nor white

Jitter = tuple[tuple[int, float], ...]
"""Changes of color in their order: which of the four, and its factor."""

_JITTER = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
_SIDE = re.compile(r"\b(left|right)(?=(?:most|hand|handed|wards?)?\b)", re.IGNORECASE)


def to_view(boxes: Tensor, content: Tensor) -> Tensor:
    """Map boxes of the picture to boxes of its view.

    Args:
        boxes: ``[...,4]`` xyxy, normalized to the picture.
        content: ``[4]`` or broadcastable ``[...,4]``: the picture's place in the view.
    """
    origin, size = content[..., :2], content[..., 2:] - content[..., :2]
    return boxes * torch.cat([size, size], -1) + torch.cat([origin, origin], -1)


def to_picture(boxes: Tensor, content: Tensor) -> Tensor:
    """Map boxes of the view back to the picture, clipped to it; the inverse of :func:`to_view`."""
    origin, size = content[..., :2], content[..., 2:] - content[..., :2]
    return ((boxes - torch.cat([origin, origin], -1)) / torch.cat([size, size], -1)).clamp(0, 1)


def resize_pad(image: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Resize the long side to ``size`` and pad to a square, centered (CLOC, Table A).

    Args:
        image: ``[3,H,W]`` uint8.
        size: side of the view in pixels.

    Returns:
        ``[3,size,size]`` uint8 and the content box ``[4]``.
    """
    image = _fit(image, size)
    return _place(image, new_views(1, size)[0]), torch.from_numpy(_centered(image, size))


def crop_resize(
    image: Tensor, size: int, rng: np.random.Generator, scale: tuple[float, float]
) -> tuple[Tensor, np.ndarray]:
    """Random-resized crop: a part of the picture, of random area and aspect, stretched to the square.

    Args:
        image: ``[3,H,W]`` uint8.
        size: side of the view in pixels.
        rng: seeded by the sample's global position.
        scale: smallest and largest share of the picture's area.

    Returns:
        ``[3,size,size]`` uint8 and the content box ``[4]`` float32, which reaches beyond 0..1 as the picture does.
    """
    height, width = image.shape[-2:]
    area = height * width * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
    crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
    left, top = int(rng.integers(0, width - crop_width + 1)), int(rng.integers(0, height - crop_height + 1))
    view = _resize(image[:, top : top + crop_height, left : left + crop_width], size, size)
    corners = [-left / crop_width, -top / crop_height, (width - left) / crop_width, (height - top) / crop_height]
    return view, np.array(corners, dtype=np.float32)


def draw_jitter(amounts: Sequence[float], rng: np.random.Generator) -> Jitter:
    """Draw changes of brightness, contrast, saturation and hue, in random order, as ``v2.ColorJitter`` does.

    Args:
        amounts: of the four. A factor is drawn from [max(0, 1 - amount), 1 + amount]; the turn of the hue, in turns of
            the color wheel, from [-amount, amount]. 0 leaves that one alone.
        rng: seeded by the sample's global position.
    """
    drawn = []
    for which in rng.permutation(len(_JITTER)).tolist():
        amount = amounts[which]
        if amount:
            is_hue = _JITTER[which] is tv.adjust_hue
            low, high = (-amount, amount) if is_hue else (max(0.0, 1 - amount), 1 + amount)
            drawn.append((which, rng.uniform(low, high)))
    return tuple(drawn)


def color_jitter(image: Tensor, drawn: Jitter) -> Tensor:
    """Change the colors of a picture ``[3,H,W]`` uint8 as :func:`draw_jitter` has drawn it."""
    for which, factor in drawn:
        image = _JITTER[which](image, factor)
    return image


def mirror_text(text: str) -> str:
    """Exchange the words left and right, whole words alone, in any case ("Left hand" → "Right hand").

    So do leftmost, leftward(s), lefthand, left-handed and their opposites. A text knows no better: "turns right" is
    right in the mirror, "the right answer" is not.
    """
    return _SIDE.sub(_other_side, text)


class ViewedPicture(NamedTuple):
    """What a view makes of a picture.

    Attributes:
        image: ``[3,size,size]`` uint8.
        content: ``[4]`` float32, the picture's place in the view before it is mirrored; a crop's reaches beyond 0..1.
        mirrored: left and right have changed places; texts take :func:`mirror_text`.
        jitter: what was drawn for its colors.
    """

    image: Tensor
    content: np.ndarray
    mirrored: bool
    jitter: Jitter = ()


class ViewBoxes(NamedTuple):
    """Boxes of one or many pictures in their views.

    Attributes:
        content: ``[B,4]`` float32, each picture's place in its view, clipped to it.
        boxes: ``[K,4]`` float32 in the coordinates of the view, clipped to it.
        visible: ``[K]`` bool, whether enough of the box is inside.
    """

    content: np.ndarray
    boxes: np.ndarray
    visible: np.ndarray


@dataclass(frozen=True, slots=True)
class View:
    """The training view: resize-and-pad or random-resized crop, then color jitter, then flip.

    Pixels and boxes are apart, since the boxes of a whole batch move at once.

    Attributes:
        size: side in pixels.
        crop: smallest share of the area that a random-resized crop keeps; None for the paper's resize-and-pad.
        min_visible: a box keeps its phrase while at least this share of it is inside the view.
        jitter: amounts of brightness, contrast, saturation and hue, see :func:`draw_jitter`; None for no change.
        flip: share of pictures that are mirrored.
        resize: ``pad`` (long side, the paper) or ``squash`` (both sides: no token is spent on padding, shapes change).
    """

    size: int
    crop: float | None = None
    min_visible: float = 0.5
    jitter: tuple[float, float, float, float] | None = None
    flip: float = 0.0
    resize: str = "pad"

    def __call__(self, image: Tensor, rng: np.random.Generator, out: Tensor | None = None) -> ViewedPicture:
        """Transform the pixels.

        Args:
            image: ``[3,H,W]`` uint8.
            rng: seeded by the sample's global position; draws only for what is switched on.
            out: ``[3,size,size]`` uint8 to write the view to, for instance its row of the batch; a new one by default.
        """
        if self.crop is None:
            image = self._whole(image)
            content = _centered(image, self.size)
        else:
            image, content = crop_resize(image, self.size, rng, (self.crop, 1.0))
        jitter = () if self.jitter is None else draw_jitter(self.jitter, rng)
        image = color_jitter(image, jitter)
        mirrored = self.flip > 0 and rng.random() < self.flip
        out = new_views(1, self.size)[0] if out is None else out
        # Behind the jitter: padding keeps its color.
        return ViewedPicture(_place(image, out, mirrored), content, mirrored, jitter)

    def of_box(self, image: Tensor, box: Sequence[float], seen: ViewedPicture, out: Tensor) -> None:
        """Write the view of one box of a picture, cut out at the picture's own resolution.

        The pixels are those that the region source ``crop`` of :mod:`cloc.encoder` reads. Mirrored and jittered as the
        picture's view is; nothing is drawn. The random-resized crop of the picture's view does not touch it.

        Args:
            image: ``[3,H,W]`` uint8, as decoded.
            box: xyxy, normalized to the picture, not mirrored.
            seen: the picture's view.
            out: ``[3,size,size]`` uint8 to write to.
        """
        # Float32, as boxes come to an encoder: rounding decides about a pixel.
        part = cut(image, np.asarray(box, dtype=np.float32).tolist())
        _place(color_jitter(self._whole(part), seen.jitter), out, seen.mirrored)

    def _whole(self, image: Tensor) -> Tensor:
        """All of a picture ``[3,H,W]`` resized into the view, not yet padded."""
        return _fit(image, self.size) if self.resize == "pad" else _resize(image, self.size, self.size)

    def move(self, seen: Sequence[ViewedPicture], boxes: np.ndarray, counts: Sequence[int]) -> ViewBoxes:
        """Move boxes with their pictures.

        Args:
            seen: B pictures.
            boxes: ``[K,4]`` float32 xyxy, normalized to their pictures; those of the first picture come first.
            counts: how many boxes each picture has; B numbers, K in sum.
        """
        content = np.stack([one.content for one in seen])
        mirrored = np.array([one.mirrored for one in seen])
        place = np.repeat(content, counts, axis=0).reshape(-1, 2, 2)
        moved = (boxes.reshape(-1, 2, 2) * (place[:, 1:] - place[:, :1]) + place[:, :1]).reshape(-1, 4)
        content, moved = _mirror(content, mirrored), _mirror(moved, np.repeat(mirrored, counts))
        clipped = moved.clip(0, 1)
        visible = _area(clipped) >= self.min_visible * _area(moved).clip(min=1e-12)
        return ViewBoxes(content.clip(0, 1), clipped, visible)


def cut(picture: Tensor, box: Sequence[float]) -> Tensor:
    """Cut a normalized box out of a picture ``[3,H,W]``; at least one pixel."""
    left, top, right, bottom = pixels_of(picture, box)
    return picture[:, top:bottom, left:right]


def blank_outside(picture: Tensor, box: Sequence[float]) -> Tensor:
    """A picture ``[3,H,W]`` uint8 with the padding's color all around a normalized box; at least one pixel stays."""
    left, top, right, bottom = pixels_of(picture, box)
    blank = torch.full_like(picture, PAD_VALUE)
    blank[:, top:bottom, left:right] = picture[:, top:bottom, left:right]
    return blank


def pixels_of(picture: Tensor, box: Sequence[float]) -> tuple[int, int, int, int]:
    """Pixels left, top, right (exclusive), bottom of a normalized box in a picture ``[3,H,W]``; at least one each."""
    height, width = picture.shape[-2:]
    left, top = min(int(box[0] * width), width - 1), min(int(box[1] * height), height - 1)
    return left, top, max(left + 1, round(box[2] * width)), max(top + 1, round(box[3] * height))


def _fit(image: Tensor, size: int) -> Tensor:
    """Resize so that the long side is ``size``."""
    height, width = image.shape[-2:]
    scale = size / max(height, width)
    return _resize(image, max(1, round(height * scale)), max(1, round(width * scale)))


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with antialias; decoded pictures stay channels-last, which is the fastest."""
    resized: Tensor = tv.resize(image, [height, width], InterpolationMode.BICUBIC, antialias=True)
    return resized


def _centered(image: Tensor, size: int) -> np.ndarray:
    """Place of a picture that fits into the view, ``[4]``."""
    height, width = image.shape[-2:]
    top, left = (size - height) // 2, (size - width) // 2
    return np.array([left, top, left + width, top + height], dtype=np.float32) / size


def new_views(count: int, size: int, memory: Tensor | None = None) -> Tensor:
    """Room for views, ``[count,3,size,size]`` uint8, channels-last as decoded pictures are.

    Args:
        count: of views.
        size: side in pixels.
        memory: ``[count*size*size*3]`` uint8 to lay them in; new memory by default.
    """
    if memory is None:
        # NumPy asks for huge pages, PyTorch does not: each page of memory that is new costs a microsecond.
        memory = torch.from_numpy(np.empty(count * size * size * 3, dtype=np.uint8))
    return memory.view(count, size, size, 3).permute(0, 3, 1, 2)


def _place(image: Tensor, out: Tensor, mirrored: bool = False) -> Tensor:
    """Copy a picture to the center of its view, mirror it, and fill the rest with the padding's color."""
    (height, width), size = image.shape[-2:], out.shape[-1]
    top, left = (size - height) // 2, (size - width) // 2
    if mirrored:
        image, left = tv.horizontal_flip(image), size - width - left
    bottom, right = top + height, left + width
    if height < size:
        out[:, :top].fill_(PAD_VALUE)
        out[:, bottom:].fill_(PAD_VALUE)
    if width < size:
        out[:, top:bottom, :left].fill_(PAD_VALUE)
        out[:, top:bottom, right:].fill_(PAD_VALUE)
    out[:, top:bottom, left:right].copy_(image)
    return out


def _mirror(boxes: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Exchange left and right of some boxes ``[K,4]``."""
    return np.where(which[:, None], [1, 0, 1, 0] + boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1], boxes).astype(np.float32)


def _area(boxes: np.ndarray) -> np.ndarray:
    area: np.ndarray = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area


def _other_side(match: re.Match[str]) -> str:
    word = match[0]
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
