"""Encodings of positions by the name that ``model.image.positions`` has. One more: a file, its class here, its YAML."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from cloc.config import ConfigError
from cloc.models.positions.fourier import Fourier
from cloc.models.positions.learned import Learned
from cloc.models.positions.sincos import SinCos


class Encoding(Protocol):
    """What tells the patches of a trunk where they are."""

    def install(self, trunk: nn.Module) -> bool:
        """Give it to a trunk of timm or open_clip that is just built; returns whether the trunk can have it."""
        ...


ENCODINGS: dict[str, type[Encoding]] = {"learned": Learned, "sincos": SinCos, "fourier": Fourier}


def install(name: str, trunk: nn.Module) -> None:
    """Give a trunk the encoding of a name.

    Raises:
        ConfigError: no such encoding, or a trunk that cannot have it.
    """
    if name not in ENCODINGS:
        *others, last = ENCODINGS
        raise ConfigError(f"model.image.positions={name!r}: give {', '.join(others)} or {last}")
    if not ENCODINGS[name]().install(trunk):
        raise ConfigError(
            f"model.image.positions={name!r}: {type(trunk).__name__} has no table of positions to start from it; give "
            "learned, which leaves the tower as its library builds it"
        )
