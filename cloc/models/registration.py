"""Which classes a checkpoint or folder of others may name as parts (read by ``trust/registry``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


_REGISTERED: dict[str, list[type]] = {"image": [], "text": [], "prompter": [], "grounding": []}


def registered(part: str) -> Callable[[type[T]], type[T]]:
    """Decorate a class whose name a checkpoint or folder of others may hold; importing it is its user's own word.

    Args:
        part: ``image``, ``text``, ``prompter`` or ``grounding``.
    """

    def register(cls: type[T]) -> type[T]:
        _REGISTERED[part].append(cls)
        return cls

    return register


def registered_classes() -> dict[str, tuple[type, ...]]:
    """By part, the registered classes that have been imported."""
    return {part: tuple(classes) for part, classes in _REGISTERED.items()}
