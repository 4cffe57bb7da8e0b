"""Which tower goes to which format, as a table, and the reasons why another does not.

First step of an export (``matrix → hf | open_clip | timm | onnx | torch | regions → verify → card``): parts say where
they can go (:func:`cloc.models.protocols.refusals`), and a pair that cannot hold the model is refused before anything
is written, with the formats that can. ``docs/export.md`` shows the same table, and a test holds it against this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cloc.encoder import Encoder
from cloc.models.protocols import refusals


class ExportError(ValueError):
    """An export that cannot be made or that is not the model; says what to do."""


@dataclass(frozen=True)
class Format:
    """One target format.

    Attributes:
        title: for tables.
        image: image towers that it holds.
        text: text towers that it holds.
        regions: how the Prompter travels.
        tolerance: largest difference allowed, in float32, in units of max(1, largest value of the original).
        refuses: yields a reason for each property of a model that the format cannot hold.
    """

    title: str
    image: str
    text: str
    regions: str
    tolerance: float
    refuses: Callable[[Encoder], list[str]]


def _towers(format: str) -> Callable[[Encoder], list[str]]:
    """Reasons that both towers declare."""
    return lambda encoder: refusals(encoder.model.image, format) + refusals(encoder.model.text, format)


def _refuses_open_clip(encoder: Encoder) -> list[str]:
    image, text = (getattr(tower, "activation", None) for tower in (encoder.model.image, encoder.model.text))
    found = _towers("open_clip")(encoder)
    if image and text and "quick_gelu" in (image, text) and image != text:
        found.append(f"open_clip has one activation for both towers, the image tower has {image}, text {text}")
    return found


def _refuses_timm(encoder: Encoder) -> list[str]:
    return refusals(encoder.model.image, "timm")


def _refuses_regions(encoder: Encoder) -> list[str]:
    prompter = encoder.model.prompter
    return ["the model has no Prompter (a plain CLIP)"] if prompter is None else refusals(prompter, "regions")


FORMATS: dict[str, Format] = {
    "hf": Format(
        "Hugging Face transformers", "class-token ViT with a first norm", "ClipText", "own file", 1e-5, _towers("hf")
    ),
    "open_clip": Format(
        "open_clip", "any ViT of open_clip, timm by name", "ClipText", "own file", 1e-5, _refuses_open_clip
    ),
    "timm": Format("timm", "class-token ViT, any timm backbone", "–", "–", 1e-5, _refuses_timm),
    "onnx": Format("ONNX", "every tower", "every tower", "graphs of their own", 1e-4, _towers("onnx")),
    "torch": Format("torch.export", "every tower", "every tower", "programs of their own", 1e-4, _towers("torch")),
    "regions": Format("PyTorch alone", "–", "–", "a module that stands alone", 1e-5, _refuses_regions),
}


def check_pair(encoder: Encoder, format: str) -> Format:
    """Refuse a format that cannot hold a model.

    Raises:
        ExportError: names each reason, and the formats that can hold this model.
    """
    reasons = FORMATS[format].refuses(encoder)
    if reasons:
        able = [name for name, other in FORMATS.items() if not other.refuses(encoder)]
        raise ExportError(
            f"{encoder.name} cannot go to {format}: {'; '.join(reasons)}. Possible for this model: {', '.join(able)}"
        )
    return FORMATS[format]
