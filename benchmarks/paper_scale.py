"""The paper calculation of docs/scaling.md: memory, traffic and step time of one GPU at the paper's batch.

    python -m benchmarks.scaling paper

Parameters and FLOPs are counted on the real modules (on PyTorch's meta device, so that nothing is computed); the rest
follows the formulas of docs/scaling.md. Hardware and text lengths are assumptions, stated below.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from cloc.console import print_table

ROOT = Path(__file__).resolve().parent.parent

BATCH, REGIONS = 32_768, 4
CAPTION, PHRASE = 32, 8  # tokens of the longest text of a process's batch, after trimming
GPU_MEMORY, GPU_PEAK, UTILIZATION = 80e9, 989e12, 0.4  # H100 SXM: bytes, dense bfloat16 FLOP/s; share that is reached
LINK = 50e9  # bytes/s a GPU sends and receives between nodes (400 Gbit/s)
WORLDS = (8, 16, 32, 64, 128, 256, 512, 1024)
console = Console()


@dataclass(frozen=True)
class Counted:
    """What is counted on a model.

    Attributes:
        parameters: all of them.
        blocks: of those, in transformer blocks (what FSDP2 gathers and frees one block at a time).
        largest_block: of one of these.
        image, caption, phrase, prompts: forward FLOPs of one picture, caption, phrase, and of a picture's prompts.
        activations: bytes that one picture with its texts leaves for backward.
        inputs: bytes of the inputs of its blocks, which is what recomputation keeps.
        depth: blocks of the image tower; recomputation holds the activations of one block at a time.
        joint_dim: D.
    """

    parameters: int
    blocks: int
    largest_block: int
    image: float
    caption: float
    phrase: float
    prompts: float
    activations: float
    inputs: float
    depth: int
    joint_dim: int

    @property
    def sample(self) -> float:
        """Forward FLOPs of a picture, its caption and M phrases, none of which are shared."""
        return self.image + self.caption + REGIONS * self.phrase + self.prompts


def count(name: str) -> Counted:
    """Count a model of ``conf/model``."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from cloc.models.build import build_model
    from cloc.models.protocols import blocks

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [f"model={name}", "name=x", "samples=1", "batch_size=1", "data.train=x"])
    with torch.device("meta"):
        model = build_model(OmegaConf.to_container(config.model), pretrained=False)
        side = model.image.image_size
        pictures = torch.zeros(1, 3, side, side)
        texts = {length: torch.zeros(1, length, dtype=torch.int64) for length in (CAPTION, PHRASE)}
        tokens = torch.zeros(1, model.grid[0] * model.grid[1], model.image.width)
        boxes, phrases = torch.zeros(1, REGIONS, 4), torch.zeros(1, REGIONS, config.model.joint_dim)

    def flops(function: object) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            function()
        return counter.get_total_flops()

    def prompts() -> None:
        memory = model.prompter.memory(tokens)
        model.prompter.boxes(memory, boxes)
        states = model.prompter.phrases(memory, phrases)
        local = model.prompter.local(memory)
        model.grounding.token_box(tokens)
        model.grounding.correction(torch.cat([states, boxes], -1))
        phrases @ local.transpose(1, 2)

    stacks = [blocks(model.image), blocks(model.text)]
    sizes = [sum(p.numel() for p in block.parameters()) for stack in stacks for block in stack]
    widths = [model.image.width, model.text.tower.ln_final.normalized_shape[0]]
    seen = [tokens.shape[1] + 1, CAPTION + REGIONS * PHRASE]
    # 34 bytes a token, channel and block at bfloat16 with fused attention (Korthikanti et al., arXiv 2205.05198); 2 of
    # them are the block's input.
    cells = sum(length * width * len(stack) for length, width, stack in zip(seen, widths, stacks, strict=True))
    return Counted(
        parameters=sum(p.numel() for p in model.parameters()),
        blocks=sum(sizes),
        largest_block=max(sizes),
        image=flops(lambda: model.image(pictures)),
        caption=flops(lambda: model.text(texts[CAPTION])),
        phrase=flops(lambda: model.text(texts[PHRASE])),
        prompts=flops(prompts),
        activations=34 * cells,
        inputs=2 * cells,
        depth=len(stacks[0]),
        joint_dim=config.model.joint_dim,
    )


def plan(model: Counted, world: int) -> dict[str, float]:
    """One GPU of ``world``: gigabytes and milliseconds."""
    local, share = BATCH // world, (world - 1) / world
    columns = BATCH * (1 + REGIONS)  # texts travel, pictures and regions stay
    features = 4 * model.joint_dim * columns
    pairs = local * BATCH + (local * REGIONS) * (BATCH * REGIONS)  # a tile serves both directions
    loss = 4 * 2 * model.joint_dim * pairs  # forward, once more in backward, and two products of gradients
    speed = GPU_PEAK * UTILIZATION
    towers = 3 * local * model.sample
    rest = model.parameters - model.blocks
    return {
        "pictures": local,
        "ddp_state": 16 * model.parameters / 1e9,
        "fsdp_state": (16 * model.parameters / world + 8 * rest + 8 * model.largest_block) / 1e9,
        "features": 2 * features / 1e9,  # the gathered columns, and their gradient
        "activations": local * model.activations / 1e9,
        "recomputed": local * (model.inputs + model.activations / model.depth) / 1e9,
        "ddp_traffic": 2 * share * 4 * model.parameters / 1e9,
        "fsdp_traffic": 3 * share * 4 * model.parameters / 1e9,
        "feature_traffic": 2 * share * features / 1e9,
        "towers_ms": towers / speed * 1e3,
        "loss_ms": loss / speed * 1e3,
        "gradients_ms": 2 * share * 4 * model.parameters / LINK * 1e3,
        "features_ms": 2 * share * features / LINK * 1e3,
    }


def main() -> None:
    """Print the tables; the last line is one JSON object."""
    found = {}
    for name in ("vit_b16", "vit_l14"):
        model = count(name)
        rows = {world: plan(model, world) for world in WORLDS}
        found[name] = {"counted": asdict(model), "plan": rows}
        parts = {"picture": model.image, "caption": model.caption, "phrase": model.phrase, "prompts": model.prompts}
        costs = ", ".join(f"{part} {value / 1e9:.1f}" for part, value in parts.items())
        console.print(
            f"[bold]{name}[/]: {model.parameters / 1e6:.0f} M parameters, {model.blocks / 1e6:.0f} M in blocks; "
            f"forward GFLOP: {costs} ({2 * REGIONS} a picture); activations {model.activations / 1e6:.0f} MB a picture",
            highlight=False,
        )
        for title, columns in (
            ("memory of a GPU, GB", ("ddp_state", "fsdp_state", "features", "activations", "recomputed")),
            ("sent by a GPU a step, GB", ("ddp_traffic", "fsdp_traffic", "feature_traffic")),
            ("a step, ms", ("towers_ms", "loss_ms", "gradients_ms", "features_ms", "step_ms")),
        ):
            table = Table(title=title, title_justify="left")
            table.add_column("GPUs", justify="right")
            table.add_column("pictures each", justify="right")
            for column in columns:
                table.add_column(column.removesuffix("_ms"), justify="right")
            for world, row in rows.items():
                # Gradients travel while backward computes, which is two thirds of the towers' time; features do not.
                row["step_ms"] = row["towers_ms"] + row["loss_ms"] + row["features_ms"]
                row["step_ms"] += max(0.0, row["gradients_ms"] - row["towers_ms"] * 2 / 3)
                table.add_row(str(world), str(row["pictures"]), *(f"{row[column]:,.1f}" for column in columns))
            print_table(table, console)
    print(json.dumps({name: values["counted"] for name, values in found.items()}))
