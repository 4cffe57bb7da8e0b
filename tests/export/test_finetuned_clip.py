"""The whole way of a user's CLIP: trained here, fine-tuned on boxes, zero-shot kept, out to every library and LLaVA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

import cloc
from cloc.config import EvalConfig, validate
from cloc.engine.run import train
from cloc.evaluation.compare import compare
from cloc.export.pipeline import export
from cloc.export.run_weights import Choice
from tests.export.test_downstream import build_llava
from tests.kit.exporting import check_loaded, parity
from tests.kit.local_clip import trained_clip
from tests.kit.paths import ROOT

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clip() -> Path:
    """The folder of a CLIP that is somebody's own: of Hugging Face's kind, without a trace of cloc."""
    folder = trained_clip() / "hf"
    if not folder.exists():
        export("hf", trained_clip() / "run", folder)
        (folder / "cloc.json").unlink()
    return folder


@pytest.fixture(scope="module")
def tuned(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the experiment from it."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    own = [
        f"base={clip}",
        f"data.train={clip.parent / 'train'}",
        f"run_dir={folder}",
        "samples=2560",
        "batch_size=64",
        "optim.lr=3e-3",
        "optim.tower_rate=0.05",
        "optim.warmup=320",
        "loss.conflicts=exact",
        "trainer.threads=1",
        "trainer.checkpoint_minutes=0",
        "data.workers=0",
        "evaluation.every=0",
        "evaluation.at_start=false",
        "evaluation.data=[]",
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        train(compose("train", ["experiment=finetune_clip_cloc", *own]))
    return folder


def measured(model: Path, base: Path, out: Path) -> dict[str, Any]:
    """What eval.py writes of a model beside its base, on scenes that neither has seen."""
    evaluation = {"parts": ["image", "region"], "sources": ["prompter", "roi_align"]}
    given = {"checkpoint": str(model), "baseline": [str(base)], "data": [str(trained_clip() / "test")], "out": str(out)}
    compare(validate({**given, "pictures": 0, "evaluation": evaluation}, EvalConfig))
    (found,) = json.loads((out / "metrics.json").read_text())["data"].values()
    return dict(found)


def test_image_level_is_kept_and_regions_are_gained(clip: Path, tuned: Path, tmp_path: Path) -> None:
    """The paired interval of text-to-image recall does not lie below zero; boxes are named far better than before."""
    found = measured(tuned, clip, tmp_path)
    gaps = found["differences"]["hf"]
    for name in ("image_text/text_to_image_R@10", "image_text/image_to_text_R@10"):
        assert gaps[name][2] >= 0, (name, gaps[name])
    ours, theirs = found["models"]["run"], found["models"]["hf"]
    best = max(value for name, value in theirs.items() if name.startswith("region/") and name.endswith("/top1"))
    assert ours["region/prompter/top1"] > best + 0.03


@pytest.mark.parametrize("format", ["hf", "open_clip", "timm"])
def test_it_goes_to_every_library(tuned: Path, format: str, tmp_path: Path) -> None:
    folder = export(format, tuned, tmp_path / format)
    assert parity(folder)
    if format == "timm":  # the backbone alone; cloc.load says so
        import timm

        assert timm.create_model(f"local-dir:{folder}", pretrained=True).num_features == 64
        with pytest.raises(ValueError, match="export to timm, which cloc.load does not take"):
            cloc.load(folder)
    else:
        check_loaded(tuned, folder)


def test_llava_reads_the_same_tokens(tuned: Path, tmp_path: Path) -> None:
    """The exported tower inside transformers' LlavaForConditionalGeneration, and the run's own outside of it."""
    folder = export("hf", tuned, tmp_path / "hf")
    model, image_token = build_llava(folder)
    read: dict[str, torch.Tensor] = {}
    hook = model.model.multi_modal_projector.register_forward_pre_hook(lambda _, inputs: read.update(tokens=inputs[0]))
    picture = Image.new("RGB", (120, 90), (200, 40, 30))
    picture.paste((20, 200, 40), (10, 20, 60, 70))
    processor = transformers.AutoImageProcessor.from_pretrained(folder / "vision")
    pixels = processor(picture, return_tensors="pt").pixel_values
    prompt = torch.tensor([[1, *[image_token] * model.config.image_seq_length, 5, 6]])
    with torch.no_grad():
        model(input_ids=prompt, pixel_values=pixels)
    hook.remove()
    outside, grid = cloc.load(tuned).encode_dense([picture], layers=(-2,))
    tokens = outside[0] if isinstance(outside, list | tuple) else outside
    assert grid == (8, 8)
    torch.testing.assert_close(read["tokens"], tokens, atol=1e-5, rtol=1e-5)
    generated = model.eval().generate(input_ids=prompt, pixel_values=pixels, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] == prompt.shape[1] + 3


def test_a_blend_takes_the_base_from_the_run(clip: Path, tuned: Path, tmp_path: Path) -> None:
    folder = export("hf", tuned, tmp_path / "half", choice=Choice(alpha=0.5))
    half, run, base = cloc.load(folder), cloc.load(tuned), transformers.CLIPModel.from_pretrained(clip)
    name = "visual.conv1.weight"
    own = [one.model.image.state_dict()[name] for one in (half, run)]
    theirs = base.state_dict()["vision_model.embeddings.patch_embedding.weight"]
    torch.testing.assert_close(own[0], (own[1] + theirs) / 2)
    assert half.can_ground
