"""What values a leaf may have, said where its type is said: ``lr: Rate = 5e-4``, in ``schema`` or a part's signature.

A domain stands in an annotation (``Annotated[float, Interval(0)]``), which neither OmegaConf nor the part itself looks
at. Numbers without a domain must be finite.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from cloc.config.secrets import public


class ConfigError(ValueError):
    """A configuration that cannot be run; says which key, its value and what to do.

    Values may be URLs: the message loses their credentials.
    """

    def __init__(self, message: str) -> None:
        super().__init__(public(message))


@dataclass(frozen=True)
class Interval:
    """Finite numbers from ``low`` to ``high``.

    Attributes:
        low: smallest.
        high: largest.
        open_low: ``low`` itself is none of them.
        open_high: ``high`` itself is none of them.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}" if self.low > -math.inf else ""
        high = f"{'below' if self.open_high else 'at most'} {self.high:g}" if self.high < math.inf else ""
        return "must be " + (" and ".join(part for part in (low, high) if part) or "a finite number")

    def cell(self) -> str:
        """As a table of keys says it: ``≥ 1``, ``in [0, 1)``."""
        if self.low == -math.inf and self.high == math.inf:
            return ""
        if self.high == math.inf:
            return f"{'>' if self.open_low else '≥'} {self.low:g}"
        low, high = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {low}{self.low:g}, {self.high:.10g}{high}"


class OneOf:
    """One of a few names.

    Args:
        names: known ones.
    """

    def __init__(self, *names: str) -> None:
        self.names = names

    def __contains__(self, value: Any) -> bool:
        return value in self.names

    def __str__(self) -> str:
        return f"give {', '.join(self.names[:-1])} or {self.names[-1]}"

    def cell(self) -> str:
        """As a table of keys says it: the names."""
        return ", ".join(f"`{name}`" for name in self.names)


@dataclass(frozen=True)
class Length:
    """Lists of so many values.

    Attributes:
        count: of the values.
        what: they are.
    """

    count: int
    what: str

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) == self.count

    def __str__(self) -> str:
        return f"give {self.count} numbers: {self.what}"

    def cell(self) -> str:
        """As a table of keys says it."""
        return f"({self.count})"


class Host:
    """A host of the network, with or without a port."""

    def __contains__(self, value: Any) -> bool:
        return bool(re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s/:?#@\[\]]+)(:\d{1,5})?", value))

    def __str__(self) -> str:
        return "give NAME or NAME:PORT"

    def cell(self) -> str:
        """As a table of keys says it."""
        return "hosts"


class Devices:
    """Lightning's ways to say which devices: a number, ``auto``, or a list of indices."""

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, str):
            return value == "auto" or value.replace(",", "").strip().isdecimal()
        if isinstance(value, list):
            return bool(value) and all(type(index) is int and index >= 0 for index in value)
        return type(value) is int and (value >= 1 or value == -1)

    def __str__(self) -> str:
        return "give a number of at least 1, -1 or auto for all there are, or a list of indices"

    def cell(self) -> str:
        """As a table of keys says it."""
        return "int ≥ 1, -1, `auto`, list of int"


Count = Annotated[int, Interval(1)]
Amount = Annotated[int, Interval(0)]
Finite = Annotated[float, Interval()]
Weight = Annotated[float, Interval(0)]  # and factors, norms, rates that may be off
Rate = Annotated[float, Interval(0, open_low=True)]
Share = Annotated[float, Interval(0, 1)]
PositiveShare = Annotated[float, Interval(0, 1, open_low=True)]
Decay = Annotated[float, Interval(0, 1, open_high=True)]
Seed = Annotated[int, Interval(0, 2**32 - 1)]  # what NumPy and Lightning take
TextLength = Annotated[int, Interval(3)]  # start, a token, end


def check_schema(config: Any, path: str = "") -> None:
    """Check all leaves of a dataclass of ``schema``.

    Args:
        config: a dataclass.
        path: of it, with its dot, for messages.

    Raises:
        ConfigError: a value outside of its domain; names key, value and domain.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        check_value(hints[field.name], getattr(config, field.name), f"{path}{field.name}")


def check_arguments(part: Any, arguments: Mapping[str, Any], path: str) -> None:
    """Check the arguments of a part against the domains in its signature.

    Args:
        part: a class.
        arguments: by name.
        path: of its node, for messages.

    Raises:
        ConfigError: as :func:`check_schema`.
    """
    signature = inspect.signature(part)
    try:
        hints = get_type_hints(part.__init__, include_extras=True)
    except NameError:  # annotations of a user's class that only a type checker can resolve
        hints = {}
    for name, value in arguments.items():
        if name in signature.parameters:
            check_value(hints.get(name, Any), value, f"{path}.{name.rstrip('_')}")


def check_value(hint: Any, value: Any, key: str) -> None:
    """Check one value, and all that it holds.

    Args:
        hint: its annotation.
        value: of the leaf.
        key: for messages.

    Raises:
        ConfigError: as :func:`check_schema`.
    """
    if is_dataclass(value):
        check_schema(value, f"{key}.")
        return
    if get_origin(hint) in (Union, UnionType):
        if value is None and type(None) in get_args(hint):
            return
        choices = [choice for choice in get_args(hint) if choice is not type(None)]
        hint = choices[0] if len(choices) == 1 else Any
    domains, hint = (hint.__metadata__, get_args(hint)[0]) if get_origin(hint) is Annotated else ((), hint)
    for domain in domains:
        if value not in domain:
            raise ConfigError(f"{key}={_written(value)}: {domain}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value}: {Interval()}")
    if isinstance(value, Mapping):
        for name, own in value.items():
            check_value(Any, own, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        of = get_args(hint)[0] if get_args(hint) else Any
        for i, own in enumerate(value):
            check_value(of, own, f"{key}[{i}]")


def _written(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)
