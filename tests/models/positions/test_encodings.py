"""Encodings of positions by their key: what each one starts a tower's table at, and who is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn
from torch.nn.functional import interpolate

from cloc.config import ConfigError
from cloc.models.image import OpenClipTower, TimmTower
from cloc.models.positions.encodings import ENCODINGS
from cloc.models.positions.fourier import grid_positions
from cloc.models.positions.learned import find_table
from tests.kit.paths import ROOT

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


def timm_tower(positions: str = "learned", **options: Any) -> TimmTower:
    return TimmTower(16, "vit_tiny_patch16_224", image_size=32, options=SMALL | options, positions=positions)


def open_clip_tower(positions: str = "learned") -> OpenClipTower:
    options = {"width": 32, "layers": 1, "head_width": 16, "patch_size": 8}
    return OpenClipTower(16, image_size=32, options=options, positions=positions)


@pytest.mark.parametrize("build", [timm_tower, open_clip_tower])
def test_a_table_starts_at_half_an_encoding(build: Any) -> None:
    expected = {
        "sincos": build_sincos2d_pos_embed([4, 4], dim=32) * 0.5,
        "fourier": grid_positions((4, 4), 32) * 0.5,
    }
    for name, values in expected.items():
        table = find_table(core(build(name)))
        assert table is not None and table.grid == (4, 4) and table.prefix == 1
        rows = table.rows.reshape(-1, 32)
        assert not rows[0].any() and rows[1:].equal(values)


@pytest.mark.parametrize("build", [timm_tower, open_clip_tower])
def test_other_weights_are_the_same_whatever_the_encoding(build: Any) -> None:
    states = []
    for name in ENCODINGS:
        torch.manual_seed(0)
        states.append(build(name).state_dict())
    for state in states[1:]:
        differing = {key for key in state if not state[key].equal(states[0][key])}
        assert list(state) == list(states[0])
        assert len(differing) == 1 and differing.pop().endswith(("pos_embed", "positional_embedding"))


def core(tower: Any) -> nn.Module:
    return tower.trunk if isinstance(tower, TimmTower) else tower.visual


def test_a_table_for_another_grid_keeps_its_prefix_and_has_a_gradient() -> None:
    trunk = timm_tower().trunk
    table = find_table(trunk)
    assert table is not None
    made: Tensor = table.resized((2, 6))
    grid = trunk.pos_embed[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = interpolate(grid, (2, 6), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, 12, 32)
    torch.testing.assert_close(made[:, 1:], expected)
    assert made[:, :1].equal(trunk.pos_embed[:, :1])
    made.square().sum().backward()
    assert trunk.pos_embed.grad.abs().min() > 0


@pytest.mark.parametrize("name", ["sincos", "fourier"])
def test_a_tower_without_a_table_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.image\.positions='{name}': ResNet has no table .* give learned"):
        TimmTower(16, "test_resnet", image_size=64, positions=name)
    with pytest.raises(ConfigError, match="VisionTransformer has no table"):
        timm_tower(name, pos_embed="none")
    TimmTower(16, "test_resnet", image_size=64)


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    for build in (timm_tower, open_clip_tower):
        with pytest.raises(ConfigError, match=r"^model\.image\.positions='rotary': give learned, sincos or fourier$"):
            build("rotary")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_efficientnet", {"pos_embed": "learn"}),
        ("test_resnet", {"pos_embed": None, "zero_init_lst": True}),
        ("test_vit", {"pos_embd": "none"}),
        ("test_vit", {"pos_embed": "rotary"}),
        ("test_byobnet", {"pos_embd": "none"}),
        ("caformer_s18", {"pos_embd": "none"}),
        ("swin_tiny_patch4_window7_224", {"window_sise": 4}),
    ],
)
def test_an_option_that_a_backbone_does_not_take_is_one_line(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.image\.options=.*: {name}: .*; correct or remove it$") as caught:
        TimmTower(16, name, image_size=160, options=options)
    assert "\n" not in str(caught.value)


def test_every_encoding_has_a_file_of_configuration() -> None:
    assert {file.stem for file in (ROOT / "conf/model/positions").glob("*.yaml")} == set(ENCODINGS)
