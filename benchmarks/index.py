"""What an index of two hundred million samples costs: on the disk, in each process, until the first sample is found.

    python -m benchmarks.index                              # 200,000 shards of 1,000 samples, 8 processes
    python -m benchmarks.index --shards 2000 --processes 2
    python -m benchmarks.index --job                        # what opening costs a job of 64 hosts, 8 processes each

Writes a manifest of shards that are not there into a temporary folder. Then processes of one host open it as those of a
job do: the first one parses and hands over, the others map what it found; each looks random samples up. Memory is what
a process has for itself (``Private_*`` of ``/proc/self/smaps_rollup``), the interpreter with NumPy included.

``--job`` makes the files too, sparse ones, and counts what one process of each kind really does: calls of the file
system that Python makes, and requests to a store that counts them; then it multiplies. ``before`` is the way of before,
done anew here: every process parses and opens every shard. A host's seconds are those of its processes one after the
other, without the waiting for each other. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.memory import MemoryFileSystem
from rich.table import Table

from cloc.console import Bar, print_table, progress, progress_console
from cloc.data.shards.cache import ShardCache
from cloc.data.shards.index import write_manifest
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest, check_file, parse_manifest, read_manifest_text
from cloc.data.shards.offsets import OFFSETS_NAME, HeldOffsets
from cloc.data.shards.saved_table import load_table, save_table
from cloc.data.shards.shard_table import ShardTable
from cloc.data.shards.tars import ShardInfo
from cloc.usage import Parser, one_line

MIB = 2**20
TAIL = 1024  # zeros that end a tar
HOSTS, RANKS = 64, 8  # of the simulated job, and processes of each host
PATTERNS = 64  # shards that differ; the others repeat them


def write_synthetic(folder: Path, shards: int, samples: int, seed: int) -> Manifest:
    """Write the manifest, with its offsets, of shards of which most repeat others; the shards are not there."""
    rng = np.random.default_rng(seed)
    steps = 512 * rng.integers(1, 400, (min(shards, PATTERNS), samples))  # bytes of each sample: 100 kB on average
    ends = np.concatenate([np.zeros((len(steps), 1), np.int64), np.cumsum(steps, 1)], 1)
    known = [ShardInfo("x", samples, 4 * samples, int(one[-1]) + TAIL, "", tuple(one.tolist())) for one in ends]
    records = ShardTable.of(known).records[np.arange(shards) % len(known)]
    names = [f"shard-{number:06d}.tar".encode() for number in range(shards)]
    records["name_end"] = np.cumsum([len(name) for name in names])
    records["sha256"] = rng.integers(0, 256, (shards, 32), np.uint8)
    manifest = Manifest(folder, ShardTable(records, b"".join(names), [HeldOffsets(ends.ravel())]), ())
    write_manifest(manifest)
    return manifest


# --- memory, time and lookups of the processes of a host -------------------------------------------------------------


def private_mib() -> float:
    """What this process has for itself, in MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def open_as_first(folder: Path) -> str:
    """What the first process of a host does, without a look at the shards; returns the file that it hands over."""
    path = folder / MANIFEST_NAME
    manifest = parse_manifest(read_manifest_text(path), str(path), folder)
    return str(save_table(manifest, folder / "tables"))


def process(number: int, folder: Path, lookups: int, meet: Any, handed: Any, said: Any) -> None:
    """One process of a host: open, find random samples, and say what it took."""
    meet.wait()
    before, worked, begun = private_mib(), time.process_time(), time.perf_counter()
    if number == 0:
        file = open_as_first(folder)
        for _ in range(meet.parties):
            handed.put(file)
    table = load_table(Path(handed.get()), (), ShardCache(folder / "cache"))[0].shards
    table.span(len(table) // 2, 0)
    seconds, worked = time.perf_counter() - begun, time.process_time() - worked
    rng = np.random.default_rng(number)
    shards = rng.integers(0, len(table), lookups)
    indices = (rng.random(lookups) * table.column("samples")[shards]).astype(np.int64)
    places = list(zip(shards.tolist(), indices.tolist(), strict=True))
    meet.wait()
    begun = time.perf_counter()
    for shard, index in places:
        table.span(shard, index)
    rate = lookups / (time.perf_counter() - begun)
    del places
    meet.wait()  # all are there: what they share is shared
    said.put((seconds, worked, before, private_mib(), rate))
    meet.wait()


def measure_host(folder: Path, processes: int, lookups: int) -> dict[str, float]:
    """The figures of the processes of a host that open one index together."""
    context = multiprocessing.get_context("spawn")
    meet, handed, said = context.Barrier(processes, timeout=600), context.Queue(), context.Queue()
    arguments = (folder, lookups, meet, handed, said)
    started = [context.Process(target=process, args=(number, *arguments)) for number in range(processes)]
    for one in started:
        one.start()
    rows = [said.get(timeout=600) for _ in started]
    for one in started:
        one.join()
    seconds, worked, before, after, rates = (list(column) for column in zip(*rows, strict=True))
    return {
        "private_mib_per_process": max(after),
        "open_seconds": max(seconds),
        "lookups_per_second": sum(rates),
        "open_cpu_seconds": max(worked),
        "private_mib_before_opening": max(before),
        "private_mib_added": statistics.median(one - other for one, other in zip(after, before, strict=True)),
    }


def run_host(options: argparse.Namespace) -> dict[str, Any]:
    """Write the index, open it, print the figures."""
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder, samples = Path(made), options.shards * options.samples
        with progress(progress_console(), f"writing {samples:,} samples", unit="shards"):
            write_synthetic(folder, options.shards, options.samples, options.seed)
        size = sum((folder / name).stat().st_size for name in (MANIFEST_NAME, OFFSETS_NAME))
        found = {"bytes_per_sample": size / samples, **measure_host(folder, options.processes, options.lookups)}
    table = Table(title=f"{samples:,} samples in {options.shards:,} shards, {options.processes} processes")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("bytes a sample, manifest.json and manifest.offsets", f"{found['bytes_per_sample']:.2f}")
    table.add_row("until the first sample is found, slowest process", f"{found['open_seconds']:.2f} s")
    table.add_row("of it computing; on a busy machine the rest is waiting", f"{found['open_cpu_seconds']:.2f} s")
    table.add_row("private memory, largest process", f"{found['private_mib_per_process']:.1f} MiB")
    table.add_row("of it before opening (Python, NumPy, …)", f"{found['private_mib_before_opening']:.1f} MiB")
    table.add_row("lookups a second, random, all processes", f"{found['lookups_per_second']:,.0f}")
    print_table(table)
    return {name: round(value, 3) for name, value in found.items()} | {"samples": samples, "shards": options.shards}


# --- what opening costs a job ----------------------------------------------------------------------------------------

_calls: Counter[str] | None = None
_COUNTED = ("stat", "lstat", "fstat", "pread", "scandir")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _calls is not None and event == "open" and not isinstance(arguments[0], int):  # one that is open already
        _calls["open"] += 1


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count this process's calls of the file system, by kind: those that Python makes, in any thread."""
    global _calls
    counts, kept = Counter[str](), {name: getattr(os, name) for name in _COUNTED}

    def counted(name: str, *args: Any, **options: Any) -> Any:
        counts[name] += 1
        return kept[name](*args, **options)

    for name in _COUNTED:
        setattr(os, name, partial(counted, name))
    _calls = counts
    try:
        yield counts
    finally:
        _calls = None
        for name, call in kept.items():
            setattr(os, name, call)


class Counted(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A store in memory that counts what it is asked for."""

    protocol, requests = "counted", 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("counted://", "memory://")))

    def _open(self, *args: Any, **options: Any) -> Any:
        Counted.requests += 1
        return super()._open(*args, **options)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """One request, whatever the base class makes of it."""
        Counted.requests += 1
        data: bytes = self.store[self._strip_protocol(path)].getvalue()[start:end]
        return data


def write_files(manifest: Manifest, bar: Bar) -> None:
    """Sparse files for the shards of a manifest: nothing but zeros, as many bytes as it says."""
    sizes = manifest.shards.column("bytes").tolist()
    for name, size in bar.each(zip(manifest.shards.names(), sizes, strict=True)):
        with (manifest.folder / name).open("wb") as file:
            file.truncate(size)


def old_manifest(manifest: Manifest) -> str:
    """The text of version 1, with the offsets in it."""
    shards = [shard.to_json() for shard in manifest.shards]
    return json.dumps({"version": 1, "categories": [], "shards": shards}, separators=(",", ":"))


def open_as_before(folder: Path, path: Path) -> Manifest:
    """How every process opened a local set: parse all offsets, open every shard, list the folder."""
    manifest = parse_manifest(read_manifest_text(path), str(path), folder)
    for shard in manifest.shards:
        check_file(folder / shard.name, shard)
    known = set(manifest.shards.names())
    assert not [tar for tar in sorted(folder.glob("*.tar")) if tar.name not in known]
    return manifest


def counted_call(action: Callable[[], Any]) -> tuple[Any, Counter[str], float, int]:
    """What an action returns; its calls of the file system, its seconds, its requests to the store."""
    asked, begun = Counted.requests, time.perf_counter()
    with counting() as counts:
        result = action()
    return result, counts, time.perf_counter() - begun, Counted.requests - asked


def open_as_leader(path: str, cache: ShardCache) -> Manifest:
    """How the first process of a host opens a set: a look whether there is something to index, then its share."""
    from cloc.data.shards.opening import index_share, open_shards

    index_share(path, cache, (0, HOSTS))
    return open_shards(path, cache, (0, HOSTS))


def remote_requests(folder: Path, old: str) -> tuple[int, int, int]:
    """Requests for a remote set of a process before; of the first of a host, and of each of its processes, now."""
    from cloc.data.shards.stores import read_document

    fsspec.register_implementation("counted", Counted, clobber=True)
    store, url = fsspec.filesystem("counted"), "counted://bucket/set"
    for name in (MANIFEST_NAME, OFFSETS_NAME):
        store.pipe_file(f"/bucket/set/{name}", (folder / name).read_bytes())
    store.pipe_file("/bucket/old.json", old.encode())
    cache = ShardCache(folder / "cache")
    _, _, _, before = counted_call(lambda: read_document("counted://bucket/old.json"))
    opened, _, _, first = counted_call(lambda: open_as_leader(url, cache))
    file = save_table(opened, folder / "tables", (url,))
    _, _, _, other = counted_call(lambda: load_table(file, (url,), cache)[0])
    store.store.clear()
    return before, first, other


def run_job(options: argparse.Namespace) -> dict[str, Any]:
    """Count one process of each kind; print the figures of the job."""
    import_module("cloc.data.shards.opening")  # with PyTorch: not what is counted, and nothing for the other benchmark
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder, old = Path(made), Path(made) / "old.json"
        manifest = write_synthetic(folder, options.shards, options.samples, options.seed)
        with progress(progress_console(), "making files", options.shards, "files") as bar:
            write_files(manifest, bar)
        old.write_text(old_manifest(manifest), encoding="utf-8")
        cache = ShardCache(folder / "cache")
        _, before, before_seconds, _ = counted_call(lambda: open_as_before(folder, old))
        opened, first, first_seconds, _ = counted_call(lambda: open_as_leader(str(folder), cache))
        file, saving, saving_seconds, _ = counted_call(lambda: save_table(opened, folder / "tables"))
        _, other, other_seconds, _ = counted_call(lambda: load_table(file, (), cache)[0])
        requests = remote_requests(folder, old.read_text(encoding="utf-8"))
    first += saving
    calls = {
        "before": {name: HOSTS * RANKS * count for name, count in before.items()},
        "now": {name: HOSTS * (first[name] + RANKS * other[name]) for name in first | other},
    }
    seconds = {"before": before_seconds, "now": first_seconds + saving_seconds + other_seconds}
    remote = {"before": HOSTS * RANKS * requests[0], "now": HOSTS * (requests[1] + RANKS * requests[2])}
    title = f"opening {options.shards:,} shards of {options.samples} samples: {HOSTS} hosts, {RANKS} processes each"
    table = Table(title=title)
    kinds = ("open", "stat", "fstat", "pread", "scandir")
    for name in ("", "calls of the job", *kinds, "seconds a host", "remote requests"):
        table.add_column(name, justify="right" if name else "left")
    for name, own in calls.items():
        shown = [f"{own.get(kind, 0):,}" for kind in kinds]
        table.add_row(name, f"{sum(own.values()):,}", *shown, f"{seconds[name]:.1f}", f"{remote[name]:,}")
    print_table(table)
    totals = {name: sum(own.values()) for name, own in calls.items()}
    return {
        "calls": totals,
        "calls_before_over_now": round(totals["before"] / totals["now"], 1),
        "seconds_a_host": {name: round(value, 2) for name, value in seconds.items()},
        "remote_requests": remote,
        "shards": options.shards,
    }


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m benchmarks.index")
    parser.add_argument("--shards", type=int, default=200_000)
    parser.add_argument("--samples", type=int, default=None, help="of a shard; 1000, and 10 with --job")
    parser.add_argument("--processes", type=int, default=8, help="of one host")
    parser.add_argument("--lookups", type=int, default=100_000, help="of each process")
    parser.add_argument("--job", action="store_true", help="count what opening costs a job")
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary folder is made")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    """Measure; print the table and the JSON line."""
    options = make_parser().parse_args()
    options.samples = options.samples or (10 if options.job else 1000)
    sys.addaudithook(_audit)
    print(json.dumps(run_job(options) if options.job else run_host(options)))


if __name__ == "__main__":
    one_line(main)
