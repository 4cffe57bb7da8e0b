"""What ``trainer.compile`` costs at the start of a run, and what it saves afterwards.

    python -m benchmarks.compile --model cloc                  # the geometry of benchmarks.step, CPU, bfloat16
    python -m benchmarks.compile --model clip

A step, plain and with the towers' blocks compiled, in turn; nothing compiled is taken from disk. As in training, every
step has another batch, whose texts are trimmed to other lengths. The last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import time
from itertools import cycle

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.step import GEOMETRIES, Geometry, Ours, cpu, fast_precision, make_batch, our_model, trained_loss
from cloc.config.schema import TrainerConfig
from cloc.console import counted, print_table
from cloc.contracts import Batch
from cloc.data.tokenizer import Tokenizer
from cloc.engine.strategy import prepare
from cloc.usage import Parser, one_line

MODELS = {
    "clip": ((None, None), {"region": 0.0, "grounding": 0.0}),
    "cloc": (("SharedPrompter", "SpatialHead"), {}),
}


def contenders(name: str, geometry: Geometry, batch: Batch, bf16: bool) -> dict[str, Ours]:
    """A model, plain and compiled, from the same weights."""
    found, (parts, weights) = {}, MODELS[name]
    for label in ("plain", "compiled"):
        torch.manual_seed(0)
        model = our_model(geometry, *parts)
        prepare(model, TrainerConfig(compile=label == "compiled"))
        found[label] = Ours(model, trained_loss(bf16, weights), batch, bf16)
    return found


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m benchmarks.compile")
    parser.add_argument("--model", choices=MODELS, default="cloc")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--regions", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=4, help="first steps, in which compilation happens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default=fast_precision())
    return parser


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = make_parser()
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: give 1 or more")
    torch.compiler.config.force_disable_caches = True
    torch.set_num_threads(options.threads)
    geometry, console, tokenizer = GEOMETRIES[options.geometry], Console(), Tokenizer("open_clip", 77)
    batches = [make_batch(options.batch, options.regions, geometry.image_size, tokenizer, seed) for seed in range(4)]
    found = contenders(options.model, geometry, batches[0], options.precision == "bf16")
    times: dict[str, list[float]] = {name: [] for name in found}
    Ours.prepare()
    for _, batch in zip(
        counted(range(options.warmup + options.rounds), "measuring", "steps"), cycle(batches), strict=False
    ):
        for name, contender in found.items():
            contender.batch = batch
            start = time.perf_counter()
            contender.step()
            times[name].append(time.perf_counter() - start)
    table = Table(
        title=f"{options.model}, {options.precision}, {options.threads} threads, {cpu()}", title_justify="left"
    )
    for column in ("step", "seconds", f"first {options.warmup} steps took more by"):
        table.add_column(column, justify="left" if column == "step" else "right")
    result = {}
    for name, seconds in times.items():
        settled = statistics.median(seconds[options.warmup :])
        more = sum(seconds[: options.warmup]) - options.warmup * settled
        table.add_row(name, f"{settled:.3f}", f"{more:.1f} s")
        result |= {f"{name}_seconds": settled, f"{name}_warmup_seconds": more}
    result["compiled_over_plain"] = result["compiled_seconds"] / result["plain_seconds"]
    print_table(table, console)
    console.print(f"  compiled / plain: {result['compiled_over_plain']:.3f}", highlight=False)
    settings = {"model": options.model, "geometry": options.geometry}
    print(json.dumps({name: round(value, 4) for name, value in result.items()} | settings))


if __name__ == "__main__":
    one_line(main)
