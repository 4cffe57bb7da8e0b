"""Picture → square view with its boxes (``order → decode → views → collate → stream``).

A view is what a tower sees. Every view returns the ``content`` box, the place of the *picture* inside the view, so that
boxes can be mapped forth and back by one affine function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_area, clip_boxes_to_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

PAD_VALUE = 114  # near the mean of natural pictures: padding is neither black nor white


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
    height, width = image.shape[-2:]
    scale = size / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    if (new_height, new_width) != (height, width):
        image = tv.resize(image, [new_height, new_width], InterpolationMode.BICUBIC, antialias=True)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    if (new_height, new_width) != (size, size):
        image = tv.pad(image, [left, top, size - left - new_width, size - top - new_height], fill=PAD_VALUE)
    content = torch.tensor([left, top, left + new_width, top + new_height], dtype=torch.float32) / size
    return image, content


def crop_resize(
    image: Tensor, size: int, rng: np.random.Generator, scale: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Random-resized crop: a part of the picture, of random area and aspect, stretched to the square.

    Args:
        image: ``[3,H,W]`` uint8.
        size: side of the view in pixels.
        rng: seeded by the sample's global position.
        scale: smallest and largest share of the picture's area.

    Returns:
        ``[3,size,size]`` uint8 and the content box ``[4]``, which reaches beyond 0..1 as the picture does.
    """
    height, width = image.shape[-2:]
    area = height * width * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
    crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
    left, top = int(rng.integers(0, width - crop_width + 1)), int(rng.integers(0, height - crop_height + 1))
    view = tv.resized_crop(
        image, top, left, crop_height, crop_width, [size, size], InterpolationMode.BICUBIC, antialias=True
    )
    corners = [-left / crop_width, -top / crop_height, (width - left) / crop_width, (height - top) / crop_height]
    return view, torch.tensor(corners, dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class View:
    """The training view.

    Attributes:
        size: side in pixels.
        crop: smallest share of the area that a random-resized crop keeps; None for the paper's resize-and-pad.
        min_visible: a box keeps its phrase while at least this share of it is inside the view.
    """

    size: int
    crop: float | None = None
    min_visible: float = 0.5

    def __call__(self, image: Tensor, boxes: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Apply the view.

        Args:
            image: ``[3,H,W]`` uint8.
            boxes: ``[K,4]`` xyxy, normalized to the picture.
            rng: seeded by the sample's global position.

        Returns:
            view ``[3,size,size]``, content box ``[4]``, boxes ``[K,4]`` clipped to the view, and a mask ``[K]`` of the
            boxes that are still visible.
        """
        if self.crop is None:
            view, content = resize_pad(image, self.size)
        else:
            view, content = crop_resize(image, self.size, rng, (self.crop, 1.0))
        moved = to_view(boxes, content)
        clipped = clip_boxes_to_image(moved, (1, 1))
        visible = box_area(clipped) >= self.min_visible * box_area(moved).clamp(min=1e-12)
        return view, content.clamp(0, 1), clipped, visible
