"""Sweeps: the number a job returns, its folder, and the report over all jobs (beside ``run``).

``python train.py -m sweep=loss_weights …`` trains one run for each combination; the report compares what their last
evaluations measured, by the keys in which their configurations differ. Jobs that differ in the seed alone are averaged.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from cloc.config import ConfigError
from cloc.config.secrets import public
from cloc.engine.loggers import read_rows
from cloc.engine.runtime import cluster
from cloc.files import make_folder, write_file

# What a sweep is read by, when it was measured: the first of each kind.
REGION = ("region/prompter/top1", "region/prompter/text_to_region_R@10", "region/prompter/text_to_region_R@1")
GROUNDING = ("grounding/any/acc@0.5", "grounding/union/acc@0.5")
IMAGE = (("image_text/text_to_image_R@1",), ("image_text/image_to_text_R@1",), ("image/zero_shot_top1",))
OWN = ("name", "run_dir", "seed")  # differ between jobs without being what the sweep is about
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


def read_jobs(folder: Path) -> list[Job]:
    """All jobs of a sweep that have been measured.

    Raises:
        FileNotFoundError: no such folder, or no measured job in it.
    """
    found = []
    for file in sorted(folder.glob("*/config.yaml"), key=lambda file: (len(file.parent.name), file.parent.name)):
        metrics = last_metrics(file.parent)
        if metrics:
            found.append(Job(file.parent.name, _flat(_read_config(file)), metrics))
    if not found:
        raise FileNotFoundError(
            f"{folder}: no run in it has an evaluation; give the folder of a sweep whose jobs set evaluation.every and "
            "evaluation.data"
        )
    return found


def _read_config(file: Path) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(file.read_bytes())
    except yaml.YAMLError as error:
        config = str(error).splitlines()[0]
    if not isinstance(config, Mapping):
        raise ConfigError(f"{file} is no configuration ({str(config)[:80]}); restore it, or move its folder away")
    return config


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """Keys in which the jobs differ, but for seed, name and folder."""
    keys = sorted({key for job in jobs for key in job.settings} - set(OWN))
    return [key for key in keys if len({repr(job.settings.get(key)) for job in jobs}) > 1]


def gather_rows(jobs: Sequence[Job], keys: Sequence[str]) -> list[Row]:
    """One row a combination of the swept values, in their order."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(repr([job.settings.get(key) for key in keys]), []).append(job)
    rows = []
    for group in groups.values():
        names = sorted(set.intersection(*(set(job.metrics) for job in group)))
        metrics = {name: _spread([job.metrics[name] for job in group]) for name in names}
        values = tuple(group[0].settings.get(key) for key in keys)
        rows.append(Row(values, tuple(job.name for job in group), metrics))
    return sorted(rows, key=lambda row: [(isinstance(v, str), v if v is not None else 0) for v in row.values])


def _spread(values: list[float]) -> tuple[float, float]:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def main_metrics(rows: Sequence[Row]) -> list[str]:
    """Region and image metrics that the table and the plot show, of every evaluation set."""
    names = {name for row in rows for name in row.metrics}
    found = []
    for group in sorted({name.split("/")[1] for name in names}):
        for choice in (REGION, GROUNDING, *IMAGE):
            found += [name for metric in choice if (name := f"val/{group}/{metric}") in names][:1]
    return found or sorted(names)[:6]


def report(folder: Path, metrics: Sequence[str] = ()) -> list[Path]:
    """Print the table of a sweep, and write ``sweep.csv`` (every metric) and ``sweep.png`` into its folder.

    Args:
        folder: ``run_dir`` of the sweep.
        metrics: ``val/SET/METRIC`` to show; the main ones where empty.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: nothing to report on.
        ValueError: a metric that no job has.
    """
    from cloc.engine.sweep_plot import plot

    jobs = read_jobs(folder)
    keys = swept_keys(jobs)
    rows = gather_rows(jobs, keys)
    known = sorted({name for row in rows for name in row.metrics})
    unknown = [name for name in metrics if name not in known]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not measured in {folder}; there are {', '.join(known)}")
    shown = list(metrics) or main_metrics(rows)
    console.print(_table(folder, keys, rows, shown))
    _write_csv(folder / "sweep.csv", keys, rows, known)
    plot(folder / "sweep.png", folder.name, keys, rows, shown)
    return [folder / "sweep.csv", folder / "sweep.png"]


def short(metric: str, shown: Sequence[str]) -> str:
    """A metric's name without ``val/``, and without the set where all are of one."""
    _, group, name = metric.split("/", 2)
    return name if len({other.split("/")[1] for other in shown}) == 1 else f"{group}: {name}"


def _table(folder: Path, keys: Sequence[str], rows: Sequence[Row], shown: Sequence[str]) -> Table:
    title = f"{folder}: {sum(len(row.jobs) for row in rows)} jobs"
    table = Table(title=title, title_justify="left", caption="best in bold", caption_justify="left")
    table.add_column("job")
    for key in keys:
        table.add_column(key, justify="right", overflow="fold")
    for metric in shown:
        table.add_column(short(metric, shown), justify="right", overflow="fold")
    best = {m: max((row.metrics[m][0] for row in rows if m in row.metrics), default=math.nan) for m in shown}
    for row in rows:
        cells = [", ".join(row.jobs), *(str(value) for value in row.values)]
        for metric in shown:
            mean, error = row.metrics.get(metric, (math.nan, math.nan))
            text = "–" if math.isnan(mean) else f"{mean:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")
            cells.append(f"[bold]{text}[/]" if mean == best[metric] else text)
        table.add_row(*cells)
    return table


def _write_csv(path: Path, keys: Sequence[str], rows: Sequence[Row], names: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["job", *keys, *(column for name in names for column in (name, f"{name} (standard error)"))])
    for row in rows:
        numbers = [number for name in names for number in row.metrics.get(name, (math.nan, math.nan))]
        cells = ["" if math.isnan(number) else number for number in numbers]
        writer.writerow([" ".join(row.jobs), *row.values, *cells])
    write_file(path, text.getvalue())


class SweepFolder(Callback):
    """Hydra's hook around a sweep (``hydra.callbacks`` of ``conf/sweep``): its folder before, its report after."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder, which a sweeper's own storage may need.

        Raises:
            ConfigError: torchrun started several processes, each of which would run the whole sweep.
        """
        refuse_torchrun()
        make_folder(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Report on what there is; a sweep of jobs that measure nothing has no report."""
        folder = Path(config.hydra.sweep.dir)
        if any(last_metrics(file.parent) for file in folder.glob("*/config.yaml")):
            for path in report(folder):
                console.print(f"wrote {path}", highlight=False, soft_wrap=True)


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
