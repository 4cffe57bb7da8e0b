"""``python -m cloc sweep``: look at what ``train.py -m`` trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloc.commands.shared import group
from cloc.usage import epilog, opening, print_next

app = group("sweep", "Look at what `train.py -m` trained.", "report runs/sweeps/weights")


@app.command(
    "report",
    epilog=epilog(
        "python -m cloc sweep report runs/sweeps/weights",
        "python -m cloc sweep report runs/sweep --metric val/mine/grounding/mIoU",
    ),
)
def sweep_report(
    folder: Annotated[Path, typer.Argument(help="run_dir of the sweep.", metavar="DIR")],
    metric: Annotated[
        list[str] | None, typer.Option(help="val/SET/METRIC to show, once or more; the main ones by default.")
    ] = None,
) -> None:
    """Table of region and image metrics against the swept values; sweep.csv and sweep.png beside the jobs."""
    from cloc.engine.sweep.report import report

    written = report(folder, metric or ())
    for path in written:
        typer.echo(f"wrote {path}")
    print_next(opening(written[-1]))  # the picture, where there is a point to draw
