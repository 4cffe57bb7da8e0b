"""What several groups of commands have in common: how a group is made, options, the commands that come next."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from cloc.usage import epilog, override

RUN, SHARDS = "runs/demo/cloc", "data/mine/train"  # of the examples

TrustOption = Annotated[
    list[str] | None,
    typer.Option(help="Class of your own that RUN may name (mypackage.towers.MyTower); once or more.", metavar="CLASS"),
]


def group(name: str, help: str, example: str) -> typer.Typer:
    """Make a group of commands; ``example`` is one of them, without ``python -m cloc NAME``."""
    return typer.Typer(help=help, no_args_is_help=True, epilog=epilog(f"python -m cloc {name} {example}"))


def train_on(folder: str, *data: str) -> str:
    """The plan of a run on shards; ``data`` are further keys of that group, which may lack its name."""
    given = [f"data.{one.removeprefix('data.')}" for one in data]
    more = [shlex.quote(one) for one in given]
    # One without the other is refused.
    more += ["loss.crops=1"] if any(one.startswith("data.crops=") and one != "data.crops=0" for one in given) else []
    keys = ["name=mine", override("data.train", folder), "samples=100_000", "batch_size=64", *more, "dry_run=true"]
    return " ".join(["python train.py", *keys])
