"""``python -m cloc data``: make, check and look at shards."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from cloc.command import continued
from cloc.commands import convert
from cloc.commands.shared import SHARDS, group, train_on
from cloc.usage import epilog, opening, print_next

app = group("data", "Make, check and look at shards.", f"check {SHARDS}")
convert.add_to(app)


@app.command(
    "index",
    epilog=epilog(
        f"python -m cloc data index {SHARDS} --workers 8",
        f"python -m cloc data index {SHARDS} --part 3/16   # and 1/16, 2/16, … on other machines, at any time",
    ),
)
def data_index(
    folder: Annotated[Path, typer.Argument(help="Folder of shards.")],
    part: Annotated[str, typer.Option(help="i/N: a share of the shards, from 1/N to N/N.", metavar="i/N")] = "1/1",
    workers: Annotated[int, typer.Option(help="Processes that read.", min=1)] = 1,
) -> None:
    """Write manifest.json and manifest.offsets, by one machine or in parts by many; the bytes are the same.

    What is done is not done again while its shards stay as they are; the last part to be done writes the index.
    """
    from cloc.data.jobs.shard_index import Part, index

    with continued():
        done = index(folder, Part.parse(part), workers=workers)
    typer.echo(done.told)
    print_next(
        *(done.next or [shlex.join(["python", "-m", "cloc", "data", "check", str(folder)]), train_on(str(folder))])
    )


@app.command(
    "check",
    epilog=epilog(
        f"python -m cloc data check {SHARDS} --workers 8",
        f"python -m cloc data check {SHARDS} --against data/mine/val",
        f"python -m cloc data check {SHARDS} --fix data/mine/clean",
    ),
)
def data_check(
    folder: Annotated[Path, typer.Argument(help="Folder of shards.")],
    workers: Annotated[int, typer.Option(help="Processes that read and decode.", min=1)] = 1,
    against: Annotated[
        Path | None, typer.Option(help="Another set: find pictures and texts in both.", metavar="OTHER")
    ] = None,
    fix: Annotated[Path | None, typer.Option(help="Folder for a copy without what is wrong.", metavar="OUT")] = None,
    index: Annotated[bool, typer.Option(help="Write manifest.json where it is missing.")] = True,
    max_drop_share: Annotated[float, typer.Option(help="Share of regions that may be unusable.")] = 0.1,
    json: Annotated[
        Path | None, typer.Option(help="File for all that was found; - prints it in place of the table.")
    ] = None,
) -> None:
    """Read and decode every sample; print statistics and faults; write the manifest where it is missing.

    Exit code 1 for a broken shard, a bad sample, a key that comes twice, too many unusable regions, boxes of another
    order or unit, or a picture that --against has too.
    """
    from json import dumps

    from cloc.data.inspect.check import check
    from cloc.data.inspect.check_report import next_commands, print_check, to_json
    from cloc.files import write_file

    to_stdout = json == Path("-")
    if json is not None and not to_stdout and (json.is_dir() or not json.absolute().parent.is_dir()):
        raise ValueError(f"--json {json}: no file can be written there; make its folder")
    found = check(folder, workers=workers, against=against, fix=fix, index=index, max_drop_share=max_drop_share)
    if not to_stdout:
        print_check(found)
    if json is not None:
        text = dumps(to_json(found), ensure_ascii=False, indent=1)
        text = text.encode("utf-8", "backslashreplace").decode()  # of lone surrogates, JSON's own escapes
        typer.echo(text) if to_stdout else write_file(json, text + "\n")
    if not to_stdout:
        print_next(*next_commands(found, train_on(str(folder))))
    if not found.ok:
        raise typer.Exit(1)


@app.command(
    "split",
    epilog=epilog(
        "python -m cloc data split data/all data/mine --val 0.1",
        "python -m cloc data split data/all data/mine --val 0.05 --test 0.05 --seed 1 --workers 8",
    ),
)
def data_split(
    source: Annotated[Path, typer.Argument(help="Folder of shards.")],
    out: Annotated[Path, typer.Argument(help="Folder to write: OUT/train, OUT/val, OUT/test.")],
    val: Annotated[float, typer.Option(help="Share of the samples for validation.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the samples for a test set; none where 0.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Another seed draws other pictures.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes; the result is the same for any number.", min=1)] = 1,
    samples_per_shard: Annotated[int, typer.Option(help="Samples of every shard but the last.", min=1)] = 1000,
    max_skip_share: Annotated[float, typer.Option(help="Share of samples that may be unusable.")] = 0.01,
    max_drop_share: Annotated[float, typer.Option(help="Share of regions that may be unusable.")] = 0.1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what OUT holds.")] = False,
) -> None:
    """Part shards into train, val and test by picture. Interrupted while writing, the same command continues.

    Samples of the same picture stay together, also where it was resized or compressed anew.
    """
    from cloc.data.inspect.split import print_split, split

    limits: dict[str, Any] = {"max_skip_share": max_skip_share, "max_drop_share": max_drop_share}
    limits |= {"samples_per_shard": samples_per_shard, "overwrite": overwrite}
    with continued():
        done = split(source, out, val=val, test=test, seed=seed, workers=workers, **limits)
    print_split(done)
    train, held_out = str(out / "train"), str(out / "val")
    print_next(shlex.join(["python", "-m", "cloc", "data", "check", train, "--against", held_out]), train_on(train))


@app.command(
    "negatives",
    epilog=epilog(
        "python -m cloc data negatives data/mine/train data/mine_negatives/train",
        "python -m cloc data negatives data/mine/val data/mine_negatives/val --per-region 5 --seed 1 --workers 8",
    ),
)
def data_negatives(
    source: Annotated[Path, typer.Argument(help="Folder of shards.", metavar="FOLDER")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    per_region: Annotated[int, typer.Option(help="Texts for each region, at most.")] = 10,
    seed: Annotated[int, typer.Option(help="Another seed draws other texts.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes; the result is the same for any number.", min=1)] = 1,
    max_skip_share: Annotated[float, typer.Option(help="Share of samples that may be unusable.")] = 0.01,
    max_drop_share: Annotated[float, typer.Option(help="Share of regions that may be unusable.")] = 0.1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what OUT holds.")] = False,
) -> None:
    """Write shards again with hard negative texts: each region's phrases with one thing or attribute exchanged.

    English phrases, by word lists (docs/shards.md). Interrupted while writing, the same command continues.
    """
    from cloc.data.negatives.job import add_negatives, print_negatives

    limits: dict[str, Any] = {"max_skip_share": max_skip_share, "max_drop_share": max_drop_share}
    with continued():
        done = add_negatives(
            source, out, per_region=per_region, seed=seed, workers=workers, overwrite=overwrite, **limits
        )
    print_negatives(done)
    show = ["python", "-m", "cloc", "data", "show", str(out), "--out", "negatives.html"]
    print_next(shlex.join(show), train_on(str(out), "data.negatives=10"))


OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Keys of data as for train.py: crop=0.4 flip=0.5 regions=8 …", metavar="[KEY=VALUE …]"),
]
ImageSizeOption = Annotated[int, typer.Option(help="Side of the view in pixels.", min=1)]


@app.command(
    "show",
    epilog=epilog(
        f"python -m cloc data show {SHARDS} --out samples.html",
        f"python -m cloc data show {SHARDS} crop=0.4 flip=0.5 --view --count 32",
    ),
)
def data_show(
    folder: Annotated[Path, typer.Argument(help="Folder of shards.")],
    overrides: OverridesArgument = None,
    out: Annotated[Path, typer.Option(help="File to write, .png or .html.")] = Path("samples.png"),
    count: Annotated[int, typer.Option(help="Samples to show.", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Another seed shows other samples, and draws other regions.")] = 0,
    view: Annotated[bool, typer.Option("--view", help="Also show what a model is given.")] = False,
    image_size: ImageSizeOption = 224,
) -> None:
    """Draw samples with their boxes and phrases, on a sheet (.png) or a page (.html)."""
    if overrides and not view:
        raise ValueError(f"{' '.join(overrides)}: these change the view; add --view")
    from cloc.config import data_config
    from cloc.data.inspect.show import show
    from cloc.data.stream.region_sampling import make_chooser

    chooser = make_chooser(data_config(overrides or []), image_size) if view else None
    typer.echo(f"wrote {show(folder, out, count=count, seed=seed, chooser=chooser)}")
    print_next(opening(out), train_on(str(folder), *(overrides or ())))


@app.command("bench", epilog=epilog(f"python -m cloc data bench {SHARDS} crop=0.4 --workers 2"))
def data_bench(
    folder: Annotated[Path, typer.Argument(help="Folder of shards.")],
    overrides: OverridesArgument = None,
    samples: Annotated[int, typer.Option(help="To measure with.", min=1)] = 2048,
    batch_size: Annotated[int, typer.Option(help="Samples of a batch.", min=1)] = 64,
    workers: Annotated[int, typer.Option(help="Reading processes of the stream; 0 reads in this one.", min=0)] = 1,
    image_size: ImageSizeOption = 224,
    tokenizer: Annotated[str, typer.Option(help="As model.text.tokenizer.")] = "open_clip",
) -> None:
    """Measure samples a second, and where the time goes."""
    from cloc.config import data_config
    from cloc.data.inspect.bench import bench, print_bench
    from cloc.data.stream.region_sampling import make_chooser
    from cloc.data.tokenizer import Tokenizer

    chooser = make_chooser(data_config(overrides or []), image_size)
    options = {"samples": samples, "batch_size": batch_size, "workers": workers}
    print_bench(bench(folder, chooser, tokenizer=Tokenizer(tokenizer), **options))
    print_next(train_on(str(folder), *(overrides or ()), f"workers={workers}"))
