"""A shard job that is interrupted on its way, for tests of the commands that write a set again."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest


def interrupt_third(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[Any]:
    """Let the third call of a module's ``_samples`` be a Ctrl-C.

    Returns:
        The arguments of every call, as they come.
    """
    made: list[Any] = []
    real = vars(module)["_samples"]

    def counted(*arguments: Any) -> Any:
        made.append(arguments)
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "_samples", counted)
    return made
