"""Grounds that OpenMoji scenes stand on.

Serves ``openmoji`` at the start of ``data → models → losses → evaluation → engine``. Grounds vary so that a model
cannot tell a thing by its surroundings, and are muted so that things stand out.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

GROUNDS = ("flat", "gradient", "horizon", "stripes", "checker", "noise")
"""Kinds of grounds."""


def ground_kind(rng: np.random.Generator) -> str:
    """Draw a kind of ground."""
    return GROUNDS[rng.integers(len(GROUNDS))]


def ground(kind: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Paint a ground of a kind in muted colors, ``size`` pixels square."""
    first, second = (rng.uniform(90, 235) + rng.uniform(-30, 30, 3) for _ in range(2))
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(0.12, 0.4)
    along = rows * np.sin(angle) + columns * np.cos(angle)
    if kind == "gradient":
        share = (along - along.min()) / np.ptp(along)
    elif kind == "horizon":
        share = (rows > rng.uniform(0.3, 0.7)).astype(np.float32)
    elif kind == "stripes":
        share = (np.floor(along / period) % 2) * 0.5
    elif kind == "checker":
        share = ((np.floor(rows / period) + np.floor(columns / period)) % 2) * 0.5
    elif kind == "noise":
        coarse = rng.random((-(-size // 4), -(-size // 4)), dtype=np.float32) * 0.6
        share = coarse.repeat(4, 0).repeat(4, 1)[:size, :size]
    else:
        share = np.zeros((size, size), np.float32)
    colors = first + share[..., None] * (second - first)
    return Image.fromarray(np.clip(colors, 0, 255).astype(np.uint8))
