"""An exported tower inside other people's models, by their own classes: the example of docs/downstream.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import cloc
from cloc.export.pipeline import export
from cloc.export.verify import make_probe
from cloc.loading import load
from tests.kit.exporting import CNN, OPEN_CLIP, SHARED, SPATIAL, build_llava, check_llava, make_run, word_text

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("downstream")
    return make_run(folder / "run", OPEN_CLIP, word_text(folder / "words"), prompter=SHARED, grounding=SPATIAL)


@pytest.fixture(scope="module")
def folder(run: Path) -> Path:
    return export("hf", run, run.parent / "hf")


def test_a_tokenizer_of_ones_own_is_named_as_all_releases_know_it(folder: Path) -> None:
    stored = json.loads((folder / "tokenizer_config.json").read_text())
    assert stored["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert transformers.AutoTokenizer.from_pretrained(folder)("a chick")["input_ids"]


def test_llava_reads_the_tokens_of_the_run(run: Path, folder: Path) -> None:
    check_llava(load(run), folder)


def test_llava_trains_and_generates(folder: Path) -> None:
    model, image_token = build_llava(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder / "vision")
    picture = Image.new("RGB", (200, 90), (200, 40, 30))
    pixels = processor(picture, return_tensors="pt").pixel_values
    count = model.config.image_seq_length
    prompt = torch.tensor([[1, *[image_token] * count, 5, 6]])

    # One step of the projector alone, as LLaVA's first stage.
    projector = model.model.multi_modal_projector
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
    assert losses[1] < losses[0]

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
