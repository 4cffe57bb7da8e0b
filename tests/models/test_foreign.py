"""Models of others on trial: open_clip and Hugging Face behind ``cloc.load``, equal to what their own library says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

import cloc
from cloc.data.preprocess import Preprocess, from_hugging_face, from_open_clip
from cloc.data.word_tokenizer import write_word_tokenizer
from cloc.encoder import Encoder

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8}
TIMM = {"timm_model_pretrained": False, "image_size": 32}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "toy-vit": {"vision_cfg": VIT},
    "toy-vit-quickgelu": {"vision_cfg": VIT, "quick_gelu": True},
    "toy-vit-avg": {"vision_cfg": VIT | {"pool_type": "avg", "final_ln_after_pool": True}},
    "toy-map": {
        "vision_cfg": TIMM | {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160}
    },
    "toy-conv": {
        "vision_cfg": TIMM
        | {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 96}
    },
    "toy-resnet": {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}},
    "toy-coca": {
        "vision_cfg": VIT | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": TEXT | {"attn_pooler_heads": 2},
        "custom_text": True,
    },
    "toy-last": {"vision_cfg": VIT, "text_cfg": TEXT | {"pool_type": "last", "no_causal_mask": True}},
}
DENSE = ("toy-vit", "toy-vit-quickgelu", "toy-vit-avg", "toy-map", "toy-conv", "toy-last")
BOXES = [[[0.0, 0.0, 0.1, 0.9], [0.2, 0.1, 0.9, 0.8]], [[0.5, 0.5, 1.0, 1.0]]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Architectures made known to open_clip, and a file of random weights of each."""
    folder = tmp_path_factory.mktemp("open_clip")
    for name, config in ARCHITECTURES.items():
        config = {"embed_dim": 64 if name == "toy-map" else 16, "text_cfg": TEXT} | config
        config["vision_cfg"] = {k: v for k, v in config["vision_cfg"].items() if v is not None}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    for name in ARCHITECTURES:
        model = open_clip.create_model(name)
        with torch.no_grad():  # random everywhere, or some heads say the same of everything
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.2)
        save_file({k: v.clone().contiguous() for k, v in model.state_dict().items()}, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in ((40, 60), (50, 32))]


def load(models: Path, name: str) -> Encoder:
    return cloc.load(f"open_clip:{name}:{models / name}.safetensors")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_open_clip_model_says_what_open_clip_says(models: Path, name: str, pictures: list[Image.Image]) -> None:
    ours = load(models, name)
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=str(models / f"{name}.safetensors"))
    model.eval()
    texts = ["a chick", "two cups of tea on a table"]
    with torch.no_grad():
        pixels = torch.stack([preprocess(picture) for picture in pictures])
        seen = normalize(model.encode_image(pixels), dim=-1)
        said = normalize(model.encode_text(open_clip.get_tokenizer(name)(texts)), dim=-1)
    # Pillow's bicubic and torchvision's differ by a level of 255 here and there.
    torch.testing.assert_close(ours.encode_image(pictures), seen, rtol=0, atol=0.02)
    torch.testing.assert_close(ours.encode_text(texts), said, rtol=1e-4, atol=1e-5)
    assert not ours.can_ground and "prompter" not in ours.sources
    assert ours.info["activation"] == ("quick_gelu" if "quick" in name else "gelu")
    assert ours.name == f"{name}/{name}"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_region_sources_where_the_model_can(models: Path, name: str, pictures: list[Image.Image]) -> None:
    ours = load(models, name)
    assert ours.sources == (("roi_align", "crop", "mask_pool") if name in DENSE else ("crop",))
    for source in ours.sources:
        found = ours.encode_regions(pictures, BOXES, source)
        assert [rows.shape[0] for rows in found] == [2, 1]
        torch.testing.assert_close(torch.cat(found).norm(dim=-1), torch.ones(3))
        assert (found[0][0] - found[0][1]).abs().max() > 1e-3  # boxes differ, one of them outside of the center crop
    if name not in DENSE:
        with pytest.raises(ValueError, match="must be crop"):
            ours.encode_regions(pictures, BOXES, "roi_align")
        with pytest.raises(ValueError, match="no patch tokens"):
            ours.encode_dense(pictures)
    else:
        tokens, grid = ours.encode_dense(pictures)
        assert tokens.shape[1] == grid[0] * grid[1]


def test_a_mean_pooled_picture_is_the_mean_of_its_projected_tokens(models: Path, pictures: list[Image.Image]) -> None:
    """Where pooling is linear, a box around everything is the picture."""
    ours = load(models, "toy-conv")
    views = [picture.resize((96, 96)) for picture in pictures]  # no resizing, no padding
    whole = ours.encode_regions(views, [[[0, 0, 1, 1]]] * 2, "mask_pool")
    torch.testing.assert_close(torch.cat(whole), ours.encode_image(views), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("open_clip:nothing:x", "'nothing' is not an open_clip architecture"),
        ("open_clip:ViT-B-32", "no weights are named"),
        ("open_clip:ViT-B-32:nowhere.pt", "neither a file nor a tag"),
        ("open_clip:ViT-B-32-quickgelu:laion2b_s34b_b79k", None),
    ],
)
def test_wrong_names_are_refused(name: str, told: str | None) -> None:
    if told is None:  # a tag of the architecture without QuickGELU
        told = "neither a file nor a tag"
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        cloc.load(name)


def test_weights_of_another_resolution_or_activation_are_refused(models: Path, tmp_path: Path) -> None:
    config = json.loads((models / "toy-vit.json").read_text())
    config["vision_cfg"]["image_size"] = 48
    (tmp_path / "toy-large.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "toy-large.json")
    with pytest.raises(ValueError, match="weights are for 32 px, the architecture for 48 px"):
        cloc.load(f"open_clip:toy-large:{models / 'toy-vit.safetensors'}")
    (tmp_path / "openai.safetensors").write_bytes((models / "toy-vit.safetensors").read_bytes())
    with pytest.raises(ValueError, match="QuickGELU"):
        cloc.load(f"open_clip:toy-vit:{tmp_path / 'openai.safetensors'}")
    wrong = load(models, "toy-vit-quickgelu").encode_image([Image.new("RGB", (32, 32), (9, 99, 199))])
    right = load(models, "toy-vit").encode_image([Image.new("RGB", (32, 32), (9, 99, 199))])
    assert (wrong - right).abs().max() > 1e-4  # the activation is honored: other weights, other numbers


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def write_hugging_face(folder: Path, kind: str) -> Any:
    """A small random CLIPModel or SiglipModel with image processor and tokenizer."""
    transformers = pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")
    size = write_word_tokenizer(["a chick and two cups of tea on a table"], folder)
    part = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = part | {"image_size": 32, "patch_size": 8}
    text = part | {"vocab_size": size, "max_position_embeddings": 16, "eos_token_id": 3, "bos_token_id": 2}
    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(
            vision_config=vision, text_config=text | {"pad_token_id": 0}, projection_dim=16
        )
        model = transformers.CLIPModel(config)
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    else:
        config = transformers.SiglipConfig(vision_config=vision, text_config=text | {"pad_token_id": 0})
        model = transformers.SiglipModel(config)
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_hugging_face_folder_says_what_transformers_says(
    kind: str, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    folder = tmp_path / kind
    model, processor, tokenizer = write_hugging_face(folder, kind)
    ours = cloc.load(str(folder))
    texts = ["a chick", "two cups of tea on a table"]
    with torch.no_grad():
        seen = model.get_image_features(processor(pictures, return_tensors="pt").pixel_values)
        padding = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
        said = model.get_text_features(tokenizer(texts, return_tensors="pt", **padding).input_ids)
    expected = [normalize(x if isinstance(x, Tensor) else x.pooler_output, dim=-1) for x in (seen, said)]
    torch.testing.assert_close(ours.encode_image(pictures), expected[0], rtol=0, atol=0.02)
    torch.testing.assert_close(ours.encode_text(texts), expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.encode_text(texts[:1]), expected[1][:1], rtol=1e-4, atol=1e-5)
    assert ours.preprocess.mode == ("crop" if kind == "clip" else "squash") and ours.name == kind
    for source in ours.sources:
        assert [len(rows) for rows in ours.encode_regions(pictures, BOXES, source)] == [2, 1]
    assert len(ours.sources) == 3


def test_a_hugging_face_folder_without_processor_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_hugging_face(tmp_path / "clip", "clip")
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="not known how the model wants its pictures"):
        cloc.load(str(tmp_path / "clip"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(ValueError, match="model_type='siglip2'"):
        cloc.load(str(tmp_path / "other"))


# --- views ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(40, 60), (90, 30), (32, 32), (20, 31)])
def test_views_are_the_libraries_own(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    tensor = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    for mode, theirs in (("crop", "shortest"), ("squash", "squash")):
        transform = open_clip.image_transform(
            32, is_train=False, resize_mode=theirs, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
        )
        view, content = Preprocess(mode)(tensor, 32)
        assert view.shape == (3, 32, 32) and view.dtype == torch.uint8
        gap = (view / 255 - transform(picture)).abs()  # Pillow rounds between its two passes
        assert gap.max() <= 6 / 255 and gap.mean() <= 0.5 / 255
        assert (content[2:] - content[:2] >= 1 - 1e-6).all()
        if mode == "squash":
            assert content.tolist() == [0, 0, 1, 1]


def test_configurations_of_views() -> None:
    assert from_open_clip({"resize_mode": "squash", "interpolation": "bilinear"}) == Preprocess("squash", "bilinear")
    assert from_open_clip({}) == Preprocess("crop")
    assert from_open_clip({"resize_mode": "longest", "fill_color": 114}) == Preprocess()
    with pytest.raises(ValueError, match="fill_color=0"):
        from_open_clip({"resize_mode": "longest"})
    clip = {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": 32, "resample": 3}
    assert from_hugging_face(clip, 32) == Preprocess("crop", "bicubic", 36)
    with pytest.raises(ValueError, match=r"makes views of \[32\] px, the model takes 48 px"):
        from_hugging_face(clip, 48)
    with pytest.raises(ValueError, match="without a center crop"):
        from_hugging_face({"size": {"longest_edge": 32}}, 32)
    with pytest.raises(ValueError, match="interpolation='1'"):
        from_hugging_face(clip | {"resample": 1}, 32)
