"""``python -m cloc``: the commands beside training and evaluation.

Stands outside of ``data → models → losses → evaluation → engine`` and wires a command line to it. No logic lives here,
and heavy modules are imported where a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import shlex
import sys

from cloc.command import continued, prepare, run

if __name__ == "__main__":
    prepare()  # before the imports that take time

import inspect  # noqa: E402
from functools import cache  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any  # noqa: E402

import typer  # noqa: E402
from typer.core import TyperCommand, TyperGroup  # noqa: E402

from cloc.usage import OneLineErrors, epilog, one_line, opening, override, print_next, refuse_several  # noqa: E402

RUN, SHARDS = "runs/demo/cloc", "data/mine/train"  # of the examples


class _Commands(OneLineErrors, TyperGroup):
    """All commands; a command line that cannot be read is one line, with exit code 1."""


def _group(name: str, help: str, example: str) -> typer.Typer:
    """Add a group of commands."""
    made = typer.Typer(help=help, no_args_is_help=True, epilog=epilog(f"python -m cloc {name} {example}"))
    app.add_typer(made, name=name)
    return made


app = typer.Typer(
    cls=_Commands,
    help="Localized contrastive pretraining: what goes before and after a run. Training is `python train.py`, "
    "measuring `python eval.py`.",
    no_args_is_help=True,
    epilog=epilog("python -m cloc data convert openmoji data/openmoji", f"python -m cloc embed {RUN} photos OUT"),
    pretty_exceptions_show_locals=False,  # they may be secrets
)
data_app = _group("data", "Make, check and look at shards.", f"check {SHARDS}")
export_app = _group("export", "Write a trained model for other libraries, with proof of parity.", f"hf {RUN} OUT")
sweep_app = _group("sweep", "Look at what `train.py -m` trained.", "report runs/sweeps/weights")


SHARED = {"embed"}  # commands whose work several processes share


@app.callback()
def _begin(context: typer.Context) -> None:
    import logging

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    # Who names a part (--part 3/8) does one of several on purpose, maybe as a task of srun.
    if context.invoked_subcommand not in SHARED and not any(one.startswith(("--part", "--help")) for one in sys.argv):
        refuse_several(f"python -m cloc {context.invoked_subcommand}")


@cache
def _format_options() -> list[Any]:
    """Options of the formats of ``data convert``, as typer makes them."""
    from cloc.data.convert.formats.registry import all_options

    def given(**options: Any) -> None: ...

    parameters = []
    for option in all_options():
        switch = option.type is bool
        asked = typer.Option(*([f"--{option.name.replace('_', '-')}"] if switch else []), help=option.help)
        kind, default = (bool, False) if switch else (option.type | None, None)
        annotation = Annotated[kind, asked]  # type: ignore[valid-type]  # made as the program runs
        parameters.append(
            inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    given.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect looks for
    made = typer.Typer(add_completion=False)
    made.command()(given)
    return typer.main.get_command(made).params


class _ConvertCommand(TyperCommand):
    """Asks the formats for their options when it is called or its help is; importing them takes a second."""

    # Contexts are typed Any: Typer declares the methods with a class of its private click.
    def get_params(self, ctx: Any) -> list[Any]:
        from cloc.data.convert.formats.registry import FORMATS

        own: list[Any] = super().get_params(ctx)
        own[0].help = f"{', '.join(FORMATS)}; or auto: the one that SOURCE's files tell."
        return [*own[:-1], *_format_options(), own[-1]]  # the last one is --help

    def invoke(self, ctx: Any) -> Any:
        given = {option.name: ctx.params.pop(option.name) for option in _format_options()}
        ctx.obj = {name: value for name, value in given.items() if value is not None and value is not False}
        return super().invoke(ctx)


@data_app.command(
    "convert",
    cls=_ConvertCommand,
    epilog=epilog(
        f"python -m cloc data convert jsonl train.jsonl {SHARDS} --workers 8",
        "python -m cloc data convert auto coco data/coco/val --split val2017",
        "python -m cloc data convert openmoji data/openmoji",
    ),
)
def data_convert(
    context: typer.Context,
    format: Annotated[str, typer.Argument(help="Name of a format.")],
    paths: Annotated[list[Path], typer.Argument(help="SOURCE OUT, or OUT alone for openmoji.", metavar="[SOURCE] OUT")],
    workers: Annotated[int, typer.Option(help="Processes; the result is the same for any number.")] = 1,
    samples_per_shard: Annotated[int, typer.Option(help="Records of every shard but the last.")] = 1000,
    max_skip_share: Annotated[float, typer.Option(help="Share of records that may be left out.")] = 0.01,
    max_drop_share: Annotated[float, typer.Option(help="Share of regions that may be dropped.")] = 0.1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the shards of OUT.")] = False,
) -> None:
    """Write a data set as shards with a manifest. Interrupted, the same command continues."""
    from cloc.data.convert.conversion import convert
    from cloc.data.convert.formats.registry import FORMATS

    needed = 1 if format in FORMATS and FORMATS[format].draws else 2
    if len(paths) != needed:
        wanted = "OUT" if needed == 1 else "SOURCE OUT"
        raise ValueError(f"format {format!r} takes {wanted}, not {len(paths)} paths")

    common: dict[str, Any] = {"samples_per_shard": samples_per_shard, "overwrite": overwrite}
    common |= {"max_skip_share": max_skip_share, "max_drop_share": max_drop_share}
    with continued():
        done = convert(format, paths[0] if needed == 2 else None, paths[-1], workers=workers, **common, **context.obj)
    for folder in [str(manifest.folder) for manifest in done.manifests[:1]]:  # openmoji writes several
        print_next(shlex.join(["python", "-m", "cloc", "data", "check", folder]), _train_on(folder))


def _train_on(folder: str, *data: str) -> str:
    """The plan of a run on shards; ``data`` are further keys of that group, which may lack its name."""
    more = [shlex.quote(f"data.{one.removeprefix('data.')}") for one in data]
    keys = ["name=mine", override("data.train", folder), "samples=100_000", "batch_size=64", *more, "dry_run=true"]
    return " ".join(["python train.py", *keys])


@data_app.command(
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
        *(done.next or [shlex.join(["python", "-m", "cloc", "data", "check", str(folder)]), _train_on(str(folder))])
    )


@data_app.command(
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
        print_next(*next_commands(found, _train_on(str(folder))))
    if not found.ok:
        raise typer.Exit(1)


OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Keys of data as for train.py: crop=0.4 flip=0.5 regions=8 …", metavar="[KEY=VALUE …]"),
]
ImageSizeOption = Annotated[int, typer.Option(help="Side of the view in pixels.", min=1)]


@data_app.command(
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
    print_next(opening(out), _train_on(str(folder), *(overrides or ())))


@data_app.command("bench", epilog=epilog(f"python -m cloc data bench {SHARDS} crop=0.4 --workers 2"))
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
    print_next(_train_on(str(folder), *(overrides or ()), f"workers={workers}"))


RunArgument = Annotated[Path, typer.Argument(help="Run folder, checkpoint, or exported folder.", metavar="RUN")]
OutArgument = Annotated[Path, typer.Argument(help="Folder to make; absent or empty.", metavar="OUT")]
PicturesOption = Annotated[
    Path | None, typer.Option(help="Folder of pictures to compare on, besides the generated ones.")
]
AverageOption = Annotated[int, typer.Option(help="Mean over so many of the run's newest checkpoints.", metavar="N")]
RawOption = Annotated[bool, typer.Option("--raw", help="The trained weights, not their moving average (trainer.ema).")]
BaseOption = Annotated[Path | None, typer.Option(help="Model to blend with: (1 - alpha) · base + alpha · RUN.")]
AlphaOption = Annotated[float | None, typer.Option(help="Share of RUN in the blend, in 0..1.")]
TrustOption = Annotated[
    list[str] | None,
    typer.Option(help="Class of your own that RUN may name (mypackage.towers.MyTower); once or more.", metavar="CLASS"),
]
UnfinishedOption = Annotated[bool, typer.Option("--unfinished", help="RUN need not have reached its budget.")]


def _export_command(format: str, description: str) -> None:
    """Add ``export FORMAT``; all formats take the same options."""

    def command(
        run: RunArgument,
        out: OutArgument,
        pictures: PicturesOption = None,
        average: AverageOption = 1,
        raw: RawOption = False,
        base: BaseOption = None,
        alpha: AlphaOption = None,
        unfinished: UnfinishedOption = False,
        trust: TrustOption = None,
    ) -> None:
        from cloc.config import find_class
        from cloc.export.pipeline import export
        from cloc.export.run_weights import Choice

        trusted = [find_class(name, "--trust") for name in trust or ()]
        choice = Choice(average, raw, base, alpha, unfinished, trusted)
        typer.echo(f"wrote {export(format, run, out, pictures, choice)}")
        print_next(shlex.join(["python", "-c", _LOADING[format].replace("OUT", str(out))]))

    export_app.command(format, help=description, epilog=epilog(f"python -m cloc export {format} {RUN} OUT"))(command)


_LOADING = {
    "hf": 'from transformers import CLIPModel; CLIPModel.from_pretrained("OUT")',
    "open_clip": 'import open_clip; open_clip.create_model_and_transforms("local-dir:OUT")',
    "timm": 'import timm; timm.create_model("local-dir:OUT", pretrained=True)',
    "onnx": 'import onnxruntime; onnxruntime.InferenceSession("OUT/image.onnx")',
    "torch": 'import torch; torch.export.load("OUT/image.pt2").module()',
    "regions": 'import sys; sys.path.insert(0, "OUT"); from regions import RegionSampler; RegionSampler.load("OUT")',
}

_export_command("hf", "CLIPModel folder of Hugging Face transformers, with a CLIPVisionModel in vision/.")
_export_command("open_clip", "Folder for open_clip's local-dir: names.")
_export_command("timm", "Folder for timm's local-dir: names: the backbone alone.")
_export_command("onnx", "ONNX graphs of image tower, text tower, Prompter and grounding head.")
_export_command("torch", "torch.export programs of the same parts.")
_export_command("regions", "Prompter and grounding head as one Python file that needs PyTorch alone.")


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


@sweep_app.command(
    "report",
    epilog=epilog(
        "python -m cloc sweep report runs/sweeps/weights",
        "python -m cloc sweep report runs/sweep --metric val/mine/grounding/mIoU",
    ),
)
def sweep_report(
    folder: Annotated[Path, typer.Argument(help="run_dir of the sweep.", metavar="DIR")],
    metric: Annotated[
        list[str] | None, typer.Option(help="val/SET/METRIC to show, once or more; the main ones by default.")
    ] = None,
) -> None:
    """Table of region and image metrics against the swept values; sweep.csv and sweep.png beside the jobs."""
    from cloc.engine.sweep.report import report

    written = report(folder, metric or ())
    for path in written:
        typer.echo(f"wrote {path}")
    print_next(opening(written[-1]))  # the picture, where there is a point to draw


def main() -> None:
    """Run the command line; what the user can mend prints as one line, with exit code 1."""
    from cloc.config.secrets import guard_output

    guard_output()
    one_line(app)


if __name__ == "__main__":
    run(main)
