"""What spreads, fits and starts a run: batch norm, recomputation, averages, initial weights, rates by layer."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import LightningModule
from omegaconf import OmegaConf
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cloc.config import ConfigError, OptimConfig, TrainerConfig, validate
from cloc.engine import strategy
from cloc.engine.durable.initial_weights import take_weights
from cloc.engine.moving_average import AveragedWeights
from cloc.engine.optim import build_optimizer, rate_factors, set_rate
from cloc.engine.strategy import prepare
from cloc.models.build import build_model
from cloc.models.model import Cloc
from cloc.models.protocols import blocks
from tests.kit.paths import ROOT

TINY = {
    "joint_dim": 16,
    "image": {
        "_target_": "cloc.models.image.TimmTower",
        "name": "vit_tiny_patch16_224",
        "image_size": 32,
        "options": {"patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "class_token": False}
        | {"global_pool": "avg"},
        "adapter_depth": 1,
        "adapter_width": 64,
    },
    "text": {"_target_": "cloc.models.text.ClipText", "options": {"width": 16, "heads": 2, "layers": 2}},
    "prompter": {"_target_": "cloc.models.prompter.SharedPrompter"},
    "grounding": {"_target_": "cloc.models.grounding.MlpHead"},
}
CONVOLUTIONS = {"_target_": "cloc.models.image.TimmTower", "name": "tf_efficientnet_lite0", "image_size": 32}


def tiny(**changes: Any) -> Cloc:
    torch.manual_seed(0)
    return build_model(deepcopy(TINY) | changes, pretrained=False)


def rejected(*overrides: str) -> str:
    run = ["name=toy", "samples=64", "batch_size=8", "data.train=nowhere"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), pytest.raises(ConfigError) as caught:
        validate(compose("train", [*run, *overrides]))
    return str(caught.value)


def test_contradictions_are_told() -> None:
    assert "optim.name=muon with trainer.strategy=fsdp" in rejected("trainer=fsdp", "optim=muon")
    assert "trainer.ema=0.9 with trainer.strategy=fsdp" in rejected("trainer=fsdp", "trainer.ema=0.9")
    assert "trainer.ema=1.0" in rejected("trainer.ema=1.0")
    assert "optim.layer_decay=0" in rejected("optim.layer_decay=0")
    assert "trainer.strategy='deepspeed'" in rejected("trainer.strategy=deepspeed")
    assert "evaluation.at_start: nothing is measured" in rejected("evaluation.at_start=true")
    assert "objective: nothing is measured" in rejected("objective=val/toy/region/prompter/top1")
    assert "no set 'openmoj_val' in datasets; did you mean 'openmoji_val'?" in rejected("evaluation.data=[openmoj_val]")


def test_blocks_are_found_in_every_kind_of_tower() -> None:
    model = tiny()
    assert [type(block).__name__ for block in blocks(model)] == ["Block"] * 3 + ["ResidualAttentionBlock"] * 2
    transformers = pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    assert len(blocks(transformers.BertModel(transformers.BertConfig(vocab_size=20, **sizes)))) == 2


def test_frozen_clip_towers_take_no_part_in_training() -> None:
    image = {"_target_": "cloc.models.image.OpenClipTower", "image_size": 32, "frozen": True}
    image["options"] = {"width": 16, "layers": 1, "head_width": 8, "patch_size": 16}
    model = tiny(image=image, text=TINY["text"] | {"frozen": True}).train()
    assert not model.image.training and not model.text.training and model.prompter.training
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"prompter", "grounding", "log_scales"}
    with pytest.raises(ConfigError, match="no trained part of either tower"):
        prepare(model, TrainerConfig(checkpoint_activations=True))


def gradients(model: Cloc) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 400, (2, 6), generator=generator)
    torch.manual_seed(2)
    image = model.encode_images(images)
    loss = (image.pooled * model.encode_texts(tokens)).sum() + image.tokens.square().sum()
    wanted = [p for n, p in model.named_parameters() if n.startswith(("image", "text")) and p.requires_grad]
    return list(torch.autograd.grad(loss, wanted))


def test_recomputed_activations_give_the_same_gradients() -> None:
    plain, recomputed = tiny().double(), tiny().double()
    notes = prepare(recomputed, TrainerConfig(checkpoint_activations=True))
    assert notes == ["activations recomputed in TimmTower.trunk, ClipText.tower"]
    assert recomputed.image.trunk.grad_checkpointing and recomputed.text.tower.transformer.grad_checkpointing
    for one, other in zip(gradients(plain), gradients(recomputed), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


def test_batch_norm_is_frozen_or_synchronized_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = tiny(image=CONVOLUTIONS | {"tune_last": 1})
    trained = tiny(image=CONVOLUTIONS)
    with pytest.raises(ConfigError, match=r"trainer.accumulate=2 with \d+ batch-norm layers that are trained"):
        prepare(trained, TrainerConfig(accumulate=2))
    assert prepare(frozen, TrainerConfig(accumulate=2))[0].endswith("frozen")
    assert prepare(trained, TrainerConfig())[0].endswith("use the statistics of the batch")
    monkeypatch.setattr(strategy, "rank_and_world", lambda: (0, 2))
    assert prepare(frozen, TrainerConfig())[0].endswith("frozen")
    with pytest.raises(ConfigError, match=r"batch-norm layers are trained by 2 processes.*tune_last=0"):
        prepare(trained, TrainerConfig())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert prepare(trained, TrainerConfig())[0].endswith("synchronized over 2 processes")
    assert all(isinstance(m, nn.SyncBatchNorm) for m in trained.modules() if isinstance(m, _BatchNorm))


def test_the_average_is_an_exponential_one() -> None:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(1, 1, bias=False)

    average, module = AveragedWeights(0.75), Module()
    average.setup(None, module, "fit")
    expected = None
    for step, value in enumerate((1.0, 3.0, 5.0)):
        module.model.weight.data.fill_(value)
        expected = value if expected is None else 0.75 * expected + 0.25 * value
        average._average_model.update_parameters(module)
        assert average.model.weight.item() == pytest.approx(expected), step


def test_layers_and_towers_have_rates_of_their_own() -> None:
    model = tiny()
    factors = rate_factors(model, OptimConfig(tower_rate=0.1, layer_decay=0.5))
    expected = {
        "image.proj.weight": 1,
        "image.adapter.norm.weight": 1,
        "image.adapter.blocks.0.norm1.weight": 1 / 2,
        "image.adapter.pos_embed": 1 / 4,  # between the backbone and the adapter's first block
        "image.adapter.proj.weight": 1 / 4,
        "image.trunk.blocks.1.norm1.weight": 1 / 4,
        "image.trunk.blocks.0.norm1.weight": 1 / 8,
        "image.trunk.patch_embed.proj.weight": 1 / 16,
        "text.tower.ln_final.weight": 1,
        "text.tower.text_projection": 1,
        "text.tower.transformer.resblocks.1.ln_1.weight": 1 / 2,
        "text.tower.transformer.resblocks.0.ln_1.weight": 1 / 4,
        "text.tower.token_embedding.weight": 1 / 8,
        "text.tower.positional_embedding": 1 / 8,
    }
    for name, factor in expected.items():
        assert factors[name] == pytest.approx(0.1 * factor), name
    assert factors["prompter.proj.weight"] == factors["log_scales.global"] == 1
    assert set(rate_factors(model, OptimConfig()).values()) == {1.0}


def test_prompter_and_grounding_head_have_a_rate_of_their_own() -> None:
    model = tiny()
    factors = rate_factors(model, OptimConfig(tower_rate=0.1, head_rate=3.0))
    assert {name.partition(".")[0] for name, factor in factors.items() if factor == 3.0} == {"prompter", "grounding"}
    assert {name.partition(".")[0] for name, factor in factors.items() if factor == 0.1} == {"image", "text"}
    assert {name.partition(".")[0] for name, factor in factors.items() if factor == 1.0} == {"log_scales"}
    for name in ("adamw", "muon"):
        config = OptimConfig(name=name, lr=1.0, muon_lr=10.0, head_rate=3.0)
        named = {id(parameter): name for name, parameter in model.named_parameters()}
        for group in build_optimizer(model, config).param_groups:
            heads = {named[id(one)].startswith(("prompter.", "grounding.")) for one in group["params"]}
            assert len(heads) == 1 and group["peak_lr"] in ((3.0, 30.0) if heads == {True} else (1.0, 10.0))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_in_one_group_with_its_rate(name: str) -> None:
    model = tiny()
    config = OptimConfig(name=name, lr=1.0, muon_lr=10.0, tower_rate=0.5, layer_decay=0.5)
    optimizer = build_optimizer(model, config)
    set_rate(optimizer, 0.1)
    trained = [p for p in model.parameters() if p.requires_grad]
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)
    named = dict(model.named_parameters())
    peak = 10 if name == "muon" else 1
    assert rates[id(named["image.trunk.blocks.1.mlp.fc1.weight"])] == pytest.approx(0.1 * peak * 0.5 / 4)
    assert rates[id(named["prompter.query.weight"])] == pytest.approx(0.1 * peak)
    assert optimizer.param_groups[0]["lr"] == max(rates.values())  # the one that is logged


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_loaded_state_takes_the_memory_layout_of_its_parameter(name: str) -> None:
    """FSDP2 stores convolutions contiguous, ours are channels-last; the fused step knows nothing of strides."""
    torch.manual_seed(0)
    pictures = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4)).double()

    def train(*layouts: torch.memory_format) -> dict[str, torch.Tensor]:
        model, state = deepcopy(first), None
        for layout in layouts:
            model.to(memory_format=layout)
            optimizer = build_optimizer(model, OptimConfig(name=name, lr=0.1, muon_projections=True))
            if state is not None:
                optimizer.load_state_dict(state)
            model.zero_grad()
            model(pictures).square().mean().backward()
            optimizer.step()
            state = optimizer.state_dict()
        return model.state_dict()

    rows, channels = torch.contiguous_format, torch.channels_last
    expected = train(rows, rows)
    for layouts in ((rows, channels), (channels, rows), (channels, channels)):
        for key, value in train(*layouts).items():
            torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-12, msg=key)


def save(model: Cloc, config: dict[str, Any], folder: Path) -> Path:
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    info = {"version": "0", "config": {"model": config}, "samples_seen": 1, "cursor": 1}
    torch.save({"cloc": info, "state_dict": state}, path)
    return folder


def test_a_run_starts_from_the_towers_of_a_clip(tmp_path: Path) -> None:
    config = deepcopy(TINY) | {"prompter": None, "grounding": None}
    torch.manual_seed(1)
    clip = build_model(config, pretrained=False)
    clip.log_scales["global"].data.fill_(3.0)
    model = tiny()
    before = deepcopy(model.state_dict())
    note = take_weights(model, str(save(clip, config, tmp_path / "clip")))
    assert note == f"image, text, log_scales from {tmp_path / 'clip'}; prompter, grounding, log_scales.region fresh"
    for name, value in model.state_dict().items():
        source = clip.state_dict() if name in clip.state_dict() else before
        assert torch.equal(value, source[name]), name


def test_initial_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    other = deepcopy(TINY) | {"joint_dim": 8}
    folder = save(build_model(other, pretrained=False), other, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"init_from=.*model\.image has another architecture.*image\.proj\.weight"):
        take_weights(tiny(), str(folder))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        take_weights(tiny(), "nowhere")


def test_the_fine_tuning_preset_composes() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = validate(compose("train", ["experiment=flickr8k_finetune"]))
    assert config.init_from and config.evaluation.at_start and config.evaluation.every
    assert config.optim.layer_decay < 1 and config.optim.tower_rate < 1 and config.optim.warmup < config.samples / 10
    assert OmegaConf.structured(config.trainer).strategy == "auto"


def test_compiling_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(strategy.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"trainer.compile=true: .* C\+\+ compiler"):
        prepare(tiny(), TrainerConfig(compile=True))


def test_frozen_towers_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategy.shutil, "which", lambda name: name)
    model = tiny()
    model.text.requires_grad_(False)
    assert prepare(model, TrainerConfig(compile=True)) == [
        "compiled: 3 blocks of the image tower and nothing of the frozen text tower"
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_compute_what_plain_blocks_do() -> None:
    """Embeddings and gradients, with texts of another length in every step."""
    plain, compiled = tiny(), tiny()
    assert prepare(compiled, TrainerConfig(compile=True)) == [
        "compiled: 3 blocks of the image tower and 2 blocks of the text tower"
    ]
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    for captions, phrases in ((9, 3), (14, 6), (8, 5), (20, 4)):
        texts = [torch.randint(1, 400, (count, length)) for count, length in ((2, captions), (5, phrases))]
        found = []
        for model in (plain, compiled):
            model.zero_grad()
            image = model.encode_images(images)
            pooled = torch.cat([image.pooled, model.encode_texts(*texts)])
            (pooled.square() * torch.arange(16)).sum().backward()
            found.append(
                (pooled.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
            )
        torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
        for name, grad in found[0][1].items():
            torch.testing.assert_close(found[1][1][name], grad, rtol=1e-3, atol=1e-4, msg=name)
