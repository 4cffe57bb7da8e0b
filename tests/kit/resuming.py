"""A run of a second or two for the tests of resuming, and a process to run it in that can be killed.

Children come from a fork server that has imported everything once (conftest.py), so that twenty of them are quick.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from cloc.contracts import Region, Sample
from cloc.data.shards.writer import write_shards
from cloc.data.word_tokenizer import write_word_tokenizer
from tests.kit.paths import ROOT

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "white": (240, 240, 240)}
TINY = [
    "experiment=demo_cloc",
    "batch_size=8",
    "model.joint_dim=32",
    "model.image.image_size=32",
    "model.image.options.embed_dim=64",
    "model.image.options.depth=1",
    "+model.image.options.proj_drop_rate=0.1",
    "model.text.options.vocab_size=64",
    "model.text.options.width=32",
    "model.text.options.layers=1",
    "optim.warmup=0",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.log_every=1",
    "data.workers=0",
    "evaluation.every=0",
]


def make_squares(folder: Path, count: int = 48) -> Path:
    """Shards of colored squares, and a tokenizer of their words."""
    rng, samples, names = np.random.default_rng(0), [], list(COLORS)
    for index in range(count):
        canvas, regions = np.full((32, 32, 3), 120, np.uint8), []
        for slot, color in enumerate(rng.choice(names, 2, replace=False)):
            left, top = int(rng.integers(0, 8)) + 16 * slot, int(rng.integers(0, 24))
            canvas[top : top + 8, left : left + 8] = COLORS[color]
            regions.append(Region((left / 32, top / 32, (left + 8) / 32, (top + 8) / 32), (f"a {color} square",)))
        file = BytesIO()
        Image.fromarray(canvas).save(file, "PNG")
        caption = " and ".join(region.phrases[0] for region in regions)
        samples.append(Sample(f"{index:04d}", file.getvalue(), "png", (caption,), tuple(regions), 32, 32))
    write_shards(samples, folder / "train")
    write_word_tokenizer([caption for sample in samples for caption in sample.captions], folder / "tokenizer")
    return folder


def configure(squares: Path, run_dir: Path | str, *more: str) -> DictConfig:
    """The tiny run's configuration."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides(squares, run_dir, *more))


def overrides(squares: Path, run_dir: Path | str, *more: str) -> list[str]:
    """The tiny run, as ``train.py`` takes it on the command line."""
    own = [f"data.train={squares / 'train'}", f"model.text.tokenizer={squares / 'tokenizer'}", f"run_dir={run_dir}"]
    return [*TINY, *own, *more]


def newest_step(folder: Path) -> int:
    """Step of the newest checkpoint of a run folder; 0 without one."""
    found = [int(path.stem.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*.ckpt")]
    return max(found, default=0)


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    """Model and optimizer of a checkpoint, as one flat dictionary."""
    stored = torch.load(folder / "checkpoints" / name, weights_only=True)
    found = dict(stored["state_dict"])
    for number, part in enumerate(stored["optimizer_states"][0]["parts"]):
        for index, state in part["state"].items():
            found |= {f"optimizer {number} {index} {key}": torch.as_tensor(value) for key, value in state.items()}
    return found


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Every bit."""
    assert one.keys() == other.keys() and len(one) > 20
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} of {len(one)} differ: {different[:3]}"


def slow_writes() -> None:
    """Make a checkpoint take long enough to be hit: the writing pauses in the middle of the file."""
    save = torch.save

    def pausing(checkpoint: Any, file: Any) -> None:
        buffer = BytesIO()
        save(checkpoint, buffer)
        half = len(buffer.getvalue()) // 2
        file.write(buffer.getvalue()[:half])
        file.flush()
        time.sleep(0.05)
        file.write(buffer.getvalue()[half:])

    torch.save = pausing


def killed_in_the_middle(number: int) -> Callable[[], None]:
    """The process kills itself in the middle of writing its checkpoint of that number."""
    return _Killer(number)


class _Killer:
    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self) -> None:
        save, count = torch.save, 0

        def fatal(checkpoint: Any, file: Any) -> None:
            nonlocal count
            count += 1
            if count < self.number:
                save(checkpoint, file)
                return
            buffer = BytesIO()
            save(checkpoint, buffer)
            file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = fatal


def start(config: DictConfig, log: Path, prepare: Callable[[], None] | None = None) -> BaseProcess:
    """Train in a child process of its own session; its output goes to a file."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_live, args=(config, log, prepare))
    process.start()
    return process


def _live(config: DictConfig, log: Path, prepare: Callable[[], None] | None) -> None:
    os.setsid()
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    from cloc.engine.run import train

    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    train(config)


class Command:
    """``train.py`` as a user starts it, in a process group of its own, its output in a file.

    Args:
        arguments: of the command.
        log: file that the output is appended to.
    """

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log, self.began = log, log.stat().st_size if log.exists() else 0
        asked = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
        try:
            with log.open("a") as file:
                self.process = subprocess.Popen(
                    [sys.executable, str(ROOT / "train.py"), *arguments],
                    cwd=ROOT,
                    stdout=file,
                    stderr=file,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    start_new_session=True,
                )
        finally:
            signal.signal(signal.SIGINT, asked)

    def said(self) -> str:
        """What this start has printed so far."""
        return self.log.read_bytes()[self.began :].decode()

    def wait_until(self, condition: Callable[[], bool], seconds: float = 300) -> bool:
        """Whether a condition came true before the command ended."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def signal(self, number: int) -> None:
        """As a terminal does: to all processes of the group."""
        os.killpg(self.process.pid, number)

    def end(self) -> int:
        """Exit code; nothing of the group is left a moment later."""
        code = self.process.wait(300)
        end = time.monotonic() + 20
        while members(self.process.pid) and time.monotonic() < end:
            time.sleep(0.05)
        assert not members(self.process.pid), "processes are left"
        return code


def members(group: int) -> list[int]:
    """Processes of a group; those that have ended and wait for their parent do not count."""
    found = subprocess.run(["ps", "-A", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in found.stdout.splitlines()]
    return [int(pid) for pid, pgid, state in rows if int(pgid) == group and not state.startswith("Z")]
