"""How well the order mixes: ours, and open_clip's two shuffle buffers with its own constants, over the same shards.

    python -m benchmarks.shuffle                                # 64 shards of 10,000, and 640 of 1,000
    python -m benchmarks.shuffle --layout 4:50 --batch 32 --ranks 1 --workers 2

    python -m benchmarks.shuffle --streams 1 8 --hosts 1 8 --cluster 2000:1000

Nothing is read: both orders are computed over the places of samples. open_clip's is put together as its
``get_wds_dataset`` does it: shard shuffle, split over ranks and workers, a sample buffer in each worker, workers in
turn. ``uniform`` is a permutation of the whole set, the best that there can be.

- displacement: mean distance of a sample from its stored place, as a share of the set;
- neighbors: mean distance in the stream of samples that are stored next to each other, as a share of the set;
- largest shard: share of a global batch that comes from one shard, the largest of the batch, mean over batches;
- local: the same for the batch of one rank.

A second table is of the hosts of a cluster, each of which fetches whole shards, by ``data.streams``:

- amplification: bytes of the shards that the hosts fetch in a pass over bytes of the set, counted by walking over every
  window of a whole pass;
- window: shards that are mixed at a time, all streams together;
- shards, largest: distinct shards of a global batch, and the share of the largest; local: that of one host's rows. Of
  ``--batches`` batches spread over the pass, not of all: mean, and of the largest the mean too.

Prints the tables; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from open_clip_train.data import _SAMPLE_SHUFFLE_INITIAL, _SAMPLE_SHUFFLE_SIZE, detshuffle2
from open_clip_train.data import _SHARD_SHUFFLE_INITIAL as SHARD_INITIAL
from open_clip_train.data import _SHARD_SHUFFLE_SIZE as SHARD_SIZE
from rich.table import Table
from webdataset.filters import _shuffle

from cloc.console import print_table
from cloc.data.stream.lanes import DealtOrder, rank_positions
from cloc.usage import Parser, one_line


def our_batches(shards: int, samples: int, args: argparse.Namespace, streams: int = 1) -> np.ndarray:
    """Places in the stored order ``[batches, B]`` of the whole batches of one pass; ranks hold slices of a row."""
    order = our_order(shards, samples, args, streams)
    whole = order.length // streams * streams // args.batch  # a pass of the shortest stream
    return np.array([our_batch(order, number * args.batch, args.batch) for number in range(whole)]) @ (samples, 1)


def our_order(shards: int, samples: int, args: argparse.Namespace, streams: int) -> DealtOrder:
    """The order of shards of one size."""
    return DealtOrder([samples] * shards, [samples * args.sample_bytes] * shards, args.seed, streams=streams)


def our_batch(order: DealtOrder, start: int, size: int) -> list[tuple[int, int]]:
    """Shard and index of each row of a global batch, in the order of the ranks."""
    rows = rank_positions(start, size, order.streams, 0, 1)
    return [order.locate(row % order.streams, row // order.streams) for row in rows]


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


def amplification(order: DealtOrder, batch: int, hosts: int) -> float:
    """Bytes that all hosts fetch in a pass, over the bytes of the set."""
    lanes = [_windows(order, lane) for lane in range(order.streams)]
    fetched = 0
    for host in range(hosts):
        own = {row % order.streams for k in range(order.streams) for row in _rows(order, k * batch, batch, host, hosts)}
        fetched += int(order.sizes[sorted(set().union(*(lanes[lane] for lane in own)))].sum())
    return fetched / int(order.sizes.sum())


def _rows(order: DealtOrder, start: int, batch: int, host: int, hosts: int) -> Sequence[int]:
    return rank_positions(start, batch, order.streams, host, hosts)


def _windows(order: DealtOrder, lane: int) -> set[int]:
    """Shards of every window of a lane's first pass."""
    inner, position, found = order.lane(lane), 0, set()
    while position < inner.length:
        found |= set(inner.window_shards(position)[1])
        position = inner.next_window(position)
    return found


def mixing(order: DealtOrder, batch: int, hosts: list[int], batches: int) -> dict[str, Any]:
    """How global batches spread over a pass mix, and the rows of one host among so many."""
    starts = [order.length // batches * number // batch * batch for number in range(batches)]
    shards = np.array([our_batch(order, start, batch) for start in starts])[:, :, 0]
    return {
        "shards_in_window": sum(order.window_shards(lane) for lane in range(order.streams)),
        "shards_in_batch": float(np.mean([len(np.unique(row)) for row in shards])),
        "largest_shard": _largest(shards),
        "local": {count: _largest(shards.reshape(-1, batch // count)) for count in hosts},
    }


def cluster(args: argparse.Namespace) -> dict[str, Any]:
    """The second table: hosts and streams."""
    shards, samples = map(int, args.cluster.split(":"))
    title = f"{shards:,} shards × {samples:,}, global batch {args.cluster_batch:,}, mixing of {args.batches} batches"
    table = Table(title=title)
    for name in ("streams", "hosts", "amplification", "window", "shards", "largest", "local"):
        table.add_column(name, justify="right")
    found: dict[str, Any] = {"amplification": {}, "mixing": {}}
    for streams in args.streams:
        order = our_order(shards, samples, args, streams)
        mixed = mixing(order, args.cluster_batch, args.hosts, args.batches)
        found["mixing"][streams] = mixed
        for hosts in args.hosts:
            value = amplification(order, args.cluster_batch, hosts)
            found["amplification"].setdefault(streams, {})[hosts] = round(value, 4)
            row = (
                f"{mixed['shards_in_window']:,}",
                f"{mixed['shards_in_batch']:,.0f}",
                f"{mixed['largest_shard']:.4f}",
            )
            table.add_row(str(streams), str(hosts), f"{value:.4f}", *row, f"{mixed['local'][hosts]:.4f}")
    print_table(table)
    return found


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m benchmarks.shuffle")
    parser.add_argument("--layout", action="append", help="SHARDS:SAMPLES of each; may be given several times")
    parser.add_argument("--sample-bytes", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=4096, help="global batch")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4, help="of each rank")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64], help="values of data.streams")
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4, 16, 64], help="of the cluster")
    parser.add_argument("--cluster", default="20000:10000", help="SHARDS:SAMPLES of each, of the second table")
    parser.add_argument("--cluster-batch", type=int, default=32_768, help="its global batch")
    parser.add_argument("--batches", type=int, default=8, help="of it whose mixing is counted")
    return parser


def main() -> None:
    """Compute and print."""
    args = make_parser().parse_args()
    orders: dict[str, Any] = {"ours": our_batches}
    for streams in (count for count in args.streams if count > 1):
        orders[f"ours, {streams} streams"] = partial(our_batches, streams=streams)
    orders |= {"open_clip": open_clip_batches, "uniform": uniform_batches}
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
    found = cluster(args)
    print(json.dumps({"largest_shard_open_clip_over_ours": round(ratio, 3), "layouts": results, **found}))


if __name__ == "__main__":
    one_line(main)
