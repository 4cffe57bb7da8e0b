"""What the tests of evaluation measure: pictures drawn here, with every kind of annotation, and a small model."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cloc.config import DatasetConfig, EvalConfig, EvaluationConfig
from cloc.contracts import Region, Sample
from tests.kit.paths import ROOT

MODEL: dict[str, Any] = {
    "joint_dim": 16,
    "image": {
        "_target_": "cloc.models.image.OpenClipTower",
        "image_size": 32,
        "options": {"width": 64, "layers": 1, "patch_size": 8, "head_width": 32},
    },
    "text": {"_target_": "cloc.models.text.ClipText", "options": {"width": 32, "heads": 2, "layers": 1}},
    "prompter": {"_target_": "cloc.models.prompter.SharedPrompter"},
    "grounding": {"_target_": "cloc.models.grounding.SpatialHead"},
}
COLORS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "gray": (128, 128, 128)}
QUICK = EvaluationConfig(batch_size=5, bootstrap=50)


def png(index: int) -> bytes:
    rng = np.random.default_rng(index)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def sample(index: int) -> Sample:
    names = list(COLORS)
    regions = [
        Region(
            (0.1 * box, 0.1, 0.1 * box + 0.4, 0.3 + 0.1 * (index % 5)),
            (f"a {names[(index + box) % 3]} thing", f"thing {box}"),
            category=names[(index + box) % 3],
            negatives=(f"a {names[(index + box + 1) % 3]} thing",) if box == 0 else (),
        )
        for box in range(index % 4)  # pictures with no, one, two and three boxes
    ]
    crowd = [Region((0.0, 0.0, 1.0, 1.0), ("things",), category="gray", crowd=True)] if index == 3 else []
    captions = (f"picture {index}", f"picture number {index}")
    return Sample(f"s{index:02d}", png(index), "png", captions, (*regions, *crowd))


def dataset(data: Path, **changes: Any) -> DatasetConfig:
    known = {
        "shards": str(data / "shards"),
        "relations": str(data / "relations.json"),
        "relation_format": "whatsup",
        "pictures": str(data / "relations"),
        "images": str(data / "classes"),
        "templates": ["a {}", "some {}"],
    }
    return DatasetConfig(**known | changes)


def configuration(folder: Path, runs: Path, out: Path, **changes: Any) -> EvalConfig:
    known = {
        "checkpoint": str(runs / "cloc"),
        "baseline": [str(runs / "clip")],
        "data": ["toy"],
        "out": str(out),
        "cache": str(out / "cache"),
        "pictures": 2,
        "device": "cpu",
        "evaluation": QUICK,
        "datasets": {"toy": dataset(folder)},
    }
    return EvalConfig(**known | changes)


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


def launch(ranks: int, *arguments: str) -> None:
    """Run a script by one process, or by several under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
