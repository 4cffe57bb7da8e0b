"""A token cache that two processes over Gloo fill, or two runs at a time: what is learned is that of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.kit.paths import ROOT
from tests.kit.resuming import make_squares, overrides

pytestmark = pytest.mark.distributed

ADAPTER = ["model.frozen_towers=true", "loss.global=null", "data.token_precision=float32", "optim=adamw", "samples=24"]

# A backbone that is frozen below a block, and regions cut out.
PARTS = ["+model.image.tune_last=0", "+model.image.adapter_depth=1", "+model.image.adapter_width=64", "data.crops=2"]
PARTS += ["+loss.crops=1", "optim=adamw", "samples=24"]

# Stands for train.py, with blocks of three samples: each process has some of them to make.
SMALL = """
import os, runpy, sys
sys.path.insert(0, os.getcwd())
from cloc.data.frozen import blocks
blocks.MOST_SAMPLES = 3
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_squares(tmp_path_factory.mktemp("squares"), 24)


def begin(squares: Path, folder: Path, processes: int, *more: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", SMALL]
    if processes > 1:
        more = (*more, f"trainer.devices={processes}", "trainer.strategy=ddp")
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--no-python"]
        program = [sys.executable, *launcher, *program]
    own = PARTS if "crops" in folder.parts else ADAPTER
    command = [*program, *overrides(squares, folder, *own), f"data.token_cache={folder.parent / 'tokens'}", *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def end(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    return " ".join(said.split())


def alike(one: Path, other: Path) -> None:
    """Trained weights but for the order of sums; the towers to the bit."""
    found, expected = (
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in (one, other)
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith(("model.image.", "model.text.", "model.log_scales.global")):
            assert torch.equal(found[name], value), name
        elif value.is_floating_point() and not name.endswith("prompter.key.bias"):  # whose gradient is rounding noise
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4, msg=name)


def kept(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All blocks of a cache by their names."""
    return {file.name: load_file(file) for file in sorted(folder.glob("image-*/*.safetensors"))}


@pytest.fixture(scope="module")
def alone(squares: Path) -> Path:
    end(begin(squares, squares / "one" / "run", 1))
    return squares / "one" / "run"


def test_two_processes_fill_and_train_as_one(squares: Path, alone: Path) -> None:
    """Each block is made once; then a run of two finds all of it, learns the same, and so does accumulation."""
    folder = squares / "two"
    end(begin(squares, folder / "run", 2))
    one, two = kept(alone.parent / "tokens"), kept(folder / "tokens")
    assert len(one) == 8 and one.keys() == two.keys()
    for name, block in one.items():
        for key, value in block.items():
            torch.testing.assert_close(two[name][key], value, rtol=0, atol=1e-5, msg=f"{name} {key}")
    alike(folder / "run", alone)
    said = end(begin(squares, folder / "again", 2, "trainer.accumulate=2"))
    assert "0 pictures and 0 texts encoded" in said
    alike(folder / "again", alone)


def test_two_runs_fill_one_cache_at_a_time(squares: Path, alone: Path) -> None:
    folder = squares / "both"
    for process in [begin(squares, folder / name, 1) for name in ("one", "other")]:
        end(process)
    assert kept(folder / "tokens").keys() == kept(alone.parent / "tokens").keys()
    alike(folder / "one", alone)
    alike(folder / "other", alone)


def test_two_processes_fill_and_train_behind_a_frozen_part_as_one(squares: Path) -> None:
    """Views and crops: each file is made once by one of them."""
    one, two = squares / "crops" / "one", squares / "crops" / "two"
    end(begin(squares, one / "run", 1))
    end(begin(squares, two / "run", 2))
    for kind in ("image", "crops"):
        found, expected = (
            {file.name: load_file(file)["states"] for file in (folder / "tokens").glob(f"{kind}-*/*.safetensors")}
            for folder in (two, one)
        )
        assert len(found) == len(expected) >= 1
        for name, rows in expected.items():
            torch.testing.assert_close(found[name], rows, rtol=0, atol=1e-5)
    found, expected = (
        torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in (two, one)
    )
    for name, value in expected.items():
        if value.is_floating_point() and not name.endswith(("key.bias", "in_proj_bias", "qkv.bias")):  # noise, of keys
            torch.testing.assert_close(found[name], value, rtol=0, atol=2e-4, msg=name)
