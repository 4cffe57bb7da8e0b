"""Processes that are killed, told to stop, or left without room while they train."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from cloc.checkpoints import list_checkpoints
from cloc.engine.durable.checkpoint_file import inspect
from tests.kit.resuming import (
    ROOT,
    assert_same,
    configure,
    killed_in_the_middle,
    members,
    newest_step,
    slow_writes,
    start,
    weights,
)

pytestmark = pytest.mark.distributed

BUDGET = ["samples=96", "trainer.checkpoint_every=16"]


@pytest.fixture(scope="module")
def whole(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    finish(start(configure(squares, folder, *BUDGET), folder / "log"))
    return folder


def finish(process: BaseProcess, code: int = 0) -> None:
    process.join(300)
    assert process.exitcode == code


def wait_for(condition: Callable[[], bool], process: BaseProcess | subprocess.Popen, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        alive = process.is_alive() if isinstance(process, BaseProcess) else process.poll() is None
        assert alive and time.monotonic() < end, "the run ended, or takes too long"
        time.sleep(0.005)


def test_killed_in_the_middle_of_writing(squares: Path, whole: Path, tmp_path: Path) -> None:
    config = configure(squares, tmp_path, *BUDGET)
    finish(start(config, tmp_path / "log", killed_in_the_middle(3)), -signal.SIGKILL)
    folder = tmp_path / "checkpoints"
    assert [inspect(folder / name).step for name in list_checkpoints(folder)] == [4, 2]
    assert [part.stat().st_size > 0 for part in folder.glob(".step-00000006.ckpt.*")] == [True]
    finish(start(config, tmp_path / "log"))
    assert "continues at sample 32" in (tmp_path / "log").read_text()
    assert not list(folder.glob(".*"))
    assert_same(weights(tmp_path), weights(whole))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_readers_neither_end_a_run_too_soon_nor_outlive_it(
    number: signal.Signals, squares: Path, whole: Path, tmp_path: Path
) -> None:
    """Launchers signal the whole group: SIGTERM must reach the checkpoint first. A dead trainer leaves no reader."""
    config = configure(squares, tmp_path, *BUDGET, "data.workers=2")
    process = start(config, tmp_path / "log", slow_writes)
    wait_for(lambda: newest_step(tmp_path) >= 2, process)
    group = process.pid
    assert len(members(group)) >= 3  # trainer, fork server, readers
    if number == signal.SIGTERM:
        os.killpg(group, number)
        finish(process, 75)
        assert newest_step(tmp_path) >= 2 and "stopped by SIGTERM" in (tmp_path / "log").read_text()
    else:
        os.kill(group, number)
        finish(process, -number)
    end = time.monotonic() + 20
    while members(group) and time.monotonic() < end:
        time.sleep(0.1)
    assert not members(group)
    finish(start(config, tmp_path / "log"))
    assert_same(weights(tmp_path), weights(whole))


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from tests.kit.resuming import configure
from cloc.engine import run
from cloc.engine.module import Pretrain

advance = Pretrain.advance
def told(self, batch):
    advance(self, batch)
    if os.environ["RANK"] == "1" and self.global_step == int(os.environ["STOP_AT"]):
        os.kill(os.getpid(), signal.SIGTERM)
Pretrain.advance = told
run.train(configure(Path(sys.argv[1]), sys.argv[2], *sys.argv[3:]))
"""


def test_one_of_two_processes_is_told_to_stop(squares: Path, tmp_path: Path) -> None:
    """Both save and stop at the same step; each goes on with its own random state."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(paths=[str(ROOT), str(ROOT / "tests")]))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29563", str(script)]
    options = ["samples=48", "trainer.devices=2", "trainer.strategy=ddp"]

    def launch(folder: Path, stop: int) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "STOP_AT": str(stop)}
        own = [str(squares), str(folder), *options]
        return subprocess.run([*command, *own], cwd=ROOT, env=environment, capture_output=True, text=True)

    undisturbed = launch(tmp_path / "whole", -1)
    assert undisturbed.returncode == 0, undisturbed.stderr[-3000:]
    stopped = launch(tmp_path / "parts", 3)
    assert stopped.returncode != 0 and stopped.stderr.count("exitcode  : 75") >= 1, stopped.stderr[-3000:]
    assert newest_step(tmp_path / "parts") == 3
    again = launch(tmp_path / "parts", -1)
    assert again.returncode == 0, again.stderr[-3000:]
    assert_same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_twenty_random_moments(squares: Path, tmp_path: Path) -> None:
    """SIGTERM, kill -9 and no room, each at a random moment, often in the middle of writing a checkpoint.

    Every start continues from the newest checkpoint that was complete, and the end is that of the undisturbed run.
    """
    budget = ["samples=3200", "trainer.checkpoint_every=8"]
    whole, folder, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    finish(start(configure(squares, whole, *budget), tmp_path / "whole-log"))
    rng, config, done = random.Random(0), configure(squares, folder, *budget), 0
    for moment in range(20):
        before = log.read_text() if log.exists() else ""
        process = start(config, log, slow_writes)
        first = done + rng.randint(1, 4)
        wait_for(lambda first=first: newest_step(folder) >= first, process)
        time.sleep(rng.uniform(0, 0.2))
        if moment % 3 == 0:
            process.terminate()
            finish(process, 75)
        elif moment % 3 == 1:
            process.kill()
            finish(process, -signal.SIGKILL)
        else:
            no_room(process, log)
            time.sleep(rng.uniform(0, 0.2))
            process.kill()
            finish(process, -signal.SIGKILL)
        seen = newest_step(folder)
        assert seen >= first
        assert [inspect(folder / "checkpoints" / name) for name in list_checkpoints(folder / "checkpoints")]
        if done:
            assert f"continues at sample {8 * done} " in " ".join(log.read_text()[len(before) :].split())
        done = seen
    finish(start(config, log))
    assert failures(log) >= 6
    assert_same(weights(folder), weights(whole))


def failures(log: Path) -> int:
    """How many checkpoints could not be written; lines of the log are wrapped anywhere."""
    return " ".join(log.read_text().split()).count("could not be written")


def no_room(process: BaseProcess, log: Path) -> None:
    """No file of the process may grow beyond 300 kB until a checkpoint has failed of it."""
    failed = failures(log)
    limits = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (300_000, limits[1]))
    wait_for(lambda: failures(log) > failed, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
