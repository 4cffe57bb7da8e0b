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
from cloc.data.convert.picture_bytes import (
    PICTURE_SUFFIXES,
    RAW,
    SIDEWAYS,
    STATED,
    Picture,
    Prepared,
    prepare,
    read_picture,
    turn_box,
)
from cloc.data.convert.pictures import PictureFinder
from cloc.data.decode import orientation_of
from cloc.data.jobs.report import Report
from cloc.data.regions import count_regions, raw_boxes
from cloc.data.sample import (
    IMAGE_EXTENSIONS,
    count_captions,
    encode_json,
    parse_object,
    parse_sample,
    read_object,
)
from cloc.data.shards.reader import MAX_SAMPLE_BYTES
from cloc.data.shards.tars import read_sample_members
from cloc.files import open_file

_HELD = frozenset(f".{extension}" for extension in IMAGE_EXTENSIONS)
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
        picture: the picture's file, the sample's bytes in a tar, or anything small that can be pickled and read
            (``picture_bytes.Picture``).
        annotations: what ``RecordSource.parse`` takes.
        fault: reason and detail where the record is already known to be unusable.
    """

    where: str
    key: str = ""
    picture: Path | TarSlice | Picture | None = None
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
        reencode: one of ``picture_bytes.REENCODE``.
        orientation: one of ``picture_bytes.ORIENTATIONS``.
    """

    source: str
    parse: Parse | None = None
    boxes: str = NORMALIZED
    ignore_crowd_flag: bool = False
    reencode: str = "auto"
    orientation: str = "upright"


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
        finder: what found the pictures of the records; how it did so is told at the end.
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
    finder: PictureFinder | None = None

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
        one = Report()
        try:
            build = _build_from_tar if isinstance(record.picture, TarSlice) else _build
            built = build(record, recipe, one)
        except BadSample as error:
            report.skip(error, record.where)
            report.lost.update(one.given)
        else:
            if built is None:
                one.given["background"] += 1
            else:
                sample, mended, annotations = built
                report.mend(mended, record.where, annotations)
                report.pictures.update(one.pictures)
                yield sample
        report.boxes.update(one.boxes)
        report.given.update(one.given)


# A sample, what was dropped or mended, and the shard's JSON object that it was read from; None for a background picture
_Built = tuple[Sample, Counter[str], Mapping[str, Any]] | None


def _build(record: Record, recipe: Recipe, report: Report) -> _Built:
    if record.fault is not None:
        raise BadSample(*record.fault)
    mended: Counter[str] = Counter()
    annotations = _parse(record, recipe, mended)
    captions, regions = count_captions(annotations), count_regions(annotations) + mended["box_joined"]
    report.given.update(captions=captions, regions=regions)
    if not captions and not regions:
        return None
    assert record.picture is not None and not isinstance(record.picture, TarSlice), "it says why"  # its fault
    extension, image = read_picture(record.picture)
    where = str(record.picture) if isinstance(record.picture, Path) else record.where
    prepared, orientation = _prepare(extension, image, recipe, where, report)
    size = _drawn_on(prepared.size, orientation)
    stated = stated_size(annotations.get("width"), annotations.get("height"))
    observe(raw_boxes(annotations), stated or size, recipe.boxes, report.boxes)
    annotations = normalize_regions(annotations, recipe.boxes, stated or size)
    sample, more = parse_object(annotations, prepared.image, prepared.extension, record.key, recipe.source)
    return _finish(sample, stated, prepared, orientation, recipe, record.where, report), mended + more, annotations


def _build_from_tar(record: Record, recipe: Recipe, report: Report) -> _Built:
    assert isinstance(record.picture, TarSlice), "other pictures are files"
    members = {extension.lower(): data for extension, data in _read_members(record.picture).items()}
    other = _other_picture(members)
    annotations = read_object(members["json"], record.key) if "json" in members else {}
    captions = count_captions(annotations, members.get("txt"), record.key)
    regions = count_regions(annotations)
    report.given.update(captions=captions, regions=regions)
    if not captions and not regions and (other or not members.keys().isdisjoint(IMAGE_EXTENSIONS)):
        return None
    if other:
        text = members.get("txt")
        sample, mended = parse_object(annotations, members[other], other, record.key, recipe.source, text=text)
    else:
        sample, mended = parse_sample(members, record.key, recipe.source)
    prepared, orientation = _prepare(sample.extension, sample.image, recipe, record.where, report)
    sample = replace(sample, image=prepared.image, extension=prepared.extension)
    observe(raw_boxes(annotations), _drawn_on(prepared.size, orientation), recipe.boxes, report.boxes)
    stated = stated_size(sample.extra.get("original_width"), sample.extra.get("original_height"))
    return _finish(sample, stated, prepared, orientation, recipe, record.where, report), mended, annotations


def _other_picture(members: Mapping[str, bytes]) -> str:
    """The extension of a picture of a format that shards do not hold, where a sample has no other; else empty."""
    if any(members.get(extension) for extension in IMAGE_EXTENSIONS):
        return ""
    return next((one for one, data in members.items() if f".{one}" in PICTURE_SUFFIXES - _HELD and data), "")


def _prepare(extension: str, image: bytes, recipe: Recipe, where: str, report: Report) -> tuple[Prepared, int]:
    """Make of a picture what a shard holds; say by how much its boxes are to be turned, as EXIF's orientation."""
    try:
        prepared = prepare(extension, image, recipe.reencode)
    except BadSample as error:
        raise BadSample(error.reason, f"{where}: {error.detail}") from error
    if prepared.reencoded:
        report.pictures[f"encoded anew: {prepared.reencoded}"] += 1
    return prepared, orientation_of(image) if recipe.orientation == RAW else 1


def _drawn_on(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """The size of the picture that boxes were drawn on, of its upright size and what turns them."""
    return size[::-1] if orientation in SIDEWAYS else size


def _finish(
    sample: Sample,
    stated: tuple[float, float] | None,
    prepared: Prepared,
    orientation: int,
    recipe: Recipe,
    where: str,
    report: Report,
) -> Sample:
    if sample.regions and stated:
        _check_shape(stated, _drawn_on(prepared.size, orientation), recipe.orientation, where)
    if sample.regions and orientation != 1:
        regions = tuple(replace(region, box=turn_box(region.box, orientation)) for region in sample.regions)
        sample = replace(sample, regions=regions)
        report.pictures["boxes turned with the picture"] += 1
    encode_json(sample)  # or says why it cannot be written
    return replace(sample, width=prepared.size[0], height=prepared.size[1])


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


def stated_size(width: Any, height: Any) -> tuple[float, float] | None:
    """Return the size of a picture as JSON states it; None where a side is unknown, which 0 and null stand for."""
    across, down = (to_float(side) if is_number(side) else 0.0 for side in (width, height))
    return (across, down) if 0 < across < math.inf and 0 < down < math.inf else None


def _check_shape(stated: tuple[float, float], size: tuple[int, int], orientation: str, where: str) -> None:
    """Refuse boxes of another shape of picture than they are said to be drawn on."""
    width, height = stated
    aspect, tolerance = size[0] / size[1], _SAME_ASPECT + 1 / min(*size, width, height)
    if abs(width / height / aspect - 1) <= tolerance:
        return
    on_its_side = abs(height / width / aspect - 1) <= tolerance
    if on_its_side and orientation == STATED:
        return
    kind = "as stored" if orientation == RAW else "when upright"
    seen = f"{where}: the picture is {size[0]}×{size[1]} {kind}, its boxes are of {width:g}×{height:g}"
    if on_its_side and orientation == RAW:
        raise BadSample("orientation_conflict", f"{seen}; --orientation upright takes them as they are")
    if on_its_side:
        remedy = "--orientation raw turns boxes of the pixels as stored, --orientation stated takes Label Studio's"
        raise BadSample("orientation_conflict", f"{seen}; {remedy}")
    raise BadSample("shape_conflict", f"{seen}; give the pictures that were annotated")
