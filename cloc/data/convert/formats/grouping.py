"""Joins what tables and lists say of one picture in several rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import TypeVar

Row = TypeVar("Row")


def grouped(read: Callable[[], Iterator[tuple[str, Row]]]) -> tuple[int, Iterator[tuple[str, list[Row]]]]:
    """Return how many pictures there are, and the rows of each, in the order in which pictures first come.

    Args:
        read: yields (picture, row), the same at every call. It is called twice. Where the rows of each picture follow
            one another, memory holds those of one and the names of all; else all rows.
    """
    seen: set[str] = set()
    together, last = True, None
    for name, _ in read():
        if name != last:
            together &= name not in seen
            seen.add(name)
            last = name
    return len(seen), (_streamed(read()) if together else _gathered(read()))


def _streamed(rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, list[Row]]]:
    for name, group in itertools.groupby(rows, itemgetter(0)):
        yield name, [row for _, row in group]


def _gathered(rows: Iterator[tuple[str, Row]]) -> Iterator[tuple[str, list[Row]]]:
    found: dict[str, list[Row]] = {}
    for name, row in rows:
        found.setdefault(name, []).append(row)
    yield from found.items()
