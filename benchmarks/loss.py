"""The region contrast against the whole matrix: time and peak memory of forward and backward, conflicts included.

    python -m benchmarks.loss                          # 2,048 to 32,768 rows, about 20 minutes on two cores
    python -m benchmarks.loss --rows 512 1024 --rounds 1

Three contenders on one process: ours, from features to gradients, de-duplication included; open_clip's two products,
one for each direction; and one product with its transpose. All three leave the same pairs out: equal texts
(``exact``), or equal and alike ones (``cosine``, the default rule). Each measurement is a fresh process with a warm-up
of a small size; contenders take turns, and times are medians. Memory is the peak of resident memory above what the
process held before, features included in neither. A matrix that would not fit is not tried. The last line is one JSON
object; its ratios are to the better reference at 16,384 rows and the cosine rule.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cloc.console import counted, print_table
from cloc.contracts import Batch, Features
from cloc.data.stream.batches import peak_memory
from cloc.losses.global_batch import gather_batch
from cloc.losses.region import RegionContrast
from cloc.usage import Parser, one_line

THRESHOLD = 0.9
HEADLINE = 16_384
MATRICES = 5  # of rows × rows in float32 that a reference holds at its peak (4.6 measured)


@dataclass(slots=True)
class Case:
    """Regions and their texts.

    Attributes:
        region: ``[R,D]``, a leaf.
        table: ``[R,D]`` texts, a leaf.
        own: ``[R]`` which text each region has; one in fifty comes again, one in fifty is nearly another.
        scale: ``[1]``, a leaf.
    """

    region: Tensor
    table: Tensor
    own: Tensor
    scale: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        return [self.region, self.table, self.scale]


def make_case(rows: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Case:
    """Random features of unit norm; texts are near their regions, as in training."""
    generator = torch.Generator().manual_seed(seed)
    table = normalize(torch.randn(rows, width, generator=generator, dtype=dtype), dim=1)
    few = max(1, rows // 50)
    table[few : 2 * few] = normalize(table[:few] + 0.3 * table[2 * few : 3 * few], dim=1)
    own = torch.arange(rows)
    own[-few:] = own[:few]
    region = normalize(table[own] + normalize(torch.randn(rows, width, generator=generator, dtype=dtype), dim=1), dim=1)
    scale = torch.tensor([1 / 0.07], dtype=dtype)
    return Case(region.requires_grad_(), table.requires_grad_(), own, scale.requires_grad_())


def conflicts(texts: Tensor, ids: Tensor, rule: str) -> Tensor:
    """``[R,R]`` bool: pairs that are no negatives."""
    mask = ids.unsqueeze(1) == ids.unsqueeze(0)
    if rule == "cosine":
        with torch.no_grad():
            mask |= texts @ texts.T > THRESHOLD
    return mask.fill_diagonal_(False)


def two_products(case: Case, rule: str) -> Tensor:
    """open_clip's way: a product for each direction."""
    texts = case.table[case.own]
    mask, target = conflicts(texts, case.own, rule), torch.arange(len(texts))
    to_text = (case.scale * case.region @ texts.T).masked_fill_(mask, -torch.inf)
    to_region = (case.scale * texts @ case.region.T).masked_fill_(mask, -torch.inf)
    return (cross_entropy(to_text, target) + cross_entropy(to_region, target)) / 2


def one_product(case: Case, rule: str) -> Tensor:
    """One product, and its transpose for the other direction."""
    texts = case.table[case.own]
    logits = (case.scale * case.region @ texts.T).masked_fill_(conflicts(texts, case.own, rule), -torch.inf)
    target = torch.arange(len(texts))
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def ours(case: Case, rule: str) -> Tensor:
    """As in training, one region a picture."""
    size = len(case.own)
    nothing = torch.zeros(size, 1, dtype=torch.int64)
    boxes = torch.zeros(size, 1, 4)
    batch = Batch(
        images=nothing,
        content=boxes,
        captions=nothing,
        caption_id=nothing[:1, 0],
        boxes=boxes,
        target_boxes=boxes,
        region_valid=torch.ones(size, 1, dtype=torch.bool),
        phrases=nothing,
        phrase_id=torch.arange(size),
        region_phrase=case.own.unsqueeze(1),
        phrase_is_shared=torch.zeros(size, 1, dtype=torch.bool),
        keys=[],
        source=nothing,
        cursor=0,
    )
    region = case.region.unsqueeze(1)
    features = Features(case.region[:1], case.table[:1], region, case.table, None, {"region": case.scale})
    return RegionContrast("softmax", rule, THRESHOLD)(features, batch, gather_batch(features, batch))[0]


CONTENDERS: dict[str, Callable[[Case, str], Tensor]] = {
    "ours": ours,
    "two products": two_products,
    "one product": one_product,
}


def peak_of_process(reset: bool = False) -> int:
    """Bytes of the process's peak resident memory (Linux); after a reset the peak is what it holds now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def measure_here(name: str, rows: int, options: argparse.Namespace, rule: str, answer: Connection) -> None:
    """Send seconds and bytes of one forward and backward pass in this process."""
    torch.set_num_threads(options.threads)
    width = options.width
    warm = make_case(512, width)
    CONTENDERS[name](warm, rule).backward()
    case = make_case(rows, width, seed=1)
    before = peak_of_process(reset=True)
    start = time.perf_counter()
    CONTENDERS[name](case, rule).backward()
    answer.send({"seconds": time.perf_counter() - start, "bytes": peak_of_process() - before})


def measure(name: str, rows: int, options: argparse.Namespace, rule: str) -> dict[str, float]:
    """The same in a process of its own, forked from this one, which computes nothing."""
    context = multiprocessing.get_context("fork")
    question, answer = context.Pipe(duplex=False)
    process = context.Process(target=measure_here, args=(name, rows, options, rule, answer))
    process.start()
    answer.close()
    found = question.recv()
    process.join()
    return found


def free_memory() -> int:
    """Bytes that processes may still take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


Found = dict[tuple[str, int, str], dict[str, float]]


def measure_all(options: argparse.Namespace, console: Console) -> Found:
    """Medians by (rule, rows, contender); a reference that would not fit is left out."""
    found: Found = {}
    for rule in options.rules:
        for rows in options.rows:
            fits = MATRICES * 4 * rows**2 < 0.8 * free_memory()
            names = [name for name in CONTENDERS if fits or name == "ours"]
            runs = [
                {name: measure(name, rows, options, rule) for name in names}
                for _ in counted(range(options.rounds), f"{rule}, {rows:,} rows")
            ]
            for name in names:
                found[rule, rows, name] = {
                    key: statistics.median(run[name][key] for run in runs) for key in ("seconds", "bytes")
                }
            if not fits:
                console.print(f"{rows:,} rows: a whole matrix does not fit in {free_memory() / 2**30:.0f} GiB")
    return found


def show(found: Found, rule: str, console: Console) -> None:
    """The table of one rule."""
    table = Table(title=f"conflicts: {rule}", title_justify="left")
    for column in ("rows", *(f"{name}: {unit}" for name in CONTENDERS for unit in ("s", "MiB"))):
        table.add_column(column, justify="right")
    for rows in sorted({rows for _, rows, _ in found}):
        values = [found.get((rule, rows, name)) for name in CONTENDERS]
        cells = [(f"{v['seconds']:.2f}", f"{v['bytes'] / 2**20:,.0f}") if v else ("–", "–") for v in values]
        table.add_row(f"{rows:,}", *(cell for pair in cells for cell in pair))
    print_table(table, console)


def ratios(found: Found, rule: str) -> dict[str, float]:
    """Ours over the better reference, at 16,384 rows or the most that both were measured at; and growth with rows."""
    sizes = sorted({rows for kind, rows, _ in found if kind == rule})
    both = [rows for rows in sizes if (rule, rows, "one product") in found]
    at = HEADLINE if HEADLINE in both else max(both)
    mine = found[rule, at, "ours"]
    full = [found[rule, at, name] for name in CONTENDERS if name != "ours"]
    least, most = (found[rule, rows, "ours"]["bytes"] for rows in (sizes[0], sizes[-1]))
    return {
        "memory_over_full": mine["bytes"] / min(value["bytes"] for value in full),
        "time_over_full": mine["seconds"] / min(value["seconds"] for value in full),
        "memory_growth_over_linear": most / max(1, least) / (sizes[-1] / sizes[0]),
        "rows": at,
    }


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m benchmarks.loss")
    parser.add_argument("--rows", type=int, nargs="+", default=[2048, 4096, 8192, 16_384, 32_768])
    parser.add_argument("--width", type=int, default=512, help="of the joint space; ViT-B/16 has 512")
    parser.add_argument("--rules", nargs="+", choices=["cosine", "exact"], default=["cosine", "exact"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def main() -> None:
    """Measure, print the tables and the JSON line."""
    options = make_parser().parse_args()
    console = Console()
    console.print(f"width {options.width}, {options.threads} threads, float32, median of {options.rounds}")
    found = measure_all(options, console)
    result: dict[str, float] = {}
    for rule in options.rules:
        show(found, rule, console)
        first = rule == options.rules[0]
        result |= {name if first else f"{rule}_{name}": value for name, value in ratios(found, rule).items()}
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    one_line(main)
