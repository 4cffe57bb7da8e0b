"""``python -m cloc export``: a trained model for other libraries; all formats take the same options."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from cloc.commands.shared import RUN, TrustOption, group
from cloc.usage import epilog, print_next

app = group("export", "Write a trained model for other libraries, with proof of parity.", f"hf {RUN} OUT")

RunArgument = Annotated[Path, typer.Argument(help="Run folder, checkpoint, or exported folder.", metavar="RUN")]
OutArgument = Annotated[Path, typer.Argument(help="Folder to make; absent or empty.", metavar="OUT")]
PicturesOption = Annotated[
    Path | None, typer.Option(help="Folder of pictures to compare on, besides the generated ones.")
]
AverageOption = Annotated[int, typer.Option(help="Mean over so many of the run's newest checkpoints.", metavar="N")]
RawOption = Annotated[bool, typer.Option("--raw", help="The trained weights, not their moving average (trainer.ema).")]
BaseOption = Annotated[
    str | None,
    typer.Option(help="Model to blend with: (1 - alpha) · base + alpha · RUN; by default what RUN started from."),
]
AlphaOption = Annotated[float | None, typer.Option(help="Share of RUN in the blend, in 0..1.")]
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

    app.command(format, help=description, epilog=epilog(f"python -m cloc export {format} {RUN} OUT"))(command)


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
