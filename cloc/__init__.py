"""Localized contrastive pretraining of vision-language encoders: train, compare, sweep, export.

``import cloc`` is light; PyTorch is imported when :func:`load` is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str, device: str = "cpu", trusted: Sequence[type] = (), image_size: int | None = None) -> Any:
    """Load a trained model ready for use: a run folder, a checkpoint, or an exported folder.

    It may come from strangers: no code in it runs, and no network is asked. ``trusted`` are classes of your own that it
    may name as parts. ``image_size`` loads the same weights for views of other pixels than the model was trained with.
    See :func:`cloc.loading.load`.
    """
    from cloc.loading import load as load_encoder

    return load_encoder(path, device, trusted=trusted, image_size=image_size)
