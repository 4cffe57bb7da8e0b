"""Joins pictures, classes and annotations by their ids, and refuses an id that stands for two things.

A picture that takes another one's boxes looks like any other in every count; so what cannot be told apart is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cloc.data.convert.formats.files import as_json

Item = dict[str, Any]


def id_of(value: Any) -> str | None:
    """Return an id as text, the same for 7, 7.0 and "7"; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


class Kind(NamedTuple):
    """Things with ids.

    Attributes:
        what: how an error calls one.
        name: what people know one by; None where it has no name.
        same: tells whether two entries with one id are one thing, given twice.
        key: where an entry has its id.
        text: a key that must hold a text, which becomes a phrase of every box; None where there is none.
    """

    what: str
    name: Callable[[Item], Any]
    same: Callable[[Item, Item], bool]
    key: str = "id"
    text: str | None = None


def collect(by_id: dict[str, Item], items: Iterable[Item], path: Path, kind: Kind) -> None:
    """Add items by their ids.

    Args:
        by_id: receives them; what it holds already stays, and gets what only the later entry says.
        items: of one list of a file.
        path: the file.
        kind: what they are.

    Raises:
        ValueError: an item has no id, the id of another one, or no text where one must be.
    """
    for item in items:
        number = id_of(item.get(kind.key))
        if number is None:
            seen = as_json(item[kind.key]) if kind.key in item else "is missing"
            raise ValueError(f"{path}: {kind.what} {kind.key} {seen}; a number or a text is needed")
        if kind.text is not None and not isinstance(item.get(kind.text), str):
            seen = f"has the {kind.text} {as_json(item[kind.text])}" if kind.text in item else f"has no {kind.text}"
            raise ValueError(f"{path}: {kind.what} {kind.key} {number} {seen}; a text is needed, correct it there")
        known = by_id.setdefault(number, item)
        if known is not item and not kind.same(known, item):
            both = f"{kind.what} {kind.key} {number} stands for {kind.name(known)!r} and for {kind.name(item)!r}"
            remedy = f"nobody can know whose its annotations are; give each {kind.what} an id of its own, there too"
            raise ValueError(f"{path}: {both}; {remedy}")
        if known is not item:
            known.update({name: value for name, value in item.items() if _is_unknown(known, name)})


def _is_unknown(item: Item, name: str) -> bool:
    """Whether an entry does not say something; 0 is no side of a picture."""
    return item.get(name) in (None, "") or (name in ("width", "height") and not item[name])


def same_picture(first: Item, second: Item, path_of: Callable[[Item], str | None]) -> bool:
    """Tell whether two entries are of one file and size, as far as both say; one path may have more folders."""
    sizes = [(item.get("width") or None, item.get("height") or None) for item in (first, second)]
    paths = [PurePosixPath(path_of(item) or "").parts for item in (first, second)]
    length = min(map(len, paths))
    stated = all(side is not None for size in sizes for side in size)
    same_path = not length or paths[0][-length:] == paths[1][-length:]
    return (sizes[0] == sizes[1] or not stated) and same_path


def refuse_other_numbers(first: dict[str, Item], second: dict[str, Item], paths: tuple[Path, Path], kind: Kind) -> None:
    """Refuse two files that number the same things differently; those without a name are not compared.

    Args:
        first: items of one file by id.
        second: of the other one.
        paths: of both.
        kind: what they are.

    Raises:
        ValueError: a name has one id here and another one there.
    """
    numbers: dict[Any, set[str]] = {}
    for number, item in first.items():
        numbers.setdefault(kind.name(item), set()).add(number)
    for number, item in second.items():
        name = kind.name(item)
        ids = numbers.get(name) if name is not None else None
        if ids and number not in ids:
            seen = f"{name!r} has id {min(ids)} in {paths[0].name} and id {number} in {paths[1].name}"
            raise ValueError(f"{paths[1]}: {seen}; take files that number each {kind.what} alike")
