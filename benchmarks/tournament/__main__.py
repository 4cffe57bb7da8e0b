"""Compare methods fairly: an equal search for each, then seeds; a ledger of all runs; tables from the ledger alone.

    python -m benchmarks.tournament run scenes --jobs 2
    python -m benchmarks.tournament run scenes --only clip shared --seeds 0 1 --stage final
    python -m benchmarks.tournament table scenes --write docs/results.md
    python -m benchmarks.tournament search scenes
    python -m benchmarks.tournament cost scenes --rounds 3                 # on an idle machine
    python -m benchmarks.tournament fit scaling --out docs/images/scaling.png
    python -m benchmarks.tournament frontier scenes --out frontier.png

Last line of every command: one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.tournament import documents, fits, frontier
from benchmarks.tournament.child import STOPPED
from benchmarks.tournament.cost import measure
from benchmarks.tournament.ledger import LEDGERS, rounded
from benchmarks.tournament.results import Results
from benchmarks.tournament.runner import Runner, Wanted
from benchmarks.tournament.runs import Place
from benchmarks.tournament.study import ROOT, Study, read_study
from benchmarks.tournament.table import search_table, table
from cloc.config import ConfigError
from cloc.usage import Parser, one_line


def run(study: Study, ledger: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing."""
    stages = ("search", "final") if options.stage == "all" else (options.stage,)
    if strange := sorted(set(options.seeds) - set(study.seeds)):
        known = ", ".join(map(str, study.seeds))
        raise ConfigError(
            f"--seeds {strange[0]}: {study.name} has {known}, of which its tables are; add it to the study"
        )
    wanted = Wanted(study.in_order(options.only), options.seeds, stages, options.retry)
    place = Place(options.runs.resolve(), options.tree.resolve(), options.local)
    return Runner(study, ledger, place, wanted, options.jobs, options.limit_minutes).run()


def print_made(study: Study, ledger: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Print the table of a study, or write it into a document, or compare it with one."""
    if options.check is not None:
        return {"checked": documents.check(options.check, study.name, ledger)}
    if options.write is not None:
        return {"written": documents.write(options.write, study.name, ledger)}
    results = Results.read(study, ledger)
    text, numbers = table(results, options.name, options.set)
    print(f"{text}\n")
    return {**numbers, "machine_hours": round(results.machine_hours(), 2)}


def print_search(study: Study, ledger: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Print what was tried."""
    text, numbers = search_table(Results.read(study, ledger))
    print(f"{text}\n")
    return numbers


def measure_cost(study: Study, ledger: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure speed and size in turn."""
    place = Place(ROOT, options.tree.resolve(), options.local)
    return measure(study, ledger, place, options.only, options.rounds, options.samples)


def fit(study: Study, ledger: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Fit quality against samples and size."""
    results = Results.read(study, ledger)
    text, numbers = fits.fit_table(results)
    print(f"{text}\n")
    if options.out:
        fits.draw(results, options.out)
    return numbers


def draw_frontier(study: Study, ledger: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Draw image against region quality of all runs."""
    results = Results.read(study, ledger)
    found = frontier.spots(results, options.image, options.region, options.set)
    frontier.draw(results, found, options.out, options.image, options.region)
    return {"spots": frontier.numbers(found)}


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m benchmarks.tournament")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    running = _command(commands, "run", run, "train and measure what the ledger does not have")
    _where(running)
    running.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    running.add_argument("--seeds", nargs="+", type=int, default=[], help="these seeds alone")
    running.add_argument("--stage", choices=["all", "search", "final"], default="all")
    running.add_argument("--runs", type=Path, default=ROOT / "runs" / "tournament", help="folder of run folders")
    running.add_argument("--limit-minutes", type=float, default=0, help="begin no run after so many; 0 for no limit")
    running.add_argument("--retry", action="store_true", help="failed runs again")
    showing = _command(commands, "table", print_made, "print the tables, or write them into a document")
    showing.add_argument(
        "name", nargs="?", default="", help="one of the study's tables; that of all methods unless given"
    )
    showing.add_argument("--set", default="", help="test set; the study's first unless given")
    showing.add_argument(
        "--write", type=Path, metavar="FILE.md", help="write all of the study's tables between their marks"
    )
    showing.add_argument("--check", type=Path, metavar="FILE.md", help="compare them with the document")
    _command(commands, "search", print_search, "print every setting that was tried, and what was chosen")
    costing = _command(commands, "cost", measure_cost, "measure samples/s, boxes/s and parameters in turn")
    _where(costing)
    costing.add_argument("--rounds", type=int, default=3)
    costing.add_argument("--samples", type=int, default=3_000, help="trained on in each round")
    fitting = _command(commands, "fit", fit, "quality against samples and size: power laws")
    fitting.add_argument("--out", type=Path, metavar="FILE.png", help="draw them")
    drawing = _command(commands, "frontier", draw_frontier, "draw image against region quality of all runs")
    drawing.add_argument("--image", default=frontier.IMAGE, metavar="METRIC")
    drawing.add_argument("--region", default=frontier.REGION, metavar="METRIC")
    drawing.add_argument("--set", default="", help="evaluation set; the validation set unless given")
    drawing.add_argument("--out", type=Path, default=Path("frontier.png"), metavar="FILE.png")
    return parser


def _where(parser: Parser) -> None:
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="these methods alone")
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout whose train.py and eval.py run")
    parser.add_argument("--local", nargs="+", default=[], metavar="KEY=VALUE", help="where files lie on this machine")


def _command(commands: Any, name: str, act: Any, text: str) -> Parser:
    found: Parser = commands.add_parser(name, help=text, description=text)
    found.add_argument("study", help="name of a file in benchmarks/studies, or a .yaml file")
    found.add_argument("--ledger", type=Path, help="its file; benchmarks/ledger/STUDY.jsonl unless given")
    found.set_defaults(act=act)
    return found


def main() -> None:
    """Run the command; print its JSON line."""
    parser = make_parser()
    options = parser.parse_args()
    for name in ("jobs", "rounds", "samples"):
        if getattr(options, name, 1) < 1:
            parser.error(f"--{name} {getattr(options, name)}: must be 1 or more")
    tree = getattr(options, "tree", ROOT)
    if not (tree / "train.py").is_file():
        parser.error(f"--tree {tree}: no train.py there; give a checkout of this project")
    study = read_study(options.study)
    ledger = options.ledger or LEDGERS / f"{study.name}.jsonl"
    result = options.act(study, ledger, options)
    print(json.dumps(rounded(result)))
    if result.get("stopped"):
        raise SystemExit(STOPPED)


if __name__ == "__main__":
    one_line(main)
