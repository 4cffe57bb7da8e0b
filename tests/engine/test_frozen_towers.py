"""Frozen towers and the token cache: what is kept equals what would be computed, and nothing of the towers moves."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch.nn.functional import avg_pool2d

import cloc
from cloc.config import ConfigError, DataConfig, validate
from cloc.contracts import Batch
from cloc.data.frozen import blocks as blocks_module
from cloc.data.frozen.blocks import Blocks, Rows, Shape, places_of
from cloc.data.frozen.stream import FrozenStream
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.reader import ShardReader
from cloc.data.stream.batches import Stream
from cloc.data.stream.region_sampling import Chooser
from cloc.data.stream.sources import ShardSource, ShardSources
from cloc.data.transforms import View
from cloc.engine import run
from cloc.engine.frozen.filling import Filler
from cloc.models.build import build_model
from cloc.models.model import Cloc
from tests.kit.resuming import assert_same, configure, make_squares, weights
from tests.kit.streams import TOKENIZER, make_manifest

ADAPTER = ["model.frozen_towers=true", "loss.global=null", "samples=32"]
FLOAT32 = "data.token_precision=float32"


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_squares(tmp_path_factory.mktemp("squares"), 24)


@pytest.fixture(scope="module")
def base(squares: Path) -> Path:
    """A CLIP of a few steps, to start from."""
    folder = squares / "base"
    plain = ["model.prompter=null", "model.grounding=null", "loss.region=0", "loss.grounding=0", "samples=16"]
    run.train(configure(squares, folder, *plain))
    return folder


def cached(folder: Path, base: Path, *more: str) -> list[str]:
    return [*ADAPTER, f"init_from={base}", f"data.token_cache={folder}", *more]


def files(folder: Path, kind: str = "image") -> list[Path]:
    return sorted(folder.glob(f"{kind}-*/*.safetensors"))


@pytest.fixture(scope="module")
def filled(squares: Path, base: Path) -> Path:
    """A run whose tokens are kept in float32 beside it."""
    run.train(configure(squares, squares / "kept", *cached(squares / "tokens", base, FLOAT32)))
    return squares / "kept"


def test_with_the_cache_and_without_it_the_same_is_learned(squares: Path, base: Path, filled: Path) -> None:
    """Four steps in float32. Matrix products of other batch sizes round otherwise, and Muon computes in bfloat16."""
    run.train(configure(squares, squares / "plain", *ADAPTER, f"init_from={base}"))
    kept, plain = weights(filled), weights(squares / "plain")
    assert kept.keys() == plain.keys()
    trained = [name for name in plain if name.startswith(("model.prompter.", "model.grounding."))]
    one, other = (torch.cat([found[name].flatten() for name in trained]) for found in (kept, plain))
    assert (one - other).norm() <= 1e-3 * other.norm()
    assert losses(filled) == pytest.approx(losses(squares / "plain"), rel=1e-3)


def losses(folder: Path) -> list[float]:
    """Of each step."""
    with (folder / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row.get("loss")]


def test_the_towers_are_those_of_the_base_to_the_bit(base: Path, filled: Path) -> None:
    before, after = weights(base), weights(filled)
    own = ("model.image.", "model.text.", "model.log_scales.global")
    names = [name for name in before if name.startswith(own)]
    assert len(names) > 20 and all(torch.equal(before[name], after[name]) for name in names)
    trained = [name for name in after if name.startswith(("model.prompter.", "model.grounding."))]
    assert trained and not any(name.startswith(own) for name in trained)


def test_image_level_embeddings_are_those_of_the_base_to_the_bit(base: Path, filled: Path) -> None:
    pictures = [torch.randint(0, 255, (3, 40, 56), dtype=torch.uint8) for _ in range(3)]
    one, other = cloc.load(base), cloc.load(filled)
    assert torch.equal(one.encode_image(pictures), other.encode_image(pictures))
    texts = ["a red square", "a green square and a blue square"]
    assert torch.equal(one.encode_text(texts), other.encode_text(texts))
    assert other.encode_regions(pictures, [torch.tensor([[0.1, 0.1, 0.6, 0.7]])] * 3) is not None


def test_a_second_run_reads_no_picture_and_learns_the_same(
    squares: Path, base: Path, filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a shard was read")

    monkeypatch.setattr(ShardReader, "read", refuse)
    run.train(configure(squares, squares / "again", *cached(squares / "tokens", base, FLOAT32)))
    assert_same(weights(filled), weights(squares / "again"))
    assert "0 pictures and 0 texts encoded" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_it_is_resumed_to_the_same_weights(squares: Path, base: Path, filled: Path) -> None:
    folder, given = squares / "resumed", cached(squares / "tokens", base, FLOAT32)
    stopped = configure(squares, folder, *given)
    stopped.samples = 16
    run.train(stopped)
    run.train(configure(squares, folder, *given))
    stopped_at = {name: value.shape for name, value in weights(folder).items()}
    assert stopped_at == {name: value.shape for name, value in weights(filled).items()}
    assert files(squares / "tokens") and len(set(file.parent for file in files(squares / "tokens"))) == 1


@pytest.mark.slow
def test_other_weights_other_precision_and_other_views_have_other_folders(squares: Path, base: Path) -> None:
    root = squares / "several"
    for number, more in enumerate(([FLOAT32], [], ["model.image.resize=squash"])):
        run.train(configure(squares, root / f"run{number}", *cached(root / "tokens", base, *more)))
    other = ["seed=7", *ADAPTER, f"data.token_cache={root / 'tokens'}"]
    run.train(configure(squares, root / "fresh", *other))
    assert len({file.parent for file in files(root / "tokens")}) == 4
    assert {file.parent.name for file in files(root / "tokens", "text")} and len(files(root / "tokens", "text")) == 2


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("damage", ["bit", "cut"])
def test_a_damaged_file_is_made_anew(
    squares: Path, base: Path, filled: Path, tmp_path: Path, kind: str, damage: str
) -> None:
    file = files(squares / "tokens", kind)[0]
    whole = file.read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 1
    os.unlink(file)
    file.write_bytes(bytes(broken) if damage == "bit" else whole[: len(whole) // 2])
    run.train(configure(squares, tmp_path / "run", *cached(squares / "tokens", base, FLOAT32)))
    assert_same(weights(filled), weights(tmp_path / "run"))
    held = [load_file(one) for one in files(squares / "tokens", kind) if is_whole(one)]
    assert any(all(torch.equal(one[name], value) for name, value in load(whole).items()) for one in held)


def is_whole(file: Path) -> bool:
    try:
        load_file(file)
    except SafetensorError:
        return False
    return True


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_in_a_line(
    squares: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_module, "write_tensors", full)
    with pytest.raises(ConfigError, match=r"data\.token_cache=.*no room, the disk is full; free some") as error:
        run.train(configure(squares, tmp_path / "run", *cached(tmp_path / "tokens", base)))
    assert "\n" not in str(error.value)


def test_a_cache_that_is_no_folder_is_told_in_a_line(squares: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a file")
    with pytest.raises(ConfigError, match=r"data\.token_cache=.*tokens: .*; name a folder that can be written"):
        run.train(configure(squares, tmp_path / "run", *cached(tmp_path / "tokens", base)))


def test_a_bound_is_held_before_anything_is_made(squares: Path, base: Path, tmp_path: Path) -> None:
    given = cached(tmp_path / "tokens", base, "data.token_cache_bytes=1000", "dry_run=true")
    with pytest.raises(ConfigError, match=r"24 samples × 2 KiB = .*more than data\.token_cache_bytes=1000"):
        run.train(configure(squares, tmp_path / "run", *given))
    assert not (tmp_path / "tokens").exists()


def test_a_token_that_float16_cannot_hold_is_refused(
    squares: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Cloc.encode_images

    def large(self: Any, images: torch.Tensor) -> Any:
        found = encode(self, images)
        found.tokens[0, 0, 0] = 1e5
        return found

    monkeypatch.setattr(Cloc, "encode_images", large)
    with pytest.raises(ConfigError, match=r"tokens up to 1e\+05, which it cannot hold; give float32"):
        run.train(configure(squares, tmp_path / "run", *cached(tmp_path / "tokens", base)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["+loss.distill=1", "model.frozen_towers=false", "init_from=elsewhere"], "a teacher sees the pictures"),
        (["data.flip=0.5"], r"data\.flip=0.5: a view that is drawn at random .* set data\.flip=0"),
        (["data.crop=0.5"], r"data\.crop=0.5: .* set data\.crop=null"),
        (["trainer.strategy=fsdp", "optim=adamw"], "needs no shards"),
        (
            ["model.prompter=null", "model.grounding=null", "loss.region=0", "loss.grounding=0", "loss.global=1"],
            "nothing would be trained",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_with_the_key_to_set(squares: Path, given: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(configure(squares, squares / "none", *ADAPTER, "data.token_cache=tokens", *given))


def test_bad_pictures_are_skipped_and_counted_as_they_are_without_the_cache(tmp_path: Path) -> None:
    """Batches of both streams, of a set with pictures that cannot be decoded: keys, boxes, phrases, skips."""
    manifest = make_manifest(tmp_path / "shards", broken=(3, 11))
    data = ShardSources((ShardSource("train", manifest, 1),), ShardCache())
    chooser = Chooser(View(16), regions=3)
    plain = Stream(data, TOKENIZER, chooser, 8, max_skip_share=0.5)
    kept = FrozenStream(data, TOKENIZER, chooser, 8, max_skip_share=0.5)
    kept.blocks = fill(data, chooser.view, tmp_path / "tokens")
    for position in range(0, 48, 8):
        one, other = plain.batch_at(position), kept.batch_at(position)
        assert same(one, other)
        skipped = {name: count for name, count in one.stats.items() if name.startswith(("skipped", "regions"))}
        assert skipped == {name: other.stats[name] for name in skipped}


def fill(data: ShardSources, seen: View, folder: Path) -> Blocks:
    """Blocks of a tower that is the mean of its patches."""
    folder.mkdir()
    config = DataConfig(train="-", token_cache=str(folder))
    shape = Shape((Rows("tokens", (4, 3), torch.float32), Rows("pooled", (3,), torch.float32)))
    places = places_of(data, folder, shape.block)
    Filler(MeanTower(), data, seen, shape, config, 2).fill(places)
    return Blocks(places, shape)


class MeanTower:
    """The mean color of each quarter."""

    def made_of(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = avg_pool2d(pictures.float(), pictures.shape[-1] // 2).flatten(2).transpose(1, 2)
        return {"tokens": tokens, "pooled": tokens.mean(1)}


def same(one: Batch, other: Batch) -> bool:
    """All but the pictures."""
    names = ("content", "captions", "boxes", "target_boxes", "region_valid", "phrases", "phrase_id", "region_phrase")
    return one.keys == other.keys and all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_prompter_and_head_are_a_tenth_of_a_b16_at_most() -> None:
    from hydra import compose, initialize_config_dir

    from tests.kit.paths import ROOT

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", ["experiment=adapter_cloc", "model=vit_b16", "base=null"])
    with torch.device("meta"):
        model = build_model(config.model, pretrained=False)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert trained <= sum(value.numel() for value in model.image.parameters()) / 10
    assert trained == 7_497_230  # docs/training.md says it
