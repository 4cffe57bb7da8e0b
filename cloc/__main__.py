"""``python -m cloc``: the commands beside training and evaluation.

Stands outside of ``data → models → losses → evaluation → engine`` and wires a command line to it. No logic lives here,
and heavy modules are imported where a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Localized contrastive pretraining: what goes before and after a run.", no_args_is_help=True)
data_app = typer.Typer(help="Make, check and look at shards.", no_args_is_help=True)
app.add_typer(data_app, name="data")
export_app = typer.Typer(help="Write a trained model for other libraries, with proof of parity.", no_args_is_help=True)
app.add_typer(export_app, name="export")


@app.callback()
def _logging() -> None:
    import logging

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")


@data_app.command("convert")
def data_convert(
    format: Annotated[str, typer.Argument(help="openmoji, jsonl or coco.")],
    paths: Annotated[list[Path], typer.Argument(help="SOURCE OUT, or OUT alone for openmoji.", metavar="[SOURCE] OUT")],
    split: Annotated[str, typer.Option(help="coco: the split, which names the picture folder.")] = "val2017",
    images: Annotated[Path | None, typer.Option(help="jsonl: folder that picture paths are relative to.")] = None,
    train: Annotated[int, typer.Option(help="openmoji: training scenes.")] = 20_000,
    val: Annotated[int, typer.Option(help="openmoji: validation scenes.")] = 1_000,
    test: Annotated[int, typer.Option(help="openmoji: test scenes.")] = 1_000,
    relation_sets: Annotated[int, typer.Option(help="openmoji: sets of the relation benchmark.")] = 100,
    image_size: Annotated[int, typer.Option(help="openmoji: side of a picture in pixels.")] = 64,
    sprite_min: Annotated[int, typer.Option(help="openmoji: smallest thing in pixels.")] = 12,
    sprite_max: Annotated[int, typer.Option(help="openmoji: largest thing in pixels.")] = 24,
    kinds: Annotated[int, typer.Option(help="openmoji: different things.")] = 144,
    seed: Annotated[int, typer.Option(help="openmoji: number of the data set.")] = 0,
    workers: Annotated[int, typer.Option(help="openmoji: processes that draw.")] = 1,
    samples_per_shard: Annotated[int, typer.Option(help="Samples of every shard but the last.")] = 1000,
    max_skip_share: Annotated[float, typer.Option(help="Share of records that may be left out.")] = 0.01,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the shards of OUT.")] = False,
) -> None:
    """Write a data set as shards with a manifest."""
    needed = 1 if format == "openmoji" else 2
    if len(paths) != needed:
        wanted = "OUT" if needed == 1 else "SOURCE OUT"
        raise ValueError(f"format {format!r} takes {wanted}, not {len(paths)} paths")
    from cloc.data.convert import convert

    options: dict[str, object] = {"split": split} if format == "coco" else {}
    if format == "jsonl":
        options = {"images": images}
    if format == "openmoji":
        options = {"train": train, "val": val, "test": test, "relation_sets": relation_sets, "image_size": image_size}
        options |= {"sprite": (sprite_min, sprite_max), "kinds": kinds, "seed": seed, "workers": workers}
    source = paths[0] if needed == 2 else None
    common = {"samples_per_shard": samples_per_shard, "max_skip_share": max_skip_share, "overwrite": overwrite}
    convert(format, source, paths[-1], **common, **options)


@data_app.command("check")
def data_check(folder: Annotated[Path, typer.Argument(help="Folder of shards.")]) -> None:
    """Read and decode every sample, print statistics and faults, and write the manifest where it is missing."""
    from cloc.data.inspect import check, print_check

    result = check(folder)
    print_check(result)
    if not result.ok:
        raise typer.Exit(1)


@data_app.command("show")
def data_show(
    folder: Annotated[Path, typer.Argument(help="Folder of shards.")],
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("samples.png"),
    count: Annotated[int, typer.Option(help="Pictures on the sheet.")] = 16,
    seed: Annotated[int, typer.Option(help="Another seed shows other samples.")] = 0,
) -> None:
    """Draw a sheet of samples with their boxes and phrases."""
    from cloc.data.inspect import show

    typer.echo(f"wrote {show(folder, out, count=count, seed=seed)}")


RunArgument = Annotated[Path, typer.Argument(help="Run folder, checkpoint, or exported folder.", metavar="RUN")]
OutArgument = Annotated[Path, typer.Argument(help="Folder to make; absent or empty.", metavar="OUT")]
PicturesOption = Annotated[
    Path | None, typer.Option(help="Folder of pictures to compare on, besides the generated ones.")
]


@export_app.command("hf")
def export_hf(run: RunArgument, out: OutArgument, pictures: PicturesOption = None) -> None:
    """CLIPModel folder of Hugging Face transformers, with a CLIPVisionModel in vision/."""
    _export("hf", run, out, pictures)


@export_app.command("open_clip")
def export_open_clip(run: RunArgument, out: OutArgument, pictures: PicturesOption = None) -> None:
    """Folder for open_clip's local-dir: names."""
    _export("open_clip", run, out, pictures)


@export_app.command("timm")
def export_timm(run: RunArgument, out: OutArgument, pictures: PicturesOption = None) -> None:
    """Folder for timm's local-dir: names: the backbone alone."""
    _export("timm", run, out, pictures)


@export_app.command("onnx")
def export_onnx(run: RunArgument, out: OutArgument, pictures: PicturesOption = None) -> None:
    """ONNX graphs of image tower, text tower, Prompter and grounding head."""
    _export("onnx", run, out, pictures)


def _export(format: str, run: Path, out: Path, pictures: Path | None) -> None:
    from cloc.export.run import export

    typer.echo(f"wrote {export(format, run, out, pictures)}")


def main() -> None:
    """Run the command line; what the user can mend prints as one line, with exit code 1."""
    try:
        app()
    except (ValueError, FileNotFoundError, ImportError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
