"""Reads regions as GRIT writes them into img2dataset's JSON (Peng et al., Kosmos-2, arXiv:2306.14824).

Stands below ``sample`` at the start of ``data → models → losses → evaluation → engine``. Each entry of ``ref_exps``
(referring expressions) and ``noun_chunks`` is ``[start, end, x0, y0, x1, y1, score]``: character offsets into
``caption``, a box in 0..1 of the picture, and the detector's confidence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from cloc.data.boxes import is_box, is_number, to_float

GRIT_KEYS = ("ref_exps", "noun_chunks")
"""Keys of the two lists, in the order in which their phrases are listed."""

_SAME_ASPECT = 0.02  # a resize rounds each side to a pixel; padding and cropping change the aspect by more
_MIN_FIELDS = 6  # the score may be missing


def count_entries(record: Mapping[str, Any]) -> int:
    """Return how many annotated boxes the JSON object lists, usable or not."""
    return len(_entries(record))


def grit_boxes(record: Mapping[str, Any]) -> list[Any]:
    """Return the four numbers of each entry that has as many."""
    return [entry[2:6] for entry in _entries(record) if isinstance(entry, list) and len(entry) >= _MIN_FIELDS]


def grit_regions(record: Mapping[str, Any], counts: Counter[str]) -> list[Any]:
    """Return the region objects of a shard's JSON for GRIT's two lists.

    A box that comes again (a noun chunk and the expression around it share one) is one region with several phrases.

    Args:
        record: the JSON object.
        counts: receives ``box_joined`` for each entry that joined another's region, ``span_malformed`` where the
            offsets do not cut a phrase out of the caption, and ``picture_reshaped``, for each entry, where img2dataset
            padded or cropped the picture, so that the boxes are not of this one. What else is wrong is left to the
            reader of regions.
    """
    entries = _entries(record)
    if _reshaped(record):
        counts["picture_reshaped"] += len(entries)
        return []
    regions: list[Any] = []
    by_box: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        if not isinstance(entry, list) or len(entry) < _MIN_FIELDS:
            regions.append(None)  # counted as region_malformed
            continue
        phrase = cut(record.get("caption"), entry[0], entry[1])
        if phrase is None:
            counts["span_malformed"] += 1
            continue
        # An entry may hold anything, also what cannot be compared: only boxes of numbers are joined.
        box = tuple(map(to_float, entry[2:6])) if is_box(entry[2:6]) else len(regions)
        if box in by_box:
            counts["box_joined"] += 1
            if phrase not in by_box[box]["phrases"]:
                by_box[box]["phrases"].append(phrase)
            continue
        by_box[box] = {"box": entry[2:6], "phrases": [phrase], "score": entry[6] if len(entry) > _MIN_FIELDS else None}
        regions.append(by_box[box])
    return regions


def _entries(record: Mapping[str, Any]) -> list[Any]:
    entries: list[Any] = []
    for name in GRIT_KEYS:
        given = record.get(name)
        if given is not None:
            entries.extend(given if isinstance(given, list) else [given])  # what is no list is one malformed entry
    return entries


def cut(caption: Any, start: Any, end: Any) -> str | None:
    """Return ``caption[start:end]`` without surrounding space, or None where that is no phrase.

    Args:
        caption: the text; whatever JSON held for it.
        start: number of the first character; so too.
        end: number of the one behind the last.
    """
    if not isinstance(caption, str) or not (_is_offset(start) and _is_offset(end) and start < end <= len(caption)):
        return None
    return caption[int(start) : int(end)].strip() or None


def _is_offset(value: Any) -> bool:
    """Tell whether the value is a whole number ≥ 0; parquet columns of mixed lists make 3.0 of 3."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value == value // 1


def _reshaped(record: Mapping[str, Any]) -> bool:
    given: list[Any] = [record.get(name) for name in ("width", "height", "original_width", "original_height")]
    sides = [to_float(side) if is_number(side) else 0.0 for side in given]
    if not all(0 < side < math.inf for side in sides):
        return False
    width, height, original_width, original_height = sides
    tolerance = _SAME_ASPECT + 1 / width + 1 / height
    return abs(width / height * original_height / original_width - 1) > tolerance
