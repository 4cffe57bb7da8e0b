"""Where numbers go: ``metrics.csv`` always, TensorBoard or Weights & Biases besides (beside ``callbacks``).

A resumed run goes on in the same log, from the checkpoint's sample.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import secrets
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from cloc.config import ConfigError, RunConfig
from cloc.engine.durable.run_folder import RunFolder
from cloc.files import append, clear, make_folder, publish, write_file

console = Console(soft_wrap=True)  # a message is a line, however long its paths are


class MetricsFile(Logger):
    """``metrics.csv``: one row a log line, written at once. Rows that a full disk refuses are kept and tried again."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = []
        self.waiting: list[dict[str, float | None]] = []

    @property
    def name(self) -> str:
        """Nothing: the file has its own name."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: a run has one log."""
        return ""

    @rank_zero_only
    def go_on(self, samples: int) -> None:
        """Keep the rows up to a checkpoint's sample; the steps after it will be logged again.

        A file with lines that are no rows of it (a disk that lies, another program) is kept under another name.
        """
        if not os.path.lexists(self.path):
            return
        rows, bad = read_rows(self.path)
        if bad:
            kept = self.path.with_name(f"damaged-{secrets.token_hex(4)}-{self.path.name}")
            publish(self.path, kept)
            console.print(f"{self.path}: {bad}; kept as {kept.name}, the log goes on with {len(rows)} rows")
        self.columns = list(rows[0]) if rows else []
        self._rewrite([row for row in rows if row["samples"] and float(row["samples"]) <= samples])

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row."""
        self.waiting.append({**{name: float(value) for name, value in metrics.items()}, "step": step})
        try:
            self._write()
        except OSError as error:
            console.print(f"[bold red]{self.path}: {error.strerror}; {len(self.waiting)} rows wait for room[/]")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``config.yaml`` holds them."""

    def _write(self) -> None:
        new = {name for row in self.waiting for name in row} - set(self.columns)
        if new or not self.path.is_file():
            old: list[dict[str, str]] = []
            if self.path.is_file():
                old, _ = read_rows(self.path)
            self.columns = sorted({*self.columns, *new})
            self._rewrite([*old, *self.waiting])
        else:
            rows = io.StringIO()
            csv.DictWriter(rows, self.columns).writerows(self.waiting)
            append(self.path, rows.getvalue())
        self.waiting = []

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.columns)
        writer.writeheader()
        writer.writerows(rows)
        write_file(self.path, buffer.getvalue())


def read_rows(path: Path) -> tuple[list[dict[str, str]], str]:
    """Rows of a ``metrics.csv``. A last line without an end is left out: a killed process may leave half a row.

    Returns:
        The rows that are whole and have the number of samples as a number, or nothing there; and what is wrong with the
        file, empty where nothing is.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1].replace("\0", "\N{REPLACEMENT CHARACTER}")))
        found = list(reader)
    except (OSError, csv.Error) as error:  # a folder of that name; a field longer than the reader takes
        return [], f"cannot be read ({error})"
    rows = [row for row in found if _is_row(row)]
    lost = len(found) - len(rows)
    return rows, f"{lost} of {len(found)} lines are no rows of a log" if lost else ""


def _is_row(row: dict[Any, Any]) -> bool:
    if None in row or None in row.values() or "samples" not in row:
        return False
    try:
        return all(isinstance(float(value), float) for value in row.values() if value)
    except ValueError:
        return False


class Board(TensorBoardLogger):
    """TensorBoard's files; what a full disk refuses is counted, and the next row is tried in a new file."""

    lost = 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write a row, or count it."""
        try:
            super().log_metrics(metrics, step)
            self.experiment.flush()
        except OSError as error:
            self.lost += 1
            self._experiment = None  # its thread has ended
            console.print(f"[bold red]{self.log_dir}: {error.strerror}; {self.lost} rows of TensorBoard are lost[/]")

    def finalize(self, status: str) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # told when its rows were written
            super().finalize(status)


def build_loggers(config: RunConfig, folder: RunFolder, step: int = 0, samples: int = 0) -> list[Logger]:
    """CSV always; ``logger.name`` adds TensorBoard or Weights & Biases.

    Args:
        config: validated.
        folder: of the run.
        step: of the checkpoint that the run continues from; 0 for a new run.
        samples: seen until then.
    """
    metrics = MetricsFile(folder.local / "metrics.csv")
    metrics.go_on(samples)
    loggers: list[Logger] = [metrics]
    options = {key: value for key, value in config.logger.items() if key != "name"}
    name = config.logger.get("name", "csv")
    if name == "tensorboard":
        clear(make_folder(folder.local, name) / TensorBoardLogger.NAME_HPARAMS_FILE)
        # What an earlier life logged after the checkpoint is not shown.
        purge: dict[str, Any] = {"purge_step": step} if step else {}
        loggers.append(Board(folder.local, name="tensorboard", version="", **purge, **options))
    elif name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        if options.get("log_model"):
            raise ConfigError("logger.log_model: checkpoints are not uploaded to W&B; set run_dir to an object store")
        make_folder(folder.local, name)  # W&B's own name for it
        about: dict[str, Any] = {"name": config.name, "config": {"run": config.name}, "save_dir": folder.local}
        ranked: Any = rank_zero_only  # a function that Lightning gives an attribute
        if ranked.rank == 0:  # the others log nothing
            about["id"] = _run_id(folder.local / "wandb-id")
        loggers.append(WandbLogger(**about, **options))
    elif name != "csv":
        raise ConfigError(f"logger.name={name!r}: give csv, tensorboard or wandb")
    return loggers


def _run_id(path: Path) -> str:
    """The run's name at W&B, drawn once and kept in the run folder."""
    known = path.read_bytes() if path.is_file() else b""
    if not re.fullmatch(rb"[0-9a-f]{8}", known):
        write_file(path, secrets.token_hex(4))
    return path.read_text()
