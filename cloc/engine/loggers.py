"""Where numbers go: ``metrics.csv`` always, TensorBoard or Weights & Biases besides (beside ``callbacks``).

A resumed run goes on in the same log, from the checkpoint's sample. TensorBoard and Weights & Biases get the whole
configuration besides, to filter and compare runs by: that of the run as it goes on, where a key has changed.
"""

from __future__ import annotations

import csv
import importlib
import inspect
import io
import os
import re
import secrets
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from cloc.command import needs
from cloc.config import ConfigError, RunConfig, check_arguments
from cloc.engine.board import Board
from cloc.engine.durable.checkpoint_file import Stored
from cloc.engine.durable.run_folder import RunFolder
from cloc.engine.sweep.agent import trial
from cloc.files import append, make_folder, publish, write_file
from cloc.usage import meant

# What the engine gives a logger itself.
OWN = {
    "tensorboard": {"name", "kwargs", "save_dir", "root_dir", "version", "log_dir", "purge_step"},
    "wandb": {"name", "kwargs", "save_dir", "dir", "config", "experiment"},
}
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


def check_logger(node: Mapping[str, Any]) -> None:
    """Refuse what a logger cannot be made of, before a run: its name, a missing package, an option or its type.

    Args:
        node: ``logger`` of the configuration.

    Raises:
        ConfigError: names the key and the remedy.
    """
    name, options = node.get("name", "csv"), {key: value for key, value in node.items() if key != "name"}
    if name not in ("csv", "tensorboard", "wandb"):
        raise ConfigError(f"logger.name={name!r}: give csv, tensorboard or wandb")
    if name == "csv":
        for key in options:
            raise ConfigError(f"logger.{key}: no option of logger.name=csv; it takes no other key than name")
        return
    if missing := needs(name):
        raise ConfigError(f"logger.name={name}: {missing}, or choose logger=csv")
    if options.get("log_model"):
        raise ConfigError("logger.log_model: checkpoints are not uploaded to W&B; set run_dir to an object store")
    takers = _takers(name)
    known = {key for taker in takers for key in inspect.signature(taker).parameters} - OWN[name]
    for key in options.keys() - known:
        hint = meant(key, known) or f"; it takes {', '.join(sorted(known))}"
        raise ConfigError(f"logger.{key}: no option of logger.name={name}{hint}")
    for taker in takers:
        check_arguments(taker, options, "logger")


def _takers(name: str) -> tuple[Any, Any]:
    """Lightning's class of a logger, and what it passes further options to."""
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        return TensorBoardLogger, SummaryWriter
    return WandbLogger, importlib.import_module("wandb").init


def build_loggers(
    config: RunConfig, folder: RunFolder, resolved: Mapping[str, Any] | None = None, stored: Stored | None = None
) -> list[Logger]:
    """CSV always; ``logger.name`` adds TensorBoard or Weights & Biases.

    Args:
        config: validated.
        folder: of the run.
        resolved: the whole configuration without credentials, the hyperparameters of the run.
        stored: the checkpoint that the run continues from.

    Raises:
        ConfigError: see :func:`check_logger`.
    """
    check_logger(config.logger)
    metrics = MetricsFile(folder.local / "metrics.csv")
    metrics.go_on(stored.info["samples_seen"] if stored else 0)
    loggers: list[Logger] = [metrics]
    options = {key: value for key, value in config.logger.items() if key != "name"}
    name = config.logger.get("name", "csv")
    if name == "tensorboard":
        make_folder(folder.local, name)
        # What an earlier life logged after the checkpoint is not shown.
        purge: dict[str, Any] = {"purge_step": stored.step} if stored else {}
        board = Board(folder.local, name="tensorboard", version="", **purge, **options)
        board.note_metrics(metrics.columns)
        loggers.append(board)
    elif name == "wandb":
        loggers.append(_wandb(config, folder, resolved or {}, options))
    return loggers


def _wandb(
    config: RunConfig, folder: RunFolder, resolved: Mapping[str, Any], options: Mapping[str, Any]
) -> WandbLogger:
    make_folder(folder.local, "wandb")  # W&B's own name for it
    about: dict[str, Any] = {"config": dict(resolved), "save_dir": folder.local}
    if not trial():  # whose name W&B gives
        job = f"/{folder.local.name}" if (folder.local / "overrides.txt").is_file() else ""
        about["name"] = config.name + job
    ranked: Any = rank_zero_only  # a function that Lightning gives an attribute
    if ranked.rank == 0 and not {"id", "version"} & options.keys():  # the others log nothing
        about["id"] = _run_id(folder.local / "wandb-id")
    return WandbLogger(**about, **options)


def _run_id(path: Path) -> str:
    """The run's name at W&B: that of the environment (an agent's trial), else drawn once; kept in the run folder."""
    known = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    given = os.environ.get("WANDB_RUN_ID") or (known if re.fullmatch(r"[\w-]{1,128}", known, re.ASCII) else "")
    found = given or secrets.token_hex(4)
    if found != known:
        write_file(path, found)
    return found


def start(loggers: Iterable[Logger], resolved: Mapping[str, Any], stored: Stored | None = None) -> None:
    """Open the logs and give them the hyperparameters, before the first step.

    Args:
        loggers: of the trainer.
        resolved: the configuration without credentials.
        stored: the checkpoint that the run continues from.

    Raises:
        ConfigError: W&B does not let the run in, or an option of the logger is of no use; says why.
    """
    step, before = (stored.step, stored.info["config"]) if stored else (0, None)
    for logger in loggers:
        try:
            if isinstance(logger, WandbLogger):
                _connect(logger)
            elif isinstance(logger, Board):
                logger.begin(resolved, step, changed=before != resolved)
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"logger: {_in_a_line(error)}; mend that key of logger") from error


@contextmanager
def ended(trainer: lightning.Trainer) -> Iterator[None]:
    """Tell W&B at the end of the block how the run ended: the next one of this process, of a sweep, is another run."""
    code = 1
    try:
        yield
        code = 0 if trainer.global_step >= trainer.max_steps else 75
    finally:
        if trainer.is_global_zero and any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            import wandb

            wandb.finish(exit_code=code)


def _connect(logger: WandbLogger) -> None:
    """Start the run at W&B, which has the configuration from the logger."""
    import wandb

    ranked: Any = rank_zero_only
    if trial() and logger._offline and ranked.rank == 0:
        console.print(
            "[bold]wandb agent with logger.offline=true[/]: the sweep hears nothing of this trial before `wandb sync`; "
            "give logger.offline=false in the sweep's command"
        )
    try:
        _ = logger.experiment
    except wandb.Error as error:
        raise ConfigError(
            f"logger.name=wandb: {_in_a_line(error)}; log in with `wandb login`, or set logger.offline=true"
        ) from error


def _in_a_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")
