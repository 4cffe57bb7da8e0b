"""What one fuzzed input is, and how its outcome is judged."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLASSES = ("accepted", "refused", "traceback", "hang", "crash", "silent")
PACKAGE = f"{Path(__file__).resolve().parents[2] / 'cloc'}/"
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "socket.getaddrinfo")
ASKED = "builtins.input"


class Unreadable(Exception):
    """The reference reader does not take the input either."""


@dataclass
class Case:
    """One input, ready to be read twice.

    Attributes:
        what: how it was made, for the report.
        read: the package's reader; returns something comparable.
        reference: the plain reader; returns the same, or raises ``Unreadable``.
        refusals: exceptions that the reader documents.
        same: whether both results agree; equality by default.
        content: the input's bytes, to be kept when it is of interest.
    """

    what: str
    read: Callable[[], Any]
    reference: Callable[[], Any]
    refusals: tuple[type[Exception], ...]
    content: bytes = b""
    same: Callable[[Any, Any], bool] = lambda found, expected: found == expected


@dataclass(frozen=True)
class Kind:
    """One reader's inputs.

    Attributes:
        name: in the table.
        share: of all inputs.
        prepare: makes what its inputs start from, once, in a folder of its own.
        make: makes one input from a generator, a scratch folder and what was prepared.
    """

    name: str
    share: float
    prepare: Callable[[Path], Any]
    make: Callable[[random.Random, Path, Any], Case]


class Watch:
    """Notes what no reader may do with a stranger's input: start a process, open a connection, ask on the terminal."""

    def __init__(self) -> None:
        self.active, self.seen = False, ""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and event in (*FORBIDDEN, ASKED):
            self.seen = self.seen or f"{event} {str(arguments)[:80]}"


def judge(case: Case, watch: Watch) -> tuple[str, str]:
    """Read one input both ways; return its class and what there is to say of it."""
    watch.seen, watch.active = "", True
    try:
        found = case.read()
    except Exception as error:  # noqa: BLE001  (whatever it is, it is judged)
        watch.active = False
        if watch.seen:
            return "silent", f"it did {watch.seen}"
        return _judge_error(error, case.refusals)
    watch.active = False
    if watch.seen:
        return "silent", f"it did {watch.seen}"
    try:
        expected = case.reference()
    except Unreadable as error:
        return "silent", f"accepted, though the reference reader refuses it: {error}"
    return ("accepted", "") if case.same(found, expected) else ("silent", _difference(found, expected))


def _difference(found: Any, expected: Any) -> str:
    """The two results, or what they say of the first key on which they differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in (*found, *expected):
            ours, theirs = found.get(key), expected.get(key)
            if key not in found or key not in expected or type(ours) is not type(theirs) or repr(ours) != repr(theirs):
                return f"{key}: {ours!r:.150} is not {theirs!r:.150}"
    return f"{found!r:.150} is not {expected!r:.150}"


def _judge_error(error: Exception, refusals: tuple[type[Exception], ...]) -> tuple[str, str]:
    """A refusal is a documented exception of one line that the package itself raised."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    file = frame.tb_frame.f_code.co_filename if frame else ""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, refusals) and file.startswith(PACKAGE) and "\n" not in text.strip():
        return "refused", text
    place = f"{Path(file).name}:{frame.tb_lineno}" if frame else "?"
    return "traceback", f"{place} {text.splitlines()[0] if text else text}"
