"""Weak scaling of data parallelism on one machine: does a second process cost more than its own work?

    python -m benchmarks.scaling                      # 2 processes × 1 thread
    python -m benchmarks.scaling --processes 4 --batch 128 model=vit_b16
    python -m benchmarks.scaling paper                # docs/scaling.md: memory, traffic and time at 8 to 1,024 GPUs

Two processes that train together (DDP over Gloo, losses over the global batch) against two independent processes that
train at the same time with the same batch each: efficiency is the independent step's time over the joint step's. All
four processes live through the whole measurement and the two pairs take turns, so that both meet the same machine. A
third turn trains jointly without exchanging gradients, which tells their share. With regions (CLOC) and without (CLIP).
Its last line is one JSON object; `weak_efficiency` is the lower of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import nn

from cloc.console import counted, print_table
from cloc.engine.machine import precision_of
from cloc.usage import Parser, one_line

ROOT = Path(__file__).resolve().parent.parent
PORT = 29541
PHASES = ("independent", "joint", "joint without gradients")
CLIP = ["loss=clip", "loss.region=0", "loss.grounding=0", "model.prompter=null", "model.grounding=null"]
console = Console()


class Step(nn.Module):
    """Model and loss as one module, as Lightning hands them to DDP."""

    def __init__(self, model: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> torch.Tensor:
        return self.loss(self.model(batch), batch).total


def configure(overrides: list[str]) -> Any:
    """The demo's model and optimizer, with changes."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from cloc.config import validate

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        options = ["experiment=demo_cloc", "model.text.tokenizer=open_clip", "data.train=none", *overrides]
        composed = compose("train", options)
    return validate(composed), OmegaConf.to_container(composed, resolve=True)


def make_batch(model: nn.Module, size: int, regions: int, seed: int) -> Any:
    """Pictures, captions, boxes and phrases at random; every region has a phrase, a third of them distinct."""
    from cloc.contracts import Batch

    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(4, high, shape, generator=generator)

    side, words = model.image.image_size, model.text.vocab_size
    end = getattr(model.text.tower, "eos_id", words - 1)
    phrases = max(1, size * regions // 3)
    captions, texts = draw(words - 1, size, 16), draw(words - 1, phrases, 5)
    captions[:, -1] = texts[:, -1] = end
    corners = torch.rand(size, regions, 4, generator=generator)
    boxes = torch.cat([corners[..., :2] * 0.5, 0.5 + corners[..., 2:] * 0.5], -1)
    return Batch(
        images=draw(255, size, 3, side, side).to(torch.uint8),
        content=torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(size, 4),
        captions=captions,
        caption_id=draw(2**62, size),
        boxes=boxes,
        target_boxes=boxes,
        region_valid=torch.ones(size, regions, dtype=torch.bool),
        phrases=texts,
        phrase_id=draw(2**62, phrases),
        region_phrase=torch.randint(0, phrases, (size, regions), generator=generator),
        phrase_is_shared=torch.zeros(size, regions, dtype=torch.bool),
        keys=[str(i) for i in range(size)],
        source=torch.zeros(size, dtype=torch.int64),
        cursor=size,
    )


def work(joint: bool, rank: int, processes: int, batch: int, overrides: list[str]) -> None:
    """One process: reads `PHASE STEPS` lines, trains, answers with seconds a step."""
    from cloc.config import instantiate
    from cloc.engine.optim import build_optimizer, set_rate
    from cloc.engine.strategy import DDP_OPTIONS
    from cloc.models.build import build_model

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config, resolved = configure(overrides)
    model = build_model(resolved["model"], pretrained=False)
    optimizer = build_optimizer(model, config.optim)
    set_rate(optimizer, 0.1)
    step: nn.Module = Step(model, instantiate(resolved["loss"], "loss"))
    if joint:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{PORT}", rank=rank, world_size=processes)
        step = nn.parallel.DistributedDataParallel(step, **DDP_OPTIONS)
    data = make_batch(model, batch, config.data.regions, seed=rank)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = batch * (2 + (2 * config.data.regions if model.prompter is not None else 0))
    traffic = {"gradient_mb": trained * 4 / 2**20, "feature_mb": rows * config.model.joint_dim * 4 / 2**20}
    print(json.dumps(traffic), flush=True)
    bfloat16 = precision_of(config.trainer.precision, "cpu") == "bf16-mixed"
    for line in sys.stdin:
        phase, count = line.rsplit(maxsplit=1)
        if joint:
            dist.barrier()
        start = time.perf_counter()
        for _ in range(int(count)):
            with step.no_sync() if phase == PHASES[2] else nullcontext():
                with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    loss = step(data)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print((time.perf_counter() - start) / int(count), flush=True)


def start(joint: bool, arguments: argparse.Namespace, overrides: list[str]) -> list[subprocess.Popen[str]]:
    """The processes of one side, ready."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    fixed = ["--batch", str(arguments.batch), "--processes", str(arguments.processes)]
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.scaling",
                *fixed,
                "--worker",
                str(rank),
                *["--joint"] * joint,
                *overrides,
            ],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(arguments.processes)
    ]


def read(process: subprocess.Popen[str]) -> Any:
    """One JSON line of a worker.

    Raises:
        RuntimeError: it has died.
    """
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a worker ended with code {process.wait()}; its message is above")
    return json.loads(line)


def measure(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """Median seconds a step of each phase over the rounds; in a round the slowest process counts."""
    sides = {joint: start(joint, arguments, overrides) for joint in (False, True)}
    try:
        traffic = [read(process) for processes in sides.values() for process in processes][-1]
        rounds: dict[str, list[float]] = {phase: [] for phase in PHASES}
        for number in counted(range(arguments.rounds + 1), "measuring"):
            for phase in PHASES:
                processes = sides[phase != PHASES[0]]
                for process in processes:
                    process.stdin.write(f"{phase} {arguments.steps if number else 2}\n")
                    process.stdin.flush()
                seconds = max(read(process) for process in processes)
                if number:  # the first round warms up
                    rounds[phase].append(seconds)
    finally:
        for process in (process for processes in sides.values() for process in processes):
            process.stdin.close()
            process.wait(timeout=60)
    independent, joint, without = (statistics.median(rounds[phase]) for phase in PHASES)
    ratios = [a / b for a, b in zip(rounds[PHASES[0]], rounds[PHASES[1]], strict=True)]
    return traffic | {
        "independent_ms": independent * 1e3,
        "joint_ms": joint * 1e3,
        "efficiency": statistics.median(ratios),
        "gradient_share": max(0.0, 1 - without / joint),
        "samples_per_second": arguments.processes * arguments.batch / joint,
    }


def show(results: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    """The table."""
    title = f"{arguments.processes} processes × 1 thread, batch {arguments.batch} each, {arguments.rounds} rounds"
    table = Table(title=title, title_justify="left")
    columns = {
        "independent, ms a step": "independent_ms",
        "joint, ms a step": "joint_ms",
        "efficiency": "efficiency",
        "gradients, MiB": "gradient_mb",
        "their share of the step": "gradient_share",
        "features sent, MiB": "feature_mb",
    }
    table.add_column("model")
    for column in columns:
        table.add_column(column, justify="right")
    for name, values in results.items():
        cells = [
            f"{values[key]:.1f}" if key.endswith(("ms", "mb")) else f"{values[key]:.3f}" for key in columns.values()
        ]
        table.add_row(name, *cells)
    print_table(table, console)


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m benchmarks.scaling")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256, help="pictures a process")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10, help="steps a round")
    parser.add_argument("--worker", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--joint", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measure both models, or print the paper calculation."""
    parser = make_parser()
    arguments, overrides = parser.parse_known_args()
    if flags := [one for one in overrides if one.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    if arguments.worker is not None:
        work(arguments.joint, arguments.worker, arguments.processes, arguments.batch, overrides)
    elif overrides == ["paper"]:
        from benchmarks.paper_scale import main as paper

        paper()
    else:
        results = {"CLOC": measure(arguments, overrides), "CLIP": measure(arguments, [*overrides, *CLIP])}
        show(results, arguments)
        worst = min(values["efficiency"] for values in results.values())
        rounded = {k.lower(): {n: round(v, 4) for n, v in values.items()} for k, values in results.items()}
        print(json.dumps({"weak_efficiency": round(worst, 4)} | rounded))


if __name__ == "__main__":
    one_line(main)
