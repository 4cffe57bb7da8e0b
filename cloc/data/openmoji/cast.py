"""Which things may be drawn, in which color, on which ground; and which combinations are kept for testing alone.

Serves ``openmoji`` at the start of ``data → models → losses → evaluation → engine``. What is held out is chosen by a
hash of the combination itself: it depends on no seed, and on no other thing of the set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cloc.data.openmoji.glyphs import COLORS, Thing, things
from cloc.data.openmoji.grounds import GROUNDS

HELD_OUT = ("things", "colors", "grounds")
"""What a set may hold out: things of the table, pairs of thing and color, pairs of thing and ground."""

_FIFTH = 5

Pool = tuple[tuple[Thing, ...], ...]
"""Things that may be drawn, each with the colors that it may have."""


@dataclass(frozen=True, slots=True)
class Cast:
    """All that a set draws.

    Attributes:
        things: its kinds, in their own colors.
        categories: every phrase that may name a box.
        pools: by the kind of ground, what may be drawn on it in training, validation and test.
        unseen: by the kind of ground, what only ``test_unseen`` shows on it; empty where nothing of that kind is held
            out.
    """

    things: tuple[Thing, ...]
    categories: tuple[str, ...]
    pools: Mapping[str, Pool]
    unseen: Mapping[str, Pool]

    def draw(self, rng: np.random.Generator, count: int, ground: str, unseen: bool = False) -> list[Thing]:
        """Draw different things for a ground.

        Args:
            rng: random state that is used up.
            count: how many.
            ground: its kind.
            unseen: only what is held out.
        """
        pool = (self.unseen if unseen else self.pools)[ground]
        chosen = [pool[index] for index in rng.choice(len(pool), count, replace=False)]
        return [own[0] if len(own) == 1 else own[rng.integers(len(own))] for own in chosen]


def make_cast(held_out: str | None, kinds: int) -> Cast:
    """Choose the things of a set.

    Args:
        held_out: of ``HELD_OUT``; None for the plain set.
        kinds: how many different things the plain set has, evenly taken from the table.

    Raises:
        ValueError: another name, or too few or too many things.
    """
    table = things()
    if not 2 <= kinds <= len(table):
        raise ValueError(f"kinds={kinds}: the table holds {len(table)} things; give 2 to {len(table)}")
    seen = tuple(table[i * len(table) // kinds] for i in range(kinds))
    if held_out == "colors":
        return _colors(seen)
    if held_out == "grounds":
        return _grounds(seen)
    if held_out not in (None, *HELD_OUT):
        raise ValueError(f"held_out={held_out!r}: one of {', '.join(HELD_OUT)} is needed")
    own = seen if held_out is None else tuple(thing for thing in table if thing not in seen)
    pool = tuple((thing,) for thing in own)
    return Cast(own, _phrases(pool), dict.fromkeys(GROUNDS, pool), {})


def is_held_out(thing: Thing, attribute: str) -> bool:
    """Whether a pair of a thing and a color or kind of ground is one of the fifth that training never shows."""
    digest = hashlib.blake2b(f"{thing.character} {attribute}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _FIFTH == 0


def _colors(seen: tuple[Thing, ...]) -> Cast:
    pools = [tuple(_variants(thing, unseen) for thing in seen) for unseen in (False, True)]
    plain, unseen = (tuple(own for own in pool if own) for pool in pools)
    categories = tuple(thing.in_color(color).phrase for thing in seen for color in COLORS)
    return Cast(seen, categories, dict.fromkeys(GROUNDS, plain), dict.fromkeys(GROUNDS, unseen))


def _variants(thing: Thing, unseen: bool) -> tuple[Thing, ...]:
    return tuple(thing.in_color(color) for color in COLORS if is_held_out(thing, color) == unseen)


def _grounds(seen: tuple[Thing, ...]) -> Cast:
    plain, unseen = (
        {ground: tuple((one,) for one in seen if is_held_out(one, ground) == wanted) for ground in GROUNDS}
        for wanted in (False, True)
    )
    return Cast(seen, tuple(thing.phrase for thing in seen), plain, unseen)


def _phrases(pool: Pool) -> tuple[str, ...]:
    return tuple(thing.phrase for own in pool for thing in own)
