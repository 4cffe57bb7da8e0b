"""Small shards of pictures with structure, for the tests of ``data check`` and of what comes twice."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from cloc.contracts import Region, Sample
from cloc.data.inspect.check import Check
from cloc.data.inspect.check_report import print_check
from cloc.data.shards.writer import write_shards

BOX = (0.1, 0.1, 0.5, 0.5)


def landscape(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Smooth, with structure at every size, as photographs have."""
    noise = np.random.default_rng(seed).uniform(0, 255, (9, 12, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def sample(
    key: str, seed: int, captions: Sequence[str] = ("a view",), phrases: Sequence[str] = ("a hill",), **options: Any
) -> Sample:
    data = options.get("image") or jpeg(landscape(seed))
    return Sample(key, data, "jpg", tuple(captions), (Region(BOX, tuple(phrases)),))


def write(folder: Path, *samples: Sample, per_shard: int = 4) -> Path:
    write_shards(samples, folder, samples_per_shard=per_shard)
    return folder


def printed(found: Check, terminal: bool = False, width: int = 80) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    print_check(found, console)
    return console.file.getvalue()
