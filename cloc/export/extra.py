"""cloc's own two files inside an exported folder: what the other library has no place for.

``cloc.json`` (parts and their arguments) and ``prompter.safetensors`` (Prompter, grounding head, region temperature);
``cloc.load`` of the folder reads them, the other library ignores them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cloc import __version__
from cloc.encoder import Encoder
from cloc.models.exported import EXTRA_CONFIG, EXTRA_WEIGHTS
from cloc.models.model import MAX_SCALE, Cloc

PARTS = ("prompter.", "grounding.", "log_scales.region")


def clamped_scale(model: Cloc) -> Tensor:
    """Log of the inverse temperature, clamped as in use; a scalar, as other libraries have it."""
    return model.log_scales["global"].detach().float().clamp(max=math.log(MAX_SCALE)).reshape(())


def write_extra(encoder: Encoder, folder: Path) -> None:
    """Write both files; ``cloc.json`` alone for a model without Prompter."""
    node = encoder.info["config"]["model"]
    stored = {
        "version": encoder.info.get("version", __version__),
        "samples_seen": encoder.info.get("samples_seen", 0),
        "prompter": node.get("prompter"),
        "grounding": node.get("grounding"),
    }
    (folder / EXTRA_CONFIG).write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    state = {name: value for name, value in encoder.model.state_dict().items() if name.startswith(PARTS)}
    if state:
        plain = {name: value.detach().to("cpu", torch.float32).contiguous().clone() for name, value in state.items()}
        save_file(plain, folder / EXTRA_WEIGHTS)
