"""Ways to damage bytes and JSON values."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

WORD = "pneumonoultramicroscopicsilicovolcanoconiosis"
NUMBERS = ("9" * 400, "-" + "9" * 400, "9" * 5000, "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1e-400", "-0.0")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1.0000001, 1.4, 7, 640, 1000, 2**31, 2**63, -(2**63), 2**64, 1e308,
    "", " ", "0", "1", "false", "NaN", "a", "a chick\na duck\n\nan egg", "\x00", "\ud800", "\u202e", "🐤", "../x", "/x",
    [], {}, [[]], [None], [0, 0, 1, 1], [0.1, 0.1, 0.9, 0.9], {"a": 1}, ["a", 1, None], "x" * 4000, WORD * 400,
)  # fmt: skip


def flip(data: bytes, rng: random.Random) -> bytes:
    """Flip one to four bits."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 4)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Cut the end off."""
    return data[: rng.randrange(len(data) + 1)]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Put bytes in between."""
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice((rng.randbytes(3), bytes(512), b"\xff" * 9)) + data[place:]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a few bytes with extreme ones."""
    place = rng.randrange(len(data) + 1)
    new = rng.choice((b"\xff\xff", b"\x00\x00", b"\x7f\xff\xff\xff", b"\x80", rng.randbytes(4)))
    return data[:place] + new + data[place + len(new) :]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """Repeat a part."""
    start = rng.randrange(len(data) + 1)
    stop = min(len(data), start + rng.choice((1, 16, 512)))
    return data[:stop] + data[start:stop] + data[stop:]


DAMAGES = (flip, cut, insert, overwrite, repeat)


def damage(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One of the damages, by name."""
    chosen = rng.choice(DAMAGES)
    return chosen.__name__, chosen(data, rng)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values inside lists and objects."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*path, key)
        yield from places(inner, (*path, key))


def edit(value: Any, rng: random.Random) -> str:
    """Change one value in place: another, none, a key of another name, or twice; say what was done."""
    *above, last = rng.choice(list(places(value)))
    owner = value
    for key in above:
        owner = owner[key]
    name = ".".join(map(str, (*above, last)))
    action = rng.choice(("replace", "replace", "replace", "remove", "rename", "again"))
    if action == "remove":
        del owner[last]
    elif action == "rename" and isinstance(owner, dict):
        owner[rng.choice(("bbox", "text", "label", "iscrowd", f"{last}_"))] = owner.pop(last)
    elif action == "again" and isinstance(owner, list):
        owner.extend([owner[last]] * rng.choice((1, 1500)))
    else:
        owner[last] = copy.deepcopy(rng.choice(VALUES))  # lists of them are changed in turn
        return f"{name}={owner[last]!r:.30}"
    return f"{action} {name}"


def encode(value: Any, rng: random.Random) -> bytes:
    """JSON with, now and then, a number that no float holds, a key twice, or brackets without end."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    oddity = rng.random()
    if oddity < 0.10:
        start = rng.randrange(len(text) + 1)
        found = next((i for i in range(start, len(text)) if text[i].isdigit()), None)
        if found is not None:
            end = next((i for i in range(found, len(text)) if text[i] not in "0123456789.e-"), len(text))
            text = text[:found] + rng.choice(NUMBERS) + text[end:]
    elif oddity < 0.12:
        depth = rng.choice((100, 2_000, 100_000))
        text = text[:-1] + ', "deep": ' + rng.choice(("[", '{"a":')) * depth
    elif oddity < 0.14:
        depth = rng.choice((100, 600, 900))
        text = text[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"
    elif oddity < 0.16:
        text = text[:-1] + ', "captions": ["another"]}'
    encoding = rng.choice(("utf-8",) * 12 + ("utf-16", "utf-8-sig", "latin-1"))
    return text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
