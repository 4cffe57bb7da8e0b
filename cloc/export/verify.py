"""Proof of an export: the model and its export, on the same pictures, compared state by state.

Second half of an export (``matrix → hf | open_clip | … → verify → card``). The export is reloaded from its folder by
the target library alone; the largest absolute difference of each state is printed, stored in ``parity.json`` and
written into the model card.
"""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize, pad
from torchvision.transforms.functional import to_pil_image

from cloc.console import print_table
from cloc.contracts import BadSample
from cloc.data.decode import decode_rgb
from cloc.encoder import Encoder
from cloc.export.capabilities import ExportError
from cloc.files import read_file, write_json
from cloc.loading import load
from cloc.models import taps
from cloc.models.timm_backbone import tokens_of

PICTURE_SIZES = ((96, 128), (200, 90), (64, 64), (37, 151))  # height, width
PICTURE_FILES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PICTURES = 32
TEXTS = (
    "a chick",
    "Two dogs, one of them brown; they don't run.",
    "a photo of the number 1984 & a café",
    "  the   cup left of an umbrella, in front of a (very) long fence " + "and a fence " * 40,
)
BOXES = ((0.1, 0.2, 0.5, 0.9), (0.0, 0.0, 1.0, 1.0), (0.55, 0.05, 0.6, 0.15))


@dataclass(frozen=True)
class Probe:
    """What both sides are asked.

    Attributes:
        pictures: B pictures of any size.
        views: ``[B,3,S,S]`` uint8, resized and padded as in training.
        pixels: ``[B,3,S,S]`` normalized.
        texts: T texts.
        tokens: ``[T,L]`` their ids, trimmed to the longest.
        whole_tokens: the same, padded to the text tower's whole context length.
        boxes: ``[B,K,4]`` xyxy in 0..1 of the view.
    """

    pictures: list[Image.Image]
    views: Tensor
    pixels: Tensor
    texts: tuple[str, ...]
    tokens: Tensor
    whole_tokens: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Row:
    """One compared state.

    Attributes:
        name: of the state.
        difference: largest absolute one.
        scale: largest absolute value of the original.
        tolerance: largest difference allowed, in units of max(1, scale); None for a row that informs only.
    """

    name: str
    difference: float
    scale: float
    tolerance: float | None

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance; a NaN never is."""
        return self.tolerance is None or self.difference <= self.tolerance * max(1.0, self.scale)


def make_probe(encoder: Encoder, folder: Path | None = None) -> Probe:
    """Generate pictures (always the same), and add those of a folder. All come from files, as they do in training.

    Raises:
        FileNotFoundError: the folder holds no picture.
        ValueError: a picture that cannot be read.
    """
    files = {f"generated {i}": _draw(*size, seed=i) for i, size in enumerate(PICTURE_SIZES)}
    if folder is not None:
        found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURE_FILES)
        if not found:
            raise FileNotFoundError(f"--pictures {folder}: no {', '.join(PICTURE_FILES)} file there")
        files |= {str(file): read_file(file) for file in found[:MAX_PICTURES]}
    views, pictures = [], []
    for name, data in files.items():
        try:
            picture = decode_rgb(data)
        except BadSample as error:
            raise ValueError(f"--pictures {name}: {error}; remove it") from error
        views.append(encoder.preprocess(picture, encoder.model.image.image_size)[0])
        pictures.append(to_pil_image(picture))
    stacked = torch.stack(views)
    pixels = (stacked.float() - encoder.model.mean.cpu()) / encoder.model.std.cpu()
    boxes = torch.tensor(BOXES).expand(len(pictures), -1, -1).contiguous()
    tokens = encoder.tokenizer(TEXTS)
    missing = encoder.model.text.context_length - tokens.shape[1]
    whole = pad(tokens, (0, missing), value=encoder.tokenizer.pad_id)
    return Probe(pictures, stacked, pixels, TEXTS, tokens, whole, boxes)


def _draw(height: int, width: int, seed: int) -> bytes:
    """A JPEG of smooth colors with a little noise: something for every frequency."""
    rng = np.random.default_rng(seed)
    colors = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    coarse = colors.resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse).astype(np.int16) + rng.integers(-20, 21, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def trunk_tokens(trunk: Any, maps: Tensor) -> Tensor:
    """Patch tokens after the last norm ``[B,N,C]`` of a timm model, from whichever layout its map has."""
    tokens = tokens_of(trunk, maps)
    return trunk.fc_norm(tokens) if maps.ndim == 3 and hasattr(trunk, "fc_norm") else tokens


@torch.no_grad()
def original(encoder: Encoder, probe: Probe) -> dict[str, Tensor]:
    """Every state of the model that an export may hold.

    Returns:
        ``pooled`` and ``text`` of unit norm, ``tokens`` after the last norm, ``last`` and ``penultimate`` hidden states
        with their prefix tokens (not of a CNN), ``regions`` and ``grounded`` where the model has them.
    """
    model = encoder.model
    with taps.around_last(model.image) as states:
        seen = model.encode_images(probe.views.to(encoder.device))
    found = {"pooled": seen.pooled, "tokens": seen.tokens, **states}
    found["text"] = model.encode_texts(probe.tokens.to(encoder.device))
    if model.prompter is not None:
        found["regions"] = model.encode_boxes(seen, probe.boxes.to(encoder.device))
    if model.grounding is not None:
        phrases = found["text"].expand(len(probe.pictures), -1, -1)
        found["grounded"] = model.ground(seen, phrases)
    return {name: value.float().cpu() for name, value in found.items()}


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float, prefix: str = "") -> list[Row]:
    """Compare all states that the export returned.

    Raises:
        ExportError: a state of another shape.
    """
    rows = []
    for name, value in theirs.items():
        if ours[name].shape != value.shape:
            raise ExportError(f"{name} is {list(ours[name].shape)} in the model and {list(value.shape)} in the export")
        difference = (ours[name] - value.float().cpu()).abs().max().item()
        rows.append(Row(prefix + name, difference, ours[name].abs().max().item(), tolerance))
    return rows


def compare_reloaded(encoder: Encoder, probe: Probe, folder: Path, tolerance: float) -> list[Row]:
    """Rows of ``cloc.load`` of the folder itself: nothing of the model is lost, its Prompter neither."""
    ours, again = original(encoder, probe), original(load(folder, trusted=encoder.model.classes), probe)
    if lost := set(ours) - set(again):
        raise ExportError(f"{folder}: cloc.load of the export lacks {', '.join(sorted(lost))}")
    return compare(ours, {name: again[name] for name in ours}, tolerance, prefix="cloc.load: ")


def compare_tokens(ours: list[list[int]], theirs: list[list[int]]) -> Row:
    """Row of a tokenizer: how many texts have other ids."""
    wrong = sum(one != other for one, other in zip(ours, theirs, strict=True))
    return Row("texts with other token ids", float(wrong), float(len(ours)), 0.0)


def compare_views(encoder: Encoder, probe: Probe, pixels: Tensor, tolerance: float | None) -> list[Row]:
    """Rows of the export's own preprocessing, from files of any size.

    Args:
        encoder: the original.
        probe: what was asked.
        pixels: ``[B,3,S,S]`` as the exported preprocessing makes them.
        tolerance: of the pixels; None where another library's resize differs by design. The cosine of the pooled
            embeddings must be at least 0.999 in either case.
    """
    with torch.no_grad():
        ours = encoder.model.encode_images(probe.views.to(encoder.device)).pooled.cpu()
        pooled = normalize(encoder.model.image(pixels.to(encoder.device))[0].float(), dim=-1).cpu()
    cosine = (ours * pooled).sum(-1).min().item()
    rows = compare({"pixels": probe.pixels}, {"pixels": pixels}, tolerance or 0.0, prefix="own preprocessing: ")
    rows = [Row(row.name, row.difference, row.scale, tolerance) for row in rows]
    return [*rows, Row("own preprocessing: 1 - cosine of pooled", abs(1.0 - cosine), 1.0, 1e-3)]


def report(rows: list[Row], title: str) -> None:
    """Print the table."""
    table = Table(title=title, title_justify="left", box=None)
    for column in ("state", "largest difference", "largest value", "allowed", ""):
        table.add_column(column, justify="left" if column in ("state", "") else "right")
    for row in rows:
        allowed = "–" if row.tolerance is None else f"{row.tolerance * max(1.0, row.scale):.1e}"
        table.add_row(row.name, f"{row.difference:.1e}", f"{row.scale:.3g}", allowed, "" if row.ok else "[red]differs")
    print_table(table)


def write_parity(rows: list[Row], folder: Path, pictures: int) -> None:
    """Write ``parity.json``; a value that is not finite becomes null."""

    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    entries = [{name: finite(value) for name, value in asdict(row).items()} | {"ok": row.ok} for row in rows]
    stored = {"ok": all(row.ok for row in rows), "pictures": pictures, "rows": entries}
    write_json(folder / "parity.json", stored)


def markdown(rows: list[Row]) -> str:
    """The table for the model card."""
    lines = ["| state | largest difference | largest value | allowed |", "|---|---|---|---|"]
    for row in rows:
        allowed = "–" if row.tolerance is None else f"{row.tolerance * max(1.0, row.scale):.1e}"
        lines.append(f"| {row.name} | {row.difference:.1e} | {row.scale:.3g} | {allowed} |")
    return "\n".join(lines)
