"""Embedding boxes with the Prompter against cutting them out and encoding each as a picture.

    python -m benchmarks.regions                                   # ViT-B/16 at 224 px, 10 boxes a picture
    python -m benchmarks.regions --image-size 64 --width 128 --layers 2 --pictures 8

Both ways answer the same boxes of the same pictures with one model, from decoded pictures to unit embeddings, in turn:
the Prompter runs the image tower once a picture and prompts it with its boxes; crop-and-encode resizes every box and
runs the tower for each. Prints regions a second and, as its last line, one JSON object.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
from rich.table import Table
from torch import Tensor

from cloc.console import counted, print_table
from cloc.encoder import Encoder
from cloc.models.build import build_model
from cloc.usage import Parser, one_line

WAYS = ("prompter", "roi_align", "crop")


def make_encoder(image_size: int, patch: int, width: int, layers: int, prompter: str) -> Encoder:
    """A model with random weights: the time does not depend on what they are."""
    vision = {"width": width, "layers": layers, "patch_size": patch, "head_width": min(64, width)}
    config = {
        "joint_dim": 512,
        "image": {"_target_": "cloc.models.image.OpenClipTower", "image_size": image_size, "options": vision},
        "text": {"_target_": "cloc.models.text.ClipText", "options": {"width": 64, "heads": 2, "layers": 1}},
        "prompter": {"_target_": f"cloc.models.prompter.{prompter}"},
    }
    return Encoder(build_model(config), {}, "cuda" if torch.cuda.is_available() else "cpu")


def make_task(pictures: int, boxes: int, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Pictures of COCO's usual size and boxes of all sizes."""
    images = [torch.randint(0, 255, (3, 480, 640), dtype=torch.uint8, generator=generator) for _ in range(pictures)]
    corners = [torch.rand(boxes, 4, generator=generator) * 0.45 for _ in range(pictures)]
    return images, [torch.cat([rows[:, :2], rows[:, :2] + 0.05 + rows[:, 2:]], 1) for rows in corners]


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call, the device's work included."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(encoder: Encoder, images: list[Tensor], boxes: list[Tensor], rounds: int) -> dict[str, float]:
    """Median seconds of each way, in turn after a round to warm up."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in counted(range(rounds + 1), "measuring"):
        for way in WAYS:
            spent = seconds(lambda way=way: encoder.encode_regions(images, boxes, way))
            if turn:
                found[way].append(spent)
    return {way: statistics.median(times) for way, times in found.items()}


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m benchmarks.regions")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--boxes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompter", choices=["SharedPrompter", "PaperPrompter"], default="SharedPrompter")
    return parser


def main() -> None:
    """Measure, print the table and the JSON line."""
    options = make_parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    encoder = make_encoder(options.image_size, options.patch, options.width, options.layers, options.prompter)
    images, boxes = make_task(options.pictures, options.boxes, torch.Generator().manual_seed(0))
    times = measure(encoder, images, boxes, options.rounds)
    regions = options.pictures * options.boxes
    table = Table(
        title=f"{regions} boxes of {options.pictures} pictures, ViT {options.width}×{options.layers} at "
        f"{options.image_size} px, {options.prompter}, {options.threads} threads",
        title_justify="left",
    )
    for column in ("way", "seconds", "regions/s", "over crop"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, spent in times.items():
        table.add_row(way, f"{spent:.3f}", f"{regions / spent:.1f}", f"{times['crop'] / spent:.2f}")
    print_table(table)
    result = {f"{way}_over_crop": round(times["crop"] / times[way], 3) for way in WAYS if way != "crop"}
    rates = {f"{way}_regions_per_second": round(regions / spent, 2) for way, spent in times.items()}
    print(json.dumps(result | rates))


if __name__ == "__main__":
    one_line(main)
