"""The fuzz command tells its classes apart, and finds nothing in the readers (``python -m tests.fuzz``)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.kinds import PACKAGE, Case, Kind, Unreadable
from tests.fuzz.runner import run
from tests.kit.paths import ROOT


def refuse(text: str = "no such thing; give another") -> None:
    """Raise from a file that counts as the package's own."""
    exec(compile(f"raise ValueError({text!r})", f"{PACKAGE}x.py", "exec"))


def unreadable() -> None:
    raise Unreadable("not for me")


READERS: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "right": (lambda: 1, lambda: 1, "accepted"),
    "refused in a line": (refuse, unreadable, "refused"),
    "refused in two lines": (lambda: refuse("no\nsuch"), unreadable, "traceback"),
    "another's error": (lambda: int("x"), unreadable, "traceback"),
    "an error of another kind": (lambda: {}["x"], unreadable, "traceback"),
    "another result": (lambda: 1, lambda: 2, "silent"),
    "accepted alone": (lambda: 1, unreadable, "silent"),
    "starts a process": (lambda: subprocess.run(["true"], check=False).returncode, lambda: 0, "silent"),
    "waits for ever": (lambda: time.sleep(60), lambda: None, "hang"),
    "kills its process": (lambda: os.kill(os.getpid(), signal.SIGSEGV), lambda: None, "crash"),
}


@pytest.mark.parametrize("name", READERS)
def test_the_classes_are_told_apart(name: str, tmp_path: Path) -> None:
    read, reference, expected = READERS[name]

    def make(rng: random.Random, folder: Path, prepared: None) -> Case:
        return Case(name, read, reference, (ValueError,), b"content")

    [found, again] = run([Kind("toy", 1.0, lambda folder: None, make)], 0, [0, 1], 0.5, tmp_path)
    assert (found.what, found.outcome) == (again.what, again.outcome) == (name, expected)
    kept = [path.read_bytes() for path in tmp_path.iterdir()]
    assert kept == ([] if expected in ("accepted", "refused") else [b"content"] * 2)


@pytest.mark.slow
def test_the_readers_stand() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--seed", "0", "--inputs", "1200", "--seconds", "60"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    counts = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout[-4000:]
    assert counts["inputs"] == sum(counts.values()) - counts["inputs"] == 1200
    assert counts["accepted"] > 300 and counts["refused"] > 300  # the readers are reached, not the door alone
    assert counts["hang"] == counts["crash"] == counts["silent"] == 0
