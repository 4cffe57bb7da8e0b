"""Taps: any layer's tokens and any row's attention equal the library's own, or ten naive lines, in float64."""

from __future__ import annotations

import math
from pathlib import Path
from threading import Thread, get_ident
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn

from cloc.models import taps
from cloc.models.foreign.towers import HuggingFaceImage, OpenClipImage, OpenClipTimm, OpenClipViT
from cloc.models.image import OpenClipTower, TimmTower
from cloc.models.positions.learned import find_table

VIT = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
CLIP = {"width": 32, "layers": 3, "head_width": 16, "patch_size": 8}
PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def exact(tower: nn.Module) -> Any:
    """In float64, and random everywhere."""
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return tower.double().eval()


def timm_tower(**changes: Any) -> TimmTower:
    node = {"name": "vit_tiny_patch16_224", "image_size": 32, "options": VIT} | changes
    return exact(TimmTower(16, **node))


def open_clip_tower() -> OpenClipTower:
    return exact(OpenClipTower(16, image_size=32, options=CLIP))


def hugging_face(kind: str) -> HuggingFaceImage:
    transformers = pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")
    part = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}VisionConfig")(**part, image_size=32, patch_size=8)
    model = getattr(transformers, f"{kind}VisionModel")(config)
    model = getattr(model, "vision_model", model)
    projection = nn.Linear(32, 16, bias=False) if kind == "CLIP" else None
    return exact(HuggingFaceImage(model, 32, 16 if projection else 32, *PIXELS, projection))


def images(side: int = 32, width: int | None = None, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, width or side, dtype=torch.float64)


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}])
@pytest.mark.parametrize("conv_stem", [False, True])
def test_layers_of_a_timm_vit_are_its_intermediates(options: dict[str, Any], conv_stem: bool) -> None:
    tower, pixels = timm_tower(options=VIT | options, conv_stem=conv_stem), images()
    expected = tower.trunk.forward_intermediates(pixels, output_fmt="NLC", intermediates_only=True)
    found = taps.tokens(tower, pixels, (-1, 0, -2, 2))
    assert [grid for _, grid in found] == [(4, 4)] * 4
    for (tokens, _), index in zip(found, (2, 0, 1, 2), strict=True):
        torch.testing.assert_close(tokens, expected[index], rtol=0, atol=0)
    torch.testing.assert_close(taps.tokens(tower.trunk, pixels)[0].tokens, expected[2], rtol=0, atol=0)


def test_layers_of_open_clips_vit_are_its_intermediates() -> None:
    tower, pixels = open_clip_tower(), images()
    whole = tower.visual.forward_intermediates(pixels, output_fmt="NLC", intermediates_only=True)
    for found, expected in zip(taps.tokens(tower, pixels, (0, 1, 2)), whole["image_intermediates"], strict=True):
        assert found.grid == (4, 4)
        torch.testing.assert_close(found.tokens, expected, rtol=0, atol=0)
    again = taps.tokens(OpenClipViT(tower.visual.float(), 32, 16, *PIXELS), pixels.float(), (-1,))[0]
    torch.testing.assert_close(tower.visual.ln_post(again.tokens), tower(pixels.float())[1])


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_layers_of_a_hugging_face_model_are_its_hidden_states(kind: str) -> None:
    tower, pixels = hugging_face(kind), images()
    prefix = int(kind == "CLIP")
    states = tower.tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    for found, expected in zip(taps.tokens(tower, pixels, (0, 1, 2)), states[1:], strict=True):
        assert found.grid == (4, 4)
        torch.testing.assert_close(found.tokens, expected[:, prefix:], rtol=0, atol=1e-12)
    penultimate = taps.tokens(tower, pixels, (-2,))[0].tokens
    torch.testing.assert_close(penultimate, states[-2][:, prefix:], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("test_resnet", 64),
        ("test_efficientnet", 64),
        ("test_convnext", 64),
        ("mobilenetv3_small_050", 96),
        ("swin_s3_tiny_224", 224),
        ("pvt_v2_b0", 64),
        ("test_byobnet", 64),
        ("xcit_nano_12_p16_224", 224),
    ],
)
def test_layers_of_other_backbones_are_their_stages_each_with_its_grid(name: str, side: int) -> None:
    tower, pixels = TimmTower(16, name, image_size=side).eval(), images(side).float()
    with torch.no_grad():
        expected = tower.trunk.forward_intermediates(pixels, intermediates_only=True)
        found = taps.tokens(tower, pixels, range(len(expected)))
    for (tokens, grid), maps in zip(found, expected, strict=True):
        assert grid == maps.shape[2:]
        torch.testing.assert_close(tokens, maps.flatten(2).transpose(1, 2))
    assert name.startswith("xcit") or taps.blocks(tower) == []


def test_blocks_of_an_adapter_follow_those_of_its_backbone() -> None:
    for name, options in (("vit_tiny_patch16_224", VIT), ("test_efficientnet", {})):
        tower = timm_tower(name=name, image_size=64, options=options, adapter_depth=2, adapter_width=64)
        pixels = images(64)
        found = taps.tokens(tower, pixels, (-1, -3, -2))
        inner = tower.trunk.forward_intermediates(pixels, intermediates_only=True)[-1]
        torch.testing.assert_close(found[1].tokens, inner.flatten(2).transpose(1, 2), rtol=0, atol=0)
        torch.testing.assert_close(tower.adapter.norm(found[0].tokens), tower(pixels)[1], rtol=0, atol=1e-12)
        torch.testing.assert_close(tower.adapter.blocks[1](found[2].tokens), found[0].tokens, rtol=0, atol=1e-12)
        (weights,) = taps.attention(tower, pixels, rows=[0, 3])
        assert weights.prefix == 0 and weights.grid == found[0].grid
        torch.testing.assert_close(weights.weights, naive(tower.adapter.blocks[1], found[2].tokens)[:, :, [0, 3]])


def test_open_clip_towers_without_projected_tokens_have_layers_too() -> None:
    resnet = open_clip.modified_resnet.ModifiedResNet([1, 1, 1, 1], 16, 2, image_size=32, width=8)
    pooled = open_clip.transformer.VisionTransformer(32, 8, 32, 2, 2, 2.0, attentional_pool=True, output_dim=16)
    for visual, grid in ((resnet, (1, 1)), (pooled, (4, 4))):
        tower = OpenClipImage(visual.eval(), 32, 16, *PIXELS)
        assert taps.tokens(tower, images().float())[0].grid == grid
    trunk = open_clip.timm_model.TimmModel("test_vit", 16, image_size=160, pool="map", proj="none").eval()
    tower = OpenClipTimm(trunk, 160, 64, *PIXELS)
    expected = trunk.trunk.forward_intermediates(images(160).float(), intermediates_only=True, output_fmt="NLC")
    assert taps.tokens(tower, images(160).float())[0].tokens.shape == expected[-1].shape


class Declared(nn.Module):
    """A tower of a user's own."""

    grid, prefix_tokens = (2, 4), 1

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 32)
        self.stack = nn.ModuleList(timm.models.vision_transformer.Block(32, 2) for _ in range(2))

    def block_modules(self) -> list[nn.Module]:
        return list(self.stack)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        states = self.stem(images.flatten(1).unflatten(1, (9, 6)))
        for block in self.stack:
            states = block(states)
        return states[:, 0], states[:, 1:]


def test_a_tower_of_ones_own_is_asked_by_what_it_declares() -> None:
    tower, pixels = exact(Declared()), torch.randn(2, 3, 3, 6, dtype=torch.float64)
    last, first = taps.tokens(tower, pixels, (-1, 0))
    assert last.grid == (2, 4) and last.tokens.equal(tower(pixels)[1])
    (found,) = taps.attention(tower, pixels, rows=["class", 7])
    states = tower.stack[0](tower.stem(pixels.flatten(1).unflatten(1, (9, 6))))
    torch.testing.assert_close(states[:, 1:], first.tokens, rtol=0, atol=0)
    torch.testing.assert_close(found.weights, naive(tower.stack[1], states)[:, :, [0, 8]], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"^Linear: its layers are not known; .* no block_modules\(\)$"):
        taps.tokens(nn.Linear(2, 2), pixels)
    assert taps.blocks(nn.Linear(2, 2)) == []


@pytest.mark.parametrize("kind", ["adapter", "declared"])
def test_what_another_thread_asks_of_a_tower_is_not_taken_for_ones_own(kind: str) -> None:
    if kind == "adapter":
        tower, pixels = timm_tower(adapter_depth=2, adapter_width=32), images()
        place: nn.Module = tower.adapter.norm  # behind the blocks
    else:
        tower, pixels = exact(Declared()), torch.randn(2, 3, 3, 6, dtype=torch.float64)
        place = tower.stack[1]  # between the blocks
    expected, others, main = taps.tokens(tower, pixels, (0, -2, -1)), pixels.flip(0) + 1, get_ident()

    def interfere(module: nn.Module, inputs: Any) -> None:
        if get_ident() == main:
            thread = Thread(target=tower, args=(others,))
            thread.start()
            thread.join()

    place.register_forward_pre_hook(interfere)
    for found, own in zip(taps.tokens(tower, pixels, (0, -2, -1)), expected, strict=True):
        assert found.tokens.equal(own.tokens)
    table = dict(tower.named_parameters())
    assert all(isinstance(value, nn.Parameter) for value in table.values())


@pytest.mark.parametrize("name", ["timm", "open_clip", "clip", "siglip"])
def test_states_around_the_last_block_hold_the_prefix_tokens(name: str) -> None:
    tower, pixels = TOWERS[name](), images()
    with taps.around_last(tower) as states:
        tower(pixels)
    last, before = taps.tokens(tower, pixels, (-1, -2))
    prefix = int(name != "siglip")
    torch.testing.assert_close(states["last"][:, prefix:], last.tokens)
    torch.testing.assert_close(states["penultimate"][:, prefix:], before.tokens)
    with taps.around_last(TimmTower(16, "test_resnet", 64)) as states:
        assert states == {}


# --- attention --------------------------------------------------------------------------------------------------------


def naive(block: nn.Module, states: Tensor) -> Tensor:
    """All weights of a timm block ``[B,heads,N,N]``."""
    attn = block.attn
    query, key, _ = attn.qkv(block.norm1(states)).chunk(3, -1)
    parts = []
    for head in range(attn.num_heads):
        own = slice(head * attn.head_dim, (head + 1) * attn.head_dim)
        parts.append((query[..., own] @ key[..., own].mT / math.sqrt(attn.head_dim)).softmax(-1))
    return torch.stack(parts, 1)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"qkv_bias": False}])
def test_attention_of_a_timm_vit_is_the_naive_one(options: dict[str, Any]) -> None:
    tower, pixels = timm_tower(options=VIT | options), images()
    prefix = tower.trunk.num_prefix_tokens
    found = taps.attention(tower, pixels, ["class", 0, 15], (-1, 1))
    states = tower.trunk.norm_pre(tower.trunk._pos_embed(tower.trunk.patch_embed(pixels)))
    whole = []
    for block in tower.trunk.blocks:
        whole.append(naive(block, states))
        states = block(states)
    for one, index in zip(found, (2, 1), strict=True):
        assert one.prefix == prefix and one.grid == (4, 4)
        torch.testing.assert_close(one.weights, whole[index][:, :, [0, prefix, prefix + 15]], rtol=0, atol=1e-12)


def test_attention_of_open_clips_vit_is_what_its_own_module_says() -> None:
    tower, pixels = open_clip_tower(), images()
    visual = tower.visual
    found = taps.attention(tower, pixels, ["class", 3], (0, -1))
    states = visual._embeds(pixels)
    for block, index in zip(visual.transformer.resblocks, range(3), strict=True):
        normed = block.ln_1(states)
        whole = block.attn(normed, normed, normed, need_weights=True, average_attn_weights=False)[1]
        if index in (0, 2):
            torch.testing.assert_close(found[index // 2].weights, whole[:, :, [0, 4]], rtol=0, atol=1e-12)
        states = block(states)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_attention_of_a_hugging_face_model_is_what_transformers_says(kind: str) -> None:
    tower, pixels = hugging_face(kind), images()
    prefix = int(kind == "CLIP")
    rows = ["class", 5] if prefix else [0, 5]
    found = taps.attention(tower, pixels, rows, (0, 1, 2))
    tower.tower.set_attn_implementation("eager")
    whole = tower.tower(pixel_values=pixels, output_attentions=True).attentions
    for one, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(
            one.weights, expected[:, :, [0, 5 + prefix]], rtol=0, atol=1e-7
        )  # softmax in float32
        assert one.prefix == prefix
    if not prefix:
        with pytest.raises(ValueError, match="^rows='class': HuggingFaceImage has no class token there"):
            taps.attention(tower, pixels)


def test_attention_with_rotary_positions_and_normalized_queries() -> None:
    """Against the fused attention itself: with an identity as values it returns its weights."""
    trunk = timm.create_model("eva02_tiny_patch14_224", img_size=56, depth=2, num_classes=0)
    tower, pixels = exact(trunk), images(56)
    (found,) = taps.attention(tower, pixels, ["class", 2])
    seen: dict[str, Any] = {}
    own = torch.nn.functional.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, **named: Any) -> Tensor:
        seen["weights"] = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
        return own(query, key, value, **named)

    for block in tower.blocks:
        block.attn.fused_attn = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        tower.forward_features(pixels)
    torch.testing.assert_close(found.weights, seen["weights"][:, :, [0, 3]], rtol=0, atol=1e-6)  # rotary in float32


@pytest.mark.parametrize(
    ("name", "side", "told"),
    [
        ("test_resnet", 64, "^TimmTower has no attention over all patches in layer 4, which is not a block over one"),
        ("swin_s3_tiny_224", 224, "^TimmTower has no attention over all patches in layer 3"),
        ("cait_xxs24_224", 224, "layer 23, which is TalkingHeadAttn$"),
    ],
)
def test_who_has_no_attention_over_all_patches_says_so(name: str, side: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        taps.attention(TimmTower(16, name, image_size=side), images(side).float(), [0])


@pytest.mark.parametrize(
    ("rows", "layers", "told"),
    [
        ([16], (-1,), "^rows=16: give 'class' or a patch from 0 to 15$"),
        (["cls"], (-1,), "^rows='cls': give 'class' or a patch"),
        ([0], (3,), "^layer 3 of TimmTower: it has 3; give -3 to 2$"),
        ([0], (-4,), "^layer -4 of TimmTower"),
    ],
)
def test_rows_and_layers_that_are_not_there(rows: Any, layers: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        taps.attention(timm_tower(), images(), rows, layers)


# --- gradient and size ------------------------------------------------------------------------------------------------

TOWERS: dict[str, Any] = {
    "timm": timm_tower,
    "open_clip": open_clip_tower,
    "clip": lambda: hugging_face("CLIP"),
    "siglip": lambda: hugging_face("Siglip"),
}


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("shape", [(32, 32), (48, 48), (64, 40)])
def test_gradients_reach_pictures_and_positions_at_any_size(name: str, shape: tuple[int, int]) -> None:
    tower, pixels = TOWERS[name](), images(*shape).requires_grad_()
    (found,) = taps.tokens(tower, pixels, (-2,))
    (weights,) = taps.attention(tower, pixels, [1])
    assert found.grid == weights.grid == (shape[0] // 8, shape[1] // 8)
    assert found.tokens.shape[1] == found.grid[0] * found.grid[1]
    torch.testing.assert_close(weights.weights.sum(-1), torch.ones_like(weights.weights[..., 0]))
    (found.tokens.square().sum() + weights.weights.square().sum()).backward()
    assert pixels.grad.abs().amin() > 0
    trunk = next(getattr(tower, part) for part in ("trunk", "visual", "tower") if hasattr(tower, part))
    table = find_table(trunk)
    assert table is not None and table.rows.grad is not None and table.rows.grad.abs().sum() > 0
    assert tuple(table.grid) == (4, 4)  # as before
    torch.testing.assert_close(tower(images())[1].shape, torch.Size([2, 16, 32]))


@pytest.mark.parametrize("name", TOWERS)
def test_another_size_is_the_tower_built_for_it(name: str) -> None:
    """Positions on the way are those that weights are loaded with."""
    tower, pixels = TOWERS[name](), images(48)
    (found,) = taps.tokens(tower, pixels, (-2,))
    if name == "timm":
        large: Any = TimmTower(16, "vit_tiny_patch16_224", 48, options=VIT)
    elif name == "open_clip":
        large = OpenClipTower(16, image_size=48, options=CLIP)
    else:
        assert found.grid == (6, 6)  # of a folder: tests/models/positions/test_resolution.py
        return
    large.double().eval()
    state = tower.state_dict()
    key = "trunk.pos_embed" if name == "timm" else "visual.positional_embedding"
    large.load_state_dict(state | {key: find_table(tower.trunk if name == "timm" else tower.visual).resized((6, 6))})
    torch.testing.assert_close(taps.tokens(large, pixels, (-2,))[0].tokens, found.tokens, rtol=0, atol=1e-12)


def test_an_adapter_and_a_cnn_at_another_size() -> None:
    tower = timm_tower(name="test_efficientnet", image_size=64, options={}, adapter_depth=1, adapter_width=64)
    found = taps.tokens(tower, images(96, 128), (-1, -2))
    assert [grid for _, grid in found] == [(3, 4), (3, 4)] and found[0].tokens.shape == (2, 12, 64)


@pytest.mark.parametrize("name", TOWERS)
def test_patches_must_divide_another_size(name: str) -> None:
    with pytest.raises(ValueError, match="^images of 36 × 36 px: patches of 8 px do not divide that"):
        taps.tokens(TOWERS[name](), images(36))


@pytest.mark.parametrize(
    "name", ["swin_s3_tiny_224", "beit_base_patch16_224", "hiera_tiny_224", "eva02_tiny_patch14_224"]
)
def test_a_trunk_that_is_bound_to_its_size_says_so(name: str) -> None:
    options = {"depth": 1} if "beit" in name or "eva" in name else {}
    tower = timm.create_model(name, num_classes=0, **options).eval()
    with pytest.raises(ValueError, match=r"^images of 112 × 112 px: \w+ is bound to") as caught:
        taps.tokens(tower, images(112).float())
    assert "\n" not in str(caught.value)


def test_a_vit_without_positions_takes_any_size() -> None:
    tower = timm_tower(options=VIT | {"pos_embed": "none"})
    assert taps.tokens(tower, images(40, 64))[0].grid == (5, 8)
    with pytest.raises(ValueError, match="bound to"):
        taps.tokens(tower, images(36))


def test_nothing_of_a_tower_is_left_changed(tmp_path: Path) -> None:
    tower = timm_tower()
    hooks = [len(module._forward_hooks) for module in tower.modules()]
    taps.tokens(tower, images(48))
    with pytest.raises(ValueError):
        taps.attention(tower, images(48), [36])
    assert tower.trunk.patch_embed.strict_img_size and tower.trunk.pos_embed.shape == (1, 17, 32)
    assert isinstance(tower.trunk.pos_embed, nn.Parameter)
    assert [len(module._forward_hooks) for module in tower.modules()] == hooks
