"""One record of somebody's data set → ``Sample``, and the account of a conversion.

Stands between ``formats``, which list records without opening a picture, and ``jobs``, which writes what is built here
as shards, in any number of processes. All samples are built by the shards' own parser, so that every rule about boxes
and texts has one home.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from cloc.contracts import BadSample, Sample
from cloc.data.schema import (
    CAPTION_LOSSES,
    IMAGE_EXTENSIONS,
    MAX_MEMBER_BYTES,
    REGION_LOSSES,
    count_captions,
    count_regions,
    encode_json,
    image_size,
    parse_object,
    parse_sample,
    read_object,
)
from cloc.data.shards import MAX_SAMPLE_BYTES
from cloc.data.tars import read_sample_members

SHOWN_EXAMPLES = 5
"""Records of each reason that a report names."""

_COUNTERS = ("given", "counts", "skipped", "lost", "mended")  # of a Report
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
        annotations: what ``Source.parse`` takes.
        fault: reason and detail where the record is already known to be unusable.
    """

    where: str
    key: str = ""
    picture: Path | TarSlice | None = None
    annotations: Mapping[str, Any] = field(default_factory=dict)
    fault: tuple[str, str] | None = None


Parse = Callable[[Mapping[str, Any], Counter[str]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Source:
    """A data set that can be read record by record.

    Attributes:
        name: becomes ``Sample.source``.
        files: annotation files; their sizes and times tell whether the source has changed.
        records: read once, in a fixed order.
        total: number of records where it is known beforehand.
        categories: all class names, also those without a box; None for those that occur.
        parse: makes the shard's JSON object of a record's annotations, in any process; None where they are one. It
            counts boxes that joined another's region as ``box_joined``.
        mended: what was already dropped while the source was opened, by reason.
    """

    name: str
    files: tuple[Path, ...]
    records: Iterable[Record]
    total: int | None = None
    categories: tuple[str, ...] | None = None
    parse: Parse | None = None
    mended: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """What a conversion read, wrote and left out.

    Attributes:
        given: records, captions and regions of the source.
        counts: samples, captions, regions and phrases written.
        skipped: whole records left out, by reason.
        lost: captions and regions of the records left out.
        mended: captions and regions dropped or mended within kept records, by reason.
        examples: where the first records of each reason were, with what was wrong.
    """

    given: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, error: BadSample, where: str) -> None:
        """Count a record that cannot be used."""
        self.skipped[error.reason] += 1
        self._show(error.reason, [f"{where}: {error}"])

    def tally(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Pass samples on, counting what they hold."""
        for sample in samples:
            self.counts["samples"] += 1
            self.counts["captions"] += len(sample.captions)
            self.counts["regions"] += len(sample.regions)
            self.counts["phrases"] += sum(len(region.phrases) for region in sample.regions)
            yield sample

    def add(self, other: Report) -> None:
        """Add the counts of a later part of the same source."""
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        for reason, examples in other.examples.items():
            self._show(reason, examples)

    def imbalance(self) -> str:
        """Say which counts of the source are not accounted for; empty where all are."""
        losses = {"captions": CAPTION_LOSSES, "regions": REGION_LOSSES}
        found = {"records": self.counts["samples"] + self.skipped.total()}
        for unit, reasons in losses.items():
            found[unit] = self.counts[unit] + self.lost[unit] + sum(self.mended[reason] for reason in reasons)
        wrong = [
            f"{self.given[unit]:,} {unit} given, {n:,} found again"
            for unit, n in found.items()
            if n != self.given[unit]
        ]
        return "; ".join(wrong)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON: the inverse of ``from_json``."""
        return {name: dict(getattr(self, name)) for name in (*_COUNTERS, "examples")}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Report:
        """Rebuild a report from ``to_json``."""
        return cls(**{name: Counter(record[name]) for name in _COUNTERS}, examples=dict(record["examples"]))

    def _show(self, reason: str, examples: list[str]) -> None:
        shown = self.examples.setdefault(reason, [])
        shown.extend(examples[: SHOWN_EXAMPLES - len(shown)])


class Keys:
    """Hands out names that a tar key may have: no dots, no slashes, none twice. Grows with the number of records."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    def unique(self, stem: str) -> str:
        """Return ``stem`` made fit, with a number behind it where it was handed out before."""
        stem = stem.encode("utf-8", "replace").decode()  # JSON may hold lone surrogates, which a tar cannot
        base = key = re.sub(r"[./\\\x00\s]+", "_", stem) or "image"
        while self._taken[key]:
            key = f"{base}-{self._taken[base]}"
            self._taken[base] += 1
        self._taken[key] += 1
        return key


def build_samples(records: Iterable[Record], source: str, parse: Parse | None, report: Report) -> Iterator[Sample]:
    """Read, check and parse records; what cannot be used is counted in ``report``.

    Args:
        records: a part of ``Source.records``.
        source: name of the data set.
        parse: ``Source.parse``.
        report: receives all counts but those of ``Report.tally``.
    """
    for record in records:
        report.given["records"] += 1
        given: Counter[str] = Counter()
        try:
            sample, mended = _build(record, source, parse, given)
        except BadSample as error:
            report.skip(error, record.where)
            report.lost.update(given)
        else:
            report.mended.update(mended)
            yield sample
        report.given.update(given)


def _build(record: Record, source: str, parse: Parse | None, given: Counter[str]) -> tuple[Sample, Counter[str]]:
    if record.fault is not None:
        raise BadSample(*record.fault)
    if isinstance(record.picture, TarSlice):
        sample, mended = _build_from_tar(record, source, given)
        size = _check_picture(sample.image, record.where)
        stated = sample.extra.get("original_width"), sample.extra.get("original_height")
    else:
        mended = Counter()
        annotations = _parse(record, parse, mended)
        given.update(captions=count_captions(annotations), regions=count_regions(annotations) + mended["box_joined"])
        extension, image = _read_picture(record.picture)
        size = _check_picture(image, str(record.picture))
        stated = annotations.get("width"), annotations.get("height")
        sample, more = parse_object(annotations, image, extension, record.key, source)
        mended.update(more)
    if sample.regions:
        _check_shape(stated, size, record.where)
    encode_json(sample)  # or says why it cannot be written
    return replace(sample, width=size[0], height=size[1]), mended


def _parse(record: Record, parse: Parse | None, counts: Counter[str]) -> dict[str, Any]:
    if parse is None:
        return dict(record.annotations)
    try:
        return parse(record.annotations, counts)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as error:
        if isinstance(error, BadSample):
            raise
        raise BadSample("bad_annotation", f"{type(error).__name__}: {error}") from error


def _build_from_tar(record: Record, source: str, given: Counter[str]) -> tuple[Sample, Counter[str]]:
    where = record.picture
    if where.stop - where.start > MAX_SAMPLE_BYTES:
        raise BadSample(
            "giant_member", f"{where.path} at byte {where.start:,}: the limit is {MAX_SAMPLE_BYTES:,} bytes"
        )
    try:
        with where.path.open("rb") as file:
            raw = os.pread(file.fileno(), where.stop - where.start, where.start)
        members = read_sample_members(raw)[1]
    except OSError as error:
        raise BadSample("unreadable_shard", f"{where.path} at byte {where.start:,}: {error}") from error
    record_json = read_object(members["json"], record.key) if "json" in members else {}
    given.update(captions=count_captions(record_json, "txt" in members), regions=count_regions(record_json))
    return parse_sample(members, record.key, source)


def _read_picture(path: Path) -> tuple[str, bytes]:
    """Return the file name extension and the bytes of a picture's file."""
    extension = path.suffix[1:].lower()
    if extension not in IMAGE_EXTENSIONS:
        raise BadSample("no_image", f"{path}: the name ends in none of {IMAGE_EXTENSIONS}")
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
            raise BadSample("image_unreadable", f"{path}: not a file")
        if found.st_size > MAX_MEMBER_BYTES:
            raise BadSample("giant_member", f"{path}: the limit is {MAX_MEMBER_BYTES:,} bytes")
        return extension, path.read_bytes()
    except BadSample:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadSample("image_unreadable", f"{path}: {error}") from error


def _check_picture(image: bytes, where: str) -> tuple[int, int]:
    """Decode the picture whole, since a file that is cut off has a header like any other; return the upright size."""
    size = image_size(image)
    try:
        with Image.open(io.BytesIO(image)) as picture:
            picture.draft("L", (1, 1))  # a JPEG's coefficients are all read, but not all turned into pixels
            picture.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise BadSample("corrupt_image", f"{where}: {error}") from error
    return size


def _check_shape(stated: tuple[Any, Any], size: tuple[int, int], where: str) -> None:
    """Refuse boxes of another shape of picture: they belong to the upright one, after EXIF orientation."""
    if not all(isinstance(side, int | float) and not isinstance(side, bool) and side > 0 for side in stated):
        return
    width, height = stated
    aspect, tolerance = size[0] / size[1], _SAME_ASPECT + 1 / min(*size, width, height)
    if abs(width / height / aspect - 1) <= tolerance:
        return
    seen = f"{where}: the picture is {size[0]}×{size[1]} when upright, its boxes are of {width}×{height}"
    if abs(height / width / aspect - 1) <= tolerance:
        raise BadSample("orientation_conflict", f"{seen}; turn them")
    raise BadSample("shape_conflict", f"{seen}; give the pictures that were annotated")
