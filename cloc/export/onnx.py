"""ONNX graphs of every part: ``image.onnx``, ``text.onnx``, ``regions.onnx``, ``ground.onnx``, each with a free batch.

One of the four writers (``matrix → hf | open_clip | timm | onnx → verify → card``). Pixels go in as uint8; embeddings
come out with unit norm. Boxes are those of the padded view.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.functional import normalize, pad
from torchvision.ops import roi_align

from cloc.data.views import PAD_VALUE
from cloc.encoder import Encoder
from cloc.export.verify import Probe, Row, last_block, watch
from cloc.models.model import Cloc, ImageFeatures
from cloc.models.prompter import RoiAlign

OPSET = 20
IMAGE, TEXT, REGIONS, GROUND = "image.onnx", "text.onnx", "regions.onnx", "ground.onnx"
TOKENIZER = "tokenizer"


class _Image(nn.Module):
    """``[B,3,S,S]`` uint8 → embedding, tokens, and the hidden states around the last block (not of a CNN)."""

    def __init__(self, model: Cloc) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        with watch(last_block(self.model.image)) as states:
            seen = self.model.encode_images(images)
        return seen.pooled, seen.tokens, *(states[name] for name in ("last", "penultimate") if name in states)


class _Text(nn.Module):
    """``[T,77]`` token ids (the whole context length) → embedding ``[T,D]``."""

    def __init__(self, model: Cloc) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.encode_texts(tokens)


class _Regions(nn.Module):
    """Tokens ``[B,N,C]`` and boxes ``[B,K,4]`` → region embeddings ``[B,K,D]``."""

    def __init__(self, model: Cloc) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, boxes: Tensor) -> Tensor:
        if isinstance(self.model.prompter, RoiAlign):
            return normalize(self.model.prompter.proj(_roi_tokens(tokens, self.model.grid, boxes)), dim=-1)
        return self.model.encode_boxes(ImageFeatures(tokens, tokens), boxes)


class _Ground(nn.Module):
    """Tokens ``[B,N,C]`` and phrase embeddings ``[B,K,D]`` → boxes ``[B,K,4]``."""

    def __init__(self, model: Cloc) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, phrases: Tensor) -> Tensor:
        return self.model.ground(ImageFeatures(tokens, tokens), phrases)


def _roi_tokens(tokens: Tensor, grid: tuple[int, int], boxes: Tensor) -> Tensor:
    """As :func:`cloc.models.prompter.roi_tokens`, with the picture's number in a column: a list would fix the batch."""
    images, count = boxes.shape[:2]
    maps = tokens.transpose(1, 2).unflatten(2, grid)
    scaled = boxes * boxes.new_tensor([grid[1], grid[0], grid[1], grid[0]])
    index = torch.arange(images, device=boxes.device, dtype=boxes.dtype).view(-1, 1, 1).expand(-1, count, 1)
    rois = torch.cat([index, scaled], -1).flatten(0, 1)
    return roi_align(maps, rois, output_size=1, aligned=True).flatten(1).unflatten(0, (images, count))


def write(encoder: Encoder, folder: Path) -> None:
    """Write the graphs of all parts that the model has."""
    model = copy.deepcopy(encoder.model).cpu().eval()
    if getattr(model.text, "frozen", False):
        model.text.frozen = False  # a frozen encoder looks texts up in a table, which has no graph
    del model.log_scales  # unused here, and the keyword `global` among its names breaks the exporter's generated code
    size = model.image.image_size
    encoder.tokenizer.save(folder / TOKENIZER)  # nothing for open_clip's own
    tokenizer, length = encoder.tokenizer, model.text.context_length
    batch, count, texts = Dim("batch", min=1), Dim("count", min=1), Dim("texts", min=1)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    tokens = torch.randn(2, model.grid[0] * model.grid[1], model.image.width)
    names = ["image_embedding", "tokens"] + (["last", "penultimate"] if last_block(model.image) is not None else [])
    with _plain_attention():
        _save(_Image(model), {"images": images}, names, {"images": {0: batch}}, folder / IMAGE)
        ids = _pad(tokenizer(["a chick", "a cup and a dog"]), length, tokenizer.pad_id)
        _save(_Text(model), {"tokens": ids}, ["text_embedding"], {"tokens": {0: texts}}, folder / TEXT, strict=True)
        prompts = {"tokens": {0: batch}}
        if model.prompter is not None:
            inputs = {"tokens": tokens, "boxes": torch.tensor([0.1, 0.2, 0.6, 0.9]).repeat(2, 3, 1)}
            free = prompts | {"boxes": {0: batch, 1: count}}
            _save(_Regions(model), inputs, ["region_embedding"], free, folder / REGIONS)
        if model.grounding is not None:
            inputs = {"tokens": tokens, "phrases": torch.randn(2, 3, model.image.joint_dim)}
            free = prompts | {"phrases": {0: batch, 1: count}}
            _save(_Ground(model), inputs, ["boxes"], free, folder / GROUND)


def _pad(tokens: Tensor, length: int, pad_id: int) -> Tensor:
    """The whole length, which changes no embedding; a free one would exclude the longest texts from the graph."""
    return pad(tokens, (0, length - tokens.shape[1]), value=pad_id)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Trace the written-out attention, not the fused kernel of ``nn.TransformerEncoderLayer``'s fast path."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _save(
    module: nn.Module,
    inputs: dict[str, Tensor],
    outputs: list[str],
    free: dict[str, Any],
    file: Path,
    strict: bool = False,
) -> None:
    """Trace and write one graph; traced here, because the ONNX exporter by itself fixes a free dimension in silence.

    Args:
        module: to trace.
        inputs: example values.
        outputs: names.
        free: dimensions that stay free, for each input.
        file: to write.
        strict: read the byte code, which keeps ``len(tensor)`` free; forward hooks are not followed then.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        traced = torch.export.export(module.eval(), (), kwargs=inputs, dynamic_shapes=free, strict=strict)
        program = torch.onnx.export(
            traced, input_names=list(inputs), output_names=outputs, opset_version=OPSET, dynamo=True, verbose=False
        )
        program.save(file, external_data=False)


def read(folder: Path, probe: Probe) -> dict[str, Tensor]:
    """States of the exported graphs, by onnxruntime alone; also at a batch of one."""
    names = {"image_embedding": "pooled"}
    images = _run(folder / IMAGE, {"images": probe.views.numpy()})
    single = _run(folder / IMAGE, {"images": probe.views[:1].numpy()})
    states = {names.get(name, name): torch.cat([single[name], value[1:]]) for name, value in images.items()}
    states["text"] = _run(folder / TEXT, {"tokens": probe.whole_tokens.numpy()})["text_embedding"]
    tokens = images["tokens"].numpy()
    if (folder / REGIONS).is_file():
        states["regions"] = _run(folder / REGIONS, {"tokens": tokens, "boxes": probe.boxes.numpy()})["region_embedding"]
    if (folder / GROUND).is_file():
        phrases = states["text"].expand(len(tokens), -1, -1).numpy()
        states["grounded"] = _run(folder / GROUND, {"tokens": tokens, "phrases": phrases})["boxes"]
    return states


def _run(file: Path, inputs: dict[str, np.ndarray]) -> dict[str, Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, session.run(names, inputs), strict=True)}


def more_rows(encoder: Encoder, probe: Probe, folder: Path, tolerance: float) -> list[Row]:
    """None: the graphs are all that there is."""
    return []


def usage(encoder: Encoder) -> tuple[str, str]:
    """Example for the card, and what to know."""
    size = encoder.model.image.image_size
    example = """import onnxruntime

image = onnxruntime.InferenceSession("FOLDER/image.onnx")
embedding, tokens, *hidden = image.run(None, {"images": views})  # [B,3,S,S] uint8
regions = onnxruntime.InferenceSession("FOLDER/regions.onnx").run(None, {"tokens": tokens, "boxes": boxes})"""
    example = example.replace("S,S", f"{size},{size}")
    own = "open_clip's tokenizer" if encoder.tokenizer.name == "open_clip" else f"the tokenizer in `{TOKENIZER}/`"
    notes = (
        f"`images` are uint8 RGB, the long side resized to {size} px (bicubic, antialiased), centered, padded with "
        f"{PAD_VALUE}; the graph normalizes. `tokens` of `text.onnx` are ids of {own}, padded with "
        f"{encoder.tokenizer.pad_id} to {encoder.model.text.context_length}. Boxes are xyxy in 0..1 of the padded "
        "view, in `regions.onnx` and from `ground.onnx` alike. Embeddings have unit norm."
    )
    return example, notes
