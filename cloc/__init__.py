"""Localized contrastive pretraining of vision-language encoders: train, compare, sweep, export.

``import cloc`` is light; PyTorch is imported when :func:`load` is called.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str, device: str = "cpu") -> Any:
    """Load a trained model ready for use: a run folder, a checkpoint, or an exported folder.

    See :func:`cloc.encoder.load`.
    """
    from cloc.encoder import load as load_encoder

    return load_encoder(path, device)
