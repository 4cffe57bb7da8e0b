"""ONNX graphs of every part: ``image.onnx``, ``text.onnx``, ``regions.onnx``, ``ground.onnx``, each with a free batch.

One of the writers (``matrix → graphs → onnx → verify → card``).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from cloc.encoder import Encoder
from cloc.export.graphs import TOKENIZER, ask, notes, trace
from cloc.export.verify import Probe, Row
from cloc.files import new_path

OPSET = 20


def write(encoder: Encoder, folder: Path) -> None:
    """Write the graphs of all parts that the model has, and a tokenizer other than open_clip's own."""
    encoder.tokenizer.save(folder / TOKENIZER)  # nothing for open_clip's own
    for graph in trace(encoder):
        with _silent():
            program = torch.onnx.export(
                graph.program,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            assert program is not None  # of the exporter that `dynamo` asks for
            with new_path(folder / f"{graph.name}.onnx") as part:
                program.save(part, external_data=False)


@contextmanager
def _silent() -> Iterator[None]:
    """The exporter logs and warns of its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def read(folder: Path, probe: Probe) -> dict[str, Tensor]:
    """States of the exported graphs, by onnxruntime alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()

    def run(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor] | None:
        file = folder / f"{name}.onnx"
        if not file.is_file():
            return None
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        values = session.run(names, {key: value.numpy() for key, value in inputs.items()})
        return {key: torch.from_numpy(value) for key, value in zip(names, values, strict=True)}

    return ask(run, probe)


def more_rows(encoder: Encoder, probe: Probe, folder: Path, tolerance: float) -> list[Row]:
    """None: the graphs are all that there is."""
    return []


def usage(encoder: Encoder) -> tuple[str, str]:
    """Example for the card, and what to know."""
    example = """import onnxruntime

image = onnxruntime.InferenceSession("FOLDER/image.onnx")
embedding, tokens, *hidden = image.run(None, {"images": views})"""
    if encoder.model.prompter is not None:
        example += """
session = onnxruntime.InferenceSession("FOLDER/regions.onnx")
regions = session.run(None, {"tokens": tokens, "boxes": boxes})"""
    return example, notes(encoder)
