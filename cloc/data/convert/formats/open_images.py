"""Open Images' boxes (Kuznetsova et al. 2020): CSV files as published, and as ``fiftyone`` has them.

A parser of our own: a file whose rows are sorted is streamed, and groups (``IsGroupOf``) are kept as such.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cloc.data.convert.formats.files import need_file
from cloc.data.convert.formats.grouping import grouped
from cloc.data.convert.formats.listing import pick_splits
from cloc.data.convert.formats.plain_text import csv_rows, first_line
from cloc.data.convert.formats.registry import register
from cloc.data.convert.pictures import PictureFinder
from cloc.data.convert.records import Record, RecordSource
from cloc.data.shards.keys import Keys

_BOXES = (
    "*annotations-bbox*.csv",
    "annotations/*annotations-bbox*.csv",
    "labels/detections.csv",
    "*/labels/detections.csv",
)
_CLASSES = ("*class-descriptions*.csv", "*/*class-descriptions*.csv", "metadata/classes.csv", "*/metadata/classes.csv")
_NEEDED = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")
_SIDES = ("XMin", "YMin", "XMax", "YMax")


def _box_files(source: Path) -> dict[str, Path]:
    """The CSV files of boxes by split."""
    found = [path for pattern in _BOXES for path in sorted(source.glob(pattern))]
    splits = {}
    for path in dict.fromkeys(found):
        name = path.parent.parent.name if path.name == "detections.csv" else path.name.split("-annotations-bbox")[0]
        splits["train" if name.endswith("train") else name] = path
    return splits


def _is_open_images(source: Path) -> bool:
    if source.is_file():
        return source.suffix.lower() == ".csv" and set(_NEEDED) <= set(first_line(source).lstrip("\ufeff").split(","))
    return source.is_dir() and bool(_box_files(source))


@register(
    "open_images",
    "a folder with SPLIT-annotations-bbox.csv and class-descriptions*.csv of Open Images, or the former",
    _is_open_images,
)
def open_open_images(
    source: Path,
    *,
    split: str | None = None,
    images: Path | None = None,
    classes: Path | None = None,
    ignore_crowd_flag: bool = False,
) -> RecordSource:
    """Open a CSV of boxes; the name of a class is the phrase, ``IsGroupOf`` marks a group.

    Rows with the confidence 0, by which people said that a thing is not there, are no boxes and counted. Pictures
    without a row are not read.

    Args:
        source: folder of the CSV files, or the file of boxes.
        split: train, validation or test, where there are several.
        images: folder of the pictures, which are found by their ImageID, where they are not in the source.
        classes: the file of class names by label (/m/…), where it is not in the source.
        ignore_crowd_flag: take groups (IsGroupOf) for ordinary regions.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no such split, or several and none named; the table lacks a column.
    """
    folder = source if source.is_dir() else source.parent
    found = _box_files(folder) if source.is_dir() else {source.name.split("-annotations-bbox")[0]: source}
    if not found:
        raise FileNotFoundError(f"{source}: no *-annotations-bbox.csv; download it from the site of Open Images")
    (name, *others) = pick_splits(found, split, source)
    if others:
        raise ValueError(f"{source}: one split at a time is read; name one with --split: {', '.join(found)}")
    path = found[name]
    names, listed = _read_names(folder, classes)
    lost: Counter[str] = Counter()
    total, groups = grouped(partial(_rows, path, lost))
    negatives = lost["verified_negative"]
    finder = PictureFinder(_pictures_folder(folder, path, name, images))
    return RecordSource(
        f"open_images_{name}",
        (path, listed),
        _records(groups, names, finder),
        total,
        tuple(sorted(set(names.values()))),
        open_images_object,
        {"verified_negative": negatives} if negatives else {},
        boxes="xyxy_normalized",
        ignore_crowd_flag=ignore_crowd_flag,
        finder=finder,
    )


def _pictures_folder(folder: Path, path: Path, split: str, images: Path | None) -> Path:
    if images is not None:
        return images
    tried = [folder / split, folder / "images" / split, path.parent.parent / "data", folder / "images"]
    return next((place for place in tried if place.is_dir()), folder)


def _read_names(folder: Path, classes: Path | None) -> tuple[dict[str, str], Path]:
    """Names by label. The file has no header, but for those that other tools write."""
    found = [path for pattern in _CLASSES for path in sorted(folder.glob(pattern))]
    remedy = "download class-descriptions-boxable.csv from the site of Open Images, or name it with --classes"
    path = need_file(classes or next(iter(found), folder / "class-descriptions-boxable.csv"), remedy)
    rows = (row for _, row in csv_rows(path, ","))
    names = {row[0].strip(): row[1].strip() for row in rows if len(row) > 1 and row[0] != "LabelName"}
    if not names:
        raise ValueError(f"{path}: no names of classes; {remedy}")
    return names, path


def _rows(path: Path, lost: Counter[str]) -> Iterator[tuple[str, tuple[int, Any, str, bool]]]:
    """Yield each box by its picture: line, box, label, group."""
    lost.clear()
    rows = csv_rows(path, ",")
    _, header = next(rows, (0, []))
    places = {name.strip(): place for place, name in enumerate(header)}
    missing = [name for name in _NEEDED if name not in places]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; it has {', '.join(places) or 'none'}")
    for line, row in rows:
        cells = {name: row[place].strip() if place < len(row) else "" for name, place in places.items()}
        if cells.get("Confidence") and _number(cells["Confidence"]) == 0:
            lost["verified_negative"] += 1
            continue
        box = [_number(cells[side]) for side in _SIDES]
        yield cells["ImageID"], (line, box, cells["LabelName"], cells.get("IsGroupOf", "") in ("1", "True", "true"))


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text  # counted as box_malformed


def _records(
    groups: Iterator[tuple[str, list[Any]]], names: Mapping[str, str], finder: PictureFinder
) -> Iterator[Record]:
    keys = Keys()
    for number, rows in groups:
        where = f"image {number}, line {rows[0][0]}"
        unnamed = next(((line, label) for line, _, label, _ in rows if label not in names), None)
        if unnamed is not None:
            detail = f"line {unnamed[0]}: label {unnamed[1]!r} has no name; the list has {len(names):,} names"
            yield Record(where, fault=("class_without_name", f"{detail}; name the right one with --classes"))
            continue
        boxes = [(box, names[label], group) for _, box, label, group in rows]
        yield Record(where, keys.unique(number), finder.find(f"{number}.jpg"), {"boxes": boxes, "number": number})


def open_images_object(annotations: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Make a shard's JSON object of one picture: ``RecordSource.parse`` of this format.

    Args:
        annotations: ``boxes``, of each the corners, the name of its class, whether it is a group; and the ``number``.
        counts: not used.
    """
    regions = [
        {"box": box, "phrases": [name], "category": name, "crowd": group} for box, name, group in annotations["boxes"]
    ]
    return {"open_images_id": annotations["number"], "regions": regions}
