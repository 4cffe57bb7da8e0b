"""A whole training job against its bare step: what reading, logging, checks and Lightning cost.

    python -m benchmarks.job                      # ViT 384x12 at 224 px, batch 16, M = 4, one thread, one worker
    python -m benchmarks.job --geometry b16 --batch 8

``train.py`` streams shards of 500×375 JPEGs through one worker; the bare step is the same model, optimizer and
clipping in a loop, on the same batches, already in memory. They take turns. Prints throughput of both over the steps
after a warm-up, and the share of time that the job waited for data. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.loader import write_data
from benchmarks.step import GEOMETRIES, Geometry, Ours, fast_precision, our_model, trained_loss
from cloc.config import DataConfig, validate
from cloc.console import counted
from cloc.contracts import Batch
from cloc.data.shards.index import index_folder, write_manifest
from cloc.data.stream.batches import Stream
from cloc.data.stream.region_sampling import make_chooser
from cloc.data.stream.sources import open_sources
from cloc.data.tokenizer import Tokenizer
from cloc.usage import Parser, one_line

ROOT = Path(__file__).resolve().parent.parent
WARMUP = 4  # steps


def overrides(geometry: Geometry) -> list[str]:
    """The configuration of ``train.py`` that builds the model of :func:`benchmarks.step.our_model`."""
    vision, text = geometry.vision(), geometry.text()
    return [
        "model=vit_b16",
        f"model.joint_dim={geometry.joint}",
        f"model.image.image_size={geometry.image_size}",
        "+model.image.options={" + ",".join(f"{key}:{value}" for key, value in vision.items()) + "}",
        "+model.text.options={" + ",".join(f"{key}:{value}" for key, value in text.items()) + "}",
    ]


def batches(shards: Path, geometry: Geometry, size: int, regions: int, count: int) -> list[Batch]:
    """The first batches of the job, made in this process."""
    config = validate({"train": str(shards), "regions": regions}, DataConfig)
    chooser = make_chooser(config, geometry.image_size)
    return list(islice(iter(Stream(open_sources(config), Tokenizer("open_clip", 77), chooser, size)), count))


def bare(made: list[Batch], geometry: Geometry, bf16: bool) -> float:
    """Seconds of the steps after the warm-up."""
    torch.manual_seed(0)
    ours = Ours(our_model(geometry, "SharedPrompter", "SpatialHead"), trained_loss(bf16, {}), made[0], bf16)
    ours.prepare()
    for number, batch in enumerate(made):
        if number == WARMUP:
            start = time.perf_counter()
        ours.batch = batch
        ours.step()
    return time.perf_counter() - start


def job(shards: Path, out: Path, options: argparse.Namespace, size: int) -> tuple[float, float]:
    """Seconds of the steps after the warm-up in ``train.py``, and the share of them spent waiting for data."""
    command = [sys.executable, str(ROOT / "train.py"), f"data.train={shards}", f"run_dir={out}", "name=job"]
    command += [f"data.regions={options.regions}", f"batch_size={size}", f"samples={size * options.steps}"]
    command += ["data.workers=1", "trainer=cpu", f"trainer.threads={options.threads}", "trainer.log_every=1"]
    command += [f"trainer.precision={'bf16-mixed' if options.precision == 'bf16' else '32-true'}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    command += overrides(GEOMETRIES[options.geometry])
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    with (out / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["loss"]]
    spans = [float(row["seconds"]) for row in rows]
    steps = [after - before for before, after in zip(spans, spans[1:], strict=False)]
    waits = [float(row["data_wait_share"]) for row in rows[1:]]
    kept, waited = steps[WARMUP - 1 :], waits[WARMUP - 1 :]
    return sum(kept), sum(step * wait for step, wait in zip(kept, waited, strict=True)) / sum(kept)


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m benchmarks.job")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--regions", type=int, default=4)
    parser.add_argument("--steps", type=int, default=24, help="steps of each, the warm-up among them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default=fast_precision())
    return parser


def main() -> None:
    """Measure in turn; print the figures and the JSON line."""
    parser = make_parser()
    options = parser.parse_args()
    if options.steps <= WARMUP + 1:
        parser.error(f"--steps {options.steps}: the first {WARMUP} are a warm-up; give at least {WARMUP + 2}")
    torch.set_num_threads(options.threads)
    geometry, measured = GEOMETRIES[options.geometry], options.steps - WARMUP
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        write_data(shards, options.batch * options.steps, None)
        write_manifest(index_folder(shards))
        made = batches(shards, geometry, options.batch, options.regions, options.steps)
        jobs, waits, bares = [], [], []
        for turn in counted(range(options.rounds), "measuring"):
            seconds, wait = job(shards, Path(folder) / f"run{turn}", options, options.batch)
            jobs.append(seconds / measured)
            waits.append(wait)
            bares.append(bare(made, geometry, options.precision == "bf16") / measured)
    inside, outside, wait = (statistics.median(values) for values in (jobs, bares, waits))
    ratio = statistics.median(one / other for one, other in zip(jobs, bares, strict=True))
    console = Console(highlight=False)
    console.print(f"whole job  {inside:.3f} s a step, {options.batch / inside:.2f} samples/s, waiting {wait:.1%} of it")
    console.print(f"bare step  {outside:.3f} s, {options.batch / outside:.2f} samples/s")
    console.print(f"job over bare step {ratio:.3f}, the median of {options.rounds} turns")
    found = {"job_over_bare_step": ratio, "data_wait_share": wait, "seconds_a_step": inside}
    print(json.dumps({name: round(value, 4) for name, value in found.items()} | {"geometry": options.geometry}))


if __name__ == "__main__":
    one_line(main)
