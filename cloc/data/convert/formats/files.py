"""Finds the files of a source, or refuses with a remedy; reads large JSON piece by piece."""

from __future__ import annotations

import codecs
import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from cloc.data.json_values import shown

_MAX_DEPTH = 5_000  # of JSON: the parser's memory grows with the square of it
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_NAN = ", or write null for NaN and Infinity, which JSON has not"
_OPEN, _CLOSE = (b"[", b"{"), (b"]", b"}")


def need_file(path: Path, remedy: str) -> Path:
    """Return the path of a file that is there.

    Raises:
        FileNotFoundError: it is not; the message ends with the remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {remedy}")
    return path


def need_folder(path: Path, remedy: str) -> Path:
    """Return the path of a folder that is there.

    Raises:
        FileNotFoundError: it is not; the message ends with the remedy.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; {remedy}")
    return path


def named_file(source: Path, pattern: str, split: str | None, default: str) -> Path:
    """Return the annotation file of a split.

    Args:
        source: the file itself, its folder, or the folder of ``annotations/`` that holds it.
        pattern: of the file's name, ``{}`` for the split.
        split: which one; None for the default, or the only one.
        default: of the splits.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several, and neither is the default.
    """
    if source.is_file():
        return source
    for folder in (source / "annotations", source):
        if (path := folder / pattern.format(split or default)).is_file():
            return path
    found = sorted(path for folder in ("annotations", ".") for path in source.glob(f"{folder}/{pattern.format('*')}"))
    if split is None and len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found)
    if split is None and found:
        raise ValueError(f"{source}: holds {names}; name one as SOURCE, or its split with --split")
    there = f"there is {names}" if found else f"{pattern.format('SPLIT')} is needed"
    raise FileNotFoundError(
        f"{source / pattern.format(split or default)}: no such file; {there}; name a split with --split"
    )


def json_items(path: Path, prefix: str) -> Iterator[Any]:
    """Yield the items of one list of a JSON file; memory holds one at a time.

    Args:
        path: the file.
        prefix: where the list is, for instance ``images.item``, or ``item`` where the file is the list.

    Raises:
        ValueError: the file is not JSON, is cut off, nested too deep, or holds a number that nothing can; or what
            stands there is no list.
    """
    empty = True
    with path.open("rb") as file:
        try:
            for item in ijson.items(_Shallow(_after_mark(file)), prefix, use_float=True):
                empty = False
                yield item
            if empty:
                _need_list(path, file, prefix.removesuffix("item").removesuffix("."))
        except _NotListError:
            raise
        except (ijson.JSONError, ValueError, ArithmeticError, RecursionError) as error:
            first = (
                error.args[0] if error.args else ""
            )  # the parser's own messages are bytes where the file is no UTF-8
            seen = (first.decode("utf-8", "replace") if isinstance(first, bytes) else str(first)).partition("\n")[0]
            raise ValueError(
                f"{path}: not JSON, or cut off: {seen}; restore the file{_NO_NAN * ('invalid char' in seen)}"
            ) from error


def json_objects(path: Path, prefix: str) -> Iterator[dict[str, Any]]:
    """As :func:`json_items`, of a list whose items must be objects.

    Raises:
        ValueError: one is not; names the file, the item by its place and its value.
    """
    for place, item in enumerate(json_items(path, prefix)):
        if not isinstance(item, dict):
            where = f"{prefix.removesuffix('item').removesuffix('.')}[{place}]"
            raise ValueError(f"{path}: {where} is {as_json(item)}, an object is needed; remove or mend it there")
        yield item


def as_json(value: Any) -> str:
    """A value for a message, as the file has it: shortened, in JSON's words."""
    return json.dumps(value) if value is None or isinstance(value, bool) else shown(value)


class _NotListError(ValueError):
    """What should be a list is something else."""


def _after_mark(file: BinaryIO) -> BinaryIO:
    """The file behind a byte order mark, as Windows' editors put before UTF-8."""
    file.seek(len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0)
    return file


def _need_list(path: Path, file: BinaryIO, key: str) -> None:
    """Refuse what has no items because it is no list; an absent key is for the caller to miss."""
    file.seek(0)
    quoted = f'"{key}"'.encode()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:  # far faster than a parser
        if key and content.find(quoted) < 0:
            return
    for prefix, event, value in ijson.parse(_Shallow(_after_mark(file)), use_float=True):
        if prefix == key and event != "map_key":
            if event != "start_array":
                kind = "an object" if event == "start_map" else as_json(value)
                raise _NotListError(f"{path}: {key or 'its content'} is {kind}, a list is needed; mend the file")
            return


class _Shallow:
    """A file of JSON that stops where far more lists and objects open than close."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.depth = file, 0
        self.within = b""  # the quote of a text that goes on

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, as a file does."""
        data = self.file.read(size)
        bare = _TEXT.sub(b"", self.within + data)
        bare, self.within, tail = bare.partition(b'"')
        if self.within and (len(tail) - len(tail.rstrip(b"\\"))) % 2:
            self.within += b"\\"  # it takes the first letter of what comes next
        self.depth += sum(map(bare.count, _OPEN)) - sum(map(bare.count, _CLOSE))
        self.depth = max(self.depth, 0)
        if self.depth > _MAX_DEPTH:
            raise ValueError(f"lists and objects nested deeper than {_MAX_DEPTH:,}")
        return data
