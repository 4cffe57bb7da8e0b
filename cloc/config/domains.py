"""What values a leaf may have, said where its type is said: ``lr: Rate = 5e-4``, in ``schema`` or a part's signature.

A domain stands in an annotation (``Annotated[float, Interval(0)]``), which neither OmegaConf nor the part itself looks
at. ``values`` holds values to it.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from cloc.config.secrets import public

LARGEST = 2**53
"""No number of a configuration is larger: beyond it a float skips whole numbers, and a counter of 64 bits is near."""
MOST_DEVICES = 1_000_000


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
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:.10g}" if self.low > -math.inf else ""
        high = f"{'below' if self.open_high else 'at most'} {self.high:.10g}" if self.high < math.inf else ""
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
        return isinstance(value, str) and bool(re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s/:?#@\[\]]+)(:\d{1,5})?", value))

    def __str__(self) -> str:
        return "give NAME or NAME:PORT"

    def cell(self) -> str:
        """As a table of keys says it."""
        return "hosts"


@dataclass(frozen=True)
class Line:
    """Texts of one line that are not empty.

    Attributes:
        what: they are: a name, a path, a URL.
        path: a part between slashes fits a file system, unless it is a URL.
    """

    what: str = "path"
    path: bool = True

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, str) and not self.fault(value)

    def fault(self, value: str) -> str:
        """What is wrong with a text, in words; empty where nothing is."""
        if not value.strip():
            return "it is empty"
        control = next((one for one in value if unicodedata.category(one) in ("Cc", "Cs")), None)
        if control is not None:
            return f"it holds the control character {control!r}"
        if len(value.encode()) > 4096:
            return f"it has {len(value.encode()):,} bytes"
        longest = max(len(part.encode()) for part in value.split("/"))
        return f"it has {longest} bytes between slashes" if self.path and "://" not in value and longest > 255 else ""

    def __str__(self) -> str:
        parts = " and at most 255 between slashes" if self.path else ""
        return f"give a {self.what}: one line, not empty, of at most 4,096 bytes{parts}"

    def cell(self) -> str:
        """As a table of keys says it."""
        return self.what


class NameOrNode:
    """Known names, or a node that names a class of the user's.

    Args:
        names: known ones.
    """

    def __init__(self, *names: str) -> None:
        self.names = names

    def __contains__(self, value: Any) -> bool:
        return value in self.names if isinstance(value, str) else isinstance(value, Mapping) and "_target_" in value

    def __str__(self) -> str:
        return f"known are {', '.join(self.names)}; a class of your own goes by _target_"

    def cell(self) -> str:
        """As a table of keys says it: the names."""
        return f"{', '.join(f'`{name}`' for name in self.names)}, node"


class Pattern:
    """Paths or URLs with braces in them (``d/{00000..00009}.tar``); how long each is, is known once they are expanded.

    That no text holds a NUL is said of all of them (``values``).
    """

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, str) and bool(value.strip())

    def __str__(self) -> str:
        return "give a folder, a pattern or a URL; it is empty"

    def cell(self) -> str:
        """As a table of keys says it."""
        return "path"


class Sources:
    """What to train on: a path or URL, or several sources by name."""

    def __contains__(self, value: Any) -> bool:
        return value in Pattern() if isinstance(value, str) else isinstance(value, Mapping) and bool(value)

    def __str__(self) -> str:
        return "give a folder, a pattern, a URL, or sources NAME: {path, weight}"

    def cell(self) -> str:
        """As a table of keys says it."""
        return "path, sources"


class Choice:
    """Nodes that choose by ``name``.

    Args:
        names: known ones.
    """

    def __init__(self, *names: str) -> None:
        self.names = names

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, Mapping) and value.get("name", self.names[0]) in self.names

    def __str__(self) -> str:
        return f"its name must be {', '.join(self.names[:-1])} or {self.names[-1]}"

    def cell(self) -> str:
        """Nothing: its type says it."""
        return ""


class DeviceName:
    """PyTorch's names of devices, and ``auto``."""

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, str) and bool(re.fullmatch(r"auto|(cpu|cuda|mps|xpu|hpu)(:\d{1,4})?", value))

    def __str__(self) -> str:
        return "give auto, cpu, cuda, cuda:1, mps, …"

    def cell(self) -> str:
        """As a table of keys says it."""
        return "`auto`, `cpu`, `cuda`, `cuda:1`, …"


class Devices:
    """Lightning's ways to say which devices: a number, ``auto``, or a list of indices."""

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, str):
            if "," in value:  # one index as well: "1,"
                return bool(re.fullmatch(r"\d{1,6}( *, *\d{1,6})*( *,)?", value, re.ASCII)) and indices(value) in self
            return value == "auto" or bool(re.fullmatch(r"0*[1-9]\d{0,5}|-1", value, re.ASCII))
        if isinstance(value, list):
            whole = all(type(index) is int and 0 <= index < MOST_DEVICES for index in value)
            return bool(value) and whole and len(set(value)) == len(value)
        return type(value) is int and (1 <= value < MOST_DEVICES or value == -1)

    def __str__(self) -> str:
        return "give a number of at least 1, -1 or auto for all there are, or a list of indices"

    def cell(self) -> str:
        """As a table of keys says it."""
        return "int ≥ 1, -1, `auto`, list of int"


AUTO = "auto"


@dataclass(frozen=True, slots=True)
class NumberOrAuto:
    """A whole number from ``low`` to ``high``, or ``auto``; from the environment a number comes as a text."""

    low: int
    high: int

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, str):
            return value == AUTO or (bool(re.fullmatch(r"\d{1,6}", value, re.ASCII)) and int(value) in self)
        return type(value) is int and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"give a whole number from {self.low} to {self.high}, or {AUTO}"

    def cell(self) -> str:
        """As a table of keys says it."""
        return f"int in [{self.low}, {self.high}], `{AUTO}`"


def indices(text: str) -> list[int]:
    """A list of devices as Lightning writes it: ``"0,1"``, of one ``"1,"``."""
    return [int(one) for one in text.split(",") if one.strip()]


Count = Annotated[int, Interval(1)]
Amount = Annotated[int, Interval(0)]
Finite = Annotated[float, Interval()]
Weight = Annotated[float, Interval(0)]  # and factors, norms, rates that may be off
Rate = Annotated[float, Interval(0, open_low=True)]
LearningRate = Annotated[float, Interval(0, 1000, open_low=True)]
Share = Annotated[float, Interval(0, 1)]
PositiveShare = Annotated[float, Interval(0, 1, open_low=True)]
Decay = Annotated[float, Interval(0, 1, open_high=True)]
Seed = Annotated[int, Interval(0, 2**32 - 1)]  # what NumPy and Lightning take
TextLength = Annotated[int, Interval(3, 2**14)]  # start, a token, end; a causal tower has a mask of its square
# More than any model or machine has: what lies beyond would run out of memory, or of processes, after a while.
Width = Annotated[int, Interval(1, 2**16)]
Depth = Annotated[int, Interval(0, 1000)]
Side = Annotated[int, Interval(1, 4096)]  # of a view in pixels
Heads = Annotated[int, Interval(1, 1024)]
Drawn = Annotated[int, Interval(1, 4096)]  # of one picture
Pictures = Annotated[int, Interval(1, 2**20)]  # of one pass
Streams = Annotated[int, Interval(1, 2**12)]  # of the order; hosts have some each
Threads = Annotated[int, Interval(0, 1024)]
Path = Annotated[str, Line()]  # or URL
Name = Annotated[str, Line("name", path=False)]
