"""A tournament in miniature: programs that stand for train.py and eval.py, and a study for them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.kit.paths import ROOT

TRAIN = """
import hashlib, json, os, signal, sys, time
from pathlib import Path

given = dict(one.split("=", 1) for one in sys.argv[1:])
run = Path(given["run_dir"])
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
rate, region, seed = float(given["optim.muon_lr"]), float(given.get("loss.region", 1)), int(given["seed"])
last = run / "checkpoints" / "last.json"
step = json.loads(last.read_text()) if last.is_file() else 0
if step == 4:
    print("toy: already trained; remove it to start anew")
    raise SystemExit
print("begin at step", step, flush=True)
if rate > 1:
    print("error: optim.muon_lr: too large a rate for", run, file=sys.stderr)
    raise SystemExit(1)
(run / "config.yaml").write_text(f"samples: 640\\nloss: {{region: {region}}}\\noptim: {{muon_lr: {rate}}}\\n")
(run / "versions.json").write_text(json.dumps({"git": "abc123+changes", "torch": "2.0"}))
(run / "pid").write_text(str(os.getpid()))
while step < 4:
    time.sleep(float(given.get("pause", 0)))
    step += 1
    last.write_text(json.dumps(step))
    flag = Path(given.get("kill", ""))
    if step == 2 and given.get("kill") and not flag.exists():
        flag.write_text("killed")
        os.kill(os.getpid(), signal.SIGKILL)
rows = "".join(f"{64 * at},{at / 4}\\n" for at in range(1, 11))
(run / "metrics.csv").write_text("samples,seconds\\n" + rows)
print("toy: process 0 of 1, weights " + hashlib.sha256(repr((rate, region, seed)).encode()).hexdigest()[:16])
"""

EVAL = """
import json, sys
from pathlib import Path
import yaml

given = dict(one.split("=", 1) for one in sys.argv[1:])
run, out = Path(given["checkpoint"]), Path(given["out"])
out.mkdir(parents=True, exist_ok=True)
config = yaml.safe_load((run / "config.yaml").read_text())
seed = int(run.name.rpartition("s")[2]) if run.name[-1].isdigit() else 0
top1 = 0.9 - 10 * abs(config["optim"]["muon_lr"] - 0.02) - abs(config["loss"]["region"] - 2) / 10 + seed**2 / 1000
metrics = {"region/prompter/top1": top1, "image_text/R@1": top1 / 2 + (config["loss"]["region"] == 2) / 4 - seed / 99}
names = given["data"].strip("[]").split(",")
result = {"models": {run.name: {"parameters": 1200}}, "data": {n: {"models": {run.name: metrics}} for n in names}}
cost = {"pictures": 16, "boxes": 64, "picture_ms": 5.0, "boxes_per_second": {"prompter": 800.0, "crop": 50.0}}
cost |= {"parameters": 1200, "parameters_of": {"image": 800, "text": 300, "prompter": 100}}
result["cost"] = {run.name: cost}
(out / "metrics.json").write_text(json.dumps(result))
"""

STUDY = """
title: A toy
seeds: [0, 1, 2]
baseline: clip
axes:
  optim.muon_lr: {values: [1e-2, 2e-2, 3e-2], name: lr}
  loss.region: {values: [0.5, 1, 2], default: 1}
criterion: [own:top1]
validation: val
test: [test, things]
sets: {val: [], test: [evaluation.limit=9], things: []}
columns:
  top1: own:top1
  R@1: image_text/R@1
  things: things:image_text/R@1
  seconds: trained_seconds
  boxes/s: boxes_per_second
methods:
  clip: {label: CLIP, search: [optim.muon_lr], criterion: [image_text/R@1]}
  cloc: {label: CLOC, reads: prompter, search: [optim.muon_lr, loss.region], cost: 2}
  less: {label: CLOC with less, reads: prompter, inherits: cloc, overrides: [data.regions=1]}
"""

ONE = """
title: One run
seeds: [0]
test: [test]
sets: {test: []}
columns: {top1: own:top1}
overrides: [optim.muon_lr=2e-2]
methods:
  cloc: {label: CLOC, reads: prompter}
"""


def make_tree(folder: Path) -> Path:
    """A folder with the programs."""
    tree = folder / "tree"
    tree.mkdir()
    (tree / "train.py").write_text(TRAIN)
    (tree / "eval.py").write_text(EVAL)
    return tree


class Arena:
    """A folder with programs, a study, its runs and its ledger; calls ``python -m benchmarks.tournament`` there."""

    def __init__(self, folder: Path, study: str = STUDY) -> None:
        self.folder, self.tree = folder, make_tree(folder)
        self.ledger, self.runs, self.file = folder / "ledger.jsonl", folder / "runs", folder / "toy.yaml"
        self.file.write_text(study)

    def words(self, command: str, *more: str) -> list[str]:
        """Words of the command line behind the module's name."""
        places = ["--tree", str(self.tree)] if command in ("run", "cost") else []
        places += ["--runs", str(self.runs)] if command == "run" else []
        return [command, str(self.file), "--ledger", str(self.ledger), *places, *more]

    def start(self, *more: str) -> subprocess.Popen[str]:
        """``run`` in a process of its own."""
        command = [sys.executable, "-m", "benchmarks.tournament", *self.words("run", *more)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    def folders(self) -> list[str]:
        """Run folders, as METHOD/SLUG."""
        return sorted(str(one.parent.relative_to(self.runs / "toy")) for one in self.runs.rglob("tournament.log"))


def wait_for(path: Path, seconds: float = 60, holding: Sequence[str] = ()) -> None:
    """Wait until a file is there, and holds some texts.

    Raises:
        TimeoutError: it is not.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if path.is_file() and all(text in path.read_text() for text in holding):
            return
        time.sleep(0.02)
    raise TimeoutError(f"{path} was waited for {seconds} s")
