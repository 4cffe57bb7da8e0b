"""The JSON and the texts beside a picture, up to token ids; the reference is ``json`` and ten lines for a box."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from cloc.contracts import BadSample
from cloc.data.sample import parse_sample
from cloc.data.tokenizer import Tokenizer

from . import mutate
from .kinds import Case, Kind, Unreadable

PICTURE = b"not looked at"
TEXTS = ("a chick", "Two men, one dog", "naïve café", "小鸡", "🐤", "a", " padded ", "it's & that's")
MOST_REGIONS = 1000
FLOAT_MAX = sys.float_info.max


def prepare(folder: Path) -> Tokenizer:
    """The tokenizer, with its tables read."""
    tokenizer = Tokenizer("open_clip")
    tokenizer.encode("a chick")
    return tokenizer


def make(rng: random.Random, folder: Path, tokenizer: Tokenizer) -> Case:
    """One sample's members: as they should be, changed in a value, or damaged in their bytes."""
    record, what = _record(rng), "as it is"
    changes = rng.choice((0, 1, 1, 2))
    if changes:
        what = ", ".join(mutate.edit(record, rng) for _ in range(changes) if record)
    data = mutate.encode(record, rng)
    if rng.random() < 0.15:
        what, data = mutate.damage(data, rng)
    members = {"jpg": PICTURE, "json": data}
    if rng.random() < 0.3:
        members["txt"] = _text(rng)
    return Case(what, lambda: _read(members, tokenizer), lambda: _reference(members), (BadSample,), data, same=_same)


def _record(rng: random.Random) -> dict[str, Any]:
    regions = [_region(rng) for _ in range(rng.randrange(4))]
    record: dict[str, Any] = {"captions": rng.sample(TEXTS, rng.randrange(1, 4)), "regions": regions}
    if rng.random() < 0.3:
        del record["captions"]
    if rng.random() < 0.15:
        record = {"caption": "a chick on a stone", "ref_exps": [[0, 7, 0.1, 0.1, 0.5, 0.5, 0.9]], "noun_chunks": []}
    return record | {"width": 640, "height": 480, "source": "x", "id": 7}


def _region(rng: random.Random) -> dict[str, Any]:
    x, y = rng.random() * 0.5, rng.random() * 0.5
    region: dict[str, Any] = {"box": [x, y, x + 0.1 + rng.random() * 0.4, y + 0.4], "phrases": [rng.choice(TEXTS)]}
    more = {"category": "bird", "score": 0.5, "crowd": False, "negatives": ["a stone"], "iscrowd": "0"}
    return region | {key: more[key] for key in more if rng.random() < 0.3}


def _text(rng: random.Random) -> bytes:
    lines = "\n".join(rng.sample(TEXTS, rng.choice((1, 1, 5))))
    giant = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=24_000))
    return rng.choice((lines.encode(), lines.encode(), b"", b"\n\n", b"\xff\xfe", giant.encode(), b"a\r\nb\r\n"))


def _read(members: dict[str, bytes], tokenizer: Tokenizer) -> dict[str, Any]:
    sample, _ = parse_sample(members, "key", "set")
    for text in (*sample.captions, *(phrase for region in sample.regions for phrase in region.phrases)):
        ids, _ = tokenizer.encode(text)
        if not 2 <= len(ids) <= tokenizer.context_length:
            raise AssertionError(f"{len(ids)} tokens")
    regions = [(region.box, region.phrases, region.crowd, region.score) for region in sample.regions]
    return {"captions": sample.captions, "regions": regions}


def _reference(members: dict[str, bytes]) -> dict[str, Any]:
    try:
        record = json.loads(members["json"].decode("utf-8-sig"))
        if not isinstance(record, dict):
            raise Unreadable("no object")
        captions = record.get("captions")
        if captions is None:
            captions = members["txt"].decode("utf-8-sig").splitlines() if "txt" in members else record.get("caption")
    except (ValueError, RecursionError) as error:
        raise Unreadable(str(error)[:80]) from error
    captions = captions if isinstance(captions, list) else [captions]
    regions = record.get("regions")
    if regions is None:  # GRIT's lists, whose rules are no ten lines
        return {"captions": _texts(captions)}
    found = [own for own in map(_reference_region, regions if isinstance(regions, list) else []) if own is not None]
    return {"captions": _texts(captions), "regions": found[:MOST_REGIONS]}


def _reference_region(region: Any) -> tuple[Any, ...] | None:
    box = region.get("box") if isinstance(region, dict) else None
    if not isinstance(box, list) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
        return None
    if max(map(abs, box)) > 1.5 or any(value != value for value in box):
        return None
    x0, y0, x1, y1 = (round(min(max(float(value), 0.0), 1.0), 6) for value in box)
    phrases = region.get("phrases")
    texts = _texts(phrases if isinstance(phrases, list) else [phrases])
    if x1 <= x0 or y1 <= y0 or not texts:
        return None
    crowd, score = region.get("crowd", region.get("iscrowd")), region.get("score")
    if crowd is not None and not isinstance(crowd, int | float):  # a flag that says nothing leaves a group, counted
        crowd = not isinstance(crowd, str) or crowd.strip().lower() not in ("0", "0.0", "false", "no", "")
    crowd = bool(crowd)
    number = type(score) in (int, float) and -FLOAT_MAX <= score <= FLOAT_MAX
    return (x0, y0, x1, y1), texts, crowd, float(score) if number else None


def _texts(values: list[Any]) -> tuple[str, ...]:
    """Texts that say something and that UTF-8 holds."""
    return tuple(own.strip() for own in values if isinstance(own, str) and own.strip() and _whole(own))


def _whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return all(found[key] == value for key, value in expected.items())


RECORDS = Kind("record", 0.30, prepare, make)
