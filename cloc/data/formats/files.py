"""Files of a source: found or refused with a remedy, and large JSON read piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson


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
        ValueError: the file is not JSON, or is cut off.
    """
    with path.open("rb") as file:
        try:
            yield from ijson.items(file, prefix, use_float=True)
        except ijson.JSONError as error:
            raise ValueError(f"{path}: not JSON, or cut off: {error}; restore the file") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8: {error}; restore the file") from error
