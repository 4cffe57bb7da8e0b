"""``python -m cloc embed``: embeddings of one's own pictures as files; ``search``: what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloc.command import continued
from cloc.commands.shared import RUN, TrustOption
from cloc.usage import epilog

app = typer.Typer()

DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, …; each of several processes its own GPU.")]


@app.command(
    "embed",
    epilog=epilog(
        f"python -m cloc embed {RUN} data/mine/val embeddings",
        f"python -m cloc embed {RUN} photos index --phrases 'a dog,a car'",
        f"python -m cloc embed {RUN} photos index --grid 1,2,4",
        f"torchrun --nproc-per-node=8 -m cloc embed {RUN} data/mine/val OUT",
    ),
)
def embed_command(
    run: Annotated[str, typer.Argument(help="Run, checkpoint, export, CLIP folder, or open_clip:ARCH:WEIGHTS.")],
    data: Annotated[Path, typer.Argument(help="Folder of shards or of pictures, or a COCO annotation file.")],
    out: Annotated[Path, typer.Argument(help="Folder of the results; the same command goes on where it stopped.")],
    phrases: Annotated[
        str | None,
        typer.Option(help="Regions: each phrase, found in each picture. 'a dog,a red car', or a .txt of lines."),
    ] = None,
    grid: Annotated[
        str | None, typer.Option(help="Regions: cells. 3x2 is 3 columns of 2; 1,2,4 is three grids.")
    ] = None,
    top: Annotated[int, typer.Option(help="Most boxes of phrases a picture.")] = 10,
    min_score: Annotated[float, typer.Option(help="Leave out boxes that fit their phrase less.")] = -1.0,
    overlap: Annotated[float, typer.Option(help="Of two regions that overlap more (IoU) keep one.")] = 0.9,
    format: Annotated[str, typer.Option(help="npz, or parquet (needs the extra `parquet`).")] = "npz",
    index: Annotated[str, typer.Option(help="exact, or usearch: a graph for millions (extra `search`).")] = "exact",
    source: Annotated[
        str,
        typer.Option(help="Of boxes: prompter, roi_align, mask_pool, crop, native; the model's first by default."),
    ] = "",
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures of a COCO file.")] = None,
    max_skip_share: Annotated[float, typer.Option(help="Share of pictures that may be unreadable.")] = 0.1,
    device: DeviceOption = "auto",
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16; auto: bfloat16 on a GPU that computes it, else float32.")
    ] = "auto",
    trust: TrustOption = None,
) -> None:
    """Write embeddings of pictures, boxes and texts. Several processes: torchrun -m cloc embed …."""
    from cloc.config import find_class
    from cloc.evaluation.embed import RegionChoice, embed
    from cloc.evaluation.embed.regions import parse_grid, read_phrases

    trusted = [find_class(name, "--trust") for name in trust or ()]
    named = () if phrases is None else read_phrases(phrases)
    cells = () if grid is None else parse_grid(grid)
    regions = RegionChoice(named, cells, top, min_score, overlap)
    with continued():
        embed(run, data, out, format, source, device, images, trusted, precision, regions, index, max_skip_share)


@app.command(
    "search",
    epilog=epilog(
        'python -m cloc search index "a brown dog"',
        'python -m cloc search index "a dog" "a red car" --out found.html',
        "python -m cloc search index --picture rex.jpg --box 0.1,0.2,0.6,0.9",
        'python -m cloc search index "a dog" --kind regions --json -',
    ),
)
def search_command(
    index: Annotated[Path, typer.Argument(help="Folder that embed wrote.")],
    queries: Annotated[list[str] | None, typer.Argument(help="Texts to search for.", metavar="[TEXT …]")] = None,
    picture: Annotated[list[Path] | None, typer.Option(help="Search for what is like a picture; once or more.")] = None,
    box: Annotated[
        list[str] | None, typer.Option(help="Of the picture: x0,y0,x1,y1 in 0..1; once or more.", metavar="BOX")
    ] = None,
    kind: Annotated[str, typer.Option(help="images, regions, or both.")] = "both",
    count: Annotated[int, typer.Option(help="Pictures of a query at most.")] = 10,
    min_score: Annotated[float, typer.Option(help="Leave out what is less like the query (cosine).")] = -1.0,
    out: Annotated[
        list[Path] | None, typer.Option(help="Contact sheet, .png or .html; once or more; found.png by default.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="File for what was found; - prints it, in place of table and sheet.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Where the pictures (or shards) are now.")] = None,
    model: Annotated[str, typer.Option(help="Where the model of the index is now.")] = "",
    graph: Annotated[
        bool, typer.Option("--graph", help="Ask usearch's graphs (embed --index usearch), not all rows.")
    ] = False,
    device: DeviceOption = "auto",
    trust: TrustOption = None,
) -> None:
    """Find pictures and boxes by a text, a picture or a box; print them and draw a contact sheet.

    Exit code 1 also where no query finds anything.
    """
    from cloc.config import find_class
    from cloc.evaluation.search import Options, parse_box, search

    trusted = tuple(find_class(name, "--trust") for name in trust or ())
    sheets = tuple(out or ([] if json == Path("-") else [Path("found.png")]))
    options = Options(kind, count, min_score, graph, sheets, json, images, model, device, trusted)
    found = search(index, queries or (), picture or (), [parse_box(one) for one in box or ()], options)
    if not any(one.looks for one in found):
        raise typer.Exit(1)
