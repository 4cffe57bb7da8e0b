"""Tables of pictures with texts and boxes: CSV, TSV, Parquet, and what Hugging Face's imagefolder and datasets store.

A row is a picture, or a box, or a caption: rows that name one picture are joined. Columns are found by their names,
told, and can be named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cloc.data.boxes import check_kind
from cloc.data.convert.formats.columns import Chosen, Columns, guess_columns, table_object
from cloc.data.convert.formats.files import need_file
from cloc.data.convert.formats.grouping import grouped
from cloc.data.convert.formats.listing import files_below, pick_splits, picture_stem, read_classes
from cloc.data.convert.formats.plain_text import delimiter_of, first_line
from cloc.data.convert.formats.registry import register
from cloc.data.convert.formats.row_files import ARROW, PARQUET, AnyFile, ArrowFile, CsvFile, JsonlFile
from cloc.data.convert.pictures import PictureFinder
from cloc.data.convert.records import Record, RecordSource
from cloc.data.json_values import parse_json, shown
from cloc.data.shards.keys import Keys

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_SAVED = ("state.json", "dataset_info.json")
_SPLIT = re.compile(r"^(.+?)-\d{5}-of-\d{5}")


def _is_table(source: Path) -> bool:
    suffix = source.suffix.lower()
    if not source.is_file() or suffix not in (".csv", ".tsv", ".txt", PARQUET) or source.name in _METADATA:
        return False
    if suffix == PARQUET:
        return True
    header = first_line(source).lstrip("\ufeff")
    names = [name.strip().strip('"') for name in header.split(delimiter_of(header, source))]
    try:
        guess_columns(names, source.name, Chosen())
    except ValueError:
        return suffix != ".txt" and len(names) > 1 and not {"ImageID", "LabelName"} <= set(names)
    return not {"ImageID", "LabelName"} <= set(names)


def _is_imagefolder(source: Path) -> bool:
    if source.is_file():
        return source.name in _METADATA
    return source.is_dir() and bool(_metadata_files(source))


def _metadata_files(source: Path) -> dict[str, Path]:
    """Files of metadata by split: that of the folder, or those of the folders in it."""
    own = _metadata_file(source)
    if own is not None:
        return {source.name: own}
    below = sorted(path for path in source.iterdir() if path.is_dir())
    found = {folder.name: _metadata_file(folder) for folder in below}
    return {name: path for name, path in found.items() if path is not None}


def _metadata_file(folder: Path) -> Path | None:
    return next((path for name in _METADATA if (path := folder / name).is_file()), None)


def _is_huggingface(source: Path) -> bool:
    if not source.is_dir() or _metadata_files(source):
        return False
    if (source / "dataset_dict.json").is_file() or all((source / name).is_file() for name in _SAVED):
        return True
    pictures = any(source.glob("*_stats.json"))  # then these tables are img2dataset's own
    return not pictures and any(any(source.glob(f"{part}*{PARQUET}")) for part in ("", "data/", "*/"))


@register("table", "a .csv, .tsv or .parquet file with a header: pictures, captions, boxes", _is_table)
def open_table(
    source: Path,
    *,
    images: Path | None = None,
    picture_column: str | None = None,
    caption_column: str | None = None,
    box_column: str | None = None,
    label_column: str | None = None,
    classes: Path | None = None,
    boxes: str | None = None,
    ignore_crowd_flag: bool = False,
) -> RecordSource:
    """Open a table. Rows of one picture are joined: each may be a picture, a caption or a box.

    Boxes are four columns (xmin, ymin, xmax, ymax and their like) or one column of lists; classes or phrases stand
    beside them. A picture is a path, or its bytes in Parquet.

    Args:
        source: the file.
        images: folder that the pictures' paths are relative to, where it is not the file's own.
        picture_column: column of the pictures; by its name where it is left out.
        caption_column: column of captions, several with commas; by its name where it is left out.
        box_column: column of the boxes, or four of them with commas; by their names where it is left out.
        label_column: column of the boxes' classes or phrases, several with commas; by its name where it is left out.
        classes: file of class names, where boxes have numbers.
        boxes: order and unit of the boxes: xyxy, xywh, cxcywh or yxyx, _, and normalized, percent, thousand or pixels;
            in pixels where it is left out, four columns in the order of their names, lists as xywh.
        ignore_crowd_flag: take groups (iscrowd) for ordinary regions.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: Parquet without pyarrow.
        ValueError: it has no such column, or none that is known; the message names those that there are.
    """
    need_file(source, "format 'table' reads one .csv, .tsv or .parquet file")
    chosen = Chosen(picture_column, caption_column, box_column, label_column)
    return _open(source.stem, [source], images or source.parent, chosen, classes, boxes, ignore_crowd_flag)


@register(
    "imagefolder", "a folder with metadata.jsonl, .csv or .parquet, of Hugging Face's imagefolder", _is_imagefolder
)
def open_imagefolder(
    source: Path,
    *,
    split: str | None = None,
    caption_column: str | None = None,
    label_column: str | None = None,
    classes: Path | None = None,
    boxes: str = "xywh_pixels",
    ignore_crowd_flag: bool = False,
) -> RecordSource:
    """Open pictures with ``metadata.jsonl``: ``file_name``, texts, and ``objects`` with ``bbox`` and ``categories``.

    Args:
        source: the folder, or the folder of folders ``train``, ``test``, …; or the file of metadata.
        split: one of these folders, where there are several.
        caption_column: key of captions, several with commas; by its name where it is left out.
        label_column: key of the boxes' classes or phrases, several with commas; by its name where it is left out.
        classes: file of class names, where boxes have numbers.
        boxes: order and unit of the boxes: xyxy, xywh, cxcywh or yxyx, _, and normalized, percent, thousand or pixels.
        ignore_crowd_flag: take groups (iscrowd) for ordinary regions.

    Raises:
        FileNotFoundError: there is no file of metadata.
        ValueError: there is no such split, or several and none named; no key is known.
    """
    found = {source.parent.name: source} if source.is_file() else _metadata_files(source)
    if not found:
        raise FileNotFoundError(f"{source}: no {' or '.join(_METADATA)}; name the folder that holds it")
    name, path = _one(found, split, source)
    chosen = Chosen(None, caption_column, None, label_column)
    title = source.resolve().name if len(found) == 1 else f"{source.resolve().name}_{name}"
    return _open(title, [path], path.parent, chosen, classes, boxes, ignore_crowd_flag)


@register(
    "huggingface",
    "a folder that datasets' save_to_disk wrote, or one of Parquet files, as the hub has them in data/",
    _is_huggingface,
)
def open_huggingface(
    source: Path,
    *,
    split: str | None = None,
    picture_column: str | None = None,
    caption_column: str | None = None,
    box_column: str | None = None,
    label_column: str | None = None,
    classes: Path | None = None,
    boxes: str | None = None,
    ignore_crowd_flag: bool = False,
) -> RecordSource:
    """Open a data set of Hugging Face with its pictures' bytes, without the library; names of classes are its schema's.

    Args:
        source: the folder.
        split: one of its splits, where there are several.
        picture_column: column of the pictures; by its name where it is left out.
        caption_column: column of captions, several with commas; by its name where it is left out.
        box_column: column of the boxes, or four of them with commas; by their names where it is left out.
        label_column: column of the boxes' classes or phrases, several with commas; by its name where it is left out.
        classes: file of class names, where boxes have numbers.
        boxes: order and unit of the boxes: xyxy, xywh, cxcywh or yxyx, _, and normalized, percent, thousand or pixels;
            in pixels where it is left out, four columns in the order of their names, lists as xywh.
        ignore_crowd_flag: take groups (iscrowd) for ordinary regions.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: pyarrow is missing.
        ValueError: there is no such split, or several and none named; no column is known.
    """
    found = _saved(source) or _hub(source)
    if not found:
        raise FileNotFoundError(f"{source}: neither state.json of save_to_disk nor a {PARQUET} file")
    name, paths = _one(found, split, source)
    chosen = Chosen(picture_column, caption_column, box_column, label_column)
    title = source.resolve().name if len(found) == 1 else f"{source.resolve().name}_{name}"
    return _open(title, paths, source, chosen, classes, boxes, ignore_crowd_flag)


def _one(found: dict[str, Any], split: str | None, source: Path) -> tuple[str, Any]:
    picked = pick_splits(found, split, source)
    if len(picked) > 1:
        raise ValueError(f"{source}: one split at a time is read; name one with --split: {', '.join(found)}")
    return picked[0], found[picked[0]]


def _saved(source: Path) -> dict[str, list[Path]]:
    """Arrow files by split, of ``save_to_disk``."""
    folders = {source.name: source} if (source / _SAVED[0]).is_file() else {}
    if (source / "dataset_dict.json").is_file():
        folders = {path.name: path for path in sorted(source.iterdir()) if (path / _SAVED[0]).is_file()}
    found = {}
    for name, folder in folders.items():
        state = parse_json((folder / _SAVED[0]).read_bytes())
        files = state.get("_data_files") if isinstance(state, dict) else None
        if not isinstance(files, list) or not all(isinstance(one, dict) and "filename" in one for one in files):
            raise ValueError(f"{folder / _SAVED[0]}: _data_files is {shown(files)}; save the data set again")
        found[name] = [need_file(folder / str(one["filename"]), "copy the whole folder") for one in files]
    return found


def _hub(source: Path) -> dict[str, list[Path]]:
    """Parquet files by split, of the names that the hub gives them."""
    found: dict[str, list[Path]] = {}
    for path in files_below(source):
        if path.suffix == PARQUET:
            named = _SPLIT.match(path.stem)
            folder = path.parent.name if path.parent not in (source, source / "data") else source.name
            found.setdefault(named[1] if named else folder, []).append(path)
    return found


def _file(path: Path) -> AnyFile:
    if path.suffix in (PARQUET, ARROW):
        return ArrowFile(path)
    return JsonlFile(path) if path.suffix.lower() == ".jsonl" else CsvFile(path)


def _open(
    title: str,
    paths: Sequence[Path],
    root: Path,
    chosen: Chosen,
    classes: Path | None,
    boxes: str | None,
    ignore_crowd_flag: bool,
) -> RecordSource:
    """Open files of the same columns."""
    files = [_file(path) for path in paths]
    names = {"": read_classes(classes)} if classes is not None else {}
    columns = guess_columns(files[0].names, str(paths[0]), chosen, files[0].classes | names)
    for file in files[1:]:
        guess_columns(file.names, str(file.path), replace(chosen, picture=columns.picture))
    kind = check_kind(boxes) if boxes is not None else f"{columns.layout or 'xywh'}_pixels"
    options = {"columns": columns, "order": kind.partition("_")[0]}
    rows = partial(_rows, files, columns)
    total, groups = _grouped(files, rows, columns)
    known = sorted({name for one in columns.classes.values() for name in one.names.values()}) if columns.boxes else []
    finder = PictureFinder(root)
    return RecordSource(
        title,
        (*paths, *([classes] if classes is not None else [])),
        _records(groups, finder, options),
        total,
        tuple(known) or None,
        table_object,
        boxes=kind,
        ignore_crowd_flag=ignore_crowd_flag,
        notes=(columns.told,),
        finder=finder,
    )


def _rows(files: Sequence[AnyFile], columns: Columns) -> Iterator[tuple[str, tuple[str, dict[str, Any], Any]]]:
    """Yield each row by its picture: where it stands, its cells, and the picture's cell."""
    for file in files:
        for where, row, cell in file.rows(columns.used):
            name = row.get(columns.picture)
            given = isinstance(name, str) and name.strip() and cell is None
            yield (str(name) if given else where), (where, row, cell)


def _grouped(
    files: Sequence[AnyFile], rows: Callable[[], Iterator[Any]], columns: Columns
) -> tuple[int, Iterator[tuple[str, list[Any]]]]:
    """Rows by picture; those that hold their pictures are one each."""
    if all(isinstance(file, ArrowFile) and file.holds_bytes(columns.picture) for file in files):
        total = sum(file.total for file in files if isinstance(file, ArrowFile))
        return total, ((name, [row]) for name, row in rows())
    return grouped(rows)


def _records(
    groups: Iterator[tuple[str, list[Any]]], finder: PictureFinder, options: dict[str, Any]
) -> Iterator[Record]:
    keys = Keys()
    for _, rows in groups:
        where, row, cell = rows[0]
        columns: Columns = options["columns"]
        fault = next((one[""] for _, one, _ in rows if "" in one), None)
        if fault is not None:
            yield Record(where, fault=(fault.reason, fault.detail))
            continue
        given = row.get(columns.picture)
        name = given.get("path") if isinstance(given, dict) else given
        name = name.strip() if isinstance(name, str) else ""
        if cell is None and not name:
            yield Record(where, fault=("no_image", f"{where}: {columns.picture} is {shown(given)}, a path is needed"))
            continue
        cells = [{key: value for key, value in one.items() if key != columns.picture} for _, one, _ in rows]
        annotations = {"rows": cells, "where": where, **options}
        key = picture_stem(name) or where.rpartition(" row ")[2]
        yield Record(where, keys.unique(key), cell or finder.find(name), annotations)
