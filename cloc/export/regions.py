"""``regions.py`` and ``regions.pt``: Prompter and grounding head as a module that needs PyTorch alone.

One of the writers (``matrix → regions → verify → card``). The file is put together from the source of the model's own
parts, so that there is no second version of them that could differ.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cloc import __version__
from cloc.config import resolve
from cloc.encoder import Encoder
from cloc.export.cloc_files import plain
from cloc.export.region_module import RegionSampler
from cloc.export.verify import Probe, Row, compare, original
from cloc.files import write_file
from cloc.models import prompter, region_pooling
from cloc.models.positions import fourier as positions

FILE, WEIGHTS = "regions.py", "regions.pt"
HEADER = '''"""Region embeddings and grounding of {name}, exported by cloc {version} (Apache-2.0). Needs PyTorch alone.

    sampler = RegionSampler.load(FOLDER)
    regions = sampler.encode_regions(tokens, boxes)  # [B,N,C], [B,K,4] → [B,K,D]
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

OCTAVES = {octaves}
OUTSIDE = {outside}


def box_convert(boxes: Tensor, in_fmt: str, out_fmt: str) -> Tensor:
    """Center and size → corners (the one case of ``torchvision.ops.box_convert`` that is used here)."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)
'''
BUILD = '''def build() -> RegionSampler:
    """The module, with random weights."""
    shape = {shape!r}
    prompter = {prompter}(**shape, **{prompter_arguments!r})
    grounding = {grounding}
    return RegionSampler(prompter, grounding, {image_size!r}, {resize!r}, shape["grid"], {covered!r})
'''


def write(encoder: Encoder, folder: Path) -> None:
    """Write the module and its weights."""
    write_file(folder / FILE, source(encoder))
    state = {k: v for k, v in encoder.model.state_dict().items() if k.startswith(("prompter.", "grounding."))}
    write_file(folder / WEIGHTS, lambda file: torch.save(plain(state), file))


def source(encoder: Encoder) -> str:
    """Text of the module, for a model whose Prompter needs PyTorch alone."""
    model = encoder.model
    parts: list[Any] = [
        positions.onto_grid,
        positions.onto_view,
        positions.fourier,
        positions.token_centers,
        positions.grid_positions,
    ]
    parts += [prompter.BoxPrompt, region_pooling.token_overlap, region_pooling._overlap, type(model.prompter)]
    head = "None"
    if model.grounding is not None:
        parts.append(type(model.grounding))
        head = f"{type(model.grounding).__name__}(**shape, **{_arguments(encoder, 'grounding')!r})"
    name = re.sub(r"[^\w .+-]", "_", encoder.name)  # a folder's name is whoever's made it, and this becomes source
    text = [HEADER.format(name=name, version=__version__, octaves=positions.OCTAVES, outside=prompter.OUTSIDE)]
    sources = [inspect.getsource(part) for part in [*parts, RegionSampler]]
    text += [re.sub(r"^@registered\(.*\)\n", "", source) for source in sources]  # of this package's registry
    text.append(
        BUILD.format(
            shape={"width": model.image.width, "joint_dim": model.image.joint_dim, "grid": tuple(model.grid)},
            prompter=type(model.prompter).__name__,
            prompter_arguments=_arguments(encoder, "prompter"),
            grounding=head,
            image_size=model.image.image_size,
            resize=encoder.preprocess.mode,
            covered=model.covered,
        )
    )
    return "\n\n\n".join(piece.strip("\n") for piece in text) + "\n"


def _arguments(encoder: Encoder, part: str) -> dict[str, Any]:
    node = encoder.info["config"]["model"][part]
    return resolve(node, f"model.{part}", {node["_target_"]: type(getattr(encoder.model, part))})[1]


def read(folder: Path, probe: Probe) -> dict[str, Tensor]:
    """Nothing by itself: the module starts from the tokens of an image tower."""
    return {}


@torch.no_grad()
def more_rows(encoder: Encoder, probe: Probe, folder: Path, tolerance: float) -> list[Row]:
    """Rows of the module, from the original's tokens and text embeddings."""
    sampler = _module(folder / FILE).RegionSampler.load(folder)
    ours = original(encoder, probe)
    states = {"regions": sampler.encode_regions(ours["tokens"], probe.boxes)}
    if sampler.grounding is not None:
        phrases = ours["text"].expand(len(probe.pictures), -1, -1)
        states["grounded"] = sampler.ground(ours["tokens"], phrases)
    return compare(ours, states, tolerance)


def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_regions", file)
    assert spec is not None and spec.loader is not None  # of a Python file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def usage(encoder: Encoder) -> tuple[str, str]:
    """Example for the card, and what to know."""
    example = f"""from regions import RegionSampler

sampler = RegionSampler.load("FOLDER")
boxes = sampler.to_view(boxes, width, height)  # of the picture → of the view
regions = sampler.encode_regions(tokens, boxes)  # [B,{encoder.model.grid[0] * encoder.model.grid[1]},C], [B,K,4]"""
    if encoder.model.grounding is not None:
        example += "\nfound = sampler.ground(tokens, phrases)  # text embeddings of unit norm → boxes of the view"
    heads = "Prompter and the grounding head" if encoder.model.grounding is not None else "Prompter"
    notes = (
        f"`regions.py` is the {heads} of the model in one file that needs PyTorch alone; it can be trained on. "
        "`tokens` are the patch tokens **after the last norm** of the image tower, which is exported apart: "
        "`post_layernorm(last_hidden_state)[:, 1:]` of a CLIPVisionModel, the second output of open_clip's `visual` "
        "with `output_tokens=True`, `forward_features` of timm without prefix tokens. Views: "
        f"{encoder.preprocess.describe(encoder.image_size)}."
    )
    return example, notes
