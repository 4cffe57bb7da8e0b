"""What goes on beside the steps has one order; what a log line says of speed is of training alone."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloc.engine import run, trainer
from cloc.engine.module import Pretrain
from tests.kit.resuming import configure, make_squares

STEP, WAIT, LOOK = 0.5, 0.25, 1000.0  # seconds of a step, of waiting for its batch, of an evaluation


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")
    return make_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only steps, reading and evaluations move."""
    now, step, batches = [0.0], Pretrain.step, Pretrain.reading

    def slow_step(self: Pretrain, batch: Any) -> Any:
        now[0] += STEP
        return step(self, batch)

    def slow_reading(self: Pretrain, stream: Any) -> Any:
        original = type(stream).batch_at

        def batch_at(stream: Any, position: int) -> Any:
            now[0] += WAIT
            return original(stream, position)

        monkeypatch.setattr(type(stream), "batch_at", batch_at)
        return batches(self, stream)

    def look(model: Any) -> dict[str, float]:
        now[0] += LOOK
        return {"set/top1": 0.5}

    monkeypatch.setattr(Pretrain, "step", slow_step)
    monkeypatch.setattr(Pretrain, "reading", slow_reading)
    monkeypatch.setattr("cloc.evaluation.suite.TrainingSuite", lambda *a: look)
    monkeypatch.setattr("cloc.engine.callbacks.time", SimpleNamespace(perf_counter=lambda: now[0]))


@pytest.mark.parametrize("ema", [0.0, 0.5])
@pytest.mark.parametrize("log_every", [1, 2])
def test_an_evaluation_does_not_slow_the_steps(
    ema: float, log_every: int, squares: Path, tmp_path: Path, clock: None
) -> None:
    """With evaluations of a thousand seconds after every other step, each log line shows the speed without them."""
    more = ["evaluation.every=16", "evaluation.data=[openmoji_val]", "evaluation.at_start=true"]
    run.train(configure(squares, tmp_path, "samples=48", f"trainer.ema={ema}", f"trainer.log_every={log_every}", *more))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [row for row in rows if row["samples_per_second"]]
    measured = [row for row in rows if row["val/set/top1"]]
    assert len(lines) == 6 // log_every and len(measured) == 4
    seconds = [float(row["seconds"]) for row in lines]
    assert seconds[-1] <= 6 * (STEP + 2 * WAIT)
    for row in lines:  # Lightning fetches a batch ahead: two in the first step, none in the last
        assert 8 / (STEP + 2 * WAIT) <= float(row["samples_per_second"]) <= 8 / STEP
    assert [float(row["seconds"]) for row in measured] == [0.0, *seconds[2 // log_every - 1 :: 2 // log_every]]


def test_the_order_is_one(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is switched on, the others keep their places."""
    orders = []
    build = trainer.build_callbacks

    def noted(*arguments: Any) -> Any:
        found = build(*arguments)
        orders.append([type(callback).__name__ for callback in found])
        return found

    monkeypatch.setattr(trainer, "build_callbacks", noted)
    monkeypatch.setattr("cloc.evaluation.suite.TrainingSuite", lambda *a: lambda model: {"set/top1": 0.5})
    more = ["evaluation.every=8", "evaluation.data=[openmoji_val]", "trainer.ema=0.5", "profile=true"]
    for number, options in enumerate((more, more[:2], more[2:3])):
        run.train(configure(squares, tmp_path / str(number), "samples=8", *options))
    whole = "Cursor AveragedWeights Throughput StepProfile Evaluate FiniteGuard ProgressLine RandomState StopAtSignal"
    assert orders[0] == [*whole.split(), "Checkpoints"]
    assert all(order == [name for name in orders[0] if name in order] for order in orders)
