"""Reads tables row by row: CSV, TSV, JSON lines, Parquet, Arrow. Pictures in them are read later, in any process.

Parquet and Arrow are pyarrow's (the extra ``parquet``). ``datasets`` itself is not needed: it decodes and encodes every
picture anew, and the names of classes stand in the files' own schema.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloc.contracts import BadSample
from cloc.data.convert.formats.listing import ClassNames
from cloc.data.convert.formats.plain_text import csv_rows, json_lines
from cloc.data.convert.picture_bytes import read_picture
from cloc.data.convert.pictures import MissingPicture, PictureFinder
from cloc.data.sample import MAX_MEMBER_BYTES

Row = dict[str, Any]
PARQUET, ARROW = ".parquet", ".arrow"
_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}
_BATCH = 1000  # rows


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture within a table, and where its bytes are.

    Attributes:
        path: the file.
        group: number of the row group (Parquet) or record batch (Arrow).
        row: within it.
        column: its name.
    """

    path: Path
    group: int
    row: int
    column: str

    def read(self) -> tuple[str, bytes]:
        """Return the file name extension and the bytes.

        Raises:
            BadSample: ``no_image``, ``giant_member`` or ``image_unreadable``.
        """
        try:
            value = _column(self.path, self.group, self.column)[self.row].as_py()
        except (OSError, ValueError, IndexError) as error:  # ArrowInvalid is a ValueError
            raise BadSample("image_unreadable", f"{self.path}: {error}") from error
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None and isinstance(value, dict) and isinstance(value.get("path"), str):
            found = PictureFinder(as_written=(self.path.parent,)).find(value["path"])  # never a file outside
            if isinstance(found, MissingPicture):
                seen = f"{value['path']!r} is no file in the folder of {self.path}, which has no bytes of it"
                raise BadSample("image_unreadable", seen)
            return read_picture(found)
        if not isinstance(data, bytes) or not data:
            raise BadSample(
                "no_image", f"{self.path} row {self.row} of group {self.group}: no bytes in {self.column!r}"
            )
        if len(data) > MAX_MEMBER_BYTES:
            raise BadSample("giant_member", f"{self.path}: the limit is {MAX_MEMBER_BYTES:,} bytes")
        return extension_of(data), data


def extension_of(data: bytes) -> str:
    """Return the file name extension of a picture by its first bytes; ``jpg`` where nothing is known of it."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((extension for magic, extension in _MAGIC.items() if data.startswith(magic)), "jpg")


class CsvFile:
    """A table of text with a header."""

    def __init__(self, path: Path, delimiter: str | None = None) -> None:
        self.path, self.delimiter = path, delimiter
        _, header = next(csv_rows(path, delimiter), (0, []))
        self.names = [name.strip() for name in header]
        self.classes: dict[str, ClassNames] = {}

    def rows(self, used: list[str]) -> Iterator[tuple[str, Row, Cell | None]]:
        """Yield where a row stands, its cells by column, and None: no picture lies in it.

        A row that has more cells than the header has its fault below ``""``.
        """
        twice = next((name for name in used if self.names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{self.path}: column {twice!r} comes twice; rename one of them")
        rows = csv_rows(self.path, self.delimiter)
        next(rows, None)
        for line, cells in rows:
            where = f"{self.path.name} line {line}"
            row: Row = dict(zip(self.names, cells, strict=False))
            if any(cell.strip() for cell in cells[len(self.names) :]):  # of a text with the mark between columns in it
                seen = f"{where}: {len(cells)} cells, the header has {len(self.names)}; put texts into quotes"
                row[""] = BadSample("bad_annotation", seen)
            yield where, {name: row.get(name) for name in ("", *used) if name or name in row}, None


class JsonlFile:
    """A file of JSON objects, one a line; its columns are the keys of the first ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.classes: dict[str, ClassNames] = {}
        names: dict[str, None] = {}
        for number, (_, row, _) in enumerate(self.rows(None)):
            names.update(dict.fromkeys(row))
            if number == _BATCH:
                break
        self.names = list(names)

    def rows(self, used: list[str] | None) -> Iterator[tuple[str, Row, Cell | None]]:
        """As :meth:`CsvFile.rows`; a line that is no object is an empty row with its fault below ``""``."""
        for where, found in json_lines(self.path):
            yield where, {"": found} if isinstance(found, BadSample) else found, None


class ArrowFile:
    """A Parquet file, or Arrow's stream, as ``save_to_disk`` writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        schema = _opened(path).schema_arrow if path.suffix == PARQUET else _opened(path).schema
        self.schema, self.names = schema, list(schema.names)
        self.classes = _class_labels(schema.metadata or {})

    def holds_bytes(self, column: str) -> bool:
        """Tell whether a column holds pictures, not paths: bytes, or Hugging Face's ``{"bytes", "path"}``."""
        kind = str(self.schema.field(column).type)
        return "binary" in kind

    @property
    def total(self) -> int:
        """Number of rows."""
        return int(_opened(self.path).metadata.num_rows if self.path.suffix == PARQUET else _opened(self.path).num_rows)

    def rows(self, used: list[str]) -> Iterator[tuple[str, Row, Cell | None]]:
        """As :meth:`CsvFile.rows`, with the picture's cell where the first column holds bytes, which are not read."""
        picture, *others = used
        packed = self.holds_bytes(picture)
        number = 0
        for group, table in self._tables([*others, *self._light(picture)] if packed else used):
            for start in range(0, table.num_rows, _BATCH):
                for place, row in enumerate(table.slice(start, _BATCH).to_pylist(), start):
                    cell = Cell(self.path, group, place, picture) if packed else None
                    yield f"{self.path.name} row {number}", row, cell
                    number += 1

    def _light(self, picture: str) -> list[str]:
        """The path beside a picture's bytes, as a column of its own."""
        kind = self.schema.field(picture).type
        inner = [kind.field(place).name for place in range(kind.num_fields)]
        return [f"{picture}.path"] if "path" in inner else []

    def _tables(self, columns: list[str]) -> Iterator[tuple[int, Any]]:
        file = _opened(self.path)
        if self.path.suffix == PARQUET:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=columns)
                count = file.metadata.row_group(group).num_rows
                yield group, table if columns else _rows_without_cells(count)
            return
        for group, batch in enumerate(file.to_batches()):
            yield group, _picked(batch, columns)


AnyFile = CsvFile | JsonlFile | ArrowFile


def _picked(batch: Any, columns: list[str]) -> Any:
    """The columns of a batch; ``NAME.path`` is a field of one."""
    import pyarrow

    cells = {}
    for name in columns:
        whole, _, inner = name.rpartition(".")
        within = name not in batch.schema.names and whole in batch.schema.names
        cells[whole if within else name] = _paths(batch.column(whole), inner) if within else batch.column(name)
    return pyarrow.table(cells) if cells else _rows_without_cells(batch.num_rows)


def _paths(column: Any, inner: str) -> Any:
    """A column with this field of it alone, the bytes beside it left where they are."""
    import pyarrow

    return pyarrow.StructArray.from_arrays([column.field(inner)], [inner])


def _rows_without_cells(count: int) -> Any:
    import pyarrow

    return pyarrow.table({"": pyarrow.nulls(count)})


@functools.lru_cache(maxsize=8)
def _opened(path: Path) -> Any:
    """A Parquet file, or the mapped table of an Arrow stream or file.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: it is neither.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path}: reading it needs pyarrow: pip install 'cloc-pretrain[parquet]'") from error
    try:
        if path.suffix == PARQUET:
            return pyarrow.parquet.ParquetFile(path)
        source = pyarrow.memory_map(str(path))
        try:
            return pyarrow.ipc.open_stream(source).read_all()
        except pyarrow.ArrowInvalid:
            source.seek(0)
            return pyarrow.ipc.open_file(source).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: no {path.suffix[1:]} file, or cut off: {told}; restore it") from error


@functools.lru_cache(maxsize=2)
def _column(path: Path, group: int, column: str) -> Any:
    """One column of a row group or record batch; the last two stay in memory."""
    file = _opened(path)
    if path.suffix == PARQUET:
        return file.read_row_group(group, columns=[column]).column(column)
    return file.column(column).chunk(group)


def _class_labels(metadata: Mapping[bytes, bytes]) -> dict[str, ClassNames]:
    """Names of classes by column, which ``datasets`` leaves in the schema."""
    try:
        told = json.loads(metadata.get(b"huggingface", b"{}"))
    except ValueError:
        return {}
    found: dict[str, ClassNames] = {}
    waiting: list[tuple[str, Any]] = [("", told.get("info", {}).get("features", {}) if isinstance(told, dict) else {})]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, list):
            waiting += [(name, inner) for inner in value]
        elif isinstance(value, dict):
            names = value.get("names")
            if value.get("_type") == "ClassLabel" and isinstance(names, list):
                found[name] = ClassNames(dict(enumerate(map(str, names))), f"the file's schema ({name})")
            waiting += [(name if key == "feature" else key, inner) for key, inner in value.items()]
    return found
