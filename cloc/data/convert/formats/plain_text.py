"""Reads text files of other people's tools: their encodings, their ends of lines, tables of comma-separated values."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from cloc.contracts import BadSample
from cloc.data.sample import MAX_MEMBER_BYTES, read_object

DELIMITERS = ",\t;|"

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode(data: bytes, where: Path | str) -> str:
    """Return text that is UTF-8, or that says by a mark at its start that it is UTF-16, as Windows' editors write it.

    Args:
        data: the bytes.
        where: what they are of, for the error.

    Raises:
        ValueError: it is neither; names the first byte and the encoding that it is likely of.
    """
    try:
        return data.decode(_encoding(data))
    except UnicodeError as error:
        raise ValueError(_not_text(where, error)) from error


def read_text(path: Path) -> str:
    """Return the text of a file, as :func:`decode` has it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, or has more than 64 MiB.
    """
    with path.open("rb") as file:
        data = file.read(MAX_MEMBER_BYTES + 1)
    if len(data) > MAX_MEMBER_BYTES:
        raise ValueError(f"{path}: more than {MAX_MEMBER_BYTES:,} bytes of text")
    return decode(data, path)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file that hold something, without the space around them."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def first_line(path: Path) -> str:
    """Return the first line of a file, cut after some thousand bytes; empty where it is no text."""
    with path.open("rb") as file:
        data = file.read(4096)
    try:
        lines = data.decode(_encoding(data), "ignore").splitlines()
    except UnicodeError:
        return ""
    return lines[0] if lines and "\x00" not in lines[0] else ""


def delimiter_of(header: str, path: Path | None = None) -> str:
    """Return what stands between the columns of a header: the most frequent of ``, tab ; |``."""
    if path is not None and path.suffix.lower() == ".tsv":
        return "\t"
    return max(DELIMITERS, key=lambda mark: (header.count(mark), -DELIMITERS.index(mark)))


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | BadSample]]:
    """Yield the objects of a file of JSON lines, each with the place of its line; what is none comes as its fault."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            try:
                yield where, read_object(line, where)
            except BadSample as error:
                yield where, error


def csv_rows(path: Path, delimiter: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a table that hold something, each with the number of the line on which it ends.

    Raises:
        ValueError: the file is not UTF-8, or no table, or ends within quotes.
    """
    with path.open("rb") as file:
        encoding = _encoding(file.read(4))
    delimiter = delimiter or delimiter_of(first_line(path), path)
    with path.open(encoding=encoding, newline="") as file:
        lines = _Lines(file)
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        last = 0
        try:
            for row in iter(partial(_next_row, reader), None):
                if lines.ended:  # then the reader wanted more of this row: a quote took in all rows behind it
                    raise ValueError(f"{path} line {last + 1}: a quote is opened and never closed; close or double it")
                last = reader.line_num
                if any(cell.strip() for cell in row):
                    yield reader.line_num, row
        except UnicodeError as error:
            raise ValueError(_not_text(_bad_line(path) or path, error)) from error
        except csv.Error as error:
            raise ValueError(f"{path} line {reader.line_num}: no table of {delimiter!r}: {error}") from error


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row, of long cells too; the module's limit, which is one for the whole process, stays as it was."""
    before = csv.field_size_limit(MAX_MEMBER_BYTES)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


class _Lines:
    """The lines of a file, and whether its end was met."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.ended = file, False

    def __iter__(self) -> Iterator[str]:
        yield from self.file
        self.ended = True


def _encoding(data: bytes) -> str:
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")


def _bad_line(path: Path) -> str:
    """The first line of a file that is no UTF-8, which a buffering reader does not know."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"{path} line {number}"
    return ""


def _not_text(where: Path | str, error: UnicodeError) -> str:
    if not isinstance(error, UnicodeDecodeError):
        return f"{where}: {error}"
    byte = error.object[error.start]
    likely = f"Windows-1252 has {bytes([byte]).decode('cp1252', 'replace')!r} there"
    remedy = "save the file as UTF-8 (iconv -f WINDOWS-1252 -t UTF-8, if it is that)"
    return f"{where}: not UTF-8: byte 0x{byte:02x}; {likely}; {remedy}"
