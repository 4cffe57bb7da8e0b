"""The tables of the report to take along: CSV with every digit and interval, LaTeX (booktabs) with what the page shows.

Stands after ``table.py`` and ``verdict.py``, before ``page.py``, which writes both beside the page and into it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cloc.evaluation.report.formats import MISSING
from cloc.evaluation.report.table import Cell, Family, Gap, cell_words, gap_words

# What LaTeX reads as its own, and what the page writes that its usual fonts lack. Handled in one pass: a replacement
# is never replaced again. A row that begins with [ or * would be read as an argument of the \\ before it.
TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "*": "{*}", '"': r"\textquotedbl{}", "–": "--", "−": "$-$", "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "·": r"$\cdot$", "×": r"$\times$", "“": "``", "”": "''", "’": "'", "…": r"\dots{}", "→": r"$\to$", "√": r"$\surd$",
}  # fmt: skip
FORMULA = re.compile(r"[=+\-@\t]")  # what a spreadsheet computes where a cell begins so
SPECIAL = re.compile("[" + "".join(map(re.escape, TEX)) + "]")


@dataclass(frozen=True, slots=True)
class Value:
    """A place of a table.

    Attributes:
        text: as the page shows it.
        number: with all digits; None where there is none, or where it is a word.
        more: further numbers, each a column of the CSV behind this one: ``{"low": …, "high": …}``.
        note: what stands small beside the text.
        best: whether it is the best of its row.
    """

    text: str
    number: float | None = None
    more: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A row: its label, the section that it stands in, the name of its metric, and a value a column."""

    label: str
    values: Sequence[Value]
    section: str = ""
    metric: str = ""


@dataclass(frozen=True, slots=True)
class ExportedTable:
    """A table ready to be written.

    Attributes:
        name: of its files, without an ending.
        caption: what it shows.
        columns: titles; the first is that of the labels.
        lines: rows, in order; those of a section stand together.
    """

    name: str
    caption: str
    columns: Sequence[str]
    lines: Sequence[Line]

    @property
    def csv(self) -> str:
        """Comma-separated: section, label and metric where there are any, then the columns with all their numbers.

        A word that begins as a formula gets an apostrophe, by which spreadsheets know a text; numbers never do.
        """
        return _csv(self)

    @property
    def latex(self) -> str:
        """A ``table`` for a document that loads booktabs."""
        return _latex(self)


def comparison(
    name: str, caption: str, models: Sequence[str], families: Sequence[Family], first: str = "Metric"
) -> ExportedTable:
    """Rows of the comparison: each model with its interval, and the difference where there are several models."""
    columns = [first, *models, *(["Δ"] if len(models) > 1 else [])]
    lines = []
    for family in families:
        for row in family.rows:
            percent = row.description.percent
            values = [_cell(cell, percent) for cell in row.cells]
            values += [gap_value(row.gap, percent)] if len(models) > 1 else []
            lines.append(Line(row.description.label, values, family.title, row.description.metric))
    return ExportedTable(name, caption, columns, lines)


def _cell(cell: Cell, percent: bool) -> Value:
    note = ", ".join(filter(None, [cell_words(cell, percent), cell.note]))
    return Value(cell.text, cell.value, bounds(cell.interval), note, cell.best)


def gap_value(gap: Gap, percent: bool) -> Value:
    """A difference with its interval."""
    return Value(gap.text, gap.value, bounds(gap.interval), gap_words(gap, percent))


def bounds(interval: Sequence[float] | None) -> dict[str, float]:
    """An interval as further columns."""
    return {} if interval is None else {"low": interval[0], "high": interval[1]}


def file_name(*parts: str) -> str:
    """Some words as a plain file name: letters, digits and hyphens alone."""
    return "-".join(filter(None, (re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts))) or "table"


def unique(tables: Sequence[ExportedTable]) -> list[ExportedTable]:
    """Tables whose file names differ; the second of a name gets a number."""
    seen: dict[str, int] = {}
    found = []
    for table in tables:
        seen[table.name] = seen.get(table.name, 0) + 1
        name = table.name if seen[table.name] == 1 else f"{table.name}_{seen[table.name]}"
        found.append(ExportedTable(name, table.caption, table.columns, table.lines))
    return found


def _csv(table: ExportedTable) -> str:
    first, *columns = table.columns
    places = [[line.values[index].more for line in table.lines] for index in range(len(columns))]
    more = [list(dict.fromkeys(key for own in place for key in own)) for place in places]
    sections, metrics = (any(getattr(line, name) for line in table.lines) for name in ("section", "metric"))
    header = [*["Section"] * sections, first, *["Name"] * metrics]
    for column, keys in zip(columns, more, strict=True):
        header += [column, *(f"{column} {key}" for key in keys)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_inert, header))
    for line in table.lines:
        row: list[object] = [*map(_inert, [*[line.section] * sections, line.label, *[line.metric] * metrics])]
        for value, keys in zip(line.values, more, strict=True):
            word = "" if value.text == MISSING else _inert(value.text)
            row += [word if value.number is None else value.number, *(value.more.get(key, "") for key in keys)]
        writer.writerow(row)
    return out.getvalue()


def _inert(text: str) -> str:
    """A name or word that a spreadsheet shows as it is: one that it would compute gets an apostrophe."""
    text = text.replace("\r", " ")  # which csv does not quote
    return f"'{text}" if FORMULA.match(text) else text


def tex(text: str) -> str:
    """A text as LaTeX prints it: nothing in it is a command."""
    return SPECIAL.sub(lambda found: TEX[found[0]], " ".join(text.split()))


def _latex(table: ExportedTable) -> str:
    width = len(table.columns)
    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{tex(table.caption)}}}", rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}", r"\toprule", _row(map(tex, table.columns)), r"\midrule",
    ]  # fmt: skip
    section = ""
    for line in table.lines:
        if line.section != section:
            lines += [r"\addlinespace"] * (line is not table.lines[0])
            lines.append(_row([rf"\multicolumn{{{width}}}{{l}}{{\emph{{{tex(line.section)}}}}}"]))
            section = line.section
        lines.append(_row([tex(line.label), *map(_tex_value, line.values)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _tex_value(value: Value) -> str:
    text = rf"\textbf{{{tex(value.text)}}}" if value.best else tex(value.text)
    return rf"{text} {{\scriptsize ({tex(value.note)})}}" if value.note else text
