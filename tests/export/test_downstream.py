"""An exported tower inside other people's models, by their own classes: the example of docs/downstream.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import cloc
from cloc.export.pipeline import export
from cloc.export.verify import make_probe
from cloc.loading import load
from tests.kit.exporting import CNN, OPEN_CLIP, SHARED, SPATIAL, make_run, word_text

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("downstream")
    return make_run(folder / "run", OPEN_CLIP, word_text(folder / "words"), prompter=SHARED, grounding=SPATIAL)


@pytest.fixture(scope="module")
def folder(run: Path) -> Path:
    return export("hf", run, run.parent / "hf")


def build_llava(folder: Path) -> tuple[torch.nn.Module, int]:
    """LLaVA around the exported tower, with a small random language model; returns it and the id of an image token."""
    image_token, vocabulary = 90, 100
    text = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    tower = transformers.CLIPVisionModel.from_pretrained(folder / "vision")
    config = transformers.LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=image_token,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    return model, image_token


def test_llava_trains_and_generates(run: Path, folder: Path) -> None:
    model, image_token = build_llava(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder / "vision")
    picture = Image.new("RGB", (200, 90), (200, 40, 30))
    pixels = processor(picture, return_tensors="pt").pixel_values
    count = model.config.image_seq_length
    prompt = torch.tensor([[1, *[image_token] * count, 5, 6]])

    # What LLaVA reads is the penultimate state of the run's own tower, without the class token.
    encoder = load(run)
    states: dict[str, torch.Tensor] = {}
    block = encoder.model.image.visual.transformer.resblocks[-1]
    handle = block.register_forward_pre_hook(lambda module, inputs: states.update(penultimate=inputs[0]))
    encoder.encode_image([picture])
    handle.remove()
    read: dict[str, torch.Tensor] = {}
    projector = model.model.multi_modal_projector
    handle = projector.register_forward_pre_hook(lambda module, inputs: read.update(features=inputs[0]))

    # One step of the projector alone, as LLaVA's first stage.
    model.requires_grad_(False)
    projector.requires_grad_(True)
    answer = torch.tensor([[7, 8, 9]])
    ids = torch.cat([prompt, answer], 1)
    labels = ids.clone()
    labels[:, : prompt.shape[1]] = -100
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-2)
    losses = []
    for _ in range(2):
        loss = model(input_ids=ids, pixel_values=pixels, labels=labels).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    handle.remove()
    assert losses[1] < losses[0]
    torch.testing.assert_close(read["features"], states["penultimate"][:, 1:], atol=1e-5, rtol=0)

    generated = model.eval().generate(input_ids=prompt, pixel_values=pixels, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] == prompt.shape[1] + 4


def test_regions_beside_the_tower_of_transformers(run: Path, folder: Path) -> None:
    """``export regions`` answers from the tokens of the CLIPVisionModel, without cloc."""
    from cloc.export.regions import _module

    sampler_folder = export("regions", run, run.parent / "regions")
    sampler = _module(sampler_folder / "regions.py").RegionSampler.load(sampler_folder)
    tower = transformers.CLIPVisionModel.from_pretrained(folder / "vision").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder / "vision")
    encoder = load(run)
    for picture in make_probe(encoder).pictures:
        boxes = torch.tensor([[[0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 1.0, 1.0]]])
        with torch.no_grad():
            seen = tower(processor(picture, return_tensors="pt").pixel_values)
            norm = getattr(tower, "vision_model", tower).post_layernorm
            found = sampler.encode_regions(
                norm(seen.last_hidden_state)[:, 1:], sampler.to_view(boxes, picture.width, picture.height)
            )
        torch.testing.assert_close(found[0], encoder.encode_regions([picture], [boxes[0]])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("format", ["hf", "open_clip"])
def test_cloc_load_gives_the_model_back(run: Path, folder: Path, format: str, tmp_path: Path) -> None:
    exported = folder if format == "hf" else export(format, run, tmp_path / "out")
    ours, again = load(run), cloc.load(str(exported))
    pictures = make_probe(ours).pictures
    torch.testing.assert_close(again.encode_image(pictures), ours.encode_image(pictures), atol=1e-5, rtol=0)
    assert again.can_ground and "prompter" in again.sources


def test_a_cnn_is_read_by_transformers(tmp_path: Path) -> None:
    """timm's folders are those of transformers' TimmWrapperModel, a vision tower for whoever takes one."""
    run = make_run(tmp_path / "run", CNN, word_text(tmp_path / "words"))
    folder = export("timm", run, tmp_path / "out")
    tower = transformers.TimmWrapperModel.from_pretrained(folder).eval()
    view = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    model = load(run).model
    with torch.no_grad():
        maps = tower((view.float() - model.mean) / model.std).last_hidden_state
        torch.testing.assert_close(maps.flatten(2).transpose(1, 2), model.encode_images(view).tokens)
