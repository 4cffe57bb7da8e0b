"""Localized contrastive pretraining of vision-language encoders: train, compare, sweep, export.

``import cloc`` is light; PyTorch is imported when :func:`load` is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(
    path: str | Path,
    device: Any = "cpu",
    trusted: Sequence[type] = (),
    image_size: int | None = None,
    dtype: Any = "float32",
) -> Any:
    """Load a trained model ready for use: a run folder, a checkpoint, an exported folder, or a model of others.

    It may come from strangers: no code in it runs, and no network is asked.

    Args:
        path: of it; or ``open_clip:ARCHITECTURE:TAG_OR_FILE``, which downloads a tag.
        device: ``auto`` (a CUDA GPU where there is one, else the CPU), ``cpu``, ``cuda``, ``cuda:1``, ….
        trusted: classes of your own that it may name as parts.
        image_size: side of other views than the model was trained with, in pixels.
        dtype: ``float32``, ``bfloat16``, ``float16`` or PyTorch's own; ``auto`` takes bfloat16 where the device
            computes it, else float32. What the model returns is float32 in any case.

    Returns:
        A :class:`cloc.encoder.Encoder`: ``encode_image``, ``encode_text``, ``encode_dense``, ``encode_regions``,
        ``ground``; ``to``, ``half``, ``bfloat16``, ``float``, ``cpu`` and ``cuda`` change device and precision later.

    Raises:
        OSError, ValueError: see :func:`cloc.loading.load`.
    """
    from cloc.loading import load as load_encoder

    return load_encoder(path, device, trusted=trusted, image_size=image_size, dtype=dtype)
