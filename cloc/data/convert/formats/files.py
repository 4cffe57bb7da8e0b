"""Finds the files of a source, or refuses with a remedy; reads large JSON piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson

_MAX_DEPTH = 5_000  # of JSON: the parser's memory grows with the square of it
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


def json_items(path: Path, prefix: str) -> Iterator[Any]:
    """Yield the items of one list of a JSON file; memory holds one at a time.

    Args:
        path: the file.
        prefix: where the list is, for instance ``images.item``, or ``item`` where the file is the list.

    Raises:
        ValueError: the file is not JSON, is cut off, nested too deep, or holds a number that nothing can.
    """
    with path.open("rb") as file:
        try:
            yield from ijson.items(_Shallow(file), prefix, use_float=True)
        except (ijson.JSONError, ValueError, ArithmeticError, RecursionError) as error:
            first = (
                error.args[0] if error.args else ""
            )  # the parser's own messages are bytes where the file is no UTF-8
            seen = (first.decode("utf-8", "replace") if isinstance(first, bytes) else str(first)).partition("\n")[0]
            raise ValueError(f"{path}: not JSON, or cut off: {seen}; restore the file") from error


class _Shallow:
    """A file of JSON that stops where far more lists and objects open than close."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.depth = file, 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, as a file does."""
        data = self.file.read(size)
        self.depth += sum(map(data.count, _OPEN)) - sum(map(data.count, _CLOSE))
        self.depth = max(self.depth, 0)
        if self.depth > _MAX_DEPTH:
            raise ValueError(f"lists and objects nested deeper than {_MAX_DEPTH:,}")
        return data
