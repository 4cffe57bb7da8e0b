"""Names that a library does not know, and sizes that no machine holds, are refused before anything is built."""

from __future__ import annotations

from typing import Any

import pytest

from cloc.config import ConfigError, instantiate
from cloc.models import limits
from cloc.models.build import build_model
from cloc.models.limits import check_model

TIMM = {"_target_": "cloc.models.image.TimmTower", "name": "vit_tiny_patch16_224", "image_size": 32}
CLIP = {"_target_": "cloc.models.image.OpenClipTower", "name": "ViT-B-32"}
TEXT = {"_target_": "cloc.models.text.ClipText"}


def model(image: dict[str, Any], text: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "joint_dim": 32,
        "image": image,
        "text": TEXT if text is None else text,
        "prompter": None,
        "grounding": None,
    }


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            model(TIMM | {"name": "vit_tiny_patch16_223"}),
            r"model\.image\.name=.*timm .*no such model; did you mean vit",
        ),
        (
            model(CLIP | {"name": "ViT-B-23"}),
            r"model\.image\.name='ViT-B-23': .* is not an open_clip architecture of .*; did you mean ViT-B-",
        ),
        (model(CLIP | {"name": "vit_tiny_patch16_224"}), r"_target_=cloc\.models\.image\.TimmTower"),
        (model(TIMM | {"name": "ViT-B-16"}), r"_target_=cloc\.models\.image\.OpenClipTower"),
        (model(TIMM, TEXT | {"name": "ViT"}), r"model\.text\.name='ViT'"),
        (model(CLIP | {"pretrained": "openay"}), r"model\.image\.pretrained='openay': .*did you mean 'openai'"),
        (model(TIMM | {"options": {"depht": 2}}), r"options\.depht: timm's VisionTransformer .*did you mean 'depth'"),
        (model(TIMM | {"options": {"global_pool": ""}}), r"global_pool='': the tower would not pool"),
        (model(TIMM | {"options": {"depth": "2"}}), r"options\.depth='2': must be a whole number"),
        (model(TIMM | {"options": {"depth": None}}), r"options\.depth=null: timm leaves it out"),
        (model(CLIP | {"options": {"widht": 2}}), r"options\.widht: open_clip's CLIPVisionCfg .*did you mean 'width'"),
        (model(TIMM, TEXT | {"options": {"layers": True}}), r"model\.text\.options\.layers=true: must be"),
        (model(TIMM | {"options": {"depth": 10_000_000}}), r"options\.depth=10000000: no architecture has that"),
        (model(TIMM, TEXT | {"options": {"layers": 0}}), r"layers=0: .*give 1 to 1,000"),
        (model(CLIP | {"options": {"width": 2**20, "layers": 900}}), "GiB, this machine has"),
    ],
)
def test_what_cannot_be_built_is_told_by_its_key(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_model(config)


def test_weights_that_are_not_there_are_told_by_their_key() -> None:
    for image in (TIMM | {"pretrained": "nowhere"}, CLIP | {"pretrained": "./nowhere.pt"}):
        with pytest.raises(FileNotFoundError, match=r"model\.image\.pretrained='.*nowhere"):
            check_model(model(image))


def test_what_can_be_built_passes() -> None:
    check_model(model(TIMM | {"options": {"depth": 2, "global_pool": "avg", "drop_path_rate": 0}}))
    check_model(model(CLIP | {"pretrained": "openai", "options": {"layers": 2}}))
    check_model(model(TIMM | {"name": "hf_hub:someone/something"}))
    assert limits.memory() > 2**28


def test_an_error_of_a_library_is_a_line_with_the_key() -> None:
    with pytest.raises(ConfigError, match=r"^model\.text\.name=.*embed_dim must be divisible") as caught:
        instantiate(TEXT | {"options": {"heads": 7}}, "model.text", joint_dim=32)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        instantiate(TIMM | {"pretrained": "nowhere"}, "model.image", joint_dim=32)


def test_a_class_that_is_no_part_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.image\._target_: Identity has no image_size"):
        build_model(model({"_target_": "torch.nn.Identity"}))
