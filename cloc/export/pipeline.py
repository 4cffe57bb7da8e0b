"""One export from start to end: load, check the pair, write aside, prove, name the card, move into place.

Stands on ``encoder`` beside ``engine`` and serves ``python -m cloc export``. A folder under its final name is one whose
parity held; one that did not is kept as ``OUT.failed``.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

from cloc.console import progress, progress_console, working
from cloc.encoder import Encoder
from cloc.export.capabilities import ExportError, check_pair
from cloc.export.card import write_card
from cloc.export.cloc_files import write_extra
from cloc.export.run_weights import Choice, load_source
from cloc.export.verify import compare, make_probe, original, report, write_parity
from cloc.export.view_change import ViewChange, change_view
from cloc.files import hidden_folder, publish

NEEDS = {"hf": ("transformers",), "onnx": ("onnx", "onnxscript", "onnxruntime")}
EXTRAS = {"hf": "transformers", "onnx": "export"}


def export(
    format: str,
    run: Path,
    out: Path,
    pictures: Path | None = None,
    choice: Choice | None = None,
    resize: str | None = None,
) -> Path:
    """Export a trained model and prove that the export is the model.

    Args:
        format: one of :data:`cloc.export.capabilities.FORMATS`.
        run: run folder, checkpoint or exported folder.
        out: folder to make; must be absent or empty.
        pictures: folder of pictures to compare on, besides the generated ones.
        choice: which weights of the run; None for its newest.
        resize: how pictures become square, ``pad`` or ``squash``; None for the view of the training.

    Returns:
        ``out``.

    Raises:
        ExportError: ``out`` is not empty, the format cannot hold the model, the run is not finished, a package is
            missing, or the export differs from the model by more than the tolerance.
        FileNotFoundError: no checkpoint there.
    """
    _check_out(out)
    writer = _writer(format)
    encoder = load_source(run, choice or Choice())
    tolerance = check_pair(encoder, format).tolerance
    change = change_view(encoder, resize, pictures) if resize else None
    with hidden_folder(out) as aside:
        with working(progress_console(), f"export {format}: writing {encoder.name}"):
            writer.write(encoder, aside)
            write_extra(encoder, aside, format, change)
        ok = _prove(writer, encoder, aside, tolerance, pictures, format, change)
        kept = out if ok else _free(out)
        publish(aside, kept)
    if not ok:
        raise ExportError(f"the {format} export of {run} differs from the model (table above); kept as {kept}")
    return out


def _prove(
    writer: ModuleType,
    encoder: Encoder,
    folder: Path,
    tolerance: float,
    pictures: Path | None,
    format: str,
    change: ViewChange | None,
) -> bool:
    with progress(progress_console(), f"export {format}: comparing with {encoder.name}", 4, "steps") as bar:
        probe = make_probe(encoder, pictures)
        bar.advance()
        ours = original(encoder, probe)
        bar.advance()
        rows = compare(ours, writer.read(folder, probe), tolerance)
        bar.advance()
        rows += writer.more_rows(encoder, probe, folder, tolerance)
        rows += change.rows() if change else []
        bar.advance()
    report(rows, f"{format} of {encoder.name}, {len(probe.pictures)} pictures")
    write_parity(rows, folder, len(probe.pictures))
    write_card(encoder, folder, format, writer.usage(encoder), rows, len(probe.pictures), change)
    return all(row.ok for row in rows)


def _check_out(out: Path) -> None:
    if os.path.lexists(out) and (out.is_symlink() or not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} is not an empty folder of its own; give a new folder, or remove this one")


def _writer(format: str) -> ModuleType:
    for package in NEEDS.get(format, ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            extra = EXTRAS[format]
            raise ExportError(f"export {format} needs {package}: pip install 'cloc-pretrain[{extra}]'") from error
    return importlib.import_module(f"cloc.export.{format}")


def _free(out: Path) -> Path:
    kept, number = out.with_name(f"{out.name}.failed"), 1
    while os.path.lexists(kept):
        number += 1
        kept = out.with_name(f"{out.name}.failed-{number}")
    return kept
