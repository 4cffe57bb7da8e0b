"""The paper's ablations (CLOC, Table 2, rows 8 to 12) on OpenMoji scenes, over seeds.

    python -m benchmarks.ablations
    python -m benchmarks.ablations samples=34_000 --only cloc 'M = 2' --seeds 0 1 2 3 4

Trains `experiment=demo_cloc` with the paper's choices (M = 4, cosine conflicts) and with one choice changed at a time,
two runs at once on one core each, measures all on the held-out scenes, and prints the mean and standard error over
seeds, and the difference to the unchanged recipe: paired by seed, with Student's 95 % interval. Its last line is one
JSON object. What is already there is not made again: finished runs and the metrics of a run are read.
"""

from __future__ import annotations

import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from scipy import stats

from benchmarks.seeds import ROOT, run, spread, wait
from cloc.console import progress, progress_console
from cloc.usage import Parser, one_line

BASE = "cloc"
RECIPE = ["experiment=demo_cloc", "samples=24_000", "data.regions=4", "loss.conflicts=cosine", "trainer.threads=1"]
VARIANTS = {
    BASE: [],
    "Prompter of the paper": ["model/prompter=paper"],
    "- Prompter (RoI-Align)": ["model/prompter=roi_align", "model.grounding=null", "loss.grounding=0"],
    "- text filtering": ["loss.conflicts=none"],
    "- grounding loss": ["model.grounding=null", "loss.grounding=0"],
    "M = 2": ["data.regions=2"],
}
METRICS = {
    "region top1": "region/prompter/top1",
    "region-to-text R@10": "region/prompter/region_to_text_R@10",
    "text-to-region R@10": "region/prompter/text_to_region_R@10",
    "acc@0.5": "grounding/any/acc@0.5",
    "text-to-image R@1": "image_text/text_to_image_R@1",
    "image-to-text R@1": "image_text/image_to_text_R@1",
}
Measured = dict[str, float]


def measure(variant: str, seed: int, out: Path, more: list[str]) -> Measured:
    """Train one variant with one seed, unless it is there, and measure it on the held-out scenes."""
    folder = out / "".join(c if c.isalnum() else "_" for c in variant) / f"seed{seed}"
    if not (folder / "metrics.json").is_file():
        options = [*RECIPE, *VARIANTS[variant], *more, f"seed={seed}", f"run_dir={folder / 'cloc'}"]
        wait(run("train.py", *options, threads="1"))
        measured = [f"checkpoint={folder / 'cloc'}", "data=[openmoji]", f"out={folder}"]
        wait(run("eval.py", *measured, "evaluation.sources=[prompter]", threads="1"))
    return json.loads((folder / "metrics.json").read_text())["data"]["openmoji"]["models"]["cloc"]


def difference(variant: list[float], base: list[float]) -> tuple[float, float]:
    """Mean paired difference, and half of its 95 % interval (infinite for one seed)."""
    differences = [ours - theirs for ours, theirs in zip(variant, base, strict=True)]
    mean, error = spread(differences)
    if len(differences) < 2:
        return mean, float("inf")
    return mean, float(stats.t.ppf(0.975, len(differences) - 1)) * error


def table(measured: dict[str, list[Measured]]) -> list[str]:
    """Markdown: a row a variant; differences whose interval leaves out zero are bold."""
    lines = [f"| variant | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 1) + "|"]
    for variant, runs in measured.items():
        cells = []
        for metric in METRICS.values():
            values = [one[metric] for one in runs if metric in one]
            if not values:
                cells.append("–")
                continue
            mean, error = spread(values)
            cell = f"{mean:.3f} ± {error:.3f}"
            if variant != BASE and BASE in measured:
                change, half = difference(values, [one[metric] for one in measured[BASE]])
                mark = "**" if abs(change) > half else ""
                cell += f"<br>{mark}{change:+.3f} ± {half:.3f}{mark}"
            cells.append(cell)
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return lines


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m benchmarks.ablations")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "ablations")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("overrides", nargs="*", help="further configuration of all runs")
    return parser


def main() -> None:
    """Run all, print the table in Markdown, and the JSON line."""
    options = make_parser().parse_intermixed_args()
    jobs = list(product(options.seeds, options.only))
    with ThreadPoolExecutor(options.jobs) as pool, progress(progress_console(), "training", len(jobs), "runs") as bar:
        found = list(bar.each(pool.map(lambda job: measure(job[1], job[0], options.out, options.overrides), jobs)))
    by_job = dict(zip(jobs, found, strict=True))
    measured = {variant: [by_job[seed, variant] for seed in options.seeds] for variant in options.only}
    print("\n".join(table(measured)))
    means = {
        variant: {name: statistics.fmean(one[key] for one in runs) for name, key in METRICS.items() if key in runs[0]}
        for variant, runs in measured.items()
    }
    print(json.dumps({"seeds": options.seeds, "mean": means}))


if __name__ == "__main__":
    one_line(main)
