"""What making room costs in a cache folder of many shards: ours, and a walk over all files under the same lock.

    python -m benchmarks.cache                         # 200,000 shards
    python -m benchmarks.cache --shards 20000 --rounds 20

Both sides work on a full folder: each round takes room for one shard, which the shard used longest ago must leave. The
walk is what the cache did before it kept an account. Ours is measured with its lock and its commit; making the account
from the files, which each run does once, is measured apart.

Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from cloc.console import counted, print_table
from cloc.data.shards.ledger import Ledger, last_use
from cloc.files import host_lock
from cloc.usage import Parser, one_line

SIZE = 512


def fill(ledger: Ledger, shards: int) -> None:
    """A folder of small files that lie where shards do, each with its note."""
    for number in counted(range(shards), "files"):
        path = ledger.place(f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}-shard-{number:06d}.tar")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(SIZE))
        path.with_suffix(".checked").write_bytes(b"{}")


def walk(folder: Path, limit: int) -> int:
    """Room for one shard by looking at all of them; returns how many left."""
    with host_lock(folder / "walk.lock"):
        files = [(last_use(path), path.lstat().st_size, path) for path in folder.glob("*/*.tar")]
        total, left = SIZE + sum(size for _, size, _ in files), 0
        for _, size, path in sorted(files):
            if total <= limit:
                break
            path.unlink()
            path.with_suffix(".checked").unlink()
            total, left = total - size, left + 1
    return left


def seconds(call: Callable[[], object]) -> float:
    """That a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def make_parser() -> Parser:
    """The options."""
    parser = Parser(__doc__, "python -m benchmarks.cache")
    parser.add_argument("--shards", type=int, default=200_000, help="in the folder")
    parser.add_argument("--rounds", type=int, default=50, help="of ours; a tenth as many of the walk")
    return parser


def measure(args: argparse.Namespace, room: Path) -> dict[str, float]:
    """Medians in milliseconds."""
    ledger = Ledger(room, args.shards * SIZE, time.time_ns())
    fill(ledger, args.shards)
    made = seconds(ledger.prepare)
    names = iter(f"{number:016x}-new.tar" for number in range(args.rounds + args.shards))

    def reserve() -> None:
        name = next(names)
        path = ledger.place(name)
        path.parent.mkdir(exist_ok=True)
        assert ledger.reserve(name, SIZE, lambda: path.write_bytes(bytes(SIZE))) is not None
        ledger.keep(name, SIZE)

    ours = [seconds(reserve) for _ in range(args.rounds)]
    assert ledger.held() <= ledger.limit
    other = [seconds(lambda: walk(ledger.folder, ledger.held() - 1)) for _ in range(max(3, args.rounds // 10))]
    held = sum(path.stat().st_size for path in ledger.folder.glob("*/*.tar"))
    assert held <= ledger.limit
    return {
        "account_ms": 1000 * statistics.median(ours),
        "account_worst_ms": 1000 * max(ours),
        "walk_ms": 1000 * statistics.median(other),
        "made_once_ms": 1000 * made,
    }


def main() -> None:
    """Measure and print."""
    args = make_parser().parse_args()
    with tempfile.TemporaryDirectory() as room:
        tell(args, measure(args, Path(room)))  # before the folder is removed, which takes longer


def tell(args: argparse.Namespace, found: dict[str, float]) -> None:
    """Print."""
    table = Table(title=f"room for one shard among {args.shards:,}")
    for name in found:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row(*(f"{value:,.1f}" for value in found.values()))
    print_table(table)
    ratio = found["walk_ms"] / found["account_ms"]
    print(json.dumps({"walk_over_account": round(ratio, 1)} | {name: round(value, 2) for name, value in found.items()}))


if __name__ == "__main__":
    one_line(main)
