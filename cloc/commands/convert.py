"""``python -m cloc data convert``: the options of all formats, gathered from their list."""

from __future__ import annotations

import inspect
import shlex
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cloc.command import continued
from cloc.commands.shared import SHARDS, train_on
from cloc.usage import epilog, print_next


@cache
def format_options() -> list[Any]:
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
        return [*own[:-1], *format_options(), own[-1]]  # the last one is --help

    def invoke(self, ctx: Any) -> Any:
        given = {option.name: ctx.params.pop(option.name) for option in format_options()}
        ctx.obj = {name: value for name, value in given.items() if value is not None and value is not False}
        return super().invoke(ctx)


def data_convert(
    context: typer.Context,
    format: Annotated[str, typer.Argument(help="Name of a format.")],
    paths: Annotated[list[Path], typer.Argument(help="SOURCE OUT, or OUT alone for openmoji.", metavar="[SOURCE] OUT")],
    workers: Annotated[int, typer.Option(help="Processes; the result is the same for any number.")] = 1,
    samples_per_shard: Annotated[int, typer.Option(help="Records of every shard but the last.")] = 1000,
    max_skip_share: Annotated[float, typer.Option(help="Share of records that may be left out.")] = 0.01,
    max_drop_share: Annotated[float, typer.Option(help="Share of regions that may be dropped.")] = 0.1,
    reencode: Annotated[
        str, typer.Option(help="BMP, TIFF, GIF, AVIF, JPEG 2000, HEIC: auto (PNG or JPEG), png, jpeg, or never.")
    ] = "auto",
    orientation: Annotated[
        str, typer.Option(help="Where EXIF turns a picture, boxes are of it upright, raw, or stated (see docs).")
    ] = "upright",
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
    common |= {"reencode": reencode, "orientation": orientation}
    with continued():
        done = convert(format, paths[0] if needed == 2 else None, paths[-1], workers=workers, **common, **context.obj)
    for folder in [str(manifest.folder) for manifest in done.manifests[:1]]:  # openmoji writes several
        # What is drawn or kept for testing alone (openmoji --held-out things) is no set to train on.
        then = [] if Path(folder).name == "test" else [train_on(folder)]
        print_next(shlex.join(["python", "-m", "cloc", "data", "check", folder]), *then)


def add_to(app: typer.Typer) -> None:
    """Add the command to its group."""
    examples = (
        f"python -m cloc data convert jsonl train.jsonl {SHARDS} --workers 8",
        "python -m cloc data convert auto coco data/coco/val --split val2017",
        "python -m cloc data convert openmoji data/openmoji",
    )
    app.command("convert", cls=_ConvertCommand, epilog=epilog(*examples))(data_convert)
