"""A training step of ours against open_clip's own, in turn, on the same machine and the same pictures and captions.

    python -m benchmarks.step                       # ViT 384x12 at 224 px, batch 16, M = 4, bfloat16 and float32
    python -m benchmarks.step --geometry b16 --batch 8

Four contenders take turns, a step each: open_clip's CLIP through its own ``train_one_epoch``; our CLIP; our CLOC with
the shared Prompter; and CLOC written naively (``benchmarks.naive``) with the paper's Prompter. Prints median times,
their ratios, and the share of the machine's measured matrix-multiply peak. The last line is one JSON object.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import statistics
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.loss import ClipLoss
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.naive import naive_loss, padded
from cloc.config import OptimConfig
from cloc.console import counted, print_table
from cloc.contracts import Batch
from cloc.data.stream.collate import collate
from cloc.data.stream.region_sampling import Item
from cloc.data.tokenizer import Tokenizer
from cloc.engine.machine import precision_of
from cloc.engine.optim import build_optimizer
from cloc.losses.objective import ClocLoss
from cloc.models.build import build_model
from cloc.models.model import Cloc
from cloc.models.protocols import CLIP_MEAN, CLIP_STD
from cloc.models.temperature import clamp_temperatures
from cloc.usage import Parser, one_line

NOUNS = """man woman dog child boy girl ball bike street water horse shirt snow grass beach car wall hat player tree
bench camera crowd rock field river boat table guitar jacket""".split()
ADJECTIVES = "red blue young small brown white large black yellow old wooden green wet tall striped".split()
VERBS = "runs jumps sits stands plays rides holds looks walks waits climbs sleeps".split()
JOINTS = "on the|next to a|in front of the|with a|near the|behind a".split("|")


@dataclass(frozen=True)
class Geometry:
    """Sizes of both towers."""

    width: int
    layers: int
    text_width: int
    text_layers: int
    joint: int
    image_size: int = 224
    patch: int = 16

    def vision(self) -> dict[str, Any]:
        """open_clip's vision options."""
        return {"width": self.width, "layers": self.layers, "patch_size": self.patch, "head_width": 64}

    def text(self) -> dict[str, Any]:
        """open_clip's text options."""
        return {"width": self.text_width, "layers": self.text_layers, "heads": self.text_width // 64}


GEOMETRIES = {
    "small": Geometry(384, 12, 384, 12, 384),
    "b16": Geometry(768, 12, 512, 12, 512),
    "test": Geometry(64, 2, 64, 2, 64, image_size=32),
}


def words(rng: torch.Generator, choices: list[str]) -> str:
    """One of the words."""
    return choices[int(torch.randint(len(choices), (1,), generator=rng))]


def phrase(rng: torch.Generator) -> str:
    """One to three words, as annotators name a box (Flickr30k Entities: 2.4 on average)."""
    parts = ["a"] * int(torch.rand(1, generator=rng) < 0.6) + [words(rng, ADJECTIVES)] * int(
        torch.rand(1, generator=rng) < 0.5
    )
    return " ".join([*parts, words(rng, NOUNS)])


def caption(rng: torch.Generator) -> str:
    """About eleven words, the length of COCO's and Flickr's captions."""
    first = f"a {words(rng, ADJECTIVES)} {words(rng, NOUNS)} {words(rng, VERBS)} {words(rng, JOINTS)}"
    return f"{first} {words(rng, ADJECTIVES)} {words(rng, NOUNS)} {words(rng, JOINTS)} {words(rng, NOUNS)}"


def make_batch(size: int, regions: int, image_size: int, tokenizer: Tokenizer, seed: int = 0) -> Batch:
    """Random pictures with captions and boxes; what a data worker would hand over."""
    rng = torch.Generator().manual_seed(seed)
    items = []
    for i in range(size):
        corners = torch.rand(regions, 4, generator=rng)
        boxes = torch.cat([corners[:, :2] * 0.6, 0.65 + corners[:, 2:] * 0.35], 1)
        phrases = [phrase(rng) for _ in range(regions)]
        items.append(
            Item(
                key=str(i),
                image=torch.randint(256, (3, image_size, image_size), generator=rng, dtype=torch.uint8),
                content=np.array([0.0, 0.0, 1.0, 1.0], dtype=np.float32),
                caption=caption(rng),
                boxes=boxes.numpy(),
                targets=boxes.numpy(),
                phrases=phrases,
                shared=[phrases.count(text) > 1 for text in phrases],
                stats=Counter(),
            )
        )
    return collate(items, tokenizer, regions, size, {})


def our_model(geometry: Geometry, prompter: str | None, grounding: str | None) -> Cloc:
    """Our model at a geometry, from scratch."""
    node: dict[str, Any] = {"joint_dim": geometry.joint}
    node["image"] = {"_target_": "cloc.models.image.OpenClipTower", "image_size": geometry.image_size}
    node["image"]["options"] = geometry.vision()
    node["text"] = {"_target_": "cloc.models.text.ClipText", "options": geometry.text()}
    node["prompter"] = {"_target_": f"cloc.models.prompter.{prompter}"} if prompter else None
    node["grounding"] = {"_target_": f"cloc.models.grounding.{grounding}"} if grounding else None
    return build_model(node).train()


class Ours:
    """A training step of this project: what the Lightning module does in one, with the default clipping."""

    def __init__(self, model: Cloc, loss: Callable[[Cloc, Batch], Tensor], batch: Batch, bf16: bool) -> None:
        self.model, self.loss, self.batch, self.bf16 = model, loss, batch, bf16
        self.optimizer = build_optimizer(model, OptimConfig())

    def forward_backward(self) -> None:
        """Without the optimizer."""
        self.loss(self.model, self.batch).backward()

    def step(self) -> None:
        """One whole step."""
        self.forward_backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), OptimConfig().clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        clamp_temperatures(self.model.log_scales)

    @staticmethod
    def prepare() -> None:
        """Plain attention on CPU, as our towers choose it."""
        torch.backends.cuda.enable_flash_sdp(False)


def trained_loss(bf16: bool, weights: dict[str, float]) -> Callable[[Cloc, Batch], Tensor]:
    """Model and objective as in training: towers under autocast, losses in float32."""
    objective = ClocLoss(**weights)

    def run(model: Cloc, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features = model(batch)
        return objective(features, batch).total

    return run


def naive_trained_loss(bf16: bool) -> Callable[[Cloc, Batch], Tensor]:
    """The naive model and losses; the whole under autocast, as one would write it."""

    def run(model: Cloc, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return naive_loss(model, batch)

    return run


class Loader:
    """One batch, as ``train_one_epoch`` iterates over a loader."""

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        self.batch, self.num_batches, self.num_samples = (images, texts), 1, len(images)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.batch


class OpenClip:
    """open_clip's model, loss, optimizer groups and training loop, as ``open_clip_train.main`` puts them together."""

    def __init__(self, geometry: Geometry, batch: Batch, bf16: bool) -> None:
        vision = geometry.vision() | {"image_size": geometry.image_size}
        self.model = open_clip.CLIP(geometry.joint, vision, geometry.text(), output_dict=True)
        named = list(self.model.named_parameters())
        plain = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n]
        known = {id(p) for p in plain}
        groups = [
            {"params": plain, "weight_decay": 0.0},
            {"params": [p for _, p in named if id(p) not in known], "weight_decay": 0.2},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
        self.loss = ClipLoss()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        images = (batch.images.float() / 255 - mean) / std  # its loader normalizes; ours leaves that to the step
        loader = Loader(images, padded(batch.captions, 77, 0))
        self.data = {"train": Namespace(dataloader=loader, set_epoch=lambda epoch: None)}
        self.scheduler = cosine_lr(self.optimizer, 5e-4, 100, 10_000)
        self.args = Namespace(
            device="cpu",
            precision="amp_bf16" if bf16 else "fp32",
            distill=False,
            accum_freq=1,
            skip_scheduler=False,
            horovod=False,
            grad_clip_norm=None,
            log_every_n_steps=100,
            batch_size=len(images),
            world_size=1,
            rank=0,
            local_rank=0,
            log_local=False,
            wandb=False,
        )

    def forward_backward(self) -> None:
        """Without the optimizer, for counting operations."""
        images, texts = self.data["train"].dataloader.batch
        self.loss(**self.model(images, texts), output_dict=False).backward()
        self.optimizer.zero_grad()

    def step(self) -> None:
        """One step of its own loop."""
        train_one_epoch(self.model, self.data, self.loss, 0, self.optimizer, None, self.scheduler, None, self.args)

    @staticmethod
    def prepare() -> None:
        """PyTorch's default attention, as open_clip runs."""
        torch.backends.cuda.enable_flash_sdp(True)


def contenders(geometry: Geometry, batch: Batch, bf16: bool) -> dict[str, Any]:
    """All four, with fresh weights."""
    clip_batch = replace(batch)
    return {
        "open_clip CLIP": OpenClip(geometry, batch, bf16),
        "our CLIP": Ours(
            our_model(geometry, None, None), trained_loss(bf16, {"region": 0.0, "grounding": 0.0}), clip_batch, bf16
        ),
        "our CLOC": Ours(our_model(geometry, "SharedPrompter", "SpatialHead"), trained_loss(bf16, {}), batch, bf16),
        "naive CLOC": Ours(our_model(geometry, "PaperPrompter", "MlpHead"), naive_trained_loss(bf16), batch, bf16),
    }


def measure(found: dict[str, Any], rounds: int, warmup: int = 2) -> dict[str, float]:
    """Median seconds a step; the contenders take turns, so that a slow minute of the machine hits all."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for turn in counted(range(rounds + warmup), "measuring"):
        for name, contender in found.items():
            contender.prepare()
            start = time.perf_counter()
            contender.step()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def flops(contender: Any) -> int:
    """Floating-point operations of the matrix products of forward and backward."""
    contender.prepare()
    with FlopCounterMode(display=False) as counter:
        contender.forward_backward()
    contender.optimizer.zero_grad()
    return counter.get_total_flops()


def matmul_peak(bf16: bool, size: int = 2048, repeats: int = 9) -> float:
    """Floating-point operations a second of one large matrix product: the best of some."""
    kind = torch.bfloat16 if bf16 else torch.float32
    left, right = torch.randn(size, size).to(kind), torch.randn(size, size).to(kind)
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def cpu() -> str:
    """Model and the instruction sets that decide matrix products."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    wanted = [flag for flag in flags if flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")]
    return f"{platform.machine()}, {os.cpu_count()} cores, {' '.join(wanted)}"


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """The contract's ratios of times."""
    peer, clip, cloc, naive = (seconds[n] for n in ("open_clip CLIP", "our CLIP", "our CLOC", "naive CLOC"))
    return {
        "clip_over_open_clip_clip": clip / peer,
        "cloc_over_clip": cloc / clip,
        "cloc_over_open_clip_clip": cloc / peer,
        "naive_cloc_over_cloc": naive / cloc,
    }


def fast_precision() -> str:
    """``bf16`` where this processor computes it, ``fp32`` where it would only imitate it, 40 times slower."""
    return "bf16" if precision_of("auto", "cpu") == "bf16-mixed" else "fp32"


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m benchmarks.step")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--regions", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision", nargs="+", choices=["bf16", "fp32"], default=[*dict.fromkeys((fast_precision(), "fp32"))]
    )
    return parser


def main() -> None:
    """Measure, print the table and the JSON line."""
    options = make_parser().parse_args()
    logging.getLogger().setLevel(logging.WARNING)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    geometry, console = GEOMETRIES[options.geometry], Console()
    tokenizer = Tokenizer("open_clip", 77)
    batch = make_batch(options.batch, options.regions, geometry.image_size, tokenizer)
    longest = f"captions of {batch.captions.shape[1]} tokens, {len(batch.phrases)} distinct phrases"
    console.print(
        f"{geometry}\nbatch {options.batch}, M = {options.regions}, {longest}, {options.threads} threads, {cpu()}"
    )
    result: dict[str, Any] = {}
    for precision in options.precision:
        found = contenders(geometry, batch, precision == "bf16")
        counted = {name: flops(contender) for name, contender in found.items()}
        before = matmul_peak(precision == "bf16")
        seconds = measure(found, options.rounds)
        peak = max(before, matmul_peak(precision == "bf16"))
        del found
        table = Table(title=f"{precision}: {peak / 1e9:.0f} GFLOP/s matrix-multiply peak", title_justify="left")
        for column in ("step", "seconds", "over open_clip CLIP", "GFLOP", "share of peak"):
            table.add_column(column, justify="left" if column == "step" else "right")
        shares = {name: counted[name] / seconds[name] / peak for name in seconds}
        for name, value in seconds.items():
            over = value / seconds["open_clip CLIP"]
            table.add_row(name, f"{value:.3f}", f"{over:.2f}", f"{counted[name] / 1e9:.0f}", f"{shares[name]:.2f}")
        print_table(table, console)
        values = ratios(seconds) | {"matmul_peak_share": shares["our CLOC"]}
        values["open_clip_matmul_peak_share"] = shares["open_clip CLIP"]
        for name, value in values.items():
            console.print(f"  {name}: {value:.3f}", highlight=False)
        # bfloat16 is what the bars are about; the float32 figures stand beside it under their own names.
        first = precision == options.precision[0]
        result |= {name if first else f"{precision}_{name}": value for name, value in values.items()}
    print(json.dumps({name: round(value, 4) for name, value in result.items()} | {"geometry": options.geometry}))


if __name__ == "__main__":
    one_line(main)
