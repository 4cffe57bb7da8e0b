"""The references that benchmarks measure against compute the same thing as the product."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks.job import batches, overrides
from benchmarks.loader import write_data
from benchmarks.naive import naive_loss
from benchmarks.scaling import CLIP, configure
from benchmarks.step import GEOMETRIES, make_batch, our_model
from cloc.config import TrainConfig, validate
from cloc.contracts import Batch
from cloc.data.shards.index import index_folder, write_manifest
from cloc.data.tokenizer import Tokenizer
from cloc.losses.objective import ClocLoss
from cloc.models.build import build_model
from cloc.models.model import Cloc
from tests.kit.paths import ROOT


@pytest.fixture(scope="module")
def model() -> Cloc:
    torch.manual_seed(0)
    return our_model(GEOMETRIES["test"], "PaperPrompter", "MlpHead")


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch(5, 3, GEOMETRIES["test"].image_size, Tokenizer("open_clip", 77))


@pytest.mark.parametrize("holes", [(), ((0, 0), (0, 1), (0, 2), (3, 1))])
def test_naive_cloc_is_our_loss(model: Cloc, batch: Batch, holes: tuple[tuple[int, int], ...]) -> None:
    valid = batch.region_valid.clone()
    for hole in holes:
        valid[hole] = False
    batch = replace(batch, region_valid=valid)
    ours = ClocLoss(conflicts="exact")(model(batch), batch).total
    naive = naive_loss(model, batch)
    torch.testing.assert_close(naive, ours, rtol=1e-5, atol=1e-5)  # float32, as embeddings are by contract
    gradients = [torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) for loss in (ours, naive)]
    for name, one, other in zip(dict(model.named_parameters()), *gradients, strict=True):
        other = torch.zeros_like(one) if other is None else other
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_step_benchmark_ends_in_its_ratios() -> None:
    command = [sys.executable, "-m", "benchmarks.step", "--geometry", "test", "--batch", "4", "--rounds", "1"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    ratios = json.loads(found.stdout.splitlines()[-1])
    for name in ("clip_over_open_clip_clip", "cloc_over_clip", "cloc_over_open_clip_clip", "naive_cloc_over_cloc"):
        assert ratios[name] > 0
    assert 0 < ratios["matmul_peak_share"] < 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compile_benchmark_ends_in_its_ratios() -> None:
    command = [sys.executable, "-m", "benchmarks.compile", "--geometry", "test", "--batch", "4", "--rounds", "2"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600)
    ratios = json.loads(found.stdout.splitlines()[-1])
    assert ratios["compiled_over_plain"] > 0 and ratios["compiled_warmup_seconds"] > 0


@pytest.mark.slow
def test_job_benchmark_ends_in_its_ratios() -> None:
    command = [sys.executable, "-m", "benchmarks.job", "--geometry", "test", "--batch", "4", "--steps", "7"]
    command += ["--rounds", "1"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    ratios = json.loads(found.stdout.splitlines()[-1])
    assert ratios["job_over_bare_step"] > 0.5 and 0 <= ratios["data_wait_share"] < 1


def test_the_job_trains_on_the_batches_of_the_bare_step(tmp_path: Path) -> None:
    write_data(tmp_path, 8, None)
    write_manifest(index_folder(tmp_path))
    made = batches(tmp_path, GEOMETRIES["test"], 4, 2, 2)
    assert [len(batch.keys) for batch in made] == [4, 4] and made[0].region_valid.all()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = validate(
            compose(
                "train",
                ["name=job", "batch_size=4", "samples=8", f"data.train={tmp_path}", *overrides(GEOMETRIES["test"])],
            ),
            TrainConfig,
        )
    inside = build_model(OmegaConf.to_container(OmegaConf.structured(config.model)))
    bare = our_model(GEOMETRIES["test"], "SharedPrompter", "SpatialHead")
    assert {n: p.shape for n, p in inside.named_parameters()} == {n: p.shape for n, p in bare.named_parameters()}


@pytest.mark.parametrize("changes", [[], CLIP])
def test_the_scaling_benchmark_configures_both_models(changes: list[str]) -> None:
    config, _ = configure(changes)
    weights = config.loss
    assert (config.model.prompter is None) == bool(changes)
    assert (weights["region"] == weights["grounding"] == 0) == bool(changes)
