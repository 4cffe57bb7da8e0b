"""Prints for people and for logs: tables that fit, progress with the time that is left.

Stands below all that prints, beside ``usage``. In a terminal work has a bar; elsewhere it is told by a plain line now
and then. Progress goes to standard error, so that results can be piped.
"""

from __future__ import annotations

import contextlib
import copy
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, Group
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment, Segments
from rich.table import Column, Table
from rich.text import Text

from cloc.usage import clock, is_first_process

Item = TypeVar("Item")

WIDTH = 80
"""Columns that tables fit where nothing says how many there are."""

FIRST, EVERY = 5.0, 15.0  # seconds: the first line of progress outside of a terminal, and those after it
_LABELS = 24  # columns that the labels of a table have at least, where they are that long
_HEADING = 16  # columns above which a word of a heading is broken
_BREAKS = "/_. -"  # behind these a heading may be broken


def progress_console() -> Console:
    """Where progress goes: standard error, of the first process alone."""
    return Console(stderr=True, quiet=not is_first_process())


class Bar:
    """The progress of one piece of work; :func:`progress` makes it.

    Args:
        console: where it is told.
        title: what is done.
        total: how many there are; None where nobody knows.
        unit: what is counted.
        shown: draws it in a terminal; None where it is told in lines.
    """

    def __init__(self, console: Console, title: str, total: int | None, unit: str, shown: Progress | None) -> None:
        self._console, self._title, self._total, self._unit, self._shown = console, title, total, unit, shown
        self._started = time.perf_counter()
        self._due, self._told = self._started + FIRST, False
        self._task = None if shown is None else shown.add_task("", total=total, rate="")
        self._done = self._worked = 0
        self._lock = threading.Lock()

    def advance(self, count: int = 1, *, worked: int | None = None) -> None:
        """Count further ones; ``worked`` is how many of these took time, where it is not all of them."""
        self._done += count
        self._worked += count if worked is None else worked
        now = time.perf_counter()
        if self._shown is not None and self._task is not None:
            self._shown.update(self._task, advance=count, rate=f"{self._rate(now):,.0f} {self._unit}/s")
        else:
            self.tell(now)

    def each(self, items: Iterable[Item], count: Callable[[Item], int] = lambda item: 1) -> Iterator[Item]:
        """Pass items on, counting each when it has been worked on; ``count`` says for how many it stands."""
        for item in items:
            yield item
            self.advance(count(item))

    def move(self, done: int, total: int) -> None:
        """Say that so many are done, of so many."""
        self._total = total
        if self._shown is not None and self._task is not None:
            self._shown.update(self._task, total=total)
        self.advance(done - self._done)

    def tell(self, now: float) -> None:
        """Say how far it is, where nothing was said for long."""
        with self._lock:
            if now < self._due:
                return
            self._due, self._told = now + EVERY, True
        self._say(self._state(now))

    def wait(self, ended: threading.Event) -> None:
        """Tell that it goes on while nothing is counted, until it has ended."""
        while not ended.wait(EVERY):
            self.tell(time.perf_counter())

    def end(self) -> None:
        """Say how long it took, where anything was said before."""
        if self._told:
            self._say(f"{self._done:,} {self._unit} in {clock(time.perf_counter() - self._started)}")

    def _rate(self, now: float) -> float:
        return self._worked / max(now - self._started, 1e-9)

    def _state(self, now: float) -> str:
        rate = self._rate(now)
        speed = f", {rate:,.0f}/s" if rate >= 10 else f", {rate:.2g}/s" if rate else ""
        if not self._total:
            return f"{self._done:,} {self._unit}{speed}"
        left = f", {clock((self._total - self._done) / rate)} left" if rate else ""
        share = f"{self._done / self._total:.0%}"
        return f"{self._done:,} of {self._total:,} {self._unit} ({share}){speed}{left}"

    def _say(self, text: str) -> None:
        print_line(self._console, f"{self._title}: {text}")


@contextlib.contextmanager
def progress(console: Console, title: str, total: int | None = None, unit: str = "samples") -> Iterator[Bar]:
    """Tell how far the block is: a bar in a terminal; elsewhere a line after 5 seconds, and one every 15 from then on.

    Args:
        console: where to; :func:`progress_console` unless there is a reason.
        title: what is done.
        total: how many there are; None where nobody knows.
        unit: what is counted.
    """
    columns = (
        TextColumn(title, markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    if not console.is_terminal or console.quiet:
        bar, ended = Bar(console, title, total, unit, None), threading.Event()
        threading.Thread(target=bar.wait, args=(ended,), name="progress", daemon=True).start()
        try:
            yield bar
        finally:
            ended.set()
        bar.end()
        return
    with Progress(*columns, console=console, transient=True) as shown:
        yield Bar(console, title, total, unit, shown)


def counted(items: Sequence[Item], title: str, unit: str = "rounds") -> Iterator[Item]:
    """Pass items on, telling progress in lines, in a terminal too: a bar's thread would disturb what is measured."""
    console = Console(stderr=True, force_terminal=False, quiet=not is_first_process())
    with progress(console, title, len(items), unit) as bar:
        yield from bar.each(items)


@contextlib.contextmanager
def working(console: Console, title: str) -> Iterator[None]:
    """Tell what goes on where nothing can be counted: a spinner in a terminal, elsewhere a line where it takes long."""
    if console.is_terminal and not console.quiet:
        with console.status(plain(title)):
            yield
        return
    late = threading.Timer(FIRST, print_line, (console, f"{title} …"))
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


def fit(table: Table, width: int, keys: int = 1) -> Group:
    """A table whose numbers are whole at ``width`` columns: several tables below each other where one is too wide.

    Args:
        table: any; its first columns hold labels, which fold, the others numbers, which do not.
        width: columns that there are.
        keys: columns of labels, which every part repeats.
    """
    labels = [_foldable(column, width) for column in table.columns[:keys]]
    parts: list[list[Column]] = [[]]
    for column in map(_whole, table.columns[keys:]):
        parts[-1].append(column)
        if len(parts[-1]) > 1 and _width(_part(table, [*labels, *parts[-1]])) > width:
            parts.append([parts[-1].pop()])
    made = [_part(table, [*labels, *columns]) for columns in parts]
    for one in made[1:]:
        one.title = None
    for one in made[:-1]:
        one.caption = None
    apart = [piece for one in made for piece in (Text(), one)]
    return Group(*apart[1:])


def _cells(column: Column) -> list[Text]:
    return [cell if isinstance(cell, Text) else Text.from_markup(str(cell)) for cell in column.cells]


def _longest(texts: Iterable[Text]) -> int:
    return max((cell_len(line) for text in texts for line in text.plain.splitlines()), default=0)


def _foldable(column: Column, width: int) -> Column:
    natural = max(_longest(_cells(column)), cell_len(str(column.header)))
    return replace(
        column,
        overflow="fold",
        min_width=min(natural, _LABELS),
        max_width=max(_LABELS, width // 2),
        _cells=column._cells,
    )


def _whole(column: Column) -> Column:
    header = column.header if isinstance(column.header, Text) else Text.from_markup(str(column.header))
    words = re.split(f"(?<=[{_BREAKS}])", header.plain)
    wide = max(_longest(_cells(column)), min(_HEADING, max(map(cell_len, words))))
    folded = Text("\n", style=header.style).join(_folded(header, wide))
    return replace(
        column, header=folded, no_wrap=True, overflow="fold", min_width=None, max_width=None, _cells=column._cells
    )


def _folded(text: Text, width: int) -> list[Text]:
    """A heading in lines of at most ``width``, broken behind a slash, dash, dot or space where there is one."""
    lines = []
    while cell_len(text.plain) > width:
        cut = max(text.plain.rfind(mark, 0, width) + 1 for mark in _BREAKS) or width
        lines.append(text[:cut])
        text = text[cut:]
    return [*lines, text]


def _part(table: Table, columns: Sequence[Column]) -> Table:
    part = copy.copy(table)
    part.columns = [replace(column, _index=place, _cells=column._cells) for place, column in enumerate(columns)]
    return part


def _width(table: Table) -> int:
    """Columns that a table needs at least."""
    console = Console(width=10_000)
    return Measurement.get(console, console.options, _untitled(table)).minimum


def _untitled(table: Table) -> Table:
    bare = copy.copy(table)
    bare.title = bare.caption = None
    return bare


def print_table(table: Table, console: Console | None = None, keys: int = 1) -> None:
    """Print a table so that it fits, see :func:`fit`; on standard output where no console is given."""
    console = console or Console()
    console.print(fit(table, console.width, keys))


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
