"""Initial weights of other libraries: towers start as the foreign model computes, and a checkpoint needs it no more."""

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

from cloc.config import ConfigError
from cloc.models.build import build_model
from cloc.models.positions.resizing import resize_positions
from cloc.models.protocols import CLIP_MEAN
from cloc.models.weights.pretrained import complete

VISION = {
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {key: VISION[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
BARE = {"prompter": None, "grounding": None}
OPEN_CLIP = {"_target_": "cloc.models.image.OpenClipTower"}
CLIP_TEXT = {"_target_": "cloc.models.text.ClipText"}
TIMM = {"_target_": "cloc.models.image.TimmTower", "name": "vit_tiny_patch16_224"}


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random everywhere, so that no weight is at a trivial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module.eval()


def config(image: dict[str, Any], text: dict[str, Any], joint_dim: int) -> dict[str, Any]:
    return {"joint_dim": joint_dim, "image": image, "text": text} | BARE


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    quick = {"hidden_act": "quick_gelu", "projection_dim": 24}
    ids = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    stored = transformers.CLIPConfig(vision_config=VISION | quick, text_config=TEXT | quick | ids, projection_dim=24)
    folder = tmp_path_factory.mktemp("foreign") / "clip"
    shaken(transformers.CLIPModel(stored)).save_pretrained(folder)
    pixels = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    text = TEXT | {"vocab_size": 64, "max_position_embeddings": 12, "pad_token_id": 1}
    folder = tmp_path_factory.mktemp("foreign") / "siglip"
    model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=VISION, text_config=text))
    shaken(model).save_pretrained(folder)
    return folder


def rebuilt(model: nn.Module, stored: dict[str, Any]) -> nn.Module:
    """The model from its configuration and weights alone, as a checkpoint is loaded."""
    again = build_model(json.loads(json.dumps(stored)), pretrained=False)
    again.load_state_dict(model.state_dict())
    return again.eval()


def outputs(model: nn.Module, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model.image(images)[0], model.text(tokens)


def test_a_hugging_face_clip_starts_as_it_is(clip: Path) -> None:
    from transformers import CLIPModel

    stored = complete(
        config(OPEN_CLIP | {"pretrained": str(clip), "image_size": 32}, CLIP_TEXT | {"pretrained": str(clip)}, 24)
    )
    assert stored["image"]["quick_gelu"] and stored["text"]["quick_gelu"] and complete(stored) == stored
    ours, theirs = build_model(stored).eval(), CLIPModel.from_pretrained(clip).eval()
    assert ours.image.mean == (0.1, 0.2, 0.3) and ours.image.std == (0.5, 0.6, 0.7)
    images, tokens = torch.randn(2, 3, 32, 32), torch.tensor([[49406, 5, 9, 49407, 0], [49406, 7, 49407, 0, 0]])
    with torch.no_grad():
        seen = theirs.visual_projection(theirs.vision_model(images).pooler_output)
        read = theirs.text_projection(theirs.text_model(tokens).pooler_output)
    for model in (ours, rebuilt(ours, stored)):
        pooled, text = outputs(model, images, tokens)
        torch.testing.assert_close(pooled, seen, atol=1e-5, rtol=0)
        torch.testing.assert_close(text, read, atol=1e-5, rtol=0)


def test_positions_are_resized_to_another_view(clip: Path) -> None:
    node = OPEN_CLIP | {"pretrained": str(clip)}
    small = build_model(config(node | {"image_size": 32}, CLIP_TEXT | {"pretrained": str(clip)}, 24))
    large = build_model(config(node | {"image_size": 64}, CLIP_TEXT | {"pretrained": str(clip)}, 24))
    before, after = small.image.visual.positional_embedding, large.image.visual.positional_embedding
    grid = before[1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = interpolate(grid, (8, 8), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(64, 32)
    torch.testing.assert_close(after[1:], expected)
    torch.testing.assert_close(after[0], before[0])
    table = torch.randn(1, 10, 4)
    assert resize_positions(table, torch.zeros(1, 7, 4)) is table  # no square: left to be refused by its shape


def test_a_hugging_face_siglip_starts_as_it_is(siglip: Path) -> None:
    from transformers import SiglipModel

    stored = complete(
        config(TIMM | {"pretrained": str(siglip), "image_size": 32}, CLIP_TEXT | {"pretrained": str(siglip)}, 32)
    )
    assert stored["image"]["mean"] == [0.5] * 3 and stored["text"]["tokenizer"] == str(siglip)
    ours, theirs = build_model(stored).eval(), SiglipModel.from_pretrained(siglip).eval()
    images = torch.randn(2, 3, 32, 32)
    trimmed = torch.tensor([[5, 9, 1], [7, 1, 1]])
    whole = torch.cat([trimmed, torch.ones(2, 9, dtype=torch.int64)], 1)
    with torch.no_grad():
        seen, read = theirs.vision_model(images).pooler_output, theirs.text_model(whole).pooler_output
    for model in (ours, rebuilt(ours, stored)):
        pooled, text = outputs(model, images, trimmed)
        torch.testing.assert_close(pooled, seen, atol=1e-5, rtol=0)
        torch.testing.assert_close(text, read, atol=1e-5, rtol=0)


def test_an_open_clip_folder_starts_as_it_is(tmp_path: Path) -> None:
    model_cfg = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    view = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    stored = {"model_cfg": model_cfg, "preprocess_cfg": view}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(stored))
    theirs = shaken(open_clip.model.CLIP(**model_cfg))  # the flat layout of released weights
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    nodes = (OPEN_CLIP | {"pretrained": str(tmp_path), "image_size": 32}, CLIP_TEXT | {"pretrained": str(tmp_path)})
    full = complete(config(*nodes, 24))
    ours = build_model(full).eval()
    assert ours.image.mean == (0.1, 0.2, 0.3) and ours.text.context_length == 20
    images, tokens = torch.randn(2, 3, 32, 32), torch.tensor([[49406, 5, 9, 49407] + [0] * 16])
    for model in (ours, rebuilt(ours, full)):
        pooled, text = outputs(model, images, tokens)
        with torch.no_grad():
            torch.testing.assert_close(pooled, theirs.encode_image(images), atol=1e-5, rtol=0)
            torch.testing.assert_close(text, theirs.encode_text(tokens), atol=1e-5, rtol=0)


def test_a_timm_trunk_in_an_open_clip_folder_starts_as_it_is(tmp_path: Path) -> None:
    vision = {"image_size": 64, "timm_model_name": "test_efficientnet", "timm_pool": "", "timm_proj": "linear"}
    text = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    model_cfg = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    theirs = shaken(open_clip.model.CustomTextCLIP(**model_cfg))
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    nodes = (TIMM | {"pretrained": str(tmp_path), "image_size": 64}, CLIP_TEXT | {"pretrained": str(tmp_path)})
    ours, images = build_model(config(*nodes, 24)).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.image(images)[0], theirs.encode_image(images), atol=1e-5, rtol=0)


def test_a_trunk_with_open_clips_head_in_a_folder_starts_as_it_is(tmp_path: Path) -> None:
    """MobileCLIP's and EVA's classifier projects, ConvNeXt's large ones have a perceptron: a tower of open_clip's."""
    for proj in (None, "mlp"):
        vision = {"image_size": 64, "timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": proj}
        text = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
        model_cfg = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
        theirs = shaken(open_clip.model.CustomTextCLIP(**model_cfg))
        save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
        nodes = [node | {"pretrained": str(tmp_path)} for node in (OPEN_CLIP | {"image_size": 64}, CLIP_TEXT)]
        full = complete(config(*nodes, 24))
        ours, images = build_model(full).eval(), torch.randn(2, 3, 64, 64)
        for model in (ours, rebuilt(ours, full)):
            pooled, tokens = model.image(images)
            torch.testing.assert_close(pooled, theirs.encode_image(images), atol=1e-5, rtol=0)
            if proj is None:  # linear behind the mean: tokens are projected as the picture is
                torch.testing.assert_close(model.image.project_tokens(tokens).mean(1), pooled, atol=1e-5, rtol=0)
        with pytest.raises(ConfigError, match=r"OpenClipTower; set model.image._target_ to it"):
            complete(config(TIMM | {"pretrained": str(tmp_path), "image_size": 64}, nodes[1], 24))


@pytest.mark.parametrize("resized", [False, True])
def test_timm_weights_start_as_they_are(resized: bool, tmp_path: Path) -> None:
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    theirs = shaken(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, **options))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    text = {"options": {"width": 32, "heads": 2, "layers": 1}} | CLIP_TEXT
    size = 48 if resized else 32
    node = TIMM | {"pretrained": str(tmp_path / "model.safetensors"), "image_size": size, "options": options}
    alone = build_model(config(node, text, 24))
    stored = {"architecture": "vit_tiny_patch16_224", "model_args": options | {"img_size": 32}}
    stored["pretrained_cfg"] = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "input_size": [3, 32, 32]}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    folder = build_model(config(TIMM | {"pretrained": str(tmp_path), "image_size": size}, text, 24))
    assert folder.image.mean == [0.1, 0.2, 0.3]
    if resized:
        theirs.set_input_size(img_size=48)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        for model in (alone, folder):
            torch.testing.assert_close(
                model.eval().image.trunk(images), theirs.forward_head(theirs.forward_features(images), pre_logits=True)
            )


def test_a_tag_brings_its_activation_and_pixel_statistics() -> None:
    nodes = (OPEN_CLIP | {"pretrained": "openai"}, CLIP_TEXT | {"pretrained": "openai"})
    done = complete(config(*nodes, 512))
    assert done["image"]["quick_gelu"] and done["text"]["quick_gelu"]
    plain = complete(config(OPEN_CLIP | {"pretrained": "laion2b_s34b_b88k"}, CLIP_TEXT, 512))
    assert not plain["image"].get("quick_gelu") and list(plain["image"]["mean"])[0] == pytest.approx(0.48145466)
    with pytest.raises(ValueError, match="has a tokenizer of its own"):
        complete(config(OPEN_CLIP, CLIP_TEXT | {"name": "ViT-B-16-SigLIP", "pretrained": "webli"}, 768))


def test_pixel_statistics_are_stored_where_none_are_given() -> None:
    """What the installed open_clip says of an architecture is asked once, when the run begins."""
    stored = complete(config(OPEN_CLIP | {"name": "ViT-L-14-CLIPA"}, CLIP_TEXT, 768))["image"]
    assert stored["mean"] == [0.485, 0.456, 0.406] and stored["std"] == [0.229, 0.224, 0.225]
    plain = complete(config(OPEN_CLIP | {"std": [0.5] * 3}, CLIP_TEXT, 512))["image"]
    assert plain["mean"] == list(CLIP_MEAN) and plain["std"] == [0.5] * 3
    assert "mean" not in complete(config(TIMM, CLIP_TEXT, 512))["image"]  # timm's own, which its backbone says


def test_what_does_not_fit_is_told(clip: Path, siglip: Path, tmp_path: Path) -> None:
    text = CLIP_TEXT | {"pretrained": str(clip)}
    with pytest.raises(ValueError, match="has joint width 24; set model.joint_dim=24"):
        complete(config(OPEN_CLIP | {"pretrained": str(clip)}, text, 32))
    with pytest.raises(ValueError, match="set model.image._target_ to it"):
        complete(config(OPEN_CLIP | {"pretrained": str(siglip)}, text, 24))
    with pytest.raises(ValueError, match="options.width=64: .* has 32; remove it"):
        complete(config(OPEN_CLIP | {"pretrained": str(clip), "options": {"width": 64}}, text, 24))
    with pytest.raises(ValueError, match="no open_clip_config.json and no config.json"):
        complete(config(OPEN_CLIP | {"pretrained": str(tmp_path)}, text, 24))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model_type='bert' is not known"):
        complete(config(OPEN_CLIP | {"pretrained": str(tmp_path)}, text, 24))


def test_a_pickle_among_foreign_weights_is_refused(clip: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (witness,)

    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((clip / name).read_text())
    torch.save([Payload(), torch.zeros(20_000)], tmp_path / "pytorch_model.bin")
    node = OPEN_CLIP | {"pretrained": str(tmp_path), "image_size": 32}
    with pytest.raises(ValueError, match="would run code"):
        build_model(config(node, CLIP_TEXT | {"pretrained": str(clip)}, 24))
    assert not witness.exists()
