"""TensorBoard's files: scalars, and the configuration as hyperparameters and as a page of text (below ``loggers``)."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from cloc.engine.agreement import flat
from cloc.engine.sweep.main_metrics import main_metrics
from cloc.engine.sweep.values import label
from cloc.files import write_file

# TensorBoard keeps the first hyperparameters that it reads of a folder, and reads the files in the order of their
# names. This one is written anew when the configuration changes; a file of scalars only grows.
HYPERPARAMETERS = "events.out.tfevents.0.hyperparameters"
console = Console(soft_wrap=True)  # a message is a line, however long its paths are


class Board(TensorBoardLogger):
    """TensorBoard's files; what a full disk refuses is counted, and the next row is tried in a new file."""

    lost = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tree: Mapping[str, Any] = {}
        self.metrics: list[str] = []

    def note_metrics(self, names: Iterable[str]) -> None:
        """Show the main ones of what was logged in the table of hyperparameters, and what the run is chosen by."""
        known = {*self.metrics, *names}
        chosen = {self.tree.get("objective"), self.tree.get("evaluation", {}).get("best")} & known
        self.metrics = list(dict.fromkeys([*main_metrics(known), *sorted(chosen)]))

    @rank_zero_only
    def begin(self, tree: Mapping[str, Any], step: int, changed: bool) -> None:
        """Open the file; write the hyperparameters, and their page of text where it says something new.

        Args:
            tree: the configuration, nested.
            step: that the run continues from.
            changed: the configuration is not that of the run so far.
        """
        self.tree = tree
        text = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)
        with self._counted():
            if changed:
                self.experiment.add_text("configuration", f"```yaml\n{text}```", step)
            self.experiment.flush()
            self._write()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write a row, or count it.

        A measurement is that of the step which has just ended, as its losses are: Lightning counts from 0, and what
        a resumed run purges begins with the step behind the checkpoint.
        """
        if step and any(name.startswith("val/") for name in metrics):
            step -= 1
        with self._counted():
            super().log_metrics(metrics, step)
            self.experiment.flush()
            before = self.metrics
            self.note_metrics(metrics)
            if self.tree and self.metrics != before:
                self._write()

    def finalize(self, status: str) -> None:
        """Close the file."""
        with suppress(OSError):  # told when its rows were written
            super().finalize(status)
            if status == "success" and self.tree:
                self._write(ended=True)

    @rank_zero_only
    def save(self) -> None:
        """Nothing: ``config.yaml`` holds the hyperparameters, and rows are written at once."""

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost += 1
            self._experiment = None  # its thread has ended
            console.print(f"[bold red]{self.log_dir}: {error.strerror}; {self.lost} rows of TensorBoard are lost[/]")

    @rank_zero_only
    def _write(self, ended: bool = False) -> None:
        start = f"{self._prefix}{self.LOGGER_JOIN_CHAR}" if self._prefix else ""
        metrics = [f"{start}{name}" for name in ("loss", *self.metrics)]
        write_file(Path(self.log_dir) / HYPERPARAMETERS, hyperparameters(self.tree, metrics, ended))


def hyperparameters(tree: Mapping[str, Any], metrics: Iterable[str], ended: bool) -> bytes:
    """An event file of hyperparameters.

    Args:
        tree: the configuration, nested; of its evaluation sets those that are measured.
        metrics: names of scalars to show beside them.
        ended: whether the run is at its end.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import hparams

    file, now = io.BytesIO(), time.time()
    writer = RecordWriter(file)
    writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    experiment, begin, end = hparams(flat_values(tree), dict.fromkeys(metrics, 0.0))
    for summary in (experiment, begin, *([end] if ended else [])):
        writer.write(Event(wall_time=now, step=0, summary=summary).SerializeToString())
    return file.getvalue()


def flat_values(tree: Mapping[str, Any]) -> dict[str, float | str]:
    """Leaves by dotted keys, as TensorBoard takes them: numbers, and texts as YAML has them (``null``, ``[1, 2]``)."""
    measured = tree.get("evaluation", {}).get("data", [])
    sets = {name: about for name, about in tree.get("datasets", {}).items() if name in measured}
    return {key: _value(value) for key, value in flat({**tree, "datasets": sets}).items()}


def _value(value: Any) -> float | str:
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return label(value)
