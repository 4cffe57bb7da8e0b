"""Towers that are frozen in part, and the token cache: steps learn what they learn without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from cloc.config import ConfigError
from cloc.data.shards.reader import ShardReader
from cloc.engine import run
from cloc.models.frozen import FrozenPart, frozen_part, is_frozen
from cloc.models.image import TimmTower
from cloc.models.text import ClipText
from tests.kit.resuming import assert_same, configure, make_squares, weights

TRUNK = ["+model.image.tune_last=0", "+model.image.adapter_depth=1", "+model.image.adapter_width=64"]
DROPOUT = "+model.image.adapter_dropout=0.2"


class WordText(nn.Module):
    """A table of words that stays as it is, their mean, and a projection that is trained: a tower of a user's.

    Sums in float64, so that the rows beside a text round nothing otherwise.
    """

    context_length, vocab_size = 16, 64

    def __init__(self, joint_dim: int, tokenizer: str) -> None:
        super().__init__()
        self.tokenizer, self.joint_dim = tokenizer, joint_dim
        self.table = nn.Embedding(self.vocab_size, 24).requires_grad_(False)
        self.proj = nn.Linear(24, joint_dim)

    def forward(self, *groups: Tensor) -> Tensor:
        return self.proj(torch.cat([self._mean(tokens) for tokens in groups]))

    def _mean(self, tokens: Tensor) -> Tensor:
        known = (tokens != 0).unsqueeze(-1)
        rows = self.table(tokens).double() * known
        return (rows.sum(1) / known.sum(1).clamp(min=1)).float()

    def frozen_part(self) -> FrozenPart:
        return FrozenPart(self.table, self._mean, self.proj)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_squares(tmp_path_factory.mktemp("squares"), 24)


def composed(squares: Path, name: str, *more: str) -> DictConfig:
    """A run with a frozen backbone below a trained block, and a text tower that is frozen in part."""
    config = configure(squares, squares / name, *TRUNK, "samples=32", *more)
    target = f"{WordText.__module__}.{WordText.__qualname__}"
    config.model.text = {"_target_": target, "tokenizer": str(squares / "tokenizer")}
    return config


def train(squares: Path, name: str, *more: str) -> dict[str, Tensor]:
    run.train(composed(squares, name, *more))
    return weights(squares / name)


@pytest.fixture(scope="module")
def plain(squares: Path) -> dict[str, Tensor]:
    """Without the cache."""
    return train(squares, "plain", DROPOUT)


@pytest.fixture(scope="module")
def kept(squares: Path, plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """With it, filled by this run."""
    return train(squares, "kept", DROPOUT, f"data.token_cache={squares / 'tokens'}")


def test_with_the_cache_and_without_it_the_same_is_learned_to_the_bit(
    plain: dict[str, Tensor], kept: dict[str, Tensor]
) -> None:
    """Four steps with dropout behind the cut, towers and heads trained, moments of the optimizer too."""
    assert_same(plain, kept)
    assert any(name.startswith("model.image.adapter.") for name in plain)


def test_a_second_run_reads_no_picture_whatever_is_trained_behind_the_cut(
    squares: Path, kept: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a shard was read")

    monkeypatch.setattr(ShardReader, "read", refuse)
    cache = f"data.token_cache={squares / 'tokens'}"
    train(squares, "clip", cache, "model.prompter=null", "model.grounding=null", "loss.region=0", "loss.grounding=0")
    said = " ".join(capsys.readouterr().err.split())
    assert "0 pictures and 0 texts encoded" in said
    assert len(list((squares / "tokens").glob("image-*"))) == 1


CROPS = ["data.crops=2", "+loss.crops=1", "loss.region=0", "loss.grounding=0"]
CLIP = ["model.prompter=null", "model.grounding=null"]


def test_with_crops_too_the_same_is_learned_to_the_bit(squares: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CLIP + crops: regions are cut out and pass the backbone once; the second run finds all of them."""
    own = [DROPOUT, *CLIP, *CROPS]
    plain = train(squares, "plain-crops", *own)
    cache = squares / "with-crops"
    assert_same(plain, train(squares, "kept-crops", *own, f"data.token_cache={cache}"))
    assert "and 48 crops" in " ".join(capsys.readouterr().out.split())
    files = list(cache.glob("crops-*/*.safetensors"))
    before = [(file, file.stat().st_mtime_ns) for file in files]
    damage(files[0])
    assert_same(plain, train(squares, "again-crops", *own, f"data.token_cache={cache}"))
    assert "1 damaged files made anew" in " ".join(capsys.readouterr().err.split())
    assert [(file, file.stat().st_mtime_ns) for file in files[1:]] == before[1:]


def test_kept_in_half_precision_it_reaches_the_rest_of_the_tower_in_its_own(squares: Path) -> None:
    """As ``data.token_precision=float16`` asks for, in half the room; pictures and crops."""
    cache = [f"data.token_cache={squares / 'halves'}", "data.token_precision=float16"]
    found = train(squares, "halves", *CLIP, *CROPS, "samples=8", *cache)
    assert all(value.isfinite().all() for value in found.values())
    for kind in ("image", "crops"):
        held = load_file(next((squares / "halves").glob(f"{kind}-*/*.safetensors")))
        assert held["states"].dtype == torch.float16


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def test_crops_of_a_frozen_tower_are_refused(squares: Path) -> None:
    """They pass through the towers alone."""
    own = ["data.token_cache=tokens", "dry_run=true", "model.frozen_towers=true", "loss.global=null", "data.crops=1"]
    with pytest.raises(ConfigError, match=r"data\.crops=1 .*set data\.crops=0"):
        run.train(composed(squares, "refused-crops", *own, "+loss.crops=1"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_is_so_in_bfloat16_and_in_micro_batches(squares: Path, precision: str) -> None:
    """What is kept is what autocast gives to the rest of the tower: no bit is lost in either."""
    own = [DROPOUT, f"trainer.precision={precision}", "trainer.accumulate=2"]
    plain = train(squares, f"plain-{precision}", *own)
    assert_same(plain, train(squares, f"kept-{precision}", *own, f"data.token_cache={squares / precision}"))
    held = load_file(next((squares / precision).glob("image-*/*.safetensors")))
    assert held["states"].dtype == torch.float32  # as the last norm gives it in either


@pytest.mark.slow
def test_a_text_tower_that_is_trained_encodes_its_texts_at_each_step(squares: Path) -> None:
    own = [*TRUNK, "samples=32"]
    runs = {"plain-text": [], "kept-text": [f"data.token_cache={squares / 'tokens'}"]}
    for name, more in runs.items():
        run.train(configure(squares, squares / name, *own, *more))
    assert_same(weights(squares / "plain-text"), weights(squares / "kept-text"))


@pytest.mark.parametrize("last", ["-1", "1"])
def test_a_backbone_that_is_trained_is_refused_with_the_key_to_set(squares: Path, last: str) -> None:
    config = composed(squares, "refused", "data.token_cache=tokens", f"model.image.tune_last={last}", "dry_run=true")
    said = r"data\.token_cache=tokens: the image tower is trained, .*set model\.image\.tune_last=0"
    with pytest.raises(ConfigError, match=said) as error:
        run.train(config)
    assert "\n" not in str(error.value)


def test_a_dry_run_says_what_is_kept_and_what_it_takes(squares: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = squares / "dry"
    run.train(composed(squares, "dry", f"data.token_cache={cache}", "+model.image.remember=64", "dry_run=true"))
    said = " ".join(capsys.readouterr().out.split())
    assert "24 samples × 4 KiB" in said and "what the frozen part of its tower makes" in said
    assert "model.image.remember is of no use beside it" in said
    assert not cache.exists()


@pytest.mark.parametrize(
    "options",
    [
        {"name": "vit_tiny_patch16_224", "options": {"patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2}},
        {
            "name": "vit_tiny_patch16_224",
            "options": {"patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2},
            "adapter_depth": 1,
            "adapter_width": 64,
        },
        {"name": "resnet10t", "adapter_depth": 1, "adapter_width": 64},
    ],
    ids=["vit", "vit and blocks", "cnn and blocks"],
)
def test_a_tower_is_its_frozen_part_and_the_rest(options: dict[str, Any]) -> None:
    tower = TimmTower(16, image_size=32, tune_last=0, **options).eval()
    part, pictures = frozen_part(tower), torch.randn(3, 3, 32, 32)
    assert part is not None and not any(value.requires_grad for value in part.module.parameters())
    for own, other in zip(tower(pictures), part.rest(part.first(pictures)), strict=True):
        assert torch.equal(own, other)


def test_a_tower_without_gradient_that_drops_out_is_not_frozen() -> None:
    tower = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).requires_grad_(False).eval()
    assert not is_frozen(tower) and not tower.training
    assert is_frozen(ClipText(16, options={"width": 32, "heads": 2, "layers": 1}, frozen=True))
