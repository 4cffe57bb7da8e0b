"""Turns one record of somebody's data set into a ``Sample``.

Stands between ``formats``, which list records without opening a picture, and ``jobs``, which writes what is built here
as shards, in any number of processes. All samples are built by the shards' own parser, so that every rule about boxes
and texts has one home.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cloc.contracts import BadSample, Sample
from cloc.data.boxes import NORMALIZED, is_number, normalize_box, observe, to_float
from cloc.data.decode import upright_size
from cloc.data.jobs.report import Report
from cloc.data.regions import count_regions, raw_boxes
from cloc.data.sample import (
    IMAGE_EXTENSIONS,
    MAX_MEMBER_BYTES,
    count_captions,
    encode_json,
    parse_object,
    parse_sample,
    read_object,
)
from cloc.data.shards.reader import MAX_SAMPLE_BYTES
from cloc.data.shards.tars import read_sample_members
from cloc.files import open_file

_SAME_ASPECT = 0.02  # tolerance between width / height of two sizes, beside a pixel of rounding


@dataclass(frozen=True, slots=True)
class TarSlice:
    """The bytes of one sample within a tar."""

    path: Path
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Record:
    """One picture of a source, nothing of it opened yet.

    Attributes:
        where: how an error names it, for instance ``set.jsonl line 7``.
        key: unique within the source, fit for a tar.
        picture: the picture's file, or the sample's bytes in a tar.
        annotations: what ``RecordSource.parse`` takes.
        fault: reason and detail where the record is already known to be unusable.
    """

    where: str
    key: str = ""
    picture: Path | TarSlice | None = None
    annotations: Mapping[str, Any] = field(default_factory=dict)
    fault: tuple[str, str] | None = None


Parse = Callable[[Mapping[str, Any], Counter[str]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the records of a source become samples, in any process.

    Attributes:
        source: becomes ``Sample.source``.
        parse: makes the shard's JSON object of a record's annotations; None where they are one. It counts boxes that
            joined another's region as ``box_joined``.
        boxes: what the boxes of that object are, one of ``BOX_KINDS``. In pixels they are of the picture's stated
            size, or of its own where none is stated.
        ignore_crowd_flag: take groups for ordinary regions.
    """

    source: str
    parse: Parse | None = None
    boxes: str = NORMALIZED
    ignore_crowd_flag: bool = False


@dataclass(frozen=True, slots=True)
class RecordSource:
    """A data set that can be read record by record.

    Attributes:
        name: becomes ``Sample.source``.
        files: annotation files; their sizes and times tell whether the source has changed.
        records: read once, in a fixed order.
        total: number of records where it is known beforehand.
        categories: all class names, also those without a box; None for those that occur.
        parse: see ``Recipe``; so are ``boxes`` and ``ignore_crowd_flag``.
        mended: what was already dropped or mended while the source was opened, by reason.
        annotations: how many annotations of its pictures the source counted when it was opened.
        notes: what a user should know of how the source is read, a line each.
    """

    name: str
    files: tuple[Path, ...]
    records: Iterable[Record]
    total: int | None = None
    categories: tuple[str, ...] | None = None
    parse: Parse | None = None
    mended: Mapping[str, int] = field(default_factory=dict)
    boxes: str = NORMALIZED
    ignore_crowd_flag: bool = False
    annotations: int = 0
    notes: tuple[str, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """What a process needs to make samples of the records."""
        return Recipe(self.name, self.parse, self.boxes, self.ignore_crowd_flag)


def build_samples(records: Iterable[Record], recipe: Recipe, report: Report) -> Iterator[Sample]:
    """Read, check and parse records; what cannot be used is counted in ``report``.

    Args:
        records: a part of ``RecordSource.records``.
        recipe: ``RecordSource.recipe``.
        report: receives all counts but those of ``Report.tally``.
    """
    for record in records:
        report.given["records"] += 1
        given: Counter[str] = Counter()
        try:
            build = _build_from_tar if isinstance(record.picture, TarSlice) else _build
            sample, mended, annotations = build(record, recipe, given, report.boxes)
        except BadSample as error:
            report.skip(error, record.where)
            report.lost.update(given)
        else:
            report.mend(mended, record.where, annotations)
            yield sample
        report.given.update(given)


_Built = tuple[Sample, Counter[str], Mapping[str, Any]]  # and the shard's JSON object that it was read from


def _build(record: Record, recipe: Recipe, given: Counter[str], boxes: Counter[str]) -> _Built:
    if record.fault is not None:
        raise BadSample(*record.fault)
    mended: Counter[str] = Counter()
    annotations = _parse(record, recipe, mended)
    given.update(captions=count_captions(annotations), regions=count_regions(annotations) + mended["box_joined"])
    assert isinstance(record.picture, Path), "a record without a picture says why"  # its fault
    extension, image = _read_picture(record.picture)
    size = _check_picture(image, str(record.picture))
    stated = stated_size(annotations.get("width"), annotations.get("height"))
    observe(raw_boxes(annotations), stated or size, recipe.boxes, boxes)
    annotations = normalize_regions(annotations, recipe.boxes, stated or size)
    sample, more = parse_object(annotations, image, extension, record.key, recipe.source)
    return _finish(sample, stated, size, record.where), mended + more, annotations


def _build_from_tar(record: Record, recipe: Recipe, given: Counter[str], boxes: Counter[str]) -> _Built:
    assert isinstance(record.picture, TarSlice), "other pictures are files"
    members = _read_members(record.picture)
    annotations = read_object(members["json"], record.key) if "json" in members else {}
    captions = count_captions(annotations, members.get("txt"), record.key)
    given.update(captions=captions, regions=count_regions(annotations))
    sample, mended = parse_sample(members, record.key, recipe.source)
    size = _check_picture(sample.image, record.where)
    observe(raw_boxes(annotations), size, recipe.boxes, boxes)
    stated = stated_size(sample.extra.get("original_width"), sample.extra.get("original_height"))
    return _finish(sample, stated, size, record.where), mended, annotations


def _finish(sample: Sample, stated: tuple[float, float] | None, size: tuple[int, int], where: str) -> Sample:
    if sample.regions and stated:
        _check_shape(stated, size, where)
    encode_json(sample)  # or says why it cannot be written
    return replace(sample, width=size[0], height=size[1])


def _parse(record: Record, recipe: Recipe, counts: Counter[str]) -> dict[str, Any]:
    """Make the shard's JSON object, its boxes still as the source has them."""
    try:
        annotations = dict(record.annotations) if recipe.parse is None else recipe.parse(record.annotations, counts)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        if isinstance(error, BadSample):
            raise
        raise BadSample("bad_annotation", f"{type(error).__name__}: {error}") from error
    if recipe.ignore_crowd_flag:
        annotations = _change_regions(annotations, lambda region: {**region, "crowd": False})
    return annotations


def normalize_regions(annotations: dict[str, Any], kind: str, size: tuple[float, float]) -> dict[str, Any]:
    """Return a shard's JSON object whose boxes are xyxy in 0..1.

    Args:
        annotations: the object, its boxes as a source has them.
        kind: what they are, one of ``BOX_KINDS``.
        size: (width, height) of the picture that they were drawn on, in pixels.
    """
    if kind == NORMALIZED:
        return annotations
    return _change_regions(
        annotations, lambda region: {**region, "box": normalize_box(region["box"], kind, size)}, "box"
    )


def _change_regions(
    annotations: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]], needed: str = ""
) -> dict[str, Any]:
    """Change the regions that are objects and have a key; the others are left to the reader of regions."""
    given = annotations.get("regions")
    if not isinstance(given, list):
        return annotations
    changed = [
        change(region) if isinstance(region, dict) and (not needed or needed in region) else region for region in given
    ]
    return {**annotations, "regions": changed}


def _read_members(where: TarSlice) -> dict[str, bytes]:
    if where.stop - where.start > MAX_SAMPLE_BYTES:
        raise BadSample(
            "giant_member", f"{where.path} at byte {where.start:,}: the limit is {MAX_SAMPLE_BYTES:,} bytes"
        )
    try:
        with open_file(where.path) as file:
            raw = os.pread(file.fileno(), where.stop - where.start, where.start)
        return read_sample_members(raw)[1]
    except OSError as error:
        raise BadSample("unreadable_shard", f"{where.path} at byte {where.start:,}: {error}") from error


def _read_picture(path: Path) -> tuple[str, bytes]:
    """Return the file name extension and the bytes of a picture's file."""
    extension = path.suffix[1:].lower()
    if extension not in IMAGE_EXTENSIONS:
        raise BadSample("no_image", f"{path}: the name ends in none of {IMAGE_EXTENSIONS}")
    try:
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_MEMBER_BYTES:
                raise BadSample("giant_member", f"{path}: the limit is {MAX_MEMBER_BYTES:,} bytes")
            return extension, file.read()
    except BadSample:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadSample("image_unreadable", f"{path}: {error}") from error


def _check_picture(image: bytes, where: str) -> tuple[int, int]:
    """Decode the picture as training does; return the upright width and height."""
    try:
        return upright_size(image)
    except BadSample as error:
        raise BadSample(error.reason, f"{where}: {error.detail}") from error


def stated_size(width: Any, height: Any) -> tuple[float, float] | None:
    """Return the size of a picture as JSON states it; None where a side is unknown, which 0 and null stand for."""
    across, down = (to_float(side) if is_number(side) else 0.0 for side in (width, height))
    return (across, down) if 0 < across < math.inf and 0 < down < math.inf else None


def _check_shape(stated: tuple[float, float], size: tuple[int, int], where: str) -> None:
    """Refuse boxes of another shape of picture: they belong to the upright one, after EXIF orientation."""
    width, height = stated
    aspect, tolerance = size[0] / size[1], _SAME_ASPECT + 1 / min(*size, width, height)
    if abs(width / height / aspect - 1) <= tolerance:
        return
    seen = f"{where}: the picture is {size[0]}×{size[1]} when upright, its boxes are of {width:g}×{height:g}"
    if abs(height / width / aspect - 1) <= tolerance:
        raise BadSample("orientation_conflict", f"{seen}; turn them")
    raise BadSample("shape_conflict", f"{seen}; give the pictures that were annotated")
