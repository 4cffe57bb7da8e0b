"""``python -m cloc embed``: embeddings of one's own pictures as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloc.command import continued
from cloc.commands.shared import RUN, TrustOption
from cloc.usage import epilog

app = typer.Typer()


@app.command(
    "embed",
    epilog=epilog(
        f"python -m cloc embed {RUN} data/mine/val embeddings",
        f"python -m cloc embed {RUN} photos embeddings --format parquet",
        f"torchrun --nproc-per-node=8 -m cloc embed {RUN} data/mine/val OUT",
    ),
)
def embed_command(
    run: Annotated[str, typer.Argument(help="Run, checkpoint, export, CLIP folder, or open_clip:ARCH:WEIGHTS.")],
    data: Annotated[Path, typer.Argument(help="Folder of shards or of pictures, or a COCO annotation file.")],
    out: Annotated[Path, typer.Argument(help="Folder of the results; the same command goes on where it stopped.")],
    format: Annotated[str, typer.Option(help="npz, or parquet (needs the extra `parquet`).")] = "npz",
    source: Annotated[str, typer.Option(help="Of box embeddings; the model's first by default.")] = "",
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures of a COCO file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …; each of several processes its own GPU.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16; auto: bfloat16 on a GPU that computes it, else float32.")
    ] = "auto",
    trust: TrustOption = None,
) -> None:
    """Write embeddings of pictures, boxes and texts. Several processes: torchrun -m cloc embed …."""
    from cloc.config import find_class
    from cloc.evaluation.embed import embed

    trusted = [find_class(name, "--trust") for name in trust or ()]
    with continued():
        embed(run, data, out, format, source, device, images, trusted, precision)
