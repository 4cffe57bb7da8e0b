"""The parts of a model as modules of tensors alone, traced with a free batch: what ``onnx`` and ``torch`` store.

Second step of an export (``matrix → graphs → onnx | torch → verify → card``). Pixels go in as uint8; embeddings come
out with unit norm. Boxes are those of the view.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.nn.functional import normalize, pad
from torchvision.ops import roi_align

from cloc.encoder import Encoder
from cloc.export.verify import Probe
from cloc.models import taps
from cloc.models.model import Cloc, ImageFeatures
from cloc.models.positions.fourier import onto_grid
from cloc.models.prompter import RoiAlign

IMAGE, TEXT, REGIONS, GROUND = "image", "text", "regions", "ground"
TOKENIZER = "tokenizer"


class _Image(nn.Module):
    """``[B,3,S,S]`` uint8 → embedding, tokens, and the hidden states around the last block (not of a CNN)."""

    def __init__(self, model: Cloc) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        with taps.around_last(self.model.image) as states:
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
            grid, boxes = self.model.grid, onto_grid(boxes, self.model.covered, self.model.grid[0])
            return normalize(self.model.prompter.embed(_roi_tokens(tokens, grid, boxes)), dim=-1)
        return self.model.encode_boxes(ImageFeatures(tokens, tokens), boxes)


class _Ground(nn.Module):
    """Tokens ``[B,N,C]`` and phrase embeddings ``[B,K,D]`` → boxes ``[B,K,4]``."""

    def __init__(self, model: Cloc) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, phrases: Tensor) -> Tensor:
        return self.model.ground(ImageFeatures(tokens, tokens), phrases)


def _roi_tokens(tokens: Tensor, grid: tuple[int, int], boxes: Tensor) -> Tensor:
    """``region_pooling.roi_tokens`` with the picture's number in a column: a list of boxes would fix the batch."""
    images, count = boxes.shape[:2]
    maps = tokens.transpose(1, 2).unflatten(2, grid)
    scaled = boxes * boxes.new_tensor([grid[1], grid[0], grid[1], grid[0]])
    index = torch.arange(images, device=boxes.device, dtype=boxes.dtype).view(-1, 1, 1).expand(-1, count, 1)
    rois = torch.cat([index, scaled], -1).flatten(0, 1)
    pooled: Tensor = roi_align(maps, rois, output_size=1, aligned=True).flatten(1).unflatten(0, (images, count))
    return pooled


@dataclass(frozen=True)
class Graph:
    """A traced part.

    Attributes:
        name: of its file.
        inputs: names.
        outputs: names.
        program: the trace.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    program: ExportedProgram


def trace(encoder: Encoder) -> Iterator[Graph]:
    """Trace all parts that the model has."""
    model = copy.deepcopy(encoder.model).cpu().eval()
    image: Any = model.image  # nn.Module knows none of a tower's attributes
    text: Any = model.text
    if getattr(text, "frozen", False):
        text.frozen = False  # a frozen encoder looks texts up in a table, which has no graph
    # Unused here, and the keyword `global` among their names breaks the exporter's generated code.
    del model.log_scales, model.biases
    size, joint_dim = encoder.image_size, encoder.joint_dim
    tokenizer, length = encoder.tokenizer, text.context_length
    batch, count, texts = Dim("batch", min=1), Dim("count", min=1), Dim("texts", min=1)
    tokens = torch.randn(2, model.grid[0] * model.grid[1], image.width)
    ids = tokenizer(["a chick", "a cup and a dog"])
    # The whole length, which changes no embedding; a free one would exclude the longest texts from the graph.
    ids = pad(ids, (0, length - ids.shape[1]), value=tokenizer.pad_id)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    seen = ("image_embedding", "tokens", *(("last", "penultimate") if taps.blocks(model.image) else ()))
    with _plain_attention():
        yield _graph(IMAGE, _Image(model), {"images": (images, {0: batch})}, seen)
        yield _graph(TEXT, _Text(model), {"tokens": (ids, {0: texts})}, ("text_embedding",), strict=True)
        memory = {"tokens": (tokens, {0: batch})}
        if model.prompter is not None:
            boxes = torch.tensor([0.1, 0.2, 0.6, 0.9]).repeat(2, 3, 1)
            asked = memory | {"boxes": (boxes, {0: batch, 1: count})}
            yield _graph(REGIONS, _Regions(model), asked, ("region_embedding",))
        if model.grounding is not None:
            asked = memory | {"phrases": (torch.randn(2, 3, joint_dim), {0: batch, 1: count})}
            yield _graph(GROUND, _Ground(model), asked, ("boxes",))


def _graph(
    name: str,
    module: nn.Module,
    inputs: dict[str, tuple[Tensor, dict[int, Dim]]],
    outputs: tuple[str, ...],
    strict: bool = False,
) -> Graph:
    """Trace one part; here, because the ONNX exporter by itself fixes a free dimension in silence.

    Args:
        name: of its file.
        module: to trace.
        inputs: for each an example and the dimensions that stay free.
        outputs: names.
        strict: read the byte code, which keeps ``len(tensor)`` free; forward hooks are not followed then.
    """
    examples = {key: example for key, (example, _) in inputs.items()}
    free = {key: dimensions for key, (_, dimensions) in inputs.items()}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.export.export(module.eval(), (), kwargs=examples, dynamic_shapes=free, strict=strict)
    drop_unused(program)
    return Graph(name, tuple(inputs), outputs, program)


def drop_unused(program: ExportedProgram) -> None:
    """Take out, in place, the weights that a program does not compute with: a trace holds all of the module's."""
    signature, graph = program.graph_signature, program.graph
    unused = {node.name: node for node in graph.nodes if node.op == "placeholder" and not node.users}
    stored = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}
    gone = [spec for spec in signature.input_specs if spec.kind in stored and spec.arg.name in unused]
    for spec in gone:
        graph.erase_node(unused[spec.arg.name])
    signature.input_specs = [spec for spec in signature.input_specs if spec not in gone]
    kept = {spec.target for spec in signature.input_specs}
    for name in program.state_dict.keys() - kept:  # a strict trace has no inputs for them, and stores them all the same
        del program.state_dict[name]
    for name in program.constants.keys() & ({spec.target for spec in gone} - kept):
        del program.constants[name]
    program.graph_module.recompile()
    program.validate()


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Trace the written-out attention, not the fused kernel of ``nn.TransformerEncoderLayer``'s fast path."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def ask(run: Callable[[str, dict[str, Tensor]], dict[str, Tensor] | None], probe: Probe) -> dict[str, Tensor]:
    """States of stored graphs; pictures also in a batch of one.

    Args:
        run: name of a graph and its inputs → its outputs, None where there is no such graph.
        probe: what is asked.
    """
    images, single = run(IMAGE, {"images": probe.views}), run(IMAGE, {"images": probe.views[:1]})
    text = run(TEXT, {"tokens": probe.whole_tokens})
    assert images is not None and single is not None and text is not None  # every model has both towers
    names = {"image_embedding": "pooled"}
    states = {names.get(name, name): torch.cat([single[name], value[1:]]) for name, value in images.items()}
    states["text"] = text["text_embedding"]
    tokens = images["tokens"]
    if found := run(REGIONS, {"tokens": tokens, "boxes": probe.boxes}):
        states["regions"] = found["region_embedding"]
    if found := run(GROUND, {"tokens": tokens, "phrases": states["text"].repeat(len(tokens), 1, 1)}):
        states["grounded"] = found["boxes"]
    return states


def notes(encoder: Encoder) -> str:
    """What to know of the inputs and outputs, for the card."""
    size = encoder.image_size
    own = "open_clip's tokenizer" if encoder.tokenizer.name == "open_clip" else f"the tokenizer in `{TOKENIZER}/`"
    if encoder.tokenizer.clean:
        own += f" behind `open_clip.tokenizer.get_clean_fn({encoder.tokenizer.clean!r})`"
    return (
        f"`images` are uint8 RGB `[B,3,{size},{size}]`, {encoder.preprocess.describe(size)}; the graph normalizes. "
        f"`tokens` of the text are ids of {own}, padded with {encoder.tokenizer.pad_id} to "
        f"{encoder.model.text.context_length}. Boxes are xyxy in 0..1 of the view, going in and coming out. "
        "Embeddings have unit norm."
    )
