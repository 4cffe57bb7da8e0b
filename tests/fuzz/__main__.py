"""``python -m tests.fuzz``: see ``--help``."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from cloc.console import print_table, progress, progress_console
from cloc.usage import OneLineErrors, epilog

from .checkpoints import CHECKPOINTS
from .configurations import CONFIGURATIONS
from .kinds import CLASSES
from .labels import LABELS
from .manifests import MANIFESTS
from .pictures import PICTURES
from .records import RECORDS
from .runner import Outcome, run
from .tars import TARS

KINDS = (RECORDS, PICTURES, TARS, MANIFESTS, CHECKPOINTS, CONFIGURATIONS, LABELS)
SHOWN = 12  # examples of each class that is a fault
FAULTS = CLASSES[2:]


app = typer.Typer(add_completion=False)


class _Command(OneLineErrors, TyperCommand):
    """A command line that cannot be read is one line."""


@app.command(cls=_Command, epilog=epilog("python -m tests.fuzz --seed 1 --inputs 5000 --keep faults"))
def main(
    seed: Annotated[int, typer.Option(help="Of all inputs: the same seed makes the same ones.")] = 0,
    inputs: Annotated[int, typer.Option(help="How many.", min=1)] = 1000,
    kind: Annotated[list[str] | None, typer.Option(help="Only these kinds; may be repeated.")] = None,
    only: Annotated[int | None, typer.Option(help="This input alone, by its number.")] = None,
    seconds: Annotated[float, typer.Option(help="An input without an answer for so long hangs.")] = 10.0,
    keep: Annotated[Path | None, typer.Option(help="Folder for the inputs that showed a fault.")] = None,
) -> None:
    """Feed hostile and damaged inputs to every reader, and compare what comes out with plain reference readers.

    The last line is one JSON object: how many inputs were accepted, refused in a line, ended in a traceback, a hang or
    a crash, or were silent: accepted with another result than the reference reader's. Exit code 1 where there is a
    traceback, a hang, a crash or a silent input.
    """
    known = {one.name: one for one in KINDS}
    unknown = sorted(set(kind or ()) - set(known))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: known are {', '.join(known)}", param_hint="--kind")
    chosen = [one for one in KINDS if not kind or one.name in kind]
    started = time.monotonic()
    indices = range(inputs) if only is None else [only]
    with progress(progress_console(), "fuzz", len(indices), "inputs") as bar:
        found = list(bar.each(run(chosen, seed, indices, seconds, keep)))
    _show(found, [one.name for one in chosen], time.monotonic() - started)
    counts = Counter(one.outcome for one in found)
    print(json.dumps({"inputs": len(found)} | {name: counts[name] for name in CLASSES}))
    sys.exit(any(one.outcome in FAULTS for one in found))


def _show(found: list[Outcome], kinds: list[str], seconds: float) -> None:
    console = Console()
    table = Table("", *CLASSES, title=f"{len(found)} inputs in {seconds:.0f} s")
    for name in kinds:
        counts = Counter(one.outcome for one in found if one.kind == name)
        table.add_row(name, *(str(counts[outcome]) for outcome in CLASSES))
    for outcome in FAULTS:
        examples = [one for one in found if one.outcome == outcome]
        for one in examples[:SHOWN]:
            line = f"{outcome} {one.kind} {one.index} ({one.what}): {one.detail}"[:400]
            console.print(line, markup=False, soft_wrap=True)
        if len(examples) > SHOWN:
            console.print(f"{outcome}: {len(examples) - SHOWN} more", markup=False)
    print_table(table, console)


if __name__ == "__main__":
    app(prog_name="python -m tests.fuzz")
