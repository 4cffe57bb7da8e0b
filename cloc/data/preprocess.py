"""Makes the view of a picture that a loaded model wants (serves ``encoder``; training has its own in ``views``).

Ours resizes the long side and pads. CLIP resizes the short side and cuts the center out; SigLIP squeezes the picture
into the square. Every view also returns the picture's place in it, so that boxes can be mapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from cloc.data.transforms import PAD_VALUE, resize_pad

MODES = {"longest": "pad", "shortest": "crop", "squash": "squash"}  # open_clip's names → ours
INTERPOLATIONS = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}
_MOST_CUT = 16  # times the view: a larger short side leaves a speck of the picture, and takes all memory
PILLOW = {2: "bilinear", 3: "bicubic"}  # PIL.Image.Resampling, as Hugging Face stores it


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a model wants its pictures.

    Attributes:
        mode: ``pad`` (long side, padded), ``crop`` (short side, center) or ``squash`` (both sides, aspect lost).
        interpolation: ``bicubic`` or ``bilinear``; always antialiased, on uint8.
        short_side: of the resized picture before a center crop; 0 for the view's own size.

    Raises:
        ValueError: an unknown mode or interpolation.
    """

    mode: str = "pad"
    interpolation: str = "bicubic"
    short_side: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES.values() or self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"no such preprocessing: mode={self.mode!r}, interpolation={self.interpolation!r}")

    @property
    def whole(self) -> bool:
        """Whether the view holds the whole picture, so that any box of it can be found there."""
        return self.mode != "crop"

    def describe(self, size: int) -> str:
        """What is done to a picture, for model cards."""
        how = {
            "pad": f"the long side resized to {size} px, centered, the rest filled with {PAD_VALUE}",
            "crop": f"the short side resized to {self.short_side or size} px and the center cut out",
            "squash": f"both sides resized to {size} px, whatever the shape",
        }[self.mode]
        return f"{how} ({self.interpolation}, antialiased)"

    def __call__(self, image: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Make the view.

        Args:
            image: ``[3,H,W]`` uint8.
            size: side of the view in pixels.

        Returns:
            ``[3,size,size]`` uint8, and the picture's place in it ``[4]``, which reaches beyond 0..1 for a crop.
        """
        if self.mode == "pad":
            return resize_pad(image, size)
        height, width = image.shape[-2:]
        new_height = new_width = size
        if self.mode == "crop":
            scale = (self.short_side or size) / min(height, width)
            new_height, new_width = max(size, int(height * scale)), max(size, int(width * scale))
        kind = INTERPOLATIONS[self.interpolation]
        if (new_height, new_width) != (height, width):
            image = tv.resize(image, [new_height, new_width], kind, antialias=True)
        top, left = round((new_height - size) / 2), round((new_width - size) / 2)
        content = torch.tensor([-left, -top, new_width - left, new_height - top], dtype=torch.float32) / size
        return image[:, top : top + size, left : left + size], content


def from_open_clip(config: Mapping[str, Any]) -> Preprocess:
    """open_clip's ``preprocess_cfg`` → ours.

    Raises:
        ValueError: it pads with another color than ours.
    """
    mode = MODES.get(config.get("resize_mode") or "shortest", str(config.get("resize_mode")))
    if mode == "pad" and config.get("fill_color", 0) != PAD_VALUE:
        raise ValueError(f"preprocess_cfg.fill_color={config.get('fill_color', 0)}: cloc pads with {PAD_VALUE} only")
    return Preprocess(mode, config.get("interpolation") or "bicubic")


def from_hugging_face(config: Mapping[str, Any], size: int) -> Preprocess:
    """The image processor of a CLIP or SigLIP folder → ours.

    Args:
        config: content of ``preprocessor_config.json``.
        size: side of the model's view, which must be what the processor makes.

    Raises:
        ValueError: it makes views of another size, or does not resize.
    """
    target = config.get("size", {})
    target = {"shortest_edge": target} if isinstance(target, int) else target
    interpolation = PILLOW.get(config.get("resample", 3), str(config.get("resample")))
    if not config.get("do_resize", True):
        raise ValueError("preprocessor_config.json: do_resize=false; cloc always resizes to the model's size")
    if config.get("do_center_crop") and "shortest_edge" in target:
        short = target["shortest_edge"]
        if isinstance(short, bool) or not isinstance(short, int) or not 1 <= short <= _MOST_CUT * size:
            raise ValueError(
                f"preprocessor_config.json: size.shortest_edge={str(short)[:100]}: a number of pixels up to "
                f"{_MOST_CUT} times the view's {size} is needed; correct it"
            )
        crop = config.get("crop_size", size)
        made = {crop} if isinstance(crop, int) else set(crop.values())
        result = Preprocess("crop", interpolation, short)
    elif {"height", "width"} <= target.keys():
        made, result = {target["height"], target["width"]}, Preprocess("squash", interpolation)
    else:
        raise ValueError(f"preprocessor_config.json: size={config.get('size')} without a center crop is not known")
    if made != {size}:
        raise ValueError(f"preprocessor_config.json makes views of {sorted(made)} px, the model takes {size} px")
    return result
