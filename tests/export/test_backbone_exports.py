"""Exports of image towers that are no plain ViT: each is proven against the original, or says why it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

import cloc
from cloc.export.capabilities import ExportError
from cloc.export.pipeline import export
from tests.kit.exporting import SHARED, make_run, parity

TIMM, OPEN_CLIP = "cloc.models.image.TimmTower", "cloc.models.image.OpenClipTower"
HELD = [
    (TIMM, "coat_lite_tiny", "timm"),  # its class token is not counted by timm
    (TIMM, "cait_xxs24_224", "timm"),
    (TIMM, "resnet10t", "timm"),
    (TIMM, "resnet10t", "open_clip"),
    (TIMM, "resnet10t", "torch"),
    (OPEN_CLIP, "RN50", "open_clip"),
    (OPEN_CLIP, "MobileCLIP2-S0", "open_clip"),
    (OPEN_CLIP, "vit_medium_patch16_gap_256", "timm"),
]
REFUSED = [
    (TIMM, "mobilenetv4_conv_small", "timm", "widens what it pools"),
    (TIMM, "swin_tiny_patch4_window7_224", "open_clip", "for 224 px alone, the tower is for 64"),
    (OPEN_CLIP, "PE-Core-T-16-384", "timm", "has a bias"),
]


def run(folder: Path, target: str, name: str) -> Path:
    image = {"_target_": target, "name": name, "image_size": 64}
    return make_run(folder, image=image, joint_dim=32, prompter=SHARED)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name", "format"), HELD)
def test_a_backbone_is_exported_as_it_is(target: str, name: str, format: str, tmp_path: Path) -> None:
    made = export(format, run(tmp_path / "run", target, name), tmp_path / "out")
    assert parity(made)
    if format == "open_clip":
        assert type(cloc.load(str(made)).model.image).__name__ == target.rpartition(".")[2]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name", "format", "said"), REFUSED)
def test_a_backbone_that_a_format_cannot_hold_is_refused(
    target: str, name: str, format: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=f"cannot go to {format}: .*{said}.* Possible for this model: .*onnx, torch"):
        export(format, run(tmp_path / "run", target, name), tmp_path / "out")
