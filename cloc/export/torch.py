"""``torch.export`` programs of every part: ``image.pt2``, ``text.pt2``, ``regions.pt2``, ``ground.pt2``, free batch.

One of the writers (``matrix → graphs → torch → verify → card``).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from cloc.encoder import Encoder
from cloc.export.archive import REMEDY, check_archive
from cloc.export.graphs import TOKENIZER, ask, notes, trace
from cloc.export.verify import Probe, Row
from cloc.files import new_path
from cloc.models.weights.digests import check_file


def write(encoder: Encoder, folder: Path) -> None:
    """Write the programs of all parts that the model has, and a tokenizer other than open_clip's own."""
    encoder.tokenizer.save(folder / TOKENIZER)  # nothing for open_clip's own
    for graph in trace(encoder):
        outputs = {"inputs": json.dumps(graph.inputs), "outputs": json.dumps(graph.outputs)}
        with new_path(folder / f"{graph.name}.pt2") as part:
            torch.export.save(graph.program, part, extra_files=outputs)


def load_program(file: Path) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Load a program, and the names of its outputs, from an archive that holds nothing but a program of tensors.

    ``torch.export.load`` alone runs what an archive says: it evaluates its expressions, calls functions that it names
    and unpickles. Here everything in it is checked before (see :mod:`cloc.export.archive`); what then runs are
    operators of tensors.

    Raises:
        ValueError: the archive is damaged, or holds what could be code.
    """
    check_archive(file)
    check_file(file)
    extra = {"outputs": ""}
    try:
        program = torch.export.load(file, extra_files=extra)
        names = json.loads(extra["outputs"])
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{file} is damaged or of another version of PyTorch ({reason}); {REMEDY}") from error
    return program, tuple(names)


def read(folder: Path, probe: Probe) -> dict[str, Tensor]:
    """States of the exported programs, by PyTorch alone."""

    def run(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor] | None:
        file = folder / f"{name}.pt2"
        if not file.is_file():
            return None
        program, names = load_program(file)
        with torch.no_grad():
            found = program.module()(**inputs)
        return dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))

    return ask(run, probe)


def more_rows(encoder: Encoder, probe: Probe, folder: Path, tolerance: float) -> list[Row]:
    """None: the programs are all that there is."""
    return []


def usage(encoder: Encoder) -> tuple[str, str]:
    """Example for the card, and what to know."""
    example = """import torch

image = torch.export.load("FOLDER/image.pt2").module()
embedding, tokens, *hidden = image(images=views)"""
    if encoder.model.prompter is not None:
        example += """
regions = torch.export.load("FOLDER/regions.pt2").module()(tokens=tokens, boxes=boxes)"""
    warning = (
        " `torch.export.load` runs code that an archive may hold. These hold none; for archives that you do not trust "
        "take `cloc.export.torch.load_program`, which refuses all but a program of tensors."
    )
    return example, notes(encoder) + warning
