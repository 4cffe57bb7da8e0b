"""One job of a sweep: its folder, the number that it returns, what became of it (beside ``run``).

Hydra imports this before every run, so that what takes time is imported where it is needed.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from cloc.config import ConfigError
from cloc.config.secrets import public
from cloc.files import discard, make_folder, write_file, write_json
from cloc.launchers import OF_JOBS

FAILURE = "failure.json"
console = Console()


@dataclass(frozen=True)
class Failure:
    """Why a job failed, in a line, and the overrides by which it differs from the sweep's command."""

    reason: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        settings: its configuration as flat keys; of a job that failed before it wrote any, what its overrides say.
        metrics: measured last; empty where nothing was.
        failure: why it failed; None where it did not.
        samples: seen until its last log line.
        budget: that it is to see; None where it is not known.
        whole: whether ``settings`` are all there are.
    """

    name: str
    settings: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    failure: Failure | None = None
    samples: int = 0
    budget: int | None = None
    whole: bool = True

    @property
    def note(self) -> str:
        """How far it is, where it is not at its end."""
        if self.budget is None or self.samples >= self.budget:
            return ""
        return f"at {self.samples:,} of {self.budget:,}"

    @property
    def state(self) -> str:
        """What became of it, in words."""
        if self.failure is not None:
            return f"failed: {self.failure.reason}"
        going = f"running or stopped {self.note.replace('at', 'at sample', 1)}" if self.note else "finished"
        return going if self.metrics else f"{going}, not measured"


@dataclass(frozen=True)
class Row:
    """Jobs that differ in the seed alone.

    Attributes:
        values: of the swept keys.
        jobs: names of the jobs' folders.
        metrics: mean and standard error (NaN for a single job) of each metric.
        note: how far they are, where they are not at their end.
    """

    values: tuple[Any, ...]
    jobs: tuple[str, ...]
    metrics: dict[str, tuple[float, float]]
    note: str = ""


def job_folder(run_dir: str, number: int, overrides: Sequence[str]) -> str:
    """Folder of one job: ``RUN_DIR/NUMBER``, as long as that folder does not hold a job of other overrides.

    The same sweep again finds its folders and goes on in them. A sweep that proposes new values each time it is started
    (Optuna) counts from 0 again, and must not take an old job's weights for its own.
    """
    text = _overrides_text(overrides)
    own = Path(run_dir) / str(number) / "overrides.txt"
    if own.is_file() and own.read_bytes() != text.encode():
        return f"{run_dir}/{number}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return f"{run_dir}/{number}"


def note_overrides(folder: Path, overrides: Sequence[str]) -> None:
    """Write down what made a job what it is, for :func:`job_folder`."""
    write_file(make_folder(folder) / "overrides.txt", _overrides_text(overrides))


def _overrides_text(overrides: Sequence[str]) -> str:
    """Overrides without credentials: a job with others is the same job."""
    return "\n".join(sorted(public(override) for override in overrides))


def hide_secrets(path: Path) -> None:
    """Take the credentials out of a text file that Hydra has written: ``multirun.yaml`` repeats the command line."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if public(text) != text:
        write_file(path, public(text))


def note_failure(folder: Path, error: BaseException, overrides: Sequence[str]) -> Failure:
    """Keep in a job's folder why it failed, for the report; :func:`forget_failure` when it is tried again."""
    reason = " ".join(public(f"{type(error).__name__}: {error}").split())
    failure = Failure(reason, tuple(public(override) for override in overrides))
    trace = public("".join(traceback.format_exception(error)))
    about = {"reason": reason, "overrides": list(failure.overrides), "traceback": trace.splitlines()}
    write_json(make_folder(folder.parent, folder.name) / FAILURE, about)
    return failure


def forget_failure(folder: Path) -> None:
    """A job is tried again."""
    discard(folder / FAILURE)


def read_failure(folder: Path) -> Failure | None:
    """Why the job of a folder failed; None where it did not."""
    path = folder / FAILURE
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_bytes())
        return Failure(str(about["reason"]), tuple(map(str, about["overrides"])))
    except (ValueError, TypeError, KeyError):
        return Failure(f"{path} cannot be read")


def last_metrics(folder: Path) -> dict[str, float]:
    """What the last evaluation in training measured: ``val/SET/METRIC`` → value. Empty where there was none."""
    return read_log(folder)[0]


def read_log(folder: Path) -> tuple[dict[str, float], int]:
    """What the last evaluation of a run measured, ``val/SET/METRIC`` → value, and the samples of its last row."""
    from cloc.engine.loggers import read_rows

    latest: dict[str, float] = {}
    seen = last = -1.0
    for file in folder.glob("metrics*.csv"):
        rows, wrong = read_rows(file)
        if wrong:
            console.print(f"{file}: {wrong}", soft_wrap=True)
        for row in rows:
            last = max(last, float(row["samples"] or 0))
            found = {name: float(value) for name, value in row.items() if name.startswith("val/") and value}
            if found and float(row["samples"] or 0) >= seen:
                latest, seen = found, float(row["samples"] or 0)
    return latest, max(0, int(last))


def objective(folder: Path, metric: str) -> float:
    """The number that a job returns to its sweeper.

    Raises:
        ConfigError: the run did not measure it.
    """
    metrics = last_metrics(folder)
    if metric not in metrics:
        names = ", ".join(sorted(metrics)) or "nothing"
        raise ConfigError(f"objective={metric!r} was not measured in {folder}; its last evaluation has {names}")
    return metrics[metric]


def short(metric: str, shown: Sequence[str]) -> str:
    """A metric's name without ``val/``, and without the set where all are of one."""
    _, group, *name = metric.split("/", 2)
    if not name:  # of a task without sets
        return group
    return name[0] if len({other.split("/")[1] for other in shown}) == 1 else f"{group}: {name[0]}"


def refuse_torchrun() -> None:
    """Stop a sweep that several processes were started for. Those of srun may be one job of it.

    Raises:
        ConfigError: says how to sweep over runs of several processes.
    """
    from cloc.engine.process_group import cluster

    found = cluster()
    if found is not None and found.launcher not in OF_JOBS:
        raise ConfigError(
            f"a sweep (-m) under {found.launcher}: each of the {found.world_size()} processes would run all of it. "
            "Give every job its own processes with hydra/launcher=slurm, or start the jobs one by one: "
            "for w in 0.5 1 2; do torchrun … train.py … loss.region=$w run_dir=runs/sweep/$w; done"
        )
