"""Says which keys are safe (a tar can hold them, every reader finds them again), and makes others safe.

Dots and slashes are the tar's own (the key ends at the first dot of the file name), and UTF-8 holds no lone surrogates.
"""

from __future__ import annotations

import re
from collections import Counter

_UNSAFE = re.compile(r"[./\\\x00\ud800-\udfff]")
_UNSAFE_OR_SPACE = re.compile(rf"(?:{_UNSAFE.pattern}|\s)+")


def is_safe_key(key: str) -> bool:
    """Tell whether a sample may be written under a key: not empty, without dot, slash, NUL and lone surrogate."""
    return bool(key) and _UNSAFE.search(key) is None


def safe_key(key: str) -> str:
    """Return a key with ``_`` for each character that it may not hold."""
    return _UNSAFE.sub("_", key)


def free_key(key: str, used: set[str]) -> str:
    """Return a key made safe that is not ``used`` yet, with a number behind it where it would be; note it there."""
    safe = new = safe_key(key)
    number = 1
    while new in used:
        number += 1
        new = f"{safe}-{number}"
    used.add(new)
    return new


class Keys:
    """Hands out safe keys, none twice. Grows with the number of records."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    def unique(self, stem: str) -> str:
        """Return ``stem`` made safe, without spaces, with a number behind it where it was handed out before."""
        stem = stem.encode("utf-8", "replace").decode()  # JSON may hold lone surrogates, which a tar cannot
        base = key = _UNSAFE_OR_SPACE.sub("_", stem) or "image"
        while self._taken[key]:
            key = f"{base}-{self._taken[base]}"
            self._taken[base] += 1
        self._taken[key] += 1
        return key
