"""Waiting for stores without the waiting."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from cloc.data.shards import cache, reader, retries


def skip_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the clock jump over pauses between attempts, each as long as it may be; returns them as they come."""
    pauses: list[float] = []
    clock = SimpleNamespace(**vars(time) | {"monotonic": lambda: time.monotonic() + sum(pauses)})

    def pause(self: retries.Traffic, seconds: float) -> None:
        self._counts["store_retries"] += 1
        pauses.append(seconds)

    for module in (retries, cache, reader):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(retries, "random", SimpleNamespace(uniform=lambda low, high: high))
    monkeypatch.setattr(retries.Traffic, "pause", pause)
    return pauses
