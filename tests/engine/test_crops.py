"""CLIP + crops through the whole engine: trained, stopped and resumed, accumulated, started from, refused, told."""

from __future__ import annotations

import csv
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from benchmarks.step import make_batch
from cloc import load
from cloc.config import ConfigError, validate
from cloc.contracts import Batch
from cloc.data.tokenizer import Tokenizer
from cloc.engine import run
from cloc.engine.accumulation import accumulated
from cloc.engine.durable.signals import StopAtSignal
from cloc.losses.objective import ClocLoss
from tests.engine.test_accumulation import gradients, tiny
from tests.kit.paths import ROOT
from tests.kit.resuming import assert_same, make_squares, overrides, weights

CLIP = {"prompter": None, "grounding": None, "crop_scale": True}


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")
    return make_squares(tmp_path_factory.mktemp("squares"))


def configure(squares: Path, run_dir: Path, *more: str) -> DictConfig:
    """The tiny run of the experiment ``demo_clip_crops``."""
    _, *tiny_run = overrides(squares, run_dir, *more)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", ["experiment=demo_clip_crops", *tiny_run])


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Eight pictures with 0 to 3 regions, of which two are cut out; the second micro-batch of four has none."""
    found = make_batch(8, 3, 32, Tokenizer("open_clip", 77))
    valid = torch.arange(3) < torch.tensor([3, 1, 0, 0, 2, 0, 3, 2]).unsqueeze(1)
    phrase = found.region_phrase.clone()
    phrase[6, 0], phrase[4, 1] = phrase[0, 0], phrase[0, 1]
    crops = torch.randint(0, 256, (8, 2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return replace(found, region_valid=valid, region_phrase=phrase, crops=crops)


def stop_after(step: int, config: DictConfig) -> None:
    """Train until a signal comes in a step."""
    note = StopAtSignal.on_train_batch_end

    def stopping(self: StopAtSignal, trainer: Any, *rest: Any) -> None:
        self.noted = signal.SIGTERM if trainer.global_step == step else None
        note(self, trainer, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(StopAtSignal, "on_train_batch_end", stopping)
        run.train(config)


def test_it_trains_is_logged_and_goes_on_to_the_same_weights(squares: Path, tmp_path: Path, capsys: Any) -> None:
    run.train(configure(squares, tmp_path / "whole", "samples=32"))
    with (tmp_path / "whole" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row in rows:
        total = float(row["loss/global"]) + float(row["train/lambda"]) * float(row["loss/crops"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)
        assert float(row["train/crops"]) == 16 and float(row["train/scale_crops"]) > 0
    assert f"crops {float(rows[-1]['loss/crops']):.3f}" in " ".join(capsys.readouterr().out.split())
    stop_after(2, configure(squares, tmp_path / "parts", "samples=32"))
    run.train(configure(squares, tmp_path / "parts", "samples=32"))
    one = weights(tmp_path / "whole")
    assert_same(one, weights(tmp_path / "parts"))
    assert "model.log_scales.crops" in one and "model.log_scales.region" not in one
    found = load(tmp_path / "whole")
    assert found.model.prompter is None and found.encode_image(torch.zeros(3, 40, 30, dtype=torch.uint8)).shape == (
        1,
        32,
    )


@pytest.mark.parametrize("parts", [CLIP, {"crop_scale": True}])
def test_it_accumulates_as_in_one_graph(batch: Batch, parts: dict[str, Any]) -> None:
    """CLIP + crops, and CLOC + crops."""
    weight = 0.0 if "prompter" in parts else 1.0
    loss, whole, cached = ClocLoss(region=weight, grounding=weight, crops=0.5), tiny(**parts), tiny(**parts)
    expected = loss(whole.eval()(batch), batch)
    found = accumulated(cached.eval(), loss, batch, 4)
    expected.total.backward()
    found.total.backward()
    torch.testing.assert_close(found.terms["crops"], expected.terms["crops"])
    assert gradients(whole)["log_scales.crops"].abs().item() > 0
    for name, value in gradients(whole).items():
        torch.testing.assert_close(gradients(cached)[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_pictures_and_crops_do_not_depend_on_each_other(batch: Batch) -> None:
    """One pass of the tower for all of them; a crop's embedding is that of a picture, and none has an even zero."""
    model = tiny(**CLIP).eval()
    with torch.no_grad():
        both, without = model(batch), model(replace(batch, crops=None))
        crop = model.encode_images(batch.crops[0]).pooled
    assert without.crop is without.phrase is None and both.phrase is not None
    torch.testing.assert_close(both.image, without.image)
    torch.testing.assert_close(both.crop[0], crop)
    assert not both.crop[~batch.crop_valid].any()
    torch.testing.assert_close(both.crop[batch.crop_valid].norm(dim=-1), torch.ones(9))
    prompted = tiny().eval()
    with torch.no_grad():
        torch.testing.assert_close(prompted(batch).region, prompted(replace(batch, crops=None)).region)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.crops=0"], r"loss\.crops=1\.0 needs crops of the regions, but data\.crops is 0; .*data\.crops=2"),
        (["loss.crops=0"], r"data\.crops=2 with loss\.crops=0: no term of the loss reads crops"),
        (["data.crops=3"], r"data\.crops=3 with data\.regions=2: .*give data\.regions=3, or fewer crops"),
        (["data.crops=0", "loss.crops=0"], r"model\.crop_scale=true with data\.crops=0"),
        (["data.crops=-1"], r"data\.crops=-1: "),
        (["loss.crops=-1"], r"loss\.crops=-1"),
        (
            [
                "model.prompter={_target_:cloc.models.prompter.SharedPrompter}",
                "model.frozen_towers=true",
                "loss.region=1",
            ],
            r"data\.crops=2 with model\.frozen_towers=true: crops pass through the towers alone",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(more: list[str], message: str, squares: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(configure(squares, tmp_path, *more))


def test_hard_negatives_serve_crops_alone_too(squares: Path, tmp_path: Path) -> None:
    config = configure(squares, tmp_path, "data.negatives=2")
    assert validate(config).data.negatives == 2
    with pytest.raises(ConfigError, match=r"data\.negatives=2"):
        validate(configure(squares, tmp_path, "data.negatives=2", "data.crops=0", "loss.crops=0"))


def test_a_dry_run_tells_of_the_crops(squares: Path, tmp_path: Path, capsys: Any) -> None:
    run.train(configure(squares, tmp_path / "none", "dry_run=true"))
    said = " ".join(capsys.readouterr().out.split())
    assert "crops the first 2 of those, up to 16 further pictures a step beside its 8" in said
    assert "step" in said and not (tmp_path / "none").exists()


@pytest.mark.slow
def test_it_starts_from_a_clip_and_a_clip_from_it(squares: Path, tmp_path: Path, capsys: Any) -> None:
    """A temperature that the start lacks is fresh; one too many does not hinder."""
    clip = ["data.crops=0", "loss.crops=0", "model.crop_scale=false", "samples=8"]
    run.train(configure(squares, tmp_path / "clip", *clip))
    run.train(configure(squares, tmp_path / "crops", "samples=8", f"init_from={tmp_path / 'clip'}"))
    assert "log_scales.crops fresh" in " ".join(capsys.readouterr().out.split())
    run.train(configure(squares, tmp_path / "again", *clip, f"init_from={tmp_path / 'crops'}"))
    assert "model.log_scales.crops" not in weights(tmp_path / "again")


@pytest.mark.slow
def test_several_readers_train_the_same(squares: Path, tmp_path: Path) -> None:
    run.train(configure(squares, tmp_path / "one", "samples=16"))
    run.train(configure(squares, tmp_path / "two", "samples=16", "data.workers=2"))
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "two"))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["hf", "open_clip"])
def test_an_export_is_that_of_a_clip(format: str, squares: Path, tmp_path: Path) -> None:
    """The temperature of the crops belongs to the training; no file is written for it alone."""
    from cloc.export.pipeline import export

    run.train(configure(squares, tmp_path / "run", "samples=8"))
    export(format, tmp_path / "run", tmp_path / "out")
    own, again = load(tmp_path / "run"), load(tmp_path / "out")
    assert not (tmp_path / "out" / "prompter.safetensors").exists() and "crops" not in again.model.log_scales
    picture = torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8)
    for source in own.every_source:
        one, other = (model.encode_regions(picture, [[0.1, 0.2, 0.8, 0.9]], source)[0] for model in (own, again))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
