"""Looks at the beginning of a file, so that a source is recognized by what it holds.

Serves the ``recognizes`` of formats: what is read of a file has a bound, and is kept for whoever asks next.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import ijson

HEAD_BYTES = 256 * 2**10
"""How much of a file is looked at."""

MAX_LISTED = 10_000
"""Entries of a folder that are looked at."""

THE_LIST = ""
"""In ``JsonPeek.items``, where the file itself is a list."""


@dataclass(frozen=True, slots=True)
class JsonPeek:
    """What the beginning of a JSON file shows.

    Attributes:
        keys: of the file's object; where the file is longer than ``HEAD_BYTES``, those that begin in these. Empty where
            the file is a list.
        items: of each list that begins there, the keys of its first item, which are none where that is no object; the
            key of the list, or ``THE_LIST``.
        is_list: the file is a list.
        whole: all of the file was seen.
    """

    keys: tuple[str, ...] = ()
    items: Mapping[str, frozenset[str]] = field(default_factory=dict)
    is_list: bool = False
    whole: bool = False

    def item(self, key: str = THE_LIST) -> frozenset[str]:
        """The keys of the first item of a list; empty where no such list was seen."""
        return self.items.get(key, frozenset())


def peek_json(path: Path) -> JsonPeek | None:
    """Look at a file's beginning as JSON.

    Returns:
        What it shows; None where there is no file, or it begins neither as an object nor as a list.
    """
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return None
    return _peek(str(path), stat.st_mtime_ns, stat.st_size)


def peek_text(path: Path) -> str:
    """The beginning of a file as text, what is no UTF-8 replaced; empty where it cannot be read or has a NUL."""
    data = _head(str(path))
    return "" if b"\0" in data else data.decode("utf-8-sig", "replace")


def entries(folder: Path, *suffixes: str) -> list[Path]:
    """The files of a folder by the ends of their names (in small letters); at most ``MAX_LISTED`` are looked at."""
    try:
        with os.scandir(folder) as listed:
            names = [entry.name for entry in itertools.islice(listed, MAX_LISTED) if entry.is_file()]
    except OSError:
        return []
    return [folder / name for name in sorted(names) if name.lower().endswith(suffixes) and not name.startswith(".")]


@lru_cache(maxsize=256)
def _peek(path: str, changed: int, size: int) -> JsonPeek | None:
    data = _head(path)
    keys: list[str] = []
    items: dict[str, frozenset[str]] = {}
    kind, whole = "", size <= HEAD_BYTES
    try:
        for kind, key, value in _outline(data):
            if kind == "key":
                keys.append(key)
            elif kind == "item":
                items[key] = value
            if kind == "item" and key == THE_LIST:
                return JsonPeek((), items, True, whole)
    except (ijson.JSONError, ValueError, ArithmeticError, RecursionError):
        whole = False  # it ends within the head, or is no JSON further on, which is for its reader to say
    return JsonPeek(tuple(keys), items, False, whole) if keys or kind else None


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except (OSError, ValueError):
        return b""


def _outline(data: bytes) -> Iterator[tuple[str, str, Any]]:
    """The keys of the object (``key``) and the keys of the first item of each list of it (``item``)."""
    depth, key = 0, THE_LIST  # of what is open; the key of the object that is being read
    first: set[str] | None = None  # keys of a list's first item while it is read
    waits = False  # for the first item of a list
    base = 1  # depth of a list of items: 1 where the file is the list, 2 within an object
    events = ijson.basic_parse(io.BytesIO(data.removeprefix(b"\xef\xbb\xbf")), use_float=True)
    for event, value in events:
        opens, closes = event in ("start_map", "start_array"), event in ("end_map", "end_array")
        depth -= closes
        if depth == 0 and event == "start_map":
            base = 2
            yield "object", "", None
        elif base == 2 and depth == 1 and event == "map_key":
            key = value
            yield "key", key, None
        elif depth == base - 1 and event == "start_array":
            waits = True
        elif waits and depth == base:
            waits = False
            if event == "start_map":
                first = set()
            else:
                yield "item", key, frozenset()
        elif first is not None and depth == base + 1 and event == "map_key":
            first.add(value)
        elif first is not None and depth == base and event == "end_map":
            yield "item", key, frozenset(first)
            first = None
        elif waits and closes:
            waits = False
            yield "item", key, frozenset()
        depth += opens
    if first is not None:
        yield "item", key, frozenset(first)
