"""How well the order mixes: ours, and open_clip's two shuffle buffers with its own constants, over the same shards.

    python -m benchmarks.shuffle                                # 64 shards of 10,000, and 640 of 1,000
    python -m benchmarks.shuffle --layout 4:50 --batch 32 --ranks 1 --workers 2

Nothing is read: both orders are computed over the places of samples. open_clip's is put together as its
``get_wds_dataset`` does it: shard shuffle, split over ranks and workers, a sample buffer in each worker, workers in
turn. ``uniform`` is a permutation of the whole set, the best that there can be.

- displacement: mean distance of a sample from its stored place, as a share of the set;
- neighbors: mean distance in the stream of samples that are stored next to each other, as a share of the set;
- largest shard: share of a global batch that comes from one shard, the largest of the batch, mean over batches;
- local: the same for the batch of one rank.

Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from itertools import islice

import numpy as np
from open_clip_train.data import _SAMPLE_SHUFFLE_INITIAL, _SAMPLE_SHUFFLE_SIZE, detshuffle2
from open_clip_train.data import _SHARD_SHUFFLE_INITIAL as SHARD_INITIAL
from open_clip_train.data import _SHARD_SHUFFLE_SIZE as SHARD_SIZE
from rich.table import Table
from webdataset.filters import _shuffle

from cloc.console import print_table
from cloc.data.stream.order import GlobalOrder
from cloc.usage import Parser, one_line


def our_batches(shards: int, samples: int, args: argparse.Namespace) -> np.ndarray:
    """Places in the stored order ``[batches, B]`` of the whole batches of one pass; ranks hold slices of a row."""
    order = GlobalOrder([samples] * shards, [samples * args.sample_bytes] * shards, args.seed)
    found = [order.locate(position) for position in range(order.length // args.batch * args.batch)]
    return (np.array(found) @ (samples, 1)).reshape(-1, args.batch)


def open_clip_batches(shards: int, samples: int, args: argparse.Namespace) -> np.ndarray:
    """The same for open_clip's pipeline: one row holds the batches that all ranks train on together."""
    local = args.batch // args.ranks
    ranks = []
    for rank in range(args.ranks):
        workers = []
        for worker in range(args.workers):
            names = detshuffle2(bufsize=SHARD_SIZE, initial=SHARD_INITIAL, seed=args.seed, epoch=-1).run(
                iter(range(shards))
            )
            own = islice(islice(names, rank, None, args.ranks), worker, None, args.workers)
            rng = random.Random(1000 * rank + worker)
            stream = _shuffle(_places(own, samples), _SAMPLE_SHUFFLE_SIZE, _SAMPLE_SHUFFLE_INITIAL, rng)
            workers.append(_batched(stream, local))
        ranks.append([batch for turn in zip(*workers, strict=False) for batch in turn])
    return np.array([[place for batch in row for place in batch] for row in zip(*ranks, strict=False)])


def _places(shards: Iterator[int], samples: int) -> Iterator[int]:
    for shard in shards:
        yield from range(shard * samples, (shard + 1) * samples)


def _batched(stream: Iterator[int], size: int) -> Iterator[list[int]]:
    while len(batch := list(islice(stream, size))) == size:
        yield batch


def uniform_batches(shards: int, samples: int, args: argparse.Namespace) -> np.ndarray:
    """A permutation of all samples."""
    count = shards * samples // args.batch * args.batch
    return np.random.default_rng(args.seed).permutation(shards * samples)[:count].reshape(-1, args.batch)


def quality(batches: np.ndarray, samples: int, ranks: int) -> dict[str, float]:
    """The numbers of the module's docstring."""
    places = batches.ravel()
    total = len(places)
    stored = np.argsort(np.argsort(places))  # rank among the samples that came: a pass may end before the last of them
    arrival = np.argsort(places)
    return {
        "displacement": float(np.abs(stored - np.arange(total)).mean() / total),
        "neighbors": float(np.abs(np.diff(arrival)).mean() / total),
        "largest shard": _largest(batches // samples),
        "local": _largest((batches // samples).reshape(-1, batches.shape[1] // ranks)),
    }


def _largest(shards: np.ndarray) -> float:
    return float(np.mean([np.bincount(row).max() / len(row) for row in shards]))


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m benchmarks.shuffle")
    parser.add_argument("--layout", action="append", help="SHARDS:SAMPLES of each; may be given several times")
    parser.add_argument("--sample-bytes", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=4096, help="global batch")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4, help="of each rank")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    """Compute and print."""
    args = make_parser().parse_args()
    orders = {"ours": our_batches, "open_clip": open_clip_batches, "uniform": uniform_batches}
    title = (
        f"global batch {args.batch}, {args.ranks} ranks × {args.workers} workers, {args.sample_bytes:,} bytes a sample"
    )
    table = Table(title=title)
    for name in ("shards", "order", "displacement", "neighbors", "largest shard", "local"):
        table.add_column(name, justify="left" if name in ("shards", "order") else "right")
    results: dict[str, dict[str, dict[str, float]]] = {}
    for layout in args.layout or ["64:10000", "640:1000"]:
        shards, samples = map(int, layout.split(":"))
        for name, batches in orders.items():
            found = quality(batches(shards, samples, args), samples, args.ranks)
            results.setdefault(layout, {})[name] = found
            table.add_row(f"{shards} × {samples:,}", name, *(f"{value:.3f}" for value in found.values()))
    print_table(table)
    first = next(iter(results.values()))
    ratio = first["open_clip"]["largest shard"] / first["ours"]["largest shard"]
    print(json.dumps({"largest_shard_open_clip_over_ours": round(ratio, 3), "layouts": results}))


if __name__ == "__main__":
    one_line(main)
