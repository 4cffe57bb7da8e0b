"""The pixels' mean and deviation stay what they are, whatever precision a model passes through."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cloc.models.build import build_model
from cloc.models.model import Cloc

IMAGE = {"_target_": "cloc.models.image.OpenClipTower", "image_size": 32}
SIZES = {"width": 16, "layers": 1, "head_width": 8, "patch_size": 16}
TEXT = {"_target_": "cloc.models.text.ClipText", "options": {"width": 16, "heads": 2, "layers": 1}}


def model() -> Cloc:
    torch.manual_seed(0)
    parts = {"image": IMAGE | {"options": SIZES}, "text": TEXT, "prompter": None, "grounding": None}
    return build_model({"joint_dim": 16, **parts}).eval()


@pytest.mark.parametrize(
    "there",
    [
        lambda model: model.to(torch.bfloat16),
        lambda model: model.bfloat16(),
        lambda model: model.half(),
        lambda model: model.to(torch.bfloat16).to("cpu"),
    ],
)
@torch.no_grad()
def test_pixels_are_normalized_alike_after_a_lower_precision(there: Callable[[Cloc], Cloc]) -> None:
    one, images = model(), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for value in one.parameters():  # to what every precision holds
        value.copy_(value.half().bfloat16().half())
    before, pixels = one.encode_images(images).pooled, one.pixels(images)
    low = there(one)
    assert low.mean.dtype == low.std.dtype == torch.float32
    assert torch.equal(low.pixels(images), pixels.to(low.dtype)) and low.dtype != torch.float32
    assert low.encode_images(images).pooled.dtype == torch.float32
    again = low.float()
    assert again.dtype == torch.float32
    torch.testing.assert_close(again.encode_images(images).pooled, before, rtol=0, atol=1e-6)


def test_pixels_of_a_double_model_are_double() -> None:
    assert model().double().pixels(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).dtype == torch.float64
