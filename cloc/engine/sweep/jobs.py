"""One job of a sweep: its folder, the number that it returns, what it measured (beside ``run``)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cloc.config import ConfigError
from cloc.config.secrets import public
from cloc.engine.loggers import read_rows
from cloc.engine.process_group import cluster
from cloc.files import make_folder, write_file

console = Console()


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its folder's name, its configuration as flat keys, what was measured last."""

    name: str
    settings: dict[str, Any]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Row:
    """Jobs that differ in the seed alone.

    Attributes:
        values: of the swept keys.
        jobs: names of the jobs' folders.
        metrics: mean and standard error (NaN for a single job) of each metric.
    """

    values: tuple[Any, ...]
    jobs: tuple[str, ...]
    metrics: dict[str, tuple[float, float]]


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


def last_metrics(folder: Path) -> dict[str, float]:
    """What the last evaluation in training measured: ``val/SET/METRIC`` → value. Empty where there was none."""
    latest: dict[str, float] = {}
    seen = -1.0
    for file in folder.glob("metrics*.csv"):
        rows, wrong = read_rows(file)
        if wrong:
            console.print(f"{file}: {wrong}", soft_wrap=True)
        for row in rows:
            found = {name: float(value) for name, value in row.items() if name.startswith("val/") and value}
            if found and float(row["samples"] or 0) >= seen:
                latest, seen = found, float(row["samples"] or 0)
    return latest


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
    _, group, name = metric.split("/", 2)
    return name if len({other.split("/")[1] for other in shown}) == 1 else f"{group}: {name}"


def refuse_torchrun() -> None:
    """Stop a sweep that was started by torchrun.

    Raises:
        ConfigError: says how to sweep over runs of several processes.
    """
    found = cluster()
    if found is not None and type(found).__name__ == "TorchElasticEnvironment" and found.world_size() > 1:
        raise ConfigError(
            f"a sweep (-m) under torchrun: each of the {found.world_size()} processes would run all of it. Give every "
            "job its own processes with hydra/launcher=slurm, or start the jobs one by one: "
            "for w in 0.5 1 2; do torchrun … train.py … loss.region=$w run_dir=runs/sweep/$w; done"
        )
