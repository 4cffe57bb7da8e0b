"""CLIP against CLOC over seeds: the tables of docs/results.md.

    python -m benchmarks.seeds demo --data openmoji
    python -m benchmarks.seeds flickr8k model.image.pretrained=FILE model.text.name=DIR --data flickr8k_val
    python -m benchmarks.seeds demo --data openmoji --seeds 1 2 --evaluate 'evaluation.sources=[prompter,roi_align]'

Trains `experiment=NAME_clip` and `experiment=NAME_cloc` with every seed, side by side on one core each, measures both
on the data set, and prints mean and standard error of every metric. Its last line is one JSON object.
What is already there is not made again: finished runs and the metrics of a seed are read.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from cloc.console import counted
from cloc.usage import Parser, one_line

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("clip", "cloc")


def run(script: str, *arguments: str, threads: str = "") -> subprocess.Popen[bytes]:
    """Start one of the project's scripts, with a limit on its CPU threads or without."""
    environment = os.environ | ({"OMP_NUM_THREADS": threads} if threads else {})
    return subprocess.Popen([sys.executable, str(ROOT / script), *arguments], cwd=ROOT, env=environment)


def wait(*jobs: subprocess.Popen[bytes]) -> None:
    """Wait for all; stop at the first failure.

    Raises:
        RuntimeError: a job failed.
    """
    for job in jobs:
        if job.wait():
            raise RuntimeError(f"{job.args} failed with code {job.returncode}")


def one_seed(
    name: str, seed: int, data: str, out: Path, more: list[str], evaluate: list[str]
) -> dict[str, dict[str, float]]:
    """Train both models with one seed and measure them: model → metric → value."""
    folder = out / f"seed{seed}"
    metrics = folder / "metrics.json"
    if not metrics.is_file():
        train_and_measure(name, seed, data, folder, more, evaluate)
    return json.loads(metrics.read_text())["data"][data]["models"]


def train_and_measure(name: str, seed: int, data: str, folder: Path, more: list[str], evaluate: list[str]) -> None:
    """Both models of one seed, side by side; then ``eval.py`` on both."""
    common = [f"seed={seed}", "trainer.threads=1", *more]
    jobs = [run("train.py", f"experiment={name}_{m}", f"run_dir={folder / m}", *common, threads="1") for m in MODELS]
    wait(*jobs)
    runs = [f"checkpoint={folder / 'cloc'}", f"baseline=[{folder / 'clip'}]"]
    wait(run("eval.py", *runs, f"data=[{data}]", f"out={folder}", *evaluate))


def best_source(metrics: dict[str, float], ending: str) -> float:
    """The best of a model's region sources other than the Prompter."""
    found = [
        value
        for name, value in metrics.items()
        if name.startswith("region/") and name.endswith(ending) and "/prompter/" not in name
    ]
    return max(found, default=float("nan"))


def derived(seed: dict[str, dict[str, float]]) -> dict[str, float]:
    """What the bars are about: the Prompter against CLIP's best source, and the difference of image-text recalls."""
    cloc, clip = seed["cloc"], seed["clip"]
    values = {}
    for ending in ("top1", "text_to_region_R@10", "region_to_text_R@10"):
        ours, theirs = cloc.get(f"region/prompter/{ending}"), best_source(clip, ending)
        if ours is not None and theirs == theirs:
            values |= {f"{ending}: CLIP's best source": theirs, f"{ending}: Prompter over it": ours / theirs}
    names = [name for name in cloc if name.startswith("image_text/")]
    values["mean image-text recall: CLOC - CLIP"] = statistics.fmean(cloc[n] - clip[n] for n in names)
    values["text-to-image R@1: CLOC - CLIP"] = (
        cloc["image_text/text_to_image_R@1"] - clip["image_text/text_to_image_R@1"]
    )
    return values


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.fmean(values), error


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m benchmarks.seeds")
    parser.add_argument("name", help="experiments NAME_clip and NAME_cloc")
    parser.add_argument("--data", required=True, help="evaluation set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--evaluate", nargs="*", default=[], help="further configuration of eval.py")
    parser.add_argument("overrides", nargs="*", help="further configuration of both runs")
    return parser


def main() -> None:
    """Run, print the table in Markdown, and the JSON line."""
    options = make_parser().parse_intermixed_args()
    out = options.out or ROOT / "runs" / "seeds" / options.name
    seeds = [
        one_seed(options.name, seed, options.data, out, options.overrides, options.evaluate)
        for seed in counted(options.seeds, "training and measuring", "seeds")
    ]
    print("| metric | CLIP | CLOC |\n|---|---|---|")
    summary: dict[str, dict[str, list[float]]] = {}
    for metric in seeds[0]["cloc"]:
        cells = []
        for model in MODELS:
            values = [seed[model][metric] for seed in seeds if metric in seed[model]]
            mean, error = spread(values) if values else (float("nan"),) * 2
            cells.append(f"{mean:.3f} ± {error:.3f}" if values else "–")
            summary.setdefault(metric, {})[model] = values
        print(f"| {metric} | {cells[0]} | {cells[1]} |")
    rows = [derived(seed) for seed in seeds]
    summary["derived"] = {name: [row[name] for row in rows] for name in rows[0]}
    for name, values in summary["derived"].items():
        mean, error = spread(values)
        print(f"{name}: {mean:.3f} ± {error:.3f}  {[round(value, 3) for value in values]}")
    print(json.dumps(summary))


if __name__ == "__main__":
    one_line(main)
