"""Swept values in words and in order: numbers, texts, null, lists, nodes (below ``report`` and ``plot``)."""

from __future__ import annotations

import math
from typing import Any

import yaml


def is_number(value: Any) -> bool:
    """Whether a value has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def label(value: Any) -> str:
    """A value as YAML has it, in a line; a node of a class by the class's name."""
    if isinstance(value, str) or is_number(value):
        return str(value)
    if isinstance(value, dict) and isinstance(value.get("_target_"), str):
        rest = {key: own for key, own in value.items() if key != "_target_"}
        return str(value["_target_"]).rpartition(".")[2] + (f" {label(rest)}" if rest else "")
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def order(value: Any) -> tuple[int, float, str]:
    """A key to sort values by: null, numbers by size, all else by its text."""
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if is_number(value) else (2, 0.0, label(value))
