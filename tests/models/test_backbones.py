"""timm's families as towers: what is built for one size is told the view's, and what has no dense map is refused."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from cloc.config import ConfigError
from cloc.models.image import TimmTower
from cloc.models.positions.fourier import check_covered
from cloc.models.protocols import blocks, layers, prefix_tokens, recompute, view
from cloc.models.timm_backbone import built_for_one_size, is_channels_last, prefix_of

# Names with and without "vit", whose classes take img_size or do not: name, side, rows of tokens.
FAMILIES = {
    "fastvit_t8": (64, 2),
    "tiny_vit_5m_224": (64, 2),
    "efficientvit_b0": (64, 2),
    "efficientvit_m0": (96, 2),
    "repvit_m0_9": (64, 2),
    "mobilevit_xxs": (64, 2),
    "shvit_s1": (96, 2),
    "levit_128s": (96, 2),
    "convit_tiny": (64, 4),
    "deit_tiny_patch16_224": (64, 4),
    "eva02_tiny_patch14_224": (56, 4),
    "swin_tiny_patch4_window7_224": (64, 2),
    "xcit_nano_12_p16_224": (64, 4),
    "mobilenetv3_small_050": (64, 2),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_timm_are_towers(name: str) -> None:
    """A pooled embedding, a grid of tokens, and a gradient for whatever is trained: DDP waits for each."""
    size, side = FAMILIES[name]
    torch.manual_seed(0)
    tower = TimmTower(8, name, size)
    assert tower.grid == (side, side) and view(tower).size == size
    check_covered(tower)
    pooled, tokens = tower(torch.randn(2, 3, size, size))
    assert pooled.shape == (2, 8) and tokens.shape == (2, side * side, tower.width)
    assert tower.project_tokens(tokens).shape == (2, side * side, 8)
    (pooled.sum() + tokens.square().sum()).backward()
    assert [n for n, p in tower.named_parameters() if p.requires_grad and p.grad is None] == []


def gradients(tower: TimmTower, pixels: Tensor) -> list[Tensor | None]:
    torch.manual_seed(1)
    pooled, tokens = tower(pixels)
    trained = [value for value in tower.parameters() if value.requires_grad]
    loss = pooled.square().sum() + tokens.square().mean()
    return list(torch.autograd.grad(loss, trained, allow_unused=True))


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small", "test_vit3"])
def test_a_head_that_an_adapter_does_not_ask_is_not_trained(name: str) -> None:
    """MobileNetV4 widens in its head, the other pools by attention; DDP would wait for gradients of either."""
    tower = TimmTower(8, name, 64, adapter_depth=1, adapter_width=64)
    assert all(value is not None for value in gradients(tower, torch.randn(2, 3, 64, 64)))
    assert not all(value.requires_grad for value in tower.trunk.parameters())


@pytest.mark.parametrize(("name", "said"), [("convit_tiny", "12 blocks"), ("dla46_c", "as a whole")])
def test_a_backbone_that_timm_cannot_recompute_is_recomputed_all_the_same(name: str, said: str) -> None:
    torch.manual_seed(0)
    tower, pixels = TimmTower(8, name, 64), torch.randn(2, 3, 64, 64)
    before = gradients(tower, pixels)
    assert any(said in done for done in recompute(tower))
    for one, other in zip(gradients(tower, pixels), before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_layers_of_a_backbone_without_stacks_are_those_of_timm() -> None:
    found, last = layers(TimmTower(8, "resnet10t", 64))
    assert last > 4 and found["trunk.conv1.0.weight"] == 0 and found["proj.weight"] == last
    assert 0 < found["trunk.layer1.0.conv1.weight"] < found["trunk.layer4.0.conv1.weight"] < last


def test_lists_of_lists_of_blocks_are_blocks() -> None:
    assert {type(block).__name__ for block in blocks(TimmTower(8, "twins_svt_small", 64))} == {"Block"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_tiny_patch16_22", "did you mean vit_tiny_patch16_224"),
        ("no such thing", "timm.list_models"),
        ("RN50", "it is one of open_clip: set model.image._target_=cloc.models.image.OpenClipTower"),
    ],
)
def test_a_name_that_timm_does_not_know_is_told(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"model.image.name='{name}': .*{said}") as caught:
        TimmTower(8, name, 64)
    assert "\n" not in str(caught.value)


def test_a_size_that_a_backbone_does_not_take_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"image_size=72: timm's MaxxVit does not compute it .*give 64 or 96, or"):
        TimmTower(8, "maxvit_rmlp_pico_rw_256", 72)
    with pytest.raises(ConfigError, match=r"image_size=72: timm's LevitDistilled does not compute it .*give 64 or 80"):
        TimmTower(8, "levit_128s", 72)


def test_a_map_is_told_from_its_shape() -> None:
    swin, cnn = TimmTower(8, "swin_tiny_patch4_window7_224", 64).trunk, TimmTower(8, "convnext_atto", 64).trunk
    assert is_channels_last(swin, torch.zeros(1, 2, 2, 768)) and not is_channels_last(cnn, torch.zeros(1, 320, 2, 2))
    assert not is_channels_last(cnn, torch.zeros(1, 320, 320, 320))  # as wide as it is large: by the number of features
    assert prefix_of(cnn) == 0 and prefix_of(TimmTower(8, "test_vit", 64).trunk) == 1


def test_the_size_is_told_to_those_that_are_built_for_one() -> None:
    assert built_for_one_size("deit_tiny_patch16_224") and built_for_one_size("levit_128s")
    assert not built_for_one_size("fastvit_t8") and not built_for_one_size("davit_tiny")
    assert not built_for_one_size("resnet50_clip")  # its class takes it, and computes any size without
    before = torch.get_rng_state()
    built_for_one_size.cache_clear()
    built_for_one_size("vit_tiny_patch16_224")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_class_that_reads_values_while_it_is_built_is_a_tower_too(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def reading(name: str, **arguments: object) -> torch.nn.Module:
        torch.zeros(1).item()
        return create(name, **arguments)

    built_for_one_size.cache_clear()
    monkeypatch.setattr(timm, "create_model", reading)
    assert built_for_one_size("vit_tiny_patch16_224")
    built_for_one_size.cache_clear()


def test_what_towers_of_timm_declare() -> None:
    tower = TimmTower(8, "test_vit", 64, adapter_depth=1, adapter_width=64)
    assert prefix_tokens(tower) == tower.trunk.num_prefix_tokens == 1
    assert len(blocks(tower)) == len(tower.trunk.blocks) + 1
    assert tower.kind == "timm ViT with adapter" and tower.refuses("timm") and tower.refuses("onnx") == []
