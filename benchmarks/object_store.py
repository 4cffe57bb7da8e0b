"""What a store that errs costs a run: S3 (moto's server) behind a proxy that fails, resets and dies for a while.

    python -m benchmarks.object_store                       # both reading modes, two dead minutes in each
    python -m benchmarks.object_store --dead-seconds 20 --mode ranges

Several reading processes train from ``s3://``, once by range requests, once through the cache of whole shards. The
proxy answers 5 % of the requests by 503 SlowDown or by a reset connection, and for a span of time none: it resets,
answers 503, or says nothing. Each batch is compared with the batch of the same stream over the local files.

- requests: that reached the proxy; errors_injected: how many of them failed, those of the dead span included;
- retries, wait_seconds: as the readers count them (``data/store_retries``, ``data/store_wait_seconds``);
- samples_lost: left out because a shard could not be read; samples_replaced: places of a batch with another sample.

Needs ``pip install 'cloc-pretrain[s3,s3-test]'``. Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from cloc.config import DataConfig
from cloc.console import print_table, progress_console
from cloc.contracts import Region, Sample
from cloc.data.shards.writer import write_shards
from cloc.data.stream.batches import Stream, make_loader
from cloc.data.stream.region_sampling import Chooser
from cloc.data.stream.sources import open_sources
from cloc.data.tokenizer import Tokenizer
from cloc.data.transforms import View
from cloc.usage import Parser, one_line

BUCKET = "shards"
SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
SERVER = """
import logging, sys, threading
logging.getLogger("werkzeug").disabled = True
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass
class Faults:
    """What the proxy does wrong.

    Attributes:
        share: of the requests that fail.
        dead_after: requests after which it dies once.
        dead_seconds: for how long.
        seed: of the choice.
    """

    share: float = 0.05
    dead_after: int = 100
    dead_seconds: float = 120.0
    seed: int = 0


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a port of this machine, but for what :class:`Faults` says."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.port, self.lock = port, threading.Lock()
        self.begin(Faults(0, 0))
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def begin(self, faults: Faults) -> None:
        """Count anew."""
        with self.lock:
            self.faults, self.rng = faults, random.Random(faults.seed)
            self.requests, self.errors, self.dead_until = 0, 0, 0.0

    def fault(self) -> str:
        """How the next request fails; empty where it does not."""
        with self.lock:
            self.requests += 1
            if self.requests == self.faults.dead_after:
                self.dead_until = time.monotonic() + self.faults.dead_seconds
            dead = time.monotonic() < self.dead_until
            found = ""
            if dead or self.rng.random() < self.faults.share:
                found = self.rng.choice(["busy", "reset", "silent"] if dead else ["busy", "busy", "reset", "cut"])
                self.errors += 1
            return found

    def handle_error(self, *_: Any) -> None:
        """A client that has gone is nothing to tell."""


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_GET(self) -> None:
        fault = self.server.fault()
        if fault == "busy":
            self._reply(503, {"Content-Type": "application/xml", "Retry-After": "1"}, SLOW_DOWN)
        elif fault in ("reset", "silent"):
            if fault == "silent":
                time.sleep(3)
            self.close_connection = True
        else:
            self._pass(cut=fault == "cut")

    do_HEAD = do_GET

    def _pass(self, cut: bool) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            upstream.request(self.command, self.path, headers=dict(self.headers))
            answer = upstream.getresponse()
            skipped = ("transfer-encoding", "connection", "date", "server")
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in skipped}
            self._reply(answer.status, headers, answer.read(), cut)
        finally:
            upstream.close()

    def _reply(self, status: int, headers: dict[str, str], body: bytes, cut: bool = False) -> None:
        headers = {name: value for name, value in headers.items() if name.lower() != "content-length"} | {
            "Content-Length": headers.get("Content-Length", str(len(body)))
            if self.command == "HEAD"
            else str(len(body))
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def moto() -> Iterator[int]:
    """An S3 server in a process of its own; gives its port."""
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", SERVER], text=True, **options) as process:
        try:
            assert process.stdout
            yield int(process.stdout.readline())
        finally:
            process.kill()


@contextmanager
def environment(port: int) -> Iterator[None]:
    """The usual place of an endpoint and of credentials."""
    values = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "key"}
    values |= {"AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def draw(folder: Path, samples: int, per_shard: int) -> None:
    """Shards of small pictures."""
    rng = np.random.default_rng(0)

    def one(number: int) -> Sample:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
        return Sample(
            f"s{number:06d}",
            buffer.getvalue(),
            "jpg",
            (f"picture {number}",),
            (Region((0.1, 0.1, 0.6, 0.7), "a thing"),),
        )

    write_shards(map(one, range(samples)), folder, samples_per_shard=per_shard)


def stream_of(train: str, config: dict[str, Any], batch: int) -> Stream:
    """Batches of what a path or URL names."""
    data = open_sources(DataConfig(train=train, **config))
    return Stream(data, Tokenizer("open_clip", 16), Chooser(View(32), regions=1), batch, seed=3)


@contextmanager
def erring_s3(folder: Path) -> Iterator[Proxy]:
    """A folder as ``s3://shards/set``, behind a proxy; the processes that are started in the block find it."""
    import s3fs

    with moto() as port:
        with environment(port):
            direct = s3fs.S3FileSystem(skip_instance_cache=True)
            direct.mkdir(BUCKET)
            direct.put(f"{folder}/", f"{BUCKET}/set/", recursive=True)
        proxy = Proxy(port)
        with environment(proxy.server_port):
            try:
                yield proxy
            finally:
                proxy.shutdown()
                proxy.server_close()


def read(folder: Path, room: Path, mode: str, proxy: Proxy, args: argparse.Namespace) -> dict[str, Any]:
    """Read one pass from the store, and compare it with the local files."""
    config = {
        "cache_dir": room / mode,
        "cache_bytes": 0 if mode == "ranges" else 1 << 34,
        "timeout": args.timeout,
        "retry_seconds": args.retry_seconds,
    }
    count, began = args.samples // args.batch, time.monotonic()
    local = stream_of(str(folder), {"cache_dir": room / "local"}, args.batch)
    expected = [local.batch_at(k * args.batch).keys for k in range(count)]
    remote = stream_of(f"s3://{BUCKET}/set", config, args.batch)
    readers = make_loader(remote, args.readers, timeout=args.batch_timeout)
    stats: Counter[str] = Counter(remote.cache.access.traffic.take_counts())
    replaced = 0
    try:
        for batch, keys in zip(islice(readers, count), expected, strict=True):
            replaced += sum(one != other for one, other in zip(batch.keys, keys, strict=True))
            stats.update({name: value for name, value in batch.stats.items() if isinstance(value, int | float)})
    finally:
        readers.end()
    seconds = time.monotonic() - began
    return {
        "requests": proxy.requests,
        "errors_injected": proxy.errors,
        "retries": int(stats["store_retries"]),
        "wait_seconds": round(stats["store_wait_seconds"], 1),
        "samples": count * args.batch,
        "samples_lost": int(stats["skipped/unreadable_shard"]),
        "samples_replaced": replaced,
        "seconds": round(seconds, 1),
    }


def make_parser() -> Parser:
    """The options."""
    parser = Parser(__doc__, "python -m benchmarks.object_store")
    parser.add_argument("--mode", choices=["ranges", "shards", "both"], default="both", help="how samples are read")
    parser.add_argument("--dead-seconds", type=float, default=120.0, help="span in which nothing is answered")
    parser.add_argument("--dead-after", type=int, default=100, help="requests before it")
    parser.add_argument("--errors", type=float, default=0.05, help="share of the other requests that fail")
    parser.add_argument("--samples", type=int, default=1024, help="that are read in each mode")
    parser.add_argument("--per-shard", type=int, default=8, help="samples")
    parser.add_argument("--batch", type=int, default=16, help="samples")
    parser.add_argument("--readers", type=int, default=3, help="reading processes")
    parser.add_argument("--timeout", type=float, default=5.0, help="data.timeout")
    parser.add_argument("--retry-seconds", type=float, default=600.0, help="data.retry_seconds")
    parser.add_argument("--batch-timeout", type=float, default=300.0, help="data.batch_timeout")
    return parser


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Each mode's account."""
    found = {}
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room) / "set"
        draw(folder, args.samples, args.per_shard)
        with erring_s3(folder) as proxy:
            for mode in ("ranges", "shards") if args.mode == "both" else (args.mode,):
                proxy.begin(Faults(args.errors, args.dead_after, args.dead_seconds))
                progress_console().print(f"{mode}: {asdict(proxy.faults)}")
                found[mode] = read(folder, Path(room), mode, proxy, args)
    return found


def main() -> None:
    """Measure and print."""
    found = measure(make_parser().parse_args())
    table = Table(title="reading from a store that errs")
    columns = list(next(iter(found.values())))
    for name in ("mode", *columns):
        table.add_column(name.replace("_", " "), justify="left" if name == "mode" else "right")
    for mode, row in found.items():
        table.add_row(mode, *map(str, row.values()))
    print_table(table)
    total = {name: round(sum(row[name] for row in found.values()), 1) for name in columns}
    print(json.dumps(total | {"modes": found}))


if __name__ == "__main__":
    one_line(main)
