"""Towers of a user's own, given by ``_target_``: all of engine and export, with no other file touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.functional import gelu

import cloc
from cloc.config import ConfigError, OptimConfig, TrainerConfig
from cloc.engine import run
from cloc.engine.optim import parameter_groups
from cloc.engine.strategy import prepare
from cloc.export.capabilities import ExportError, check_pair
from cloc.export.pipeline import export
from cloc.export.run_weights import Choice, load_source
from cloc.models.build import build_model
from cloc.models.model import Cloc
from cloc.models.protocols import blocks, layers, prefix_tokens, recompute, refusals, view
from tests.kit.exporting import SHARED, SPATIAL, TEXT, make_run, parity
from tests.kit.paths import ROOT
from tests.kit.resuming import TINY, make_squares


class Step(nn.Module):
    """A residual perceptron over the tokens and over their values."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.across, self.along = nn.Linear(tokens, tokens), nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """``[B,N,C]`` → the same."""
        states = states + gelu(self.across(states.transpose(1, 2)).transpose(1, 2))
        return states + gelu(self.along(states))


class SilentTower(nn.Module):
    """A tower that declares nothing, and whose blocks no rule finds."""

    def __init__(self, joint_dim: int, image_size: int = 32, width: int = 32) -> None:
        super().__init__()
        self.image_size, self.joint_dim, self.width, self.grid = image_size, joint_dim, width, (4, 4)
        self.rows = nn.Conv2d(3, width, image_size // 4, stride=image_size // 4)
        self.places = nn.Parameter(torch.randn(16, width) * 0.1)
        self.steps = nn.ModuleDict({name: Step(16, width) for name in ("one", "two")})
        self.last = nn.LayerNorm(width)
        self.out = nn.Linear(width, joint_dim, bias=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As :class:`cloc.models.protocols.ImageTower`."""
        states = self.rows(images).flatten(2).transpose(1, 2) + self.places
        for step in self.steps.values():
            states = step(states)
        tokens = self.last(states)
        return self.out(tokens.mean(1)), tokens

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """As :class:`cloc.models.protocols.ImageTower`."""
        return self.out(tokens)


class TellingTower(SilentTower):
    """The same, and says what it is."""

    mean, std, resize, kind = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "squash", "a mixer of two steps"

    def block_modules(self) -> list[nn.Module]:
        """As :class:`cloc.models.protocols.Declares`."""
        return list(self.steps.values())

    def no_weight_decay(self) -> set[str]:
        """As :class:`cloc.models.protocols.Declares`."""
        return {"places"}

    def parameter_layers(self) -> dict[str, int]:
        """As :class:`cloc.models.protocols.Declares`."""
        depth = {"rows": 0, "places": 0, "steps.one": 1, "steps.two": 2, "last": 3, "out": 3}
        names = [name for name, _ in self.named_parameters()]
        return {name: next(layer for part, layer in depth.items() if name.startswith(part)) for name in names}

    def refuses(self, format: str) -> list[str]:
        """As :class:`cloc.models.protocols.Declares`."""
        return [] if format == "torch" else [f"a mixer is no model of {format}"]


class OwnText(nn.Module):
    """A bag of words that declares nothing."""

    def __init__(self, joint_dim: int, tokenizer: str, vocab_size: int = 64, context_length: int = 24) -> None:
        super().__init__()
        self.tokenizer, self.context_length, self.joint_dim = tokenizer, context_length, joint_dim
        self.vocab_size = vocab_size
        self.words = nn.EmbeddingBag(vocab_size, joint_dim, mode="sum", padding_idx=0)

    def forward(self, *groups: Tensor) -> Tensor:
        """As :class:`cloc.models.protocols.TextTower`."""
        return torch.cat([self.words(tokens) for tokens in groups])


# Softmax does not see a bias of the keys: its gradient is rounding noise, which Adam turns into steps.
NOISE = ("attn.in_proj_bias", "prompter.key.bias")
TOWERS = (SilentTower, TellingTower)
EACH = pytest.mark.parametrize("tower", TOWERS, ids=lambda cls: cls.__name__)


def node(tower: type) -> dict[str, Any]:
    return {"_target_": f"{tower.__module__}.{tower.__name__}", "image_size": 32}


def build(tower: type) -> Cloc:
    torch.manual_seed(0)
    parts = {"image": node(tower), "text": TEXT, "prompter": SHARED, "grounding": SPATIAL}
    return build_model({"joint_dim": 32} | parts)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_squares(tmp_path_factory.mktemp("squares"))


def overrides(squares: Path, folder: Path, tower: type, *more: str) -> list[str]:
    own = [f"data.train={squares / 'train'}", f"model.text.tokenizer={squares / 'tokenizer'}", f"run_dir={folder}"]
    image = ["~model.image", *(f"+model.image.{key}={value}" for key, value in node(tower).items())]
    rest = [option for option in TINY if "model.image" not in option]
    return [*rest, *image, *own, "optim.layer_decay=0.5", "samples=48", *more]


def configure(*options: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(options))


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@EACH
def test_it_trains_and_resumes(tower: type, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps equal four and two more, to the bit; with recomputed activations too."""

    def train(folder: str, *more: str) -> dict[str, Tensor]:
        run.train(configure(*overrides(squares, tmp_path / folder, tower, *more)))
        return weights(tmp_path / folder)

    whole = train("whole")
    monkeypatch.setattr(run, "steps", lambda config: 4)
    train("parts")
    monkeypatch.undo()
    for found in (train("parts"), train("recomputed", "trainer.checkpoint_activations=true")):
        assert whole.keys() == found.keys() and all(torch.equal(whole[name], found[name]) for name in whole)
    with pytest.raises(ConfigError, match=f"trusted=.{tower.__name__}"):
        cloc.load(str(tmp_path / "whole"))
    encoder = cloc.load(str(tmp_path / "whole"), trusted=[tower])
    assert encoder.preprocess.mode == view(encoder.model.image).resize == getattr(tower, "resize", "pad")


def test_a_text_tower_of_ones_own_trains(squares: Path, tmp_path: Path) -> None:
    own = ["~model.text", f"+model.text._target_={__name__}.OwnText", f"+model.text.tokenizer={squares / 'tokenizer'}"]
    rest = [option for option in overrides(squares, tmp_path, TellingTower) if "model.text" not in option]
    run.train(configure(*rest, *own))
    encoder = cloc.load(str(tmp_path), trusted=[TellingTower, OwnText])
    assert encoder.encode_text(["a red square"]).norm().item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ExportError, match="OwnText does not declare that hf can hold it"):
        check_pair(encoder, "hf")


def test_what_it_declares_is_what_the_optimizer_does() -> None:
    groups = parameter_groups(build(TellingTower), OptimConfig(name="muon", layer_decay=0.5, lr=1.0, muon_lr=1.0))
    found = {name: (group.optimizer, group.weight_decay > 0, group.peak_lr) for group in groups for name in group.names}
    assert found["image.places"] == ("adamw", False, 0.125)
    assert found["image.rows.weight"] == ("adamw", True, 0.125)
    assert found["image.steps.one.along.weight"] == ("muon", True, 0.25)
    assert found["image.steps.two.across.bias"] == ("adamw", False, 0.5)
    assert found["image.out.weight"] == ("adamw", True, 1.0)


def test_without_a_word_there_are_defaults() -> None:
    silent, telling = (build(tower).image for tower in TOWERS)
    assert blocks(silent) == [] and blocks(telling) == list(telling.steps.values())
    assert set(layers(silent)[0].values()) == {1} and layers(silent)[1] == 1
    assert prefix_tokens(silent) == 0 and view(silent).resize == "pad" and len(view(silent).mean) == 3
    assert refusals(silent, "timm") == ["SilentTower does not declare that timm can hold it"]
    assert refusals(silent, "onnx") == [] and refusals(telling, "onnx") == ["a mixer is no model of onnx"]


def test_layers_follow_from_blocks_that_are_declared() -> None:
    class Blocks(SilentTower):
        block_modules = TellingTower.block_modules

    numbers, last = layers(Blocks(8))
    assert last == 3 and numbers["steps.one.across.weight"] == 1 and numbers["steps.two.along.bias"] == 2
    assert numbers["out.weight"] == numbers["last.bias"] == 3


def test_it_is_recomputed_and_compiled_by_what_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    silent, telling = (build(tower).image for tower in TOWERS)
    assert recompute(silent) == ["SilentTower as a whole"] and recompute(telling) == ["2 blocks of TellingTower"]
    copy = deepcopy(telling)  # as a moving average makes it
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        copy.steps["one"].along.weight.zero_()
    assert not torch.equal(copy(pictures)[0], telling(pictures)[0])
    assert recompute(silent.requires_grad_(False)) == []
    monkeypatch.setattr("cloc.engine.strategy.shutil.which", lambda name: name)
    for tower, said in ((SilentTower, "the whole image tower"), (TellingTower, "2 blocks of the image tower")):
        notes = prepare(build(tower), TrainerConfig(compile=True, strategy="fsdp"))
        assert notes[0] == f"compiled: {said} and 2 blocks of the text tower"
        whole = ["sharded as a whole, without blocks of its own: the image tower"]
        assert notes[1:] == (whole if tower is SilentTower else [])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@EACH
def test_it_compiles(tower: type) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = build(tower), build(tower)
    prepare(compiled, TrainerConfig(compile=True, checkpoint_activations=True))
    images, found = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), []
    for model in (plain, compiled):
        seen = model.encode_images(images)
        (seen.tokens.square().sum() + (seen.pooled * torch.arange(32)).sum()).backward()
        found.append({name: p.grad for name, p in model.image.named_parameters()})
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] and not torch._dynamo.utils.counters["graph_break"]
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.distributed
@EACH
def test_it_shards(tower: type, squares: Path, tmp_path: Path) -> None:
    """FSDP2 over two processes equals one process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    more = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "optim=adamw"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *overrides(squares, tmp_path / "two", tower, *more)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert ("sharded as a whole" in done.stdout) == (tower is SilentTower)
    run.train(configure(*overrides(squares, tmp_path / "one", tower, "optim=adamw")))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        if not name.endswith(NOISE):
            torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-4, msg=name)


@EACH
def test_it_is_refused_where_it_cannot_go(tower: type, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", node(tower), prompter=SHARED)
    encoder = load_source(folder, Choice(trusted=[tower]))
    reason = "does not declare that timm can hold it" if tower is SilentTower else "a mixer is no model of timm"
    possible = "onnx, torch, regions" if tower is SilentTower else "torch, regions"
    for format in ("hf", "open_clip", "timm"):
        told = rf"{reason.replace('timm', format)}.*Possible for this model: {possible}$"
        with pytest.raises(ExportError, match=told):
            check_pair(encoder, format)


@pytest.mark.slow
@EACH
def test_it_goes_where_it_can(tower: type, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", node(tower), prompter=SHARED, grounding=SPATIAL)
    out = export("torch", folder, tmp_path / "out", choice=Choice(trusted=[tower]))
    assert max(parity(out).values()) <= 1e-4
    assert getattr(tower, "kind", tower.__name__) in (out / "README.md").read_text()
