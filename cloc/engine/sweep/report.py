"""Sweeps: the number a job returns, its folder, and the report over all jobs (beside ``run``).

``python train.py -m sweep=loss_weights …`` trains one run for each combination; the report compares what their last
evaluations measured, by the keys in which their configurations differ. Jobs that differ in the seed alone are averaged.
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
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from cloc.config import ConfigError
from cloc.console import print_table
from cloc.engine.sweep.jobs import Job, Row, last_metrics, refuse_torchrun, short
from cloc.files import make_folder, write_file
from cloc.usage import opening, print_next

# What a sweep is read by, when it was measured: the first of each kind.
REGION = ("region/prompter/top1", "region/prompter/text_to_region_R@10", "region/prompter/text_to_region_R@1")
GROUNDING = ("grounding/any/acc@0.5", "grounding/union/acc@0.5")
IMAGE = (("image_text/text_to_image_R@1",), ("image_text/image_to_text_R@1",), ("image/zero_shot_top1",))
OWN = ("name", "run_dir", "seed")  # differ between jobs without being what the sweep is about
console = Console()


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
    from cloc.engine.sweep.plot import plot

    jobs = read_jobs(folder)
    keys = swept_keys(jobs)
    rows = gather_rows(jobs, keys)
    known = sorted({name for row in rows for name in row.metrics})
    unknown = [name for name in metrics if name not in known]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not measured in {folder}; there are {', '.join(known)}")
    shown = list(metrics) or main_metrics(rows)
    print_table(_table(folder, keys, rows, shown), console, keys=1 + len(keys))
    _write_csv(folder / "sweep.csv", keys, rows, known)
    plot(folder / "sweep.png", folder.name, keys, rows, shown)
    return [folder / "sweep.csv", folder / "sweep.png"]


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
            print_next(opening(folder / "sweep.png"))
