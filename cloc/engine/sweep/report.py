"""Sweeps: the report over all jobs (beside ``run``); ``hook``, which Hydra calls around them, asks for it.

``python train.py -m sweep=loss_weights …`` trains one run for each combination; the report compares what their last
evaluations measured, by the keys in which their configurations differ, and says which jobs failed and why. Jobs that
differ in the seed alone are averaged.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from cloc.checkpoints import NAME, find
from cloc.config import ConfigError
from cloc.config.nodes import moved_class
from cloc.console import print_table
from cloc.engine.sweep.jobs import FAILURE, Job, Row, read_failure, read_log, short
from cloc.engine.sweep.values import label, order
from cloc.files import discard, write_file

OWN = ("name", "run_dir", "seed")  # differ between jobs without being what the sweep is about
console = Console(soft_wrap=True, highlight=False)


def __getattr__(name: str) -> type:
    return moved_class(__name__, name)


def read_jobs(folder: Path) -> list[Job]:
    """All jobs of a sweep: at their end, on their way, and failed."""
    places = {file.parent for name in ("config.yaml", FAILURE) for file in folder.glob(f"*/{name}")}
    return [_read_job(place) for place in sorted(places, key=lambda place: (len(place.name), place.name))]


def _read_job(folder: Path) -> Job:
    failure = read_failure(folder)
    if not (folder / "config.yaml").is_file():
        pairs = (override.lstrip("+~").partition("=") for override in failure.overrides) if failure else ()
        return Job(folder.name, {key: _parsed(text) for key, _, text in pairs}, failure=failure, whole=False)
    config = _read_config(folder / "config.yaml")
    metrics, samples = read_log(folder)
    samples = max(samples, _in_checkpoint(folder, config.get("batch_size")))
    budget = config.get("samples")
    budget = budget if isinstance(budget, int) else None
    return Job(folder.name, _flat(config), metrics, failure, samples, budget)


def _in_checkpoint(folder: Path, batch_size: Any) -> int:
    """Samples that the newest checkpoint has seen, by its name: a short run logs no row."""
    newest = NAME.fullmatch(find(folder).name)
    return int(newest[1]) * batch_size if newest and isinstance(batch_size, int) else 0


def _parsed(text: str) -> Any:
    """A value of a command line; its text where YAML does not know it."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


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
        inner = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """Keys in which the jobs differ, but for seed, name and folder.

    Where one job has a node and another has none (``model.prompter=null``), the node as a whole.
    """
    keys = sorted({key for job in jobs for key in job.settings} - set(OWN))
    found = [key for key in keys if len({repr(value_of(job, key)) for job in jobs if _tells(job, key)}) > 1]
    leaves = set(keys)
    whole = [next((part for part in _above(key) if part in leaves), key) for key in found]
    return list(dict.fromkeys(whole))


def _above(key: str) -> list[str]:
    """The nodes that a dotted key lies in, the outermost first."""
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _tells(job: Job, key: str) -> bool:
    """Whether a job says what a key is; one that failed at once knows its overrides alone."""
    return job.whole or key in job.settings


def value_of(job: Job, key: str) -> Any:
    """The value of a key, or of a whole node; None where the job has none."""
    if key in job.settings:
        return job.settings[key]
    below = {name.removeprefix(f"{key}."): value for name, value in job.settings.items() if name.startswith(f"{key}.")}
    return below or None


def gather_rows(jobs: Sequence[Job], keys: Sequence[str]) -> list[Row]:
    """One row a combination of the swept values, in their order; jobs on their way stand by themselves.

    Jobs that failed, and those that have measured nothing, have no row.
    """
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        if job.metrics and job.failure is None:
            groups.setdefault(repr([[value_of(job, key) for key in keys], job.note]), []).append(job)
    rows = []
    for group in groups.values():
        names = sorted(set.intersection(*(set(job.metrics) for job in group)))
        metrics = {name: _spread([job.metrics[name] for job in group]) for name in names}
        values = tuple(value_of(group[0], key) for key in keys)
        rows.append(Row(values, tuple(job.name for job in group), metrics, group[0].note))
    return sorted(rows, key=lambda row: [order(value) for value in row.values])


def _spread(values: list[float]) -> tuple[float, float]:
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return statistics.fmean(values), math.nan
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def report(folder: Path, metrics: Sequence[str] = ()) -> list[Path]:
    """Print the table of a sweep and what became of the jobs that are not in it; write ``sweep.csv`` and ``sweep.png``.

    Args:
        folder: ``run_dir`` of the sweep.
        metrics: ``val/SET/METRIC`` to show; the main ones where empty.

    Returns:
        The files written into the folder; the picture only where there is a point to draw.

    Raises:
        FileNotFoundError: nothing to report on.
        ValueError: a metric that no job has.
    """
    from cloc.engine.sweep.main_metrics import lower_is_better, main_metrics
    from cloc.engine.sweep.plot import plot

    jobs = read_jobs(folder)
    keys = swept_keys(jobs)
    rows = gather_rows(jobs, keys)
    known = sorted({name for row in rows for name in row.metrics})
    unknown = [name for name in metrics if name not in known]
    if rows and unknown:
        raise ValueError(f"{', '.join(unknown)}: not measured in {folder}; there are {', '.join(known)}")
    shown = list(metrics) or main_metrics(known)
    lower = lower_is_better(shown)
    if jobs:
        console.print(f"{folder}: {summary(jobs)}", markup=False)
    if rows:
        print_table(_table(keys, rows, shown, lower), keys=1 + len(keys))
    tell_states(jobs)
    if not rows:
        raise FileNotFoundError(
            f"{folder}: no run in it has an evaluation{' that did not fail' if jobs else ''}; give the folder of a "
            "sweep whose jobs set evaluation.every and evaluation.data"
        )
    _write_csv(folder / "sweep.csv", keys, jobs, rows, known)
    if plot(folder / "sweep.png", folder.name, keys, rows, shown, lower):
        return [folder / "sweep.csv", folder / "sweep.png"]
    discard(folder / "sweep.png")  # of an earlier report
    return [folder / "sweep.csv"]


def summary(jobs: Sequence[Job]) -> str:
    """How many jobs there are, and which failed: "3 jobs, 2 failed: 0, 2"."""
    failed = [job.name for job in jobs if job.failure is not None]
    count = f"{len(jobs)} job{'s' * (len(jobs) != 1)}"
    return f"{count}, {len(failed)} failed: {', '.join(failed)}" if failed else count


def tell_states(jobs: Sequence[Job]) -> None:
    """A line for each job that is not in the table, or not at its end."""
    for job in jobs:
        if job.failure is not None or job.note or not job.metrics:
            console.print(f"job {job.name}{told_overrides(job)} {job.state}", markup=False)


def told_overrides(job: Job) -> str:
    """The overrides of a job that failed, in brackets."""
    given = job.failure.overrides if job.failure else ()
    return f" ({', '.join(given)})" if given else ""


def _table(keys: Sequence[str], rows: Sequence[Row], shown: Sequence[str], lower: frozenset[str]) -> Table:
    table = Table(caption="best in bold", caption_justify="left")
    table.add_column("job", overflow="fold")
    for key in keys:
        table.add_column(key, justify="right", overflow="fold")
    for metric in shown:
        table.add_column(short(metric, shown), justify="right", overflow="fold")
    ended = [row for row in rows if not row.note] or rows
    best = {metric: _best(ended, metric, metric in lower) for metric in shown}
    for row in rows:
        cells = [", ".join(row.jobs) + (f" ({row.note})" if row.note else ""), *map(label, row.values)]
        for metric in shown:
            mean, error = row.metrics.get(metric, (math.nan, math.nan))
            text = "–" if math.isnan(mean) else f"{mean:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")
            cells.append(f"[bold]{text}[/]" if mean == best[metric] and row in ended else text)
        table.add_row(*cells)
    return table


def _best(rows: Sequence[Row], metric: str, lower: bool) -> float:
    values = [row.metrics[metric][0] for row in rows if math.isfinite(row.metrics.get(metric, (math.nan,))[0])]
    return (min if lower else max)(values, default=math.nan)


def _write_csv(path: Path, keys: Sequence[str], jobs: Sequence[Job], rows: Sequence[Row], names: Sequence[str]) -> None:
    """Every metric of every row, and the jobs without one."""
    text = io.StringIO()
    writer = csv.writer(text)
    numbers = [column for name in names for column in (name, f"{name} (standard error)")]
    writer.writerow(["job", "state", *keys, *numbers])
    for row in rows:
        found = [number for name in names for number in row.metrics.get(name, (math.nan, math.nan))]
        cells = ["" if math.isnan(number) else number for number in found]
        writer.writerow([" ".join(row.jobs), row.note or "finished", *map(label, row.values), *cells])
    told = {name for row in rows for name in row.jobs}
    for job in jobs:
        if job.name not in told:
            values = [label(value_of(job, key)) if _tells(job, key) else "" for key in keys]
            writer.writerow([job.name, job.state, *values, *[""] * len(numbers)])
    write_file(path, text.getvalue())
