"""Prints for the data commands: tables and progress bars for people, plain lines for pipes and logs.

Stands beside ``conversion`` and ``check``, which know what to say; here is how.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

Item = TypeVar("Item")


class Bar:
    """A progress bar; :func:`progress` makes it.

    Args:
        shown: where it is drawn.
        unit: what is counted.
        total: how many there are; None where nobody knows.
    """

    def __init__(self, shown: Progress, unit: str, total: int | None) -> None:
        self._shown, self._unit, self._started = shown, unit, time.perf_counter()
        self._task, self._worked = shown.add_task("", total=total, rate=""), 0

    def advance(self, count: int = 1, *, worked: int | None = None) -> None:
        """Count further ones; ``worked`` is how many of these took time, where it is not all of them."""
        self._worked += count if worked is None else worked
        rate = self._worked / max(time.perf_counter() - self._started, 1e-9)
        self._shown.update(self._task, advance=count, rate=f"{rate:,.0f} {self._unit}/s")

    def each(self, items: Iterable[Item], count: Callable[[Item], int] = lambda item: 1) -> Iterator[Item]:
        """Pass items on, counting each; ``count`` says for how many it stands."""
        for item in items:
            self.advance(count(item))
            yield item

    def move(self, done: int, total: int) -> None:
        """Say that so many are done, of so many."""
        self._shown.update(self._task, total=total)
        self.advance(done - self._worked)


@contextlib.contextmanager
def progress(console: Console, title: str, total: int | None = None, unit: str = "samples") -> Iterator[Bar]:
    """Draw a bar while the block runs; nothing where the console is no terminal."""
    columns = (
        TextColumn(title, markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        yield Bar(shown, unit, total)


def print_rows(console: Console, title: str, rows: Iterable[tuple[str, str]], style: str = "cyan") -> None:
    """Print labels with values: a table for a terminal, else a line each, label and value parted by a tab.

    Args:
        console: where to.
        title: printed above.
        rows: label and value; texts of strangers may be in both.
        style: of the labels.
    """
    if not console.is_terminal:
        print_line(console, title)
        for label, value in rows:
            _write(console, f"{plain(label)}\t{plain(value)}")
        return
    table = Table(title=Text(plain(title), "bold"), title_justify="left", show_header=False, box=SIMPLE_HEAD)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(Text(plain(label), style), Text(plain(value)))
    console.print(table)


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print one line as it is, however long."""
    _write(console, plain(text), style)


def plain(text: str) -> str:
    """Return ``text`` with an escape for what is no printable character: keys and phrases are strangers' texts."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _write(console: Console, line: str, style: str = "") -> None:
    segment = Segment(line, console.get_style(style) if style else None)  # a text's tabs would be expanded
    console.print(Segments([segment, Segment.line()]), soft_wrap=True, end="")
