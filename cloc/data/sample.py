"""Members of one tar sample → ``Sample``, and back.

The first step of ``data → models → losses → evaluation → engine``: everything behind it may trust a ``Sample``. All
knowledge of the JSON member lives here, and all the ways in which a stranger's sample can be wrong: what can be saved
is saved and counted by reason, what cannot raises ``BadSample`` with a reason that the caller counts.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from cloc.contracts import BadSample, Region, Sample
from cloc.data.boxes import is_number, parse_box
from cloc.data.json_values import MAX_DEPTH, is_deep, parse_json, shown
from cloc.data.regions import (
    DROPPED_REGIONS,
    KNOWN_KEYS,
    MAX_REGIONS,
    REGION_LOSSES,
    count_regions,
    read_regions,
    read_texts,
    region_to_json,
)

__all__ = [
    "CAPTION_LOSSES",
    "IMAGE_EXTENSIONS",
    "MAX_CAPTIONS",
    "MAX_MEMBER_BYTES",
    "MAX_PIXELS",
    "MAX_REGIONS",
    "REGION_LOSSES",
    "codec_fault",
    "count_captions",
    "count_regions",
    "encode_json",
    "parse_box",
    "parse_object",
    "parse_sample",
    "read_object",
    "regions_of",
    "sample_to_json",
]

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""File name extensions of a sample's picture, tried in this order, in any case."""
MAX_CAPTIONS = 1_000
"""Lines of a ``txt`` that are read; more are dropped and counted as ``too_many_captions``."""
MAX_MEMBER_BYTES = 64 * 2**20
"""Largest member of a sample, in bytes."""
MAX_PIXELS = 64_000_000
"""Largest picture, width × height in pixels: decoding one takes 200 MB."""

CAPTION_LOSSES = ("caption_not_text", "empty_caption", "caption_bad_unicode", "too_many_captions")
"""Reasons for which a caption is dropped."""

_LINE = re.compile(r"[^\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+")  # str.splitlines, by which CLIP_benchmark reads
_MAX_SIDE = 2**31  # of a picture, in pixels
_CODEC_NOISE = re.compile(r"\S+\.(?:cpp|h):\d+,? *| ?<_io\.BytesIO[^>]*>")


def parse_sample(members: Mapping[str, bytes], key: str, source: str) -> tuple[Sample, Counter[str]]:
    """Read the members of one tar sample.

    Args:
        members: file contents by extension without the dot (``"jpg"``, ``"json"``, ``"txt"``), in any case.
        key: name of the sample.
        source: name of the data set, used where the JSON names none.

    Returns:
        The sample, and how many captions and regions were dropped or mended, by reason: ``REGION_LOSSES``,
        ``CAPTION_LOSSES`` and what leaves a region or a text where it is (``box_clipped``, ``crowd_malformed``, …).

    Raises:
        BadSample: ``giant_member``, ``no_image``, ``bad_json``, ``bad_text`` or ``no_caption_and_no_region``.
    """
    members = {extension.lower(): data for extension, data in members.items()}
    extension = _image_extension(members, key)
    record = read_object(members["json"], key) if "json" in members else {}
    return parse_object(record, members[extension], extension, key, source, text=members.get("txt"))


def parse_object(
    record: Mapping[str, Any], image: bytes, extension: str, key: str, source: str, text: bytes | None = None
) -> tuple[Sample, Counter[str]]:
    """Read one JSON object and its picture; ``parse_sample`` behind the members.

    Args:
        record: the JSON object.
        image: encoded picture, not looked at.
        extension: of the picture's file.
        key: name of the sample.
        source: name of the data set, used where the JSON names none.
        text: the ``txt`` member, where the JSON has no ``captions``: one of them a line, as CLIP_benchmark writes it,
            but one in all where the JSON's ``caption`` is the same text, as img2dataset writes both.

    Returns:
        As ``parse_sample``.

    Raises:
        BadSample: ``bad_json``, ``bad_text`` or ``no_caption_and_no_region``.
    """
    counts: Counter[str] = Counter()
    captions = _read_captions(record, text, key, counts)
    regions = read_regions(record, key, counts)
    if not captions and not regions:
        seen = ", ".join(f"{reason} {count}" for reason, count in counts.items()) or "none were given"
        raise BadSample("no_caption_and_no_region", f"sample {key!r} of {source!r}: {seen}")
    extra = {name: value for name, value in record.items() if name not in KNOWN_KEYS}
    if is_deep(extra):
        raise BadSample("bad_json", f"sample {key!r}: lists or objects are nested deeper than {MAX_DEPTH}")
    sample = Sample(
        key=key,
        image=image,
        extension=extension,
        captions=captions,
        regions=regions,
        width=_pixels(record, "width", key),
        height=_pixels(record, "height", key),
        source=record["source"] if isinstance(record.get("source"), str) else source,
        extra=extra,
    )
    return sample, counts


def count_captions(record: Mapping[str, Any], text: bytes | None = None, key: str = "") -> int:
    """Return how many captions a sample has, usable or not.

    Args:
        record: its JSON object.
        text: its ``txt`` member.
        key: its name.

    Raises:
        BadSample: ``bad_text`` where the ``txt`` is not UTF-8.
    """
    captions, more = _given_captions(record, text, key)
    return len(captions) + more


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """Return the JSON object of ``sample``: the inverse of ``parse_sample``, all but the picture's bytes."""
    record: dict[str, Any] = {
        "captions": list(sample.captions),
        "regions": [region_to_json(region) for region in sample.regions],
        "width": sample.width,
        "height": sample.height,
    }
    if sample.source:
        record["source"] = sample.source
    return record | sample.extra


def encode_json(sample: Sample) -> bytes:
    """Return the JSON member of ``sample``.

    Raises:
        BadSample: ``bad_text`` for lone surrogates, which UTF-8 cannot hold; ``parse_sample`` leaves them in names of
            categories and in ``extra``. ``bad_json`` for what is nested too deep.
    """
    try:
        text = json.dumps(sample_to_json(sample), ensure_ascii=False, separators=(",", ":"))
    except RecursionError as error:
        raise BadSample("bad_json", f"sample {sample.key!r}: nested too deep to be written ({error})") from error
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        seen = ascii(text[max(0, error.start - 20) : error.end + 20])
        detail = f"sample {sample.key!r}: a lone surrogate, which UTF-8 cannot hold, in {seen}; remove it"
        raise BadSample("bad_text", detail) from error


def codec_fault(error: Exception) -> str:
    """Return the first line of a decoder's message, without the source file it was built from and memory addresses."""
    return _CODEC_NOISE.sub("", str(error).strip().partition("\n")[0])


def regions_of(data: bytes, key: str) -> tuple[tuple[Region, ...], int]:
    """Return the usable regions of a JSON member, and the number of those that are not, for indexing.

    None and 0 where the JSON itself cannot be used: that is counted where the sample is read for use.
    """
    counts: Counter[str] = Counter()
    try:
        regions = read_regions(read_object(data, key), key, counts)
    except BadSample:
        return (), 0
    return regions, sum(counts[reason] for reason in DROPPED_REGIONS)


def _image_extension(members: Mapping[str, bytes], key: str) -> str:
    for extension, data in members.items():
        if len(data) > MAX_MEMBER_BYTES:
            detail = f"sample {key!r}: member {extension!r} has {len(data):,} bytes, the limit is {MAX_MEMBER_BYTES:,}"
            raise BadSample("giant_member", detail)
    for extension in IMAGE_EXTENSIONS:
        if members.get(extension):
            return extension
    raise BadSample("no_image", f"sample {key!r} has members {sorted(members)}; one of {IMAGE_EXTENSIONS} is needed")


def read_object(data: bytes, key: str) -> dict[str, Any]:
    """Decode a JSON member.

    Raises:
        BadSample: ``bad_text`` where it is not UTF-8, ``bad_json`` where it is no object.
    """
    try:
        record = parse_json(data)
    except UnicodeDecodeError as error:
        raise BadSample("bad_text", f"sample {key!r}: the JSON is not UTF-8: {error}") from error
    except ValueError as error:
        raise BadSample("bad_json", f"sample {key!r}: {error}") from error
    if not isinstance(record, dict):
        raise BadSample("bad_json", f"sample {key!r}: an object is needed, not {type(record).__name__}")
    return record


def _read_captions(record: Mapping[str, Any], text: bytes | None, key: str, counts: Counter[str]) -> tuple[str, ...]:
    """Take ``captions``; else the lines of the ``txt`` member, else img2dataset's ``caption`` key."""
    given, more = _given_captions(record, text, key)
    counts.update({"too_many_captions": more} if more else {})
    return read_texts(given, counts, "caption")


def _given_captions(record: Mapping[str, Any], text: bytes | None, key: str) -> tuple[list[Any], int]:
    """What a sample holds for captions, and how many more there are than are looked at."""
    given = record.get("captions")
    if given is not None:
        return (given if isinstance(given, list) else [given]), 0
    caption = record.get("caption")
    if text is None:
        return ([] if caption is None else [caption]), 0
    try:
        whole = str(text, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSample("bad_text", f"sample {key!r}: the txt member is not UTF-8: {error}") from error
    if isinstance(caption, str) and caption.strip() == whole.strip():  # img2dataset writes one text twice
        return [whole], 0
    lines = (line for match in _LINE.finditer(whole) if (line := match[0]).strip())
    captions = list(itertools.islice(lines, MAX_CAPTIONS))
    return captions or [whole], sum(1 for _ in lines)


def _pixels(record: Mapping[str, Any], name: str, key: str) -> int:
    """Read a size in pixels; 0 where it is absent, as img2dataset's JSON has null for failed rows."""
    value = record.get(name)
    if value is None:
        return 0
    if not is_number(value) or not 0 <= value < _MAX_SIDE:
        raise BadSample("bad_json", f"sample {key!r}: {name} is {shown(value)}, a number of pixels is needed")
    return int(value)
