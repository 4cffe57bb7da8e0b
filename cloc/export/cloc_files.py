"""cloc's own two files inside an exported folder: what the other library has no place for.

``cloc.json`` (format, parts and their arguments) and ``prompter.safetensors`` (Prompter, grounding head, their
temperature, biases); ``cloc.load`` of the folder reads them, the other library ignores them. ``cloc.json`` also lists
the SHA-256 of all files that were written before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from cloc import __version__
from cloc.encoder import Encoder
from cloc.export.view_change import ViewChange
from cloc.files import write_json, write_tensors
from cloc.models.model import Cloc
from cloc.models.protocols import view
from cloc.models.temperature import clamped
from cloc.models.weights.digests import EXTRA_CONFIG, with_sums
from cloc.models.weights.exported import EXTRA_WEIGHTS, LOADABLE

LEAST_TRANSFORMERS, PADDING_PROCESSOR = "4.57", "5.11"  # for models and tokenizer; with DeepseekOcr2ImageProcessor
# What serves training alone (temperature and bias of crops) is left behind.
PARTS = ("prompter.", "grounding.", "log_scales.region", "biases.global", "biases.region")


def clamped_scale(model: Cloc) -> Tensor:
    """Log of the inverse temperature, clamped as in use; a scalar, as other libraries have it."""
    return clamped(model.log_scales["global"])


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as every format stores them: on the CPU, in float32 (counters as they are), sharing no memory."""
    return {
        name: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous().clone()
        for name, value in state.items()
    }


def write_extra(encoder: Encoder, folder: Path, format: str, change: ViewChange | None = None) -> None:
    """Write both files; ``cloc.json`` alone where there are no further weights, or the format holds a part only.

    Args:
        encoder: what is exported.
        folder: of the export, whose other files are written.
        format: its name.
        change: of the view, where it is not that of the training.
    """
    node = encoder.info["config"]["model"]
    stored = {
        "format": format,
        "version": encoder.info.get("version", __version__),
        "samples_seen": encoder.info.get("samples_seen", 0),
        "weights": encoder.info.get("weights", ""),
        "tokenizer": "open_clip" if encoder.tokenizer.name == "open_clip" else "own",
        "resize": encoder.preprocess.mode,
        "view_change": change.stored() if change else None,
        "needs": needs(encoder, format),
        "prompter": node.get("prompter"),
        "grounding": node.get("grounding"),
        "logit_bias": node.get("logit_bias"),
    }
    state = {name: value for name, value in encoder.model.state_dict().items() if name.startswith(PARTS)}
    if state and format in LOADABLE:
        write_tensors(folder / EXTRA_WEIGHTS, plain(state))
    write_json(folder / EXTRA_CONFIG, with_sums(stored, folder))


def needs(encoder: Encoder, format: str) -> dict[str, str]:
    """Versions of packages that read an export, by its part: the least that this was tried with."""
    if format != "hf":
        return {}
    processor = PADDING_PROCESSOR if encoder.preprocess.mode == "pad" else LEAST_TRANSFORMERS
    models = f"transformers>={LEAST_TRANSFORMERS}"
    return {"models, tokenizer": models, "image processor": f"transformers>={processor}"}


def view_stats(encoder: Encoder) -> dict[str, list[float]]:
    """Mean and standard deviation of the pixels, in 0..1."""
    seen = view(encoder.model.image)
    return {"mean": list(seen.mean), "std": list(seen.std)}
