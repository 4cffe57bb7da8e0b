"""How alike two boxes of one picture are before any training, and how many parameters a Prompter has.

    python -m benchmarks.prompters data/openmoji/val --pictures 40

Each reading of the paper's Prompter, the other Prompters and heads of equal parameters stand behind the untrained image
tower of ``model=tiny``. Prints the mean cosine of the embeddings of the first two boxes of each picture, over several
draws of the head's weights, and the number of parameters (without grounding head); as its last line one JSON object.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import normalize

from cloc.config.docs import ROOT
from cloc.contracts import Sample
from cloc.data.decode import decode_rgb
from cloc.data.preprocess import Preprocess
from cloc.data.transforms import to_view
from cloc.evaluation.embed import open_source
from cloc.models.build import build_model
from cloc.models.model import Cloc
from cloc.models.prompter import PaperPrompter, RoiAlign, SharedPrompter
from cloc.usage import Parser, leave, one_line

Head = tuple[type[nn.Module], dict[str, Any]]


def heads() -> dict[str, Head]:
    """The Prompters that are compared, by the options of a command line."""
    found: dict[str, Head] = {}
    for average, positions, norm in product(*PaperPrompter.choices.values()):
        if positions != "learned":  # it starts as the fixed ones
            name = f"paper average={average} positions={positions} norm={norm}"
            found[name] = PaperPrompter, {"average": average, "positions": positions, "norm": norm}
    found["paper mlp_ratio=3"] = PaperPrompter, {"mlp_ratio": 3}
    found |= {"shared": (SharedPrompter, {}), "shared focus=null": (SharedPrompter, {"focus": None})}
    return found | {"roi_align": (RoiAlign, {}), "roi_align hidden=768": (RoiAlign, {"hidden": 768})}


def untrained() -> Cloc:
    """The tiny model with the demo's seed; its text tower is never asked."""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node: Any = OmegaConf.to_container(hydra.compose("train").model, resolve=True)
    torch.manual_seed(0)
    return build_model(node | {"prompter": None, "grounding": None}).eval()


def views(samples: list[Sample], size: int) -> tuple[Tensor, Tensor]:
    """Pictures ``[B,3,size,size]`` as the model sees them, and two boxes of each ``[B,2,4]``."""
    seen = [Preprocess()(decode_rgb(sample.image), size) for sample in samples]
    boxes = [torch.tensor([region.box for region in sample.regions[:2]]) for sample in samples]
    placed = [to_view(own, content) for own, (_, content) in zip(boxes, seen, strict=True)]
    return torch.stack([view for view, _ in seen]), torch.stack(placed)


@torch.no_grad()
def cosine(head: Head, shape: tuple[int, int, tuple[int, int]], tokens: Tensor, boxes: Tensor, draws: int) -> float:
    """Of the two boxes' embeddings: mean over pictures and draws of the head's weights."""
    kind, options = head
    found = []
    for seed in range(draws):
        torch.manual_seed(seed)
        prompter: Any = kind(*shape, **options)
        first, second = normalize(prompter.boxes(prompter.memory(tokens), boxes), dim=-1).unbind(1)
        found.append((first * second).sum(-1).mean())
    return torch.stack(found).mean().item()


def parameters(head: Head, shape: tuple[int, int, tuple[int, int]]) -> int:
    """Number of a Prompter's weights."""
    return sum(one.numel() for one in head[0](*shape, **head[1]).parameters())


def make_parser() -> Parser:
    """Its options."""
    parser = Parser(__doc__, "python -m benchmarks.prompters")
    parser.add_argument("shards", type=Path, help="folder of shards with two boxes a picture or more")
    parser.add_argument("--pictures", type=int, default=40, help="at most so many (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=3, help="of a head's weights (default: %(default)s)")
    return parser


def main() -> None:
    """Measure, print the table and the JSON line."""
    options = make_parser().parse_args()
    if min(options.pictures, options.draws) < 1:
        leave("--pictures and --draws must be at least 1", "python -m benchmarks.prompters")
    data = open_source(options.shards)
    read = (data.read(index) for index in range(min(options.pictures, data.count)))
    samples = [sample for sample in read if len(sample.regions) > 1]
    if not samples:
        leave(f"{options.shards}: no picture with two boxes", "python -m benchmarks.prompters")
    model = untrained()
    pictures, boxes = views(samples, model.image.image_size)
    with torch.no_grad():
        tokens = model.encode_images(pictures).tokens
    shape = (tokens.shape[-1], model.image.joint_dim, model.grid)
    table, found = Table(title=f"two boxes of each of {len(samples)} pictures, before any training"), {}
    for column in ("model.prompter", "cosine", "parameters"):
        table.add_column(column, justify="left" if column == "model.prompter" else "right")
    for name, head in heads().items():
        found[name] = {"cosine": round(cosine(head, shape, tokens, boxes, options.draws), 4)}
        found[name]["parameters"] = parameters(head, shape)
        table.add_row(name, f"{found[name]['cosine']:.4f}", f"{found[name]['parameters']:,}")
    Console().print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    one_line(main)
