"""Where numbers go: ``metrics.csv`` always, TensorBoard or Weights & Biases besides (beside ``callbacks``).

A resumed run goes on in the same log, from the checkpoint's sample.
"""

from __future__ import annotations

import csv
import io
import secrets
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from cloc.config import ConfigError, TrainConfig
from cloc.engine.folder import RunFolder
from cloc.files import append, clear, make_folder, write_file

console = Console()


class MetricsFile(Logger):
    """``metrics.csv``: one row a log line, written at once. Rows that a full disk refuses are kept and tried again."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = []
        self.waiting: list[dict[str, float]] = []

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
        """Keep the rows up to a checkpoint's sample; the steps after it will be logged again."""
        if not self.path.is_file():
            return
        text = self.path.read_text()
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))  # a killed process may leave half a line
        self.columns = list(rows[0]) if rows else []
        self._rewrite([row for row in rows if row["samples"] and float(row["samples"]) <= samples])

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row."""
        self.waiting.append({name: float(value) for name, value in metrics.items()} | {"step": step})
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
            old = []
            if self.path.is_file():
                with self.path.open(newline="") as file:
                    old = list(csv.DictReader(file))
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


def build_loggers(config: TrainConfig, folder: RunFolder, step: int = 0, samples: int = 0) -> list[Logger]:
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
        from lightning.pytorch.loggers import TensorBoardLogger

        clear(make_folder(folder.local, name) / TensorBoardLogger.NAME_HPARAMS_FILE)
        # What an earlier life logged after the checkpoint is not shown.
        purge = {"purge_step": step} if step else {}
        loggers.append(TensorBoardLogger(folder.local, name="tensorboard", version="", **purge, **options))
    elif name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        if options.get("log_model"):
            raise ConfigError("logger.log_model: checkpoints are not uploaded to W&B; set run_dir to an object store")
        make_folder(folder.local, name)  # W&B's own name for it
        about = {"name": config.name, "config": {"run": config.name}, "save_dir": folder.local}
        if rank_zero_only.rank == 0:  # the others log nothing
            about["id"] = _run_id(folder.local / "wandb-id")
        loggers.append(WandbLogger(**about, **options))
    elif name != "csv":
        raise ConfigError(f"logger.name={name!r}: give csv, tensorboard or wandb")
    return loggers


def _run_id(path: Path) -> str:
    """The run's name at W&B, drawn once and kept in the run folder."""
    if not path.is_file():
        write_file(path, secrets.token_hex(4))
    return path.read_text()
