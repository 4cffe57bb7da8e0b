"""Other people's JSON: values that Python takes and that nothing behind it can use.

Stands below ``schema``. JSON bounds neither the length of a number nor the depth of its lists; floats, messages and the
JSON encoder do.
"""

from __future__ import annotations

import json
import reprlib
from typing import Any

MAX_DEPTH = 64
"""Lists and objects within each other, in values that are kept as they come."""


def parse_json(data: bytes | str) -> Any:
    """Read JSON, with or without a byte order mark before it; of a key that comes twice the last counts.

    Raises:
        ValueError: it is not JSON or not UTF-8 (``UnicodeDecodeError``), is nested too deep, or holds an integer of
            thousands of digits.
    """
    try:
        return json.loads(data if isinstance(data, str) else str(data, "utf-8-sig"))
    except RecursionError as error:
        raise ValueError(f"lists or objects are nested too deep ({error})") from error


def shown(value: Any) -> str:
    """The value for a message: shortened, however long or deep it is."""
    return reprlib.repr(value)


def is_deep(value: Any) -> bool:
    """Tell whether lists and objects are nested deeper than ``MAX_DEPTH``."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for one in level if isinstance(one, list | dict) for inner in _inside(one)]
        if not level:
            return False
    return True


def _inside(value: list[Any] | dict[str, Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value
