"""``torch.export`` programs of every part: ``image.pt2``, ``text.pt2``, ``regions.pt2``, ``ground.pt2``, free batch.

One of the writers (``matrix → graphs → torch → verify → card``).
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError

import torch
from torch import Tensor
from torch.export import ExportedProgram

from cloc.encoder import Encoder
from cloc.export.graphs import TOKENIZER, ask, notes, trace
from cloc.export.verify import Probe, Row
from cloc.files import new_path

# All that an archive without compiled code consists of.
PLAIN = ("models", "extra", "archive_format", "archive_version", "byteorder", ".data")
DATA = (("data", "weights"), ("data", "constants"), ("data", "sample_inputs"))


def write(encoder: Encoder, folder: Path) -> None:
    """Write the programs of all parts that the model has, and a tokenizer other than open_clip's own."""
    encoder.tokenizer.save(folder / TOKENIZER)  # nothing for open_clip's own
    for graph in trace(encoder):
        outputs = {"inputs": json.dumps(graph.inputs), "outputs": json.dumps(graph.outputs)}
        with new_path(folder / f"{graph.name}.pt2") as part:
            torch.export.save(graph.program, part, extra_files=outputs)


def load_program(file: Path) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Load a program, and the names of its outputs; nothing is unpickled freely and no compiled code is loaded.

    ``torch.export.load`` alone unpickles whatever the archive declares as a pickle.

    Raises:
        ValueError: the archive holds a pickle that is more than tensors, or compiled code.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if len(set(names)) < len(names):
                raise ValueError(f"{file}: a member comes twice, so it is not known what would be loaded")
            for name in names:
                _check_member(file, archive, PurePosixPath(name))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{file} is damaged or no torch.export program: {error}") from error
    extra = {"outputs": ""}
    program = torch.export.load(file, extra_files=extra)
    return program, tuple(json.loads(extra["outputs"]))


def _check_member(file: Path, archive: zipfile.ZipFile, path: PurePosixPath) -> None:
    own = path.parts[1:]  # behind the archive's own name
    if not own or not (own[0] in PLAIN or own[:2] in DATA):
        raise ValueError(f"{file}: {path} is not part of a plain program (compiled code, or an old format)")
    if own[:2] in DATA[:2] and path.suffix == ".json":
        payloads = json.loads(archive.read(str(path))).get("config", {})
        pickled = [key for key, entry in payloads.items() if entry.get("use_pickle")]
        if pickled:
            raise ValueError(f"{file}: {pickled[0]} is stored as a pickle, which can run code; export the model again")
    if own[:2] == DATA[2]:
        try:
            torch.load(io.BytesIO(archive.read(str(path))), weights_only=True)
        except (RuntimeError, UnpicklingError) as error:
            raise ValueError(f"{file}: {path} would run code when it is loaded; export the model again") from error


def read(folder: Path, probe: Probe) -> dict[str, Tensor]:
    """States of the exported programs, by PyTorch alone."""

    def run(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor] | None:
        file = folder / f"{name}.pt2"
        if not file.is_file():
            return None
        program, names = load_program(file)
        with torch.inference_mode():
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
        " `torch.export.load` unpickles what an archive declares as a pickle. These hold none; for archives that you "
        "do not trust take `cloc.export.torch.load_program`, which refuses them."
    )
    return example, notes(encoder) + warning
