"""The adapter's experiment through the commands that a user types: a small CLIP of others, then an export of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.kit.local_clip import random_clip
from tests.kit.paths import ROOT
from tests.kit.resuming import make_squares


@pytest.mark.slow
def test_a_clip_of_others_gets_region_skills_and_stays_as_it_is(tmp_path: Path) -> None:
    squares = make_squares(tmp_path, 64)
    clip = random_clip(tmp_path / "clip", ["a red green blue white square and"])
    given = ["samples=64", "batch_size=32", "optim.warmup=0", "data.workers=1", "trainer.accelerator=cpu"]
    places = [f"base={clip}", f"data.train={squares / 'train'}", f"data.token_cache={tmp_path / 'tokens'}"]
    for name in ("one", "two"):
        done = command("train.py", "experiment=adapter_cloc", *places, f"run_dir={tmp_path / name}", *given)
        assert done.returncode == 0, done.stderr[-2000:]
    assert "0 pictures and 0 texts encoded" in " ".join(done.stderr.split())
    done = command("-m", "cloc", "export", "hf", str(tmp_path / "one"), str(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = load_file(clip / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "hf" / "prompter.safetensors").is_file()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
