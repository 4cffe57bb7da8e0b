"""The engine runs what it does not know: a straight line through noisy points, by the same run as pretraining."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from cloc.checkpoints import list_checkpoints
from cloc.config import ConfigError, RunConfig
from cloc.contracts import LossTerms
from cloc.engine import run
from cloc.engine.durable.settings import After
from cloc.engine.task import Measure, Task
from tests.kit.paths import ROOT

SLOPE = 2.0


@dataclass
class LineConfig(RunConfig):
    """The engine's keys, and one of its own."""

    width: int = 3


@dataclass
class Points:
    x: Tensor
    y: Tensor
    keys: list[str]
    cursor: int
    stats: dict[str, float] = field(default_factory=dict)

    def to(self, device: Any, non_blocking: bool = False) -> Points:
        return replace(self, x=self.x.to(device), y=self.y.to(device))


@dataclass
class Table:
    """Data without a file."""

    digest: str = "none"


@dataclass
class PointStream:
    size: int
    width: int
    cursor: int = 0

    def __iter__(self) -> Iterator[Points]:
        position = self.cursor
        while True:
            x = torch.randn(self.size, self.width, generator=torch.Generator().manual_seed(position))
            keys = [str(position + i) for i in range(self.size)]
            position += self.size
            yield Points(x, SLOPE * x.sum(1, keepdim=True), keys, position, {"points": float(self.size)})


class Line(Task):
    schema = LineConfig
    keys = {"width": After.REFUSED}

    def __init__(self, config: LineConfig, resolved: dict[str, Any]) -> None:
        super().__init__(config, resolved)
        self.model = self.blank_model(resolved)

    @classmethod
    def open_data(cls, config: LineConfig) -> Table:
        return Table()

    @classmethod
    def blank_model(cls, resolved: Mapping[str, Any]) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.1), nn.Linear(resolved["width"], 1))

    @classmethod
    def plan(cls, config: LineConfig, data: Table, world: int) -> dict[str, str]:
        return {"points": "as many as are asked for"}

    def open_stream(self, data: Table, rank: int, world: int) -> PointStream:
        return PointStream(self.config.batch_size // world, self.config.width)

    @contextmanager
    def reading(self, stream: PointStream) -> Iterator[PointStream]:
        yield stream

    def step(self, batch: Points) -> LossTerms:
        loss = mse_loss(self.model(batch.x), batch.y)
        return LossTerms(loss, {"square": loss.detach()}, {"bias": self.model[1].bias.detach().squeeze(0)})

    def measurement(self) -> Measure:
        return lambda model: {"line/closeness": -float((model[1].weight - SLOPE).abs().mean())}


def configure(folder: Path, **changes: Any) -> DictConfig:
    given: dict[str, Any] = {
        "task": f"{__name__}.Line",
        "name": "line",
        "run_dir": str(folder),
        "samples": 80,
        "batch_size": 8,
        "optim": {"lr": 0.1, "warmup": 0},
        "trainer": {"accelerator": "cpu", "log_every": 1, "checkpoint_every": 16},
        "evaluation": {"every": 32},
    }
    return OmegaConf.merge(OmegaConf.structured(LineConfig), given, changes)


def stored(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def logged(folder: Path, column: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_task_trains_stops_and_goes_on(
    ema: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A signal after step 5 leaves a checkpoint; the same command goes on from it, to the weights of a whole run."""
    whole, parts = configure(tmp_path / "whole", trainer={"ema": ema}), tmp_path / "parts"
    run.train(whole)
    advance = Line.advance

    def told(self: Line, batch: Points) -> None:
        advance(self, batch)
        if self.global_step == 5:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Line, "advance", told)
        with pytest.raises(SystemExit) as ended:
            run.train(configure(parts, trainer={"ema": ema}))
    assert ended.value.code == 75
    assert stored(parts)["cloc"]["samples_seen"] == stored(parts)["cloc"]["cursor"] == 40
    assert list_checkpoints(parts / "checkpoints") == ["step-00000005.ckpt", "step-00000004.ckpt"]
    run.train(configure(parts, trainer={"ema": ema}))
    text = " ".join(capsys.readouterr().out.split())
    assert "line: stopped by SIGTERM at step 5 of 10" in text and "continues at sample 40" in text
    assert "points as many as are asked for" in text and "process 0 of 1, weights" in text
    one, other = stored(tmp_path / "whole"), stored(parts)
    assert one["state_dict"].keys() == {"model.1.weight", "model.1.bias"} == other["state_dict"].keys()
    assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in one["state_dict"])
    for folder in (tmp_path / "whole", parts):
        assert logged(folder, "samples") == sorted(logged(folder, "samples"))
        assert len(logged(folder, "loss/square")) == 10 and set(logged(folder, "data/points")) == {8.0}
    closeness = logged(parts, "val/line/closeness")
    assert closeness == logged(tmp_path / "whole", "val/line/closeness") and closeness[-1] > closeness[0]


def test_what_may_change_is_the_tasks_word(tmp_path: Path, capsys: Any) -> None:
    run.train(configure(tmp_path, samples=16))
    run.train(configure(tmp_path, samples=32, optim={"lr": 0.01}))
    assert "optim.lr: 0.1 → 0.01" in capsys.readouterr().out
    assert max(logged(tmp_path, "samples")) == 32
    with pytest.raises(ConfigError, match=r"holds another width \(width: 3 → 4\)"):
        run.train(configure(tmp_path, samples=48, width=4))


def test_a_task_can_be_planned_and_its_best_be_kept(tmp_path: Path, capsys: Any) -> None:
    assert run.train(configure(tmp_path / "none", dry_run=True)) is None
    assert "0.0 M parameters" in capsys.readouterr().out and not (tmp_path / "none").exists()
    run.train(configure(tmp_path / "best", evaluation={"every": 16, "best": "val/line/closeness"}))
    assert (tmp_path / "best" / "checkpoints" / "best.ckpt").exists()


def test_what_is_no_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task=torch.nn.Linear: no task"):
        run.train(configure(tmp_path, task="torch.nn.Linear"))
    with pytest.raises(ConfigError, match="trainer.accumulate=2: Line does not heed it; set it to 1"):
        run.train(configure(tmp_path, trainer={"accumulate": 2}))
    with pytest.raises(ConfigError, match=r"trainer\.ema=0\.5 with trainer\.strategy=fsdp"):
        run.train(configure(tmp_path, trainer={"ema": 0.5, "strategy": "fsdp"}))


def test_a_choice_by_what_is_not_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.best.*nothing is measured"):
        run.train(configure(tmp_path, evaluation={"every": 0, "best": "val/line/closeness"}))


def test_a_diverging_task_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What guards a run guards any task."""
    step = Line.step

    def broken(self: Line, batch: Points) -> LossTerms:
        terms = step(self, batch)
        return terms if self.global_step < 3 else replace(terms, total=terms.total * torch.nan)

    monkeypatch.setattr(Line, "step", broken)
    with pytest.raises(FloatingPointError, match=r"step 5: .*2 steps in a row.*keys of the last: 32, 33"):
        run.train(configure(tmp_path, trainer={"max_skipped_steps": 2}))


def test_train_py_runs_it_by_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "line.yaml").write_text(
        f"task: {__name__}.Line\nname: line\nrun_dir: {tmp_path}/run\nsamples: 16\nbatch_size: 8\nwidth: 2\n"
        "optim: {lr: 0.1}\ntrainer: {accelerator: cpu}\nhydra: {run: {dir: .}, output_subdir: null}\n"
    )
    command = [sys.executable, "train.py", f"--config-dir={tmp_path}", "--config-name=line", "width=5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "line: process 0 of 1, weights" in done.stdout
    assert stored(tmp_path / "run")["state_dict"]["model.1.weight"].shape == (1, 5)
    done = subprocess.run([*command, "+widht=5"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "'widht': Key 'widht' not in 'LineConfig'" in done.stderr
