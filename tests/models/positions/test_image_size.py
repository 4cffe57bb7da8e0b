"""``cloc.load(…, image_size=)``: the same weights for views of another size, and who is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

import cloc
from cloc.config import ConfigError
from cloc.encoder import Encoder
from cloc.export.pipeline import export
from cloc.models import taps
from cloc.models.build import build_model
from cloc.models.positions.image_size import resize_trunk
from tests.kit.exporting import CNN, OPEN_CLIP, PAPER, SHARED, SPATIAL, TIMM, make_run
from tests.models.test_foreign import write_hugging_face

PARTS = {"prompter": SHARED, "grounding": SPATIAL}
ADAPTER = {"adapter_depth": 1, "adapter_width": 64}
# Node of the image tower; the side of its patches; rows of its table before the patches.
IMAGES: dict[str, tuple[dict[str, Any], int, int]] = {
    "open_clip": (OPEN_CLIP, 16, 1),
    "timm": (TIMM, 16, 1),
    "registers": (TIMM | {"options": TIMM["options"] | {"reg_tokens": 2}}, 16, 3),
    "conv_stem": (TIMM | {"conv_stem": True}, 16, 1),
    "named size": (TIMM | {"options": TIMM["options"] | {"img_size": 64}}, 16, 1),
    "cnn": (CNN, 32, 0),
    "adapter": (CNN | ADAPTER, 32, 0),
}


def picture(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, *(shape or (90, 120))), dtype=torch.uint8, generator=generator)


def check_answers(encoder: Encoder, size: int, grid: int) -> None:
    """It sees views of that size, and answers everything."""
    tokens, found = encoder.encode_dense(picture())
    assert encoder.model.image.image_size == size and found == (grid, grid) == tuple(encoder.model.grid)
    assert tokens.shape[:2] == (1, grid * grid)
    for source in encoder.sources:
        assert encoder.encode_regions(picture(), [[0.1, 0.1, 0.6, 0.9]], source)[0].isfinite().all()
    if encoder.can_ground:
        assert encoder.ground(picture(), "a chick")[0].shape == (1, 4)


def resized(rows: Tensor, prefix: int, grid: int) -> Tensor:
    """A table for another grid, plainly."""
    flat = rows.reshape(-1, rows.shape[-1])
    side = round((len(flat) - prefix) ** 0.5)
    maps = flat[prefix:].T.reshape(1, -1, side, side)
    made = interpolate(maps, (grid, grid), mode="bicubic", antialias=True)[0].flatten(1).T
    return torch.cat([flat[:prefix], made]).reshape(*rows.shape[:-2], -1, rows.shape[-1])


@pytest.mark.parametrize("name", IMAGES)
def test_a_run_for_other_views_is_the_model_built_for_them(name: str, tmp_path: Path) -> None:
    node, patch, prefix = IMAGES[name]
    run = make_run(tmp_path / "run", image=node, **PARTS)
    small, large = cloc.load(run), cloc.load(run, image_size=96)
    check_answers(large, 96, 96 // patch)
    state = small.model.state_dict()
    tables = [key for key in state if key.startswith("image.") and key.endswith(("pos_embed", "positional_embedding"))]
    assert len(tables) == (0 if name == "cnn" else 1)
    state |= {key: resized(state[key], prefix, 96 // patch) for key in tables}
    options = {"options": node["options"] | {"img_size": 96}} if name == "named size" else {}
    config = small.info["config"]["model"] | {"image": node | {"image_size": 96} | options}
    built = build_model(config, pretrained=False).eval()
    built.load_state_dict(state)
    views = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        ours, expected = large.model.encode_images(views), built.encode_images(views)
    torch.testing.assert_close(ours.tokens, expected.tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.pooled, expected.pooled, rtol=0, atol=1e-6)
    assert large.info["config"]["model"]["image"]["image_size"] == 96
    assert small.info["config"]["model"]["image"]["image_size"] == small.model.image.image_size == 64


@pytest.mark.parametrize("name", ["open_clip", "timm", "registers", "adapter"])
def test_taps_on_the_way_are_the_loaded_model_at_that_size(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", image=IMAGES[name][0])
    small, large = cloc.load(run).model.image, cloc.load(run, image_size=96).model.image
    pixels = torch.randn(1, 3, 96, 96)
    for ours, expected in zip(taps.tokens(small, pixels, (-1, -2)), taps.tokens(large, pixels, (-1, -2)), strict=True):
        torch.testing.assert_close(ours.tokens, expected.tokens)
        assert ours.grid == expected.grid


@pytest.mark.parametrize("size", [0, -32, 96.0])
def test_a_size_is_a_count_of_pixels(size: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^image_size={size}: must be a whole number of pixels above 0$"):
        cloc.load(tmp_path, image_size=size)


def test_the_own_size_changes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", **PARTS)
    ours, again = cloc.load(run), cloc.load(run, image_size=64)
    assert all(value.equal(again.model.state_dict()[name]) for name, value in ours.model.state_dict().items())
    assert again.info == ours.info


@pytest.mark.parametrize("format", ["hf", "open_clip"])
def test_an_exported_folder_for_other_views(format: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompter=PAPER)
    folder = export(format, run, tmp_path / format)
    direct, large = cloc.load(run, image_size=96), cloc.load(folder, image_size=96)
    check_answers(large, 96, 6)
    torch.testing.assert_close(large.encode_image(picture()), direct.encode_image(picture()), atol=1e-5, rtol=0)


def test_what_is_loaded_for_other_views_is_exported_for_them(tmp_path: Path) -> None:
    from cloc.export.open_clip import write

    large = cloc.load(
        make_run(tmp_path / "run", image=TIMM | {"options": TIMM["options"] | {"reg_tokens": 2}}), image_size=96
    )
    (tmp_path / "out").mkdir()
    write(large, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert stored["model_cfg"]["vision_cfg"]["image_size"] == stored["preprocess_cfg"]["size"] == 96


def test_who_cannot_take_a_size_says_so_in_one_line(tmp_path: Path) -> None:
    refused = {
        "covered": (
            OPEN_CLIP,
            70,
            "image_size=70: model.image.image_size=70: patches of 16 px cover 64 px, .* give 64 or",
        ),
        "timm": (TIMM, 70, "patches of 16 px cover 64 px"),
        "stem": (TIMM | {"conv_stem": True}, 70, "a convolution stem needs a multiple of 16"),
        "relative": (
            {
                "_target_": TIMM["_target_"],
                "name": "vit_relpos_small_patch16_224",
                "image_size": 32,
                "options": {"depth": 1, "rel_pos_type": "bias"},
            },
            64,
            "image_size=64: size mismatch for image.trunk.blocks.0.attn.rel_pos",
        ),
    }
    for name, (node, size, told) in refused.items():
        run = make_run(tmp_path / name, image=node)
        with pytest.raises(ConfigError, match=rf"last\.ckpt: image_size={size}: ") as caught:
            cloc.load(run, image_size=size)
        with pytest.raises(ConfigError, match=told):
            raise caught.value
        assert "\n" not in str(caught.value)


# --- models of others -------------------------------------------------------------------------------------------------

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VISIONS: dict[str, tuple[dict[str, Any], int]] = {
    "vit": ({"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}, 8),
    "timm": ({"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 32}, 16),
    "conv": ({"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}, 32),
}


def open_clip_folder(folder: Path, vision: dict[str, Any]) -> Path:
    """As others publish it."""
    folder.mkdir()
    vision = vision | ({"timm_model_pretrained": False} if "timm_model_name" in vision else {})
    model_cfg = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT}
    view = {"size": vision["image_size"], "mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    stored = {"model_cfg": model_cfg, "preprocess_cfg": view | {"interpolation": "bicubic"}}
    (folder / "open_clip_config.json").write_text(json.dumps(stored))
    (folder.parent / f"{folder.name}-arch.json").write_text(json.dumps(model_cfg))
    open_clip.add_model_config(folder.parent / f"{folder.name}-arch.json")
    torch.manual_seed(0)
    model = open_clip.create_model(f"{folder.name}-arch")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("name", VISIONS)
def test_an_open_clip_folder_for_other_views_is_open_clips_own_at_that_size(name: str, tmp_path: Path) -> None:
    vision, patch = VISIONS[name]
    folder = open_clip_folder(tmp_path / name, vision)
    large = cloc.load(folder, image_size=96)
    check_answers(large, 96, 96 // patch)
    theirs = open_clip.create_model(f"local-dir:{folder}", force_image_size=96, require_pretrained=True).eval()
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(large.model.image(pixels)[0], theirs.encode_image(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_hugging_face_folder_for_other_views(kind: str, tmp_path: Path) -> None:
    model, _, _ = write_hugging_face(tmp_path / kind, kind)
    large = cloc.load(tmp_path / kind, image_size=48)
    check_answers(large, 48, 6)
    own, now = model.vision_model.embeddings, large.model.image.tower.embeddings
    expected = resized(own.position_embedding.weight, int(kind == "clip"), 6)
    torch.testing.assert_close(now.position_embedding.weight, expected)
    pixels = torch.randn(1, 3, 48, 48)
    small = cloc.load(tmp_path / kind)
    torch.testing.assert_close(
        taps.tokens(small.model.image, pixels)[0].tokens, taps.tokens(large.model.image, pixels)[0].tokens
    )
    assert large.preprocess.mode == small.preprocess.mode
    assert large.preprocess.short_side * 32 == small.preprocess.short_side * 48  # the same part of a picture is seen
    with pytest.raises(ConfigError, match="image_size=50: patches of 8 px cover 48 px"):
        cloc.load(tmp_path / kind, image_size=50)


def test_a_model_of_others_that_is_bound_says_so(tmp_path: Path) -> None:
    resnet = open_clip.modified_resnet.ModifiedResNet([1, 1, 1, 1], 16, 2, image_size=32, width=8)
    swin = timm.create_model("swin_s3_tiny_224", num_classes=0)
    coatnet: nn.Module = timm.create_model("coatnet_pico_rw_224", num_classes=0)
    for trunk in (resnet, swin, coatnet, timm.create_model("hiera_tiny_224", num_classes=0)):
        with pytest.raises(ConfigError, match=rf"^image_size=256: {type(trunk).__name__} is bound to its size"):
            resize_trunk(trunk, 256)
    folder = open_clip_folder(tmp_path / "vit", VISIONS["vit"][0])
    with pytest.raises(ConfigError, match="image_size=36: patches of 8 px cover 32 px"):
        cloc.load(folder, image_size=36)
