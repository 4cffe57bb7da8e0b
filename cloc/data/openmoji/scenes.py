"""OpenMoji scenes: an embedded data set that anyone can draw again, picture by picture.

Stands at the very start of ``data → models → losses → evaluation → engine``: a source of ``Sample`` like any other
converter. It exists so that the demo, the tests and the controlled relation benchmark need no download and no
photographs. A scene is a pure function of (seed, split, index) and of the settings, in any process.

Pictures show emojis designed by OpenMoji, CC BY-SA 4.0: whoever passes them on passes on ``glyphs.attribution()`` too.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cloc.contracts import Region, Sample
from cloc.data.openmoji.cast import make_cast
from cloc.data.openmoji.glyphs import Thing, check_font, sprite
from cloc.data.openmoji.grounds import ground, ground_kind
from cloc.data.openmoji.texts import PHRASINGS, captions, facts

SOURCE = "openmoji"
TEST_UNSEEN = "test_unseen"
"""Split of the pairs that are held out; the others never show them."""
SPLITS = {"train": 0, "val": 1, "test": 2, TEST_UNSEEN: 4}
"""Number of each split within the seed: no two splits share a scene's random state."""
RELATIONS = ("left", "right", "above", "below")

_RELATION_STREAM, _SINGLE_STREAM = 3, 5
_MIN_VISIBLE = 0.55
_MIN_HIDDEN = 0.08  # share of a thing that another must hide to be told as being in front of it
_CROWDING = 0.4  # share of things that are put near another one, so that overlaps are not rare
_ATTEMPTS = 24


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


class Scenes:
    """Draws scenes: things on a ground, with a box and a phrase for each, and true captions.

    Args:
        seed: number of the data set; another seed gives other scenes.
        image_size: side of the square picture in pixels.
        count: fewest and most things of a scene.
        sprite: smallest and largest long side of a thing in pixels.
        kinds: how many different things there are; evenly taken from the table.
        held_out: what the set keeps for testing, of ``cast.HELD_OUT``. ``things``: it shows only things that the plain
            set never draws. ``colors``: things are tinted, and a fifth of the pairs of thing and color is drawn in
            ``test_unseen`` alone. ``grounds``: the same of thing and kind of ground, in their own colors.

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
        held_out: str | None = None,
    ) -> None:
        self.cast, self.held_out = make_cast(held_out, kinds), held_out
        most = min(map(len, (*self.cast.pools.values(), *self.cast.unseen.values())))
        if not 2 <= count[0] <= count[1] <= most:
            raise ValueError(
                f"count={count}, kinds={kinds}: from 2 to {most} things fit a scene, fewest first; mend either"
            )
        if not 4 <= sprite[0] <= sprite[1] <= image_size // 2:
            raise ValueError(f"sprite={sprite}: sizes from 4 to half of image_size={image_size} are possible")
        self.seed, self.image_size, self.count, self.sprite = seed, image_size, count, sprite
        check_font()

    def sample(self, split: str, index: int) -> Sample:
        """Draw one scene.

        Args:
            split: of ``SPLITS``; ``test_unseen`` where pairs are held out.
            index: number of the scene within the split.

        Raises:
            ValueError: so many things of that size find no room; ``test_unseen`` of a set without held-out pairs.
        """
        if split == TEST_UNSEEN and not self.cast.unseen:
            raise ValueError(f"held_out={self.held_out!r}: no pairs are held out; give colors or grounds")
        rng = self._rng(SPLITS[split], index)
        kind = ground_kind(rng)
        picture = ground(kind, self.image_size, rng)
        placed, owner = self._compose(rng, kind, split == TEST_UNSEEN)
        for _ in range(_ATTEMPTS):
            if len(placed) >= self.count[0]:
                break
            placed, owner = self._compose(rng, kind, split == TEST_UNSEEN)
        else:
            raise ValueError(f"count={self.count}, sprite={self.sprite}: no room for them; make either smaller")
        boxes = [item.box(self.image_size) for item in placed]
        names = [item.thing.phrase for item in placed]
        texts = captions(names, facts(boxes, _covering(placed, owner)), rng)
        extra: dict[str, object] = {"ground": kind} if self.held_out == "grounds" else {}
        return self._sample(f"{split}-{index:07d}", picture, placed, texts, extra)

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

    def single_things(self, pictures: int) -> Iterator[tuple[str, list[bytes]]]:
        """Draw each thing alone, at the scale of the scenes, for naming whole pictures.

        Args:
            pictures: of each thing.

        Yields:
            The phrase of a thing, and its pictures: encoded JPEGs.
        """
        for number, thing in enumerate(self.cast.things):
            yield thing.phrase, [self._single(thing, number, index) for index in range(pictures)]

    def _single(self, thing: Thing, number: int, index: int) -> bytes:
        rng = self._rng(_SINGLE_STREAM, number, index)
        picture = ground(ground_kind(rng), self.image_size, rng)
        image, mask = sprite(thing, self._side(rng))
        picture.paste(image, self._place(rng, mask.shape, []), image)
        return _jpeg(picture)

    def _side(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.sprite[0], self.sprite[1] + 1))

    def _rng(self, stream: int, *index: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(stream, *index))))

    def _compose(
        self, rng: np.random.Generator, kind: str, unseen: bool = False
    ) -> tuple[list[Placed], NDArray[np.int8]]:
        """Place things one in front of the other; ``owner`` says which one each pixel shows, -1 for the ground."""
        wanted = int(rng.integers(self.count[0], self.count[1] + 1))
        owner = np.full((self.image_size, self.image_size), -1, np.int8)
        placed: list[Placed] = []
        for thing in self.cast.draw(rng, wanted, kind, unseen):
            picture, mask = sprite(thing, self._side(rng))
            for _ in range(_ATTEMPTS):
                x, y = self._place(rng, mask.shape, placed)
                item = Placed(thing, picture, mask, x, y)
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
        kind = ground_kind(rng)
        picture = ground(kind, self.image_size, rng)
        pair = self.cast.draw(rng, 2, kind)
        sprites = [sprite(thing, self._side(rng)) for thing in pair]
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
        size = self.image_size
        return Sample(key, _jpeg(picture), "jpg", texts, regions, size, size, SOURCE, extra)


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


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
