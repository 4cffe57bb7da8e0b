"""Regions of a JSON object → ``Region``, and back; and boxes that stand where no reader looks for them.

Stands between ``boxes`` and ``schema`` at the start of ``data → models → losses → evaluation → engine``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from cloc.contracts import BadSample, Region
from cloc.data.boxes import BOX_DECIMALS, is_box, is_number, parse_box, to_float
from cloc.data.grit import GRIT_KEYS, count_entries, grit_boxes, grit_regions
from cloc.data.json_values import shown

MAX_REGIONS = 1_000
"""Regions kept of one picture; more are dropped and counted as ``too_many_regions``."""

REGION_LOSSES = (
    "box_malformed",
    "box_not_finite",
    "box_in_pixels",
    "box_inverted",
    "box_outside",
    "box_empty",
    "region_malformed",
    "region_without_box",
    "region_without_phrase",
    "regions_under_another_key",
    "too_many_regions",
    "box_joined",
    "span_malformed",
    "picture_reshaped",
)
"""Reasons for which an annotated box is no region of its own in the sample."""
DROPPED_REGIONS = tuple(reason for reason in REGION_LOSSES if reason != "box_joined")
"""The same but for a box whose phrase lives on in another region."""

KNOWN_KEYS = frozenset({"captions", "caption", "regions", "width", "height", "source", *GRIT_KEYS})
"""Keys of the JSON object that have a meaning here; all others are kept as they are."""

_READ = {"region_without_box": ", where box is read", "region_without_phrase": ", where phrases is read"}
_BOX_NAME = re.compile(r"box|region|object|annot|detect|instance|entit|ground|phrase|rect|roi|label|xyxy|xywh", re.I)
_BOX_KEYS = frozenset({"box", "bbox", "bndbox", "boundingbox", "bounding_box", "box_2d", "bbox_2d", "xyxy", "xywh"})
_SIDES = ({"x", "y"}, {"xmin", "ymin"}, {"x0", "y0"}, {"x1", "y1"}, {"x_min", "y_min"}, {"left", "top"})
_NO, _YES = ("0", "0.0", "false", "no", ""), ("1", "1.0", "true", "yes")


def read_regions(record: Mapping[str, Any], key: str, counts: Counter[str]) -> tuple[Region, ...]:
    """Read ``regions``; where the object has none, GRIT's lists.

    Args:
        record: the JSON object.
        key: name of the sample.
        counts: receives what was dropped or mended, by reason.

    Raises:
        BadSample: ``bad_json`` where ``regions`` is no list.
    """
    given = record.get("regions")
    if given is None:
        given = grit_regions(record, counts)
    if not isinstance(given, list):
        raise BadSample("bad_json", f"sample {key!r}: regions must be a list, not {type(given).__name__}")
    if not given and (misnamed := misnamed_regions(record)[1]):
        counts["regions_under_another_key"] += misnamed
    regions = []
    for index, item in enumerate(given):
        region = read_region(item, counts)
        if region is not None:
            regions.append(region)
        if len(regions) == MAX_REGIONS and index + 1 < len(given):
            counts["too_many_regions"] += len(given) - index - 1
            break
    return tuple(regions)


def read_region(record: Any, counts: Counter[str]) -> Region | None:
    """Read one region; None, and a reason in ``counts``, where it cannot be used."""
    if not isinstance(record, dict):
        counts["region_malformed"] += 1
        return None
    if "box" not in record:
        counts["region_without_box"] += 1
        return None
    box = parse_box(record["box"], counts)
    if box is None:
        return None
    phrases = record.get("phrases")
    texts = read_texts(phrases if isinstance(phrases, list) else [] if phrases is None else [phrases], counts, "phrase")
    if not texts:
        counts["region_without_phrase"] += 1
        return None
    negatives, category = record.get("negatives"), record.get("category")
    if category is not None and not isinstance(category, str):
        counts["category_malformed"] += 1
        category = None
    score = record.get("score")
    if score is not None and not (is_number(score) and math.isfinite(to_float(score))):
        counts["score_malformed"] += 1
        score = None
    return Region(
        box=box,
        phrases=texts,
        category=category,
        score=None if score is None else float(score),
        negatives=read_texts(negatives, counts, "negative") if isinstance(negatives, list) else (),
        crowd=_read_crowd(record, counts),
    )


def region_to_json(region: Region) -> dict[str, Any]:
    """Return the JSON object of a region: the inverse of ``read_region``."""
    record: dict[str, Any] = {
        "box": [round(value, BOX_DECIMALS) for value in region.box],
        "phrases": list(region.phrases),
    }
    if region.category is not None:
        record["category"] = region.category
    if region.score is not None:
        record["score"] = region.score
    if region.negatives:
        record["negatives"] = list(region.negatives)
    if region.crowd:
        record["crowd"] = True
    return record


def count_regions(record: Mapping[str, Any]) -> int:
    """Return how many boxes a JSON object lists, usable or not, under whatever key."""
    given = record.get("regions")
    if given is None:
        return count_entries(record) or misnamed_regions(record)[1]
    if not isinstance(given, list):
        return 0
    return len(given) or misnamed_regions(record)[1]


def raw_boxes(record: Mapping[str, Any]) -> list[Any]:
    """Return what the object holds for boxes, before anything is made of it."""
    given = record.get("regions")
    if given is None:
        return grit_boxes(record)
    return [item.get("box") for item in given if isinstance(item, dict)] if isinstance(given, list) else []


def misnamed_regions(record: Mapping[str, Any]) -> tuple[str, int]:
    """Find boxes under a key that nobody reads, in an object without regions.

    A key counts where its name speaks of boxes, objects or the like and its value looks like boxes too; under any name,
    where it lists objects that have a box.

    Returns:
        The key, and how many boxes it holds; ``("", 0)`` where there is none.
    """
    given = record.get("regions")
    if given or (given is None and count_entries(record)):
        return "", 0
    for name, value in record.items():
        if name in KNOWN_KEYS or not isinstance(value, list | dict):
            continue
        count = _count_boxes(value) if _BOX_NAME.search(name) else _count_objects(value)
        if count:
            return name, count
    return "", 0


def excerpt(record: Mapping[str, Any], reason: str) -> str:
    """Say in one short line which region of an object is the first that is dropped for a reason."""
    if reason == "regions_under_another_key":
        name, _ = misnamed_regions(record)
        return f"{reason}: {name!r} holds {record[name]!r:.100}, where regions[].box is read"
    given = record.get("regions")
    for item in given if isinstance(given, list) else grit_regions(record, Counter()):
        counts: Counter[str] = Counter()
        read_region(item, counts)
        if counts[reason]:
            return f"{reason}: {item!r:.160}{_READ.get(reason, '')}"
    return reason


def read_texts(values: Iterable[Any], counts: Counter[str], kind: str) -> tuple[str, ...]:
    """Keep the texts that say something, without surrounding space; count the others by reason.

    Args:
        values: what the JSON holds.
        counts: receives ``KIND_not_text``, ``empty_KIND`` and ``KIND_bad_unicode``.
        kind: ``caption``, ``phrase`` or ``negative``.
    """
    kept = []
    for value in values:
        if type(value) is str and value.isascii() and (text := value.strip()):  # nearly every text
            kept.append(text)
        elif not isinstance(value, str):
            counts[f"{kind}_not_text"] += 1
        elif not value.strip():
            counts[f"empty_{kind}"] += 1
        elif not is_encodable(value):
            counts[f"{kind}_bad_unicode"] += 1
        else:
            kept.append(value.strip())
    return tuple(kept)


def is_encodable(text: str) -> bool:
    """Tell whether UTF-8 can hold the text: JSON may smuggle in lone surrogates, which no tokenizer takes."""
    return text.isascii() or not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _read_crowd(record: Mapping[str, Any], counts: Counter[str]) -> bool:
    """Read the flag of a group: true and false, a number, or these as text. What is neither stays a group."""
    value = record.get("crowd", record.get("iscrowd"))
    if value is None or isinstance(value, int | float):
        return bool(value)
    text = value.strip().lower() if isinstance(value, str) else shown(value)
    if text not in (*_NO, *_YES):
        counts["crowd_malformed"] += 1
    return text not in _NO


def _count_boxes(value: Any) -> int:
    """How many boxes a value looks like: a list of them, of objects that have one, or an object of lists."""
    if isinstance(value, list):
        return 1 if is_box(value) else sum(_has_box(item) if isinstance(item, dict) else is_box(item) for item in value)
    return sum(_count_boxes(item) for item in value.values() if isinstance(item, list)) or int(_has_box(value))


def _count_objects(value: Any) -> int:
    """How many objects of a list name a box."""
    listed = value if isinstance(value, list) else []
    return sum(isinstance(item, dict) and not _BOX_KEYS.isdisjoint(map(str.lower, item)) for item in listed)


def _has_box(record: Mapping[str, Any]) -> bool:
    names = {name.lower() for name in record}
    return not names.isdisjoint(_BOX_KEYS) or any(sides <= names for sides in _SIDES)
