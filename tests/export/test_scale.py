"""Exports of real architectures: ViT-tiny and ViT-B/16 with CLIP's own text towers, random weights, every format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloc.contracts import Sample
from cloc.data.shards.writer import write_shards
from cloc.export.pipeline import export
from cloc.export.verify import _draw
from tests.conftest import ROOT
from tests.kit.exporting import OPEN_CLIP, SHARED, SPATIAL, TEXT, check_loaded, make_run, parity, word_text

pytestmark = pytest.mark.slow
TINY = {"width": 192, "layers": 12, "head_width": 64, "patch_size": 16}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "tiny": (OPEN_CLIP | {"image_size": 224, "options": TINY}, TEXT, 192),
    "b16": ({"_target_": OPEN_CLIP["_target_"], "name": "ViT-B-16"}, {"_target_": TEXT["_target_"]}, 512),
}


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    image, text, width = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return make_run(folder, image, text, joint_dim=width, prompter=SHARED, grounding=SPATIAL)


@pytest.mark.parametrize("format", ["hf", "open_clip"])
def test_round_trip(run: Path, format: str) -> None:
    pytest.importorskip("transformers")
    folder = export(format, run, run.parent / format)
    rows = parity(folder)
    states = ("pooled", "tokens", "penultimate", "last", "text")
    print({name: f"{rows[name]:.1e}" for name in states})
    assert max(rows[name] for name in states) <= 1e-5
    assert max(rows[f"cloc.load: {name}"] for name in states) <= 1e-5
    assert rows["own preprocessing: 1 - cosine of pooled"] <= 1e-3
    if format == "hf":
        assert rows["vision/: penultimate"] <= 1e-5
    check_loaded(run, folder)


@pytest.mark.parametrize("format", ["onnx", "torch", "timm"])
def test_graphs(run: Path, format: str) -> None:
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    rows = parity(export(format, run, run.parent / format))
    print({name: f"{value:.1e}" for name, value in rows.items()})
    assert max(rows.values()) <= 1e-4


def test_clip_benchmark_measures_what_we_measure(tmp_path: Path) -> None:
    pytest.importorskip("clip_benchmark")
    rng = np.random.default_rng(0)
    words = "chick cup two dogs run left umbrella front fence photo number brown".split()
    captions = [[" ".join(rng.permutation(words)[:6]) for _ in range(3)] for _ in range(40)]  # no two are the same
    samples = [
        Sample(f"s{i:02d}", _draw(40 + i, 90 - i, seed=i), "jpg", captions=tuple(own)) for i, own in enumerate(captions)
    ]
    write_shards(samples, tmp_path / "shards")
    run = make_run(tmp_path / "run", OPEN_CLIP, word_text(tmp_path / "words"))
    command = [sys.executable, "-m", "benchmarks.clip_benchmark", str(run), "--data", str(tmp_path / "shards")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["pictures"] == 40 and found["largest_difference"]["its view and counting"] < 1e-6
    assert set(found["CLIP_benchmark"]) == set(found["eval.py"])
