"""Where a training step's time goes: ``profile=true`` writes a trace and a table (beside ``callbacks``).

The model marks its parts (``PARTS``) in the forward pass. A backward operation bears the sequence number of the forward
operation that it belongs to, so both directions are counted for the part that caused them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from cloc.console import print_table
from cloc.contracts import Batch
from cloc.files import make_folder, new_path, write_file

PARTS = ("image tower", "text tower", "prompter", "losses")  # names that models/model.py and module.py mark
COLLECTIVES = ("gloo:", "nccl:", "c10d::")
BACKWARD = "autograd::engine::evaluate_function: "


class StepProfile(Callback):
    """Profile some steps of a run, then let it go on.

    Writes ``profile/trace.json.gz`` (open it in https://ui.perfetto.dev) and ``profile/table.md`` into the run folder.

    Args:
        folder: the run's.
        warmup: steps before the first profiled one; compilation and caches belong to them.
        steps: how many are profiled.
    """

    def __init__(self, folder: Path, warmup: int = 5, steps: int = 5) -> None:
        self.folder, self.warmup, self.steps = folder / "profile", warmup, steps
        self.seen, self.waited, self.mark = 0, 0.0, 0.0
        self.profiler: profile | None = None

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Batch, index: int) -> None:
        """Start, or note how long the batch was waited for."""
        if not trainer.is_global_zero:
            return
        if self.profiler is not None:
            self.waited += time.perf_counter() - self.mark
        elif self.seen == self.warmup:
            activities = [ProfilerActivity.CPU]
            if module.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self.profiler = profile(activities=activities)
            self.profiler.start()
            self.start, self.waited = time.perf_counter(), 0.0

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Batch, index: int
    ) -> None:
        """Stop after the last one, and write."""
        self.seen += 1
        self.mark = time.perf_counter()
        if self.profiler is None or self.seen < self.warmup + self.steps:
            return
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        total = time.perf_counter() - self.start
        profiler, self.profiler, self.warmup = self.profiler, None, -1
        profiler.stop()
        seconds = {"data wait": self.waited} | by_part(profiler.events())
        seconds["everything else"] = max(0.0, total - sum(seconds.values()))
        folder = make_folder(self.folder.parent, self.folder.name)
        with new_path(folder / "trace.json.gz") as part:
            profiler.export_chrome_trace(str(part))
        write_file(folder / "table.md", markdown(seconds, self.steps))
        show(seconds, self.steps, self.folder)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Say where a run was too short."""
        if trainer.is_global_zero and self.warmup >= 0:
            needed = self.warmup + self.steps
            Console().print(
                f"profile=true: nothing was written, {self.seen} steps are fewer than the {needed} that it takes",
                highlight=False,
                soft_wrap=True,
            )


def by_part(events: Iterable[Any]) -> dict[str, float]:
    """Seconds of each part, forward and backward; of the optimizer; and of the collectives.

    Args:
        events: of a torch profiler. On a GPU the kernels' time counts, elsewhere the CPU's.
    """
    events = list(events)
    on_device = any(event.device_time_total for event in events)
    owner: dict[int, str] = {}
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        part = _part(event)
        if part is not None and event.sequence_nr >= 0 and not event.name.startswith(BACKWARD):
            owner.setdefault(event.sequence_nr, part)
    for event in events:
        spent = (event.device_time_total if on_device else event.cpu_time_total) / 1e6
        if event.name in PARTS:
            seconds[event.name] += spent
        elif event.name.startswith("Optimizer.step#") and not _inside_optimizer(event):
            # Lightning hands forward and backward to the optimizer as a closure: they are not its own time.
            closure = sum(
                (own.device_time_total if on_device else own.cpu_time_total) / 1e6
                for own in events
                if (own.name in PARTS or own.name.startswith(BACKWARD)) and _within(own, event)
            )
            seconds["optimizer"] += max(0.0, spent - closure)
        elif event.name.startswith(COLLECTIVES):
            seconds["communication"] += spent
        elif event.name.startswith(BACKWARD) and event.sequence_nr in owner:
            seconds[owner[event.sequence_nr]] += spent
    return {name: seconds[name] for name in (*PARTS, "optimizer", "communication") if name in seconds}


def _part(event: Any) -> str | None:
    while event is not None:
        name: str = event.name
        if name in PARTS:
            return name
        event = event.cpu_parent
    return None


def _within(event: Any, other: Any) -> bool:
    return bool(other.time_range.start <= event.time_range.start and event.time_range.end <= other.time_range.end)


def _inside_optimizer(event: Any) -> bool:
    parent = event.cpu_parent  # one optimizer may step others
    while parent is not None:
        if parent.name.startswith("Optimizer.step#"):
            return True
        parent = parent.cpu_parent
    return False


def markdown(seconds: dict[str, float], steps: int) -> str:
    """The table as a Markdown file."""
    total = sum(seconds.values())
    lines = ["| part | ms a step | share |", "|---|---|---|"]
    lines += [f"| {name} | {value / steps * 1e3:.1f} | {value / total:.1%} |" for name, value in seconds.items()]
    return "\n".join([*lines, f"| **step** | {total / steps * 1e3:.1f} | 100% |", ""])


def show(seconds: dict[str, float], steps: int, folder: Path) -> None:
    """Print the table and where the files are."""
    table = Table(title=f"Where {steps} steps went", title_justify="left")
    table.add_column("part", justify="left")
    for name in ("ms a step", "share"):
        table.add_column(name, justify="right")
    total = sum(seconds.values())
    for name, value in seconds.items():
        table.add_row(name, f"{value / steps * 1e3:.1f}", f"{value / total:.1%}")
    table.add_section()
    table.add_row("step", f"{total / steps * 1e3:.1f}", "100%")
    console = Console()
    print_table(table, console)
    console.print(f"trace   {folder / 'trace.json.gz'} (https://ui.perfetto.dev)", highlight=False, soft_wrap=True)
