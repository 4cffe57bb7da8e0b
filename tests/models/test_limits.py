"""Names that a library does not know, and sizes that no machine holds, are refused before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gernet_s", {"act_layer": "silu"}),
        ("regnety_002", {"act_layer": "silu"}),
        ("efficientnet_b0", {"bn_momentum": 0.1, "bn_eps": 1e-3}),
        ("naflexvit_base_patch16_gap", {"depth": 2}),
        ("coatnet_0_rw_224", {"depths": [1, 1, 1, 1]}),
        ("rdnet_tiny", {"block_type": ["Block", "Block", "BlockESE", "BlockESE", "BlockESE", "BlockESE", "BlockESE"]}),
    ],
)
def test_an_option_that_no_signature_names_passes_where_it_is_taken(name: str, options: dict[str, Any]) -> None:
    check_model(model(TIMM | {"name": name, "options": options}))
    with pytest.raises(ConfigError, match=r"options\.nothing_such: timm's .* has no such argument"):
        check_model(model(TIMM | {"name": name, "options": {"nothing_such": 1}}))


class Theirs(nn.Module):
    """A tower whose arguments mean what they mean there."""

    def __init__(self, joint_dim: int, layers: Sequence[int] = (-1,), table_size: int = 1, **more: Any) -> None:
        super().__init__()


def test_numbers_of_a_users_part_are_its_own() -> None:
    node = {"_target_": f"{__name__}.Theirs", "layers": [-1, -2], "table_size": 2**25, "width": 2**20, "depth": 2000}
    check_model(model(node) | {"prompter": node | {"layers": 0}, "grounding": node})
    with pytest.raises(ConfigError, match=r"model\.prompter\.heads=0"):
        check_model(model(node) | {"prompter": {"_target_": "cloc.models.prompter.SharedPrompter", "heads": 0}})


def test_patches_of_open_clip_may_be_a_pair() -> None:
    options = {"patch_size": [32, 32], "width": 64, "layers": 1, "head_width": 32}
    check_model(model(CLIP | {"options": options}))
    tower = instantiate(CLIP | {"options": options}, "model.image", joint_dim=32)
    assert tower(torch.zeros(1, 3, 224, 224))[1].shape == (1, 49, 64)
    with pytest.raises(ConfigError, match=r"options\.patch_size"):
        check_model(model(CLIP | {"options": {"patch_size": "16"}}))


def test_an_error_of_a_library_is_a_line_with_the_key() -> None:
    with pytest.raises(ConfigError, match=r"^model\.text\.name=.*embed_dim must be divisible") as caught:
        instantiate(TEXT | {"options": {"heads": 7}}, "model.text", joint_dim=32)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        instantiate(TIMM | {"pretrained": "nowhere"}, "model.image", joint_dim=32)


def test_a_class_that_is_no_part_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.image\._target_: Identity has no image_size"):
        build_model(model({"_target_": "torch.nn.Identity"}))
