"""Ctrl-C while ``train.py`` runs: at any moment, once and twice, alone and under a launcher."""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path

import pytest

from tests.kit.resuming import Command, assert_same, newest_step, overrides, weights

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(3600)]

BUDGET = ["samples=640", "trainer.checkpoint_every=1000000", "data.workers=1", "name=squares"]
STEPS = 80


def rows(folder: Path) -> int:
    """Lines of the log: how far a run is."""
    file = folder / "metrics.csv"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def digest(command: Command) -> str:
    return re.search(r"process 0 of 1, weights (\w+)", command.said())[1]


def test_ten_random_moments(squares: Path, tmp_path: Path) -> None:
    """From the first tenth of a second to the last steps; the same command goes on each time, to the same weights."""
    whole = Command(overrides(squares, tmp_path / "whole", *BUDGET), tmp_path / "whole-log")
    began = time.monotonic()
    assert whole.wait_until(lambda: rows(tmp_path / "whole") > 1)
    starting = time.monotonic() - began
    assert whole.end() == 0
    folder, log = tmp_path / "run", tmp_path / "log"
    rng, saved = random.Random(0), 0
    for moment in range(10):
        command, before = Command(overrides(squares, folder, *BUDGET), log), rows(folder)
        if moment % 3 == 0:  # while it starts: imports, building, the first batch
            command.wait_until(lambda before=before: rows(folder) > before, rng.uniform(0.1, starting))
        else:
            goal = saved + rng.randint(1, STEPS // 12)
            assert command.wait_until(lambda goal=goal: rows(folder) > goal)
            time.sleep(rng.uniform(0, 0.1))
        command.signal(signal.SIGINT)
        code, said = command.end(), command.said()
        assert code == 130, said
        assert "Traceback" not in said and "Exception ignored" not in said
        assert ("stopped by SIGINT at step" in said) or ("interrupted; run the same command again" in said)
        step = newest_step(folder)
        assert step >= saved and (step > saved or moment % 3 == 0)
        assert not [path for path in folder.rglob("*.part")]
        saved = step
    last = Command(overrides(squares, folder, *BUDGET), log)
    assert last.end() == 0 and digest(last) == digest(whole)
    assert_same(weights(folder), weights(tmp_path / "whole"))


def test_a_second_ctrl_c_while_the_step_goes_on(squares: Path, tmp_path: Path) -> None:
    """One that stands still in the step: the first is answered, the second ends it, and the readers with it."""
    command = Command(
        overrides(squares, tmp_path / "run", *BUDGET, "batch_size=1600", "data.regions=4"), tmp_path / "log"
    )
    assert command.wait_until(lambda: "readers" in command.said())
    time.sleep(2)
    command.signal(signal.SIGINT)
    assert command.wait_until(lambda: "once more ends at once" in command.said() or "interrupted" in command.said(), 20)
    time.sleep(0.5)
    began = time.monotonic()
    if command.process.poll() is None:
        command.signal(signal.SIGINT)
    assert command.end() == 130 and time.monotonic() - began < 10
    assert "Traceback" not in command.said()
