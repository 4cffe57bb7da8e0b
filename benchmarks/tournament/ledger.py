"""The ledger of a study: one JSON object a line for whatever was run, only ever appended to.

Several tournaments may write to one ledger at once. A line that a crash left half written is cut off by whoever writes
next; anything else that is no JSON object is an error that names the line. Lines of the same id are taken together.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from cloc.config import ConfigError
from cloc.files import append, open_lock

LEDGERS = Path(__file__).resolve().parents[1] / "ledger"
DIGITS = 5
Line = dict[str, Any]


class LedgerError(ConfigError):
    """A ledger that cannot be read; names the line, and the remedy."""


@dataclass
class Record:
    """What the lines of one job say together: the newest value of each key; metrics and evaluations by set."""

    line: Line = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    evaluation: dict[str, list[str]] = field(default_factory=dict)
    failures: int = 0

    def add(self, line: Line) -> None:
        """Take a further line of the same job."""
        self.line = {**self.line, **{key: value for key, value in line.items() if value is not None}}
        self.metrics |= line.get("metrics") or {}
        self.evaluation |= line.get("evaluation") or {}
        self.failures += line["status"] == "failed"

    @property
    def failed(self) -> str:
        """Why the last attempt failed; empty where it did not."""
        return str(self.line.get("reason") or "unknown") if self.line.get("status") == "failed" else ""


Book = dict[str, Record]
"""Records of runs by the id of the job."""


def read_lines(path: Path) -> list[Line]:
    """All whole lines of a ledger; none where there is no file.

    Raises:
        LedgerError: a line that is no JSON object with its kind, the last one excepted where it has no end.
    """
    if not path.exists():
        return []
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    found = [_parsed(text, f"{path.name}: line {number}") for number, text in _numbered(whole)]
    return found if _is_torn(rest) else [*found, _parsed(rest, f"{path.name}: the last line")]


def read_book(path: Path) -> Book:
    """The runs of a ledger, by job."""
    book: Book = {}
    for line in read_lines(path):
        if line["kind"] == "run":
            book.setdefault(line["id"], Record()).add(line)
    return book


def write_line(path: Path, line: Line) -> int:
    """Append a line, all or nothing, on the disk when this returns.

    Returns:
        Bytes of a torn line that were cut off before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as file:
        cut = _mend(path, file)
        append(path, json.dumps(rounded(line), ensure_ascii=False) + "\n", sync=True)
    return cut


def rounded(value: Any) -> Any:
    """A value whose floats have five digits behind the point, so that a line is read and compared easily."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


@contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    with open_lock(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, also by a kill
        yield file


def _mend(path: Path, file: TextIO) -> int:
    whole, _, rest = path.read_bytes().rpartition(b"\n")
    if not rest:
        return 0
    if not _is_torn(rest):  # an editor's file: whole, without its end
        append(path, "\n")
        return 0
    file.truncate(len(whole) + 1 if whole else 0)
    return len(rest)


def _is_torn(rest: bytes) -> bool:
    """Whether what stands behind the last line's end is no line yet; nothing is none."""
    try:
        return not isinstance(json.loads(rest), dict)
    except ValueError:
        return True


def _numbered(whole: bytes) -> Iterator[tuple[int, bytes]]:
    for number, text in enumerate(whole.split(b"\n"), start=1):
        if text.strip():
            yield number, text


def _parsed(text: bytes, where: str) -> Line:
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        raise LedgerError(
            f"{where}: no JSON object with a kind: {text[:60].decode(errors='replace')!r}; mend it by hand"
        )
    needed = ("id", "status", "method", "seed") if line["kind"] == "run" else ()
    if missing := [key for key in needed if key not in line]:
        raise LedgerError(f"{where}: a run without {', '.join(missing)}; mend it by hand")
    return line
