"""What a search costs: an index of so many rows opened and asked, comparing all rows and by a graph of usearch.

    python -m benchmarks.search                          # a million rows, 512 wide
    python -m benchmarks.search --rows 100000 --graph    # and the graph (extra search); building it takes a while

Writes an index of random rows in clusters into a temporary folder, as ``embed`` writes one, and asks it as ``search``
does, without a model: reading the files, then the ten nearest pictures of a query. Of the graph: building it, the same
query, and how many of the ten nearest rows it finds. Seconds are the processor's, of all threads, so that they hold on
a busy machine; medians. The last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from cloc.console import print_table, progress_console, working
from cloc.evaluation.embed.plan import MadeBy, claim
from cloc.evaluation.embed.tables import write_tables
from cloc.evaluation.search import Finder, Index, Query
from cloc.usage import Parser, one_line

NEAREST = 10
CLUSTER = 100  # rows around a center, as pictures of a kind lie together


def make_rows(count: int, width: int, seed: int) -> np.ndarray:
    """``[R,D]`` float32 of unit norm."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((max(1, count // CLUSTER), width), np.float32)
    rows = centers[rng.integers(0, len(centers), count)]
    rows += rng.standard_normal((count, width), np.float32) * 0.7
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def write_index(folder: Path, rows: np.ndarray, graph: bool) -> None:
    """Write an index whose pictures have these rows, and no regions."""
    keys = np.char.add("photos/2024/", np.arange(len(rows)).astype(np.str_))
    side = np.full(len(rows), 640)
    empty = {"key": keys[:0], "box": np.zeros((0, 4), np.float32), "text": keys[:0], "embedding": rows[:0]}
    claim(folder, {"model": "", "data": "", "source": "prompter"}, MadeBy.now("none", "float32", folder, folder))
    images = {"key": keys, "width": side, "height": side, "embedding": rows}
    write_tables(folder, {"images": images, "regions": empty}, "npz", "usearch" if graph else "exact")


def timed(work: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Median of the processor's seconds, of all threads, and what it returned."""
    seconds, result = [], None
    for _ in range(rounds):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), result


def measure(count: int, width: int, rounds: int, graph: bool, seed: int = 0) -> dict[str, Any]:
    """Processor seconds of each part, and the share of the nearest rows that the graph finds."""
    rows = make_rows(count, width, seed)
    found: dict[str, Any] = {"rows": count, "width": width, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "index")
        found["write_seconds"], _ = timed(lambda: write_index(folder, rows, graph), 1)
        queries = [Query("", torch.from_numpy(row)) for row in make_rows(rounds, width, seed + 1)]
        found["open_seconds"], index = timed(lambda: Index.open(folder), min(3, rounds))
        exact, asked = Finder(index), iter(queries)
        found["query_seconds"], _ = timed(lambda: exact.find(next(asked), "images", NEAREST), rounds)
        if graph:
            near, asked = Finder(index, graph=True), iter(queries)
            found["graph_query_seconds"], _ = timed(lambda: near.find(next(asked), "images", NEAREST), rounds)
            found["graph_recall"] = statistics.mean(_shared(exact, near, query) for query in queries)
    return found


def _shared(exact: Finder, near: Finder, query: Query) -> float:
    one, other = ({hit.row for hit in own.find(query, "images", NEAREST)} for own in (exact, near))
    return len(one & other) / NEAREST


def make_parser() -> Parser:
    """Options of the command line."""
    parser = Parser(__doc__, "python -m benchmarks.search")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--graph", action="store_true", help="also by usearch")
    return parser


def main() -> None:
    """Measure, and print a table and one JSON object."""
    options = make_parser().parse_args()
    with working(progress_console(), "writing an index and asking it"):
        found = measure(options.rows, options.width, options.rounds, options.graph)
    table = Table(title=f"{options.rows:,} rows, {options.width} wide")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")
    print_table(table)
    print(json.dumps(found))


if __name__ == "__main__":
    one_line(main)
