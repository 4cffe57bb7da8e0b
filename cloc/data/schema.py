"""Members of one tar sample → ``Sample``, and back.

The first step of ``data → models → losses → evaluation → engine``: everything behind it may trust a ``Sample``. All
knowledge of the JSON member lives here, and all the ways in which a stranger's sample can be wrong: what can be saved
is saved and counted by reason, what cannot raises ``BadSample`` with a reason that the caller counts.
"""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image, UnidentifiedImageError

from cloc.contracts import BadSample, Region, Sample
from cloc.data.grit import GRIT_KEYS, count_entries, grit_regions

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""File name extensions of a sample's picture, tried in this order, in any case."""
MAX_REGIONS = 1_000
"""Regions kept of one picture; more are dropped and counted as ``too_many_regions``."""
MAX_MEMBER_BYTES = 64 * 2**20
"""Largest member of a sample, in bytes."""
MAX_PIXELS = 64_000_000
"""Largest picture, width × height in pixels: decoding one takes 200 MB."""
PIXEL_BOX = 1.5
"""A coordinate beyond this cannot be a rounding error of 0..1: the box is in pixels."""

REGION_LOSSES = (
    "box_malformed",
    "box_not_finite",
    "box_in_pixels",
    "box_inverted",
    "box_outside",
    "box_empty",
    "region_malformed",
    "region_without_phrase",
    "too_many_regions",
    "box_joined",
    "span_malformed",
    "picture_reshaped",
)
"""Reasons for which an annotated box is no region of its own in the sample."""
CAPTION_LOSSES = ("caption_not_text", "empty_caption", "caption_bad_unicode")
"""Reasons for which a caption is dropped."""

_BOX_DECIMALS = 6  # of a coordinate in 0..1, here and in the JSON: a box is the same before and after it is written
_KNOWN_KEYS = frozenset({"captions", "caption", "regions", "width", "height", "source", *GRIT_KEYS})
_FOUR_FLOATS = [float] * 4
_EXIF_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)
_CODEC_NOISE = re.compile(r"\S+\.(?:cpp|h):\d+,? *| ?<_io\.BytesIO[^>]*>")


def parse_sample(members: Mapping[str, bytes], key: str, source: str) -> tuple[Sample, Counter[str]]:
    """Read the members of one tar sample.

    Args:
        members: file contents by extension without the dot (``"jpg"``, ``"json"``, ``"txt"``), in any case.
        key: name of the sample.
        source: name of the data set, used where the JSON names none.

    Returns:
        The sample, and how many captions and regions were dropped or mended, by reason (``box_not_finite``,
        ``box_malformed``, ``box_in_pixels``, ``box_inverted``, ``box_outside``, ``box_empty``, ``box_clipped``,
        ``region_malformed``, ``region_without_phrase``, ``empty_caption``, ``caption_not_text``,
        ``too_many_regions``; of GRIT's lists ``box_joined``, ``span_malformed``, ``picture_reshaped``).

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
        text: the ``txt`` member, the caption where the JSON has no ``captions``.

    Returns:
        As ``parse_sample``.

    Raises:
        BadSample: ``bad_json``, ``bad_text`` or ``no_caption_and_no_region``.
    """
    counts: Counter[str] = Counter()
    captions = _read_captions(record, text, key, counts)
    regions = _read_regions(record, key, counts)
    if not captions and not regions:
        seen = ", ".join(f"{reason} {count}" for reason, count in counts.items()) or "none were given"
        raise BadSample("no_caption_and_no_region", f"sample {key!r} of {source!r}: {seen}")
    sample = Sample(
        key=key,
        image=image,
        extension=extension,
        captions=captions,
        regions=regions,
        width=_pixels(record, "width", key),
        height=_pixels(record, "height", key),
        source=record["source"] if isinstance(record.get("source"), str) else source,
        extra={name: value for name, value in record.items() if name not in _KNOWN_KEYS},
    )
    return sample, counts


def count_regions(record: Mapping[str, Any]) -> int:
    """Return how many regions a JSON object lists, usable or not."""
    given = record.get("regions")
    if given is None:
        return count_entries(record)
    return len(given) if isinstance(given, list) else 0


def count_captions(record: Mapping[str, Any], has_text: bool = False) -> int:
    """Return how many captions a JSON object lists, usable or not; ``has_text``: beside it lies a ``txt`` member."""
    given = record.get("captions")
    if isinstance(given, list):
        return len(given)
    return int(given is not None or has_text or record.get("caption") is not None)


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """Return the JSON object of ``sample``: the inverse of ``parse_sample``, all but the picture's bytes."""
    record: dict[str, Any] = {
        "captions": list(sample.captions),
        "regions": [_region_to_json(region) for region in sample.regions],
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
            categories and in ``extra``.
    """
    text = json.dumps(sample_to_json(sample), ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        seen = ascii(text[max(0, error.start - 20) : error.end + 20])
        detail = f"sample {sample.key!r}: a lone surrogate, which UTF-8 cannot hold, in {seen}; remove it"
        raise BadSample("bad_text", detail) from error


def codec_fault(error: Exception) -> str:
    """Return the first line of a decoder's message, without the source file it was built from and memory addresses."""
    return _CODEC_NOISE.sub("", str(error).strip().partition("\n")[0])


def regions_of(data: bytes, key: str) -> tuple[Region, ...]:
    """Return the usable regions of a JSON member; none where the JSON itself cannot be used (for indexing)."""
    try:
        return _read_regions(read_object(data, key), key, Counter())
    except BadSample:  # counted where the sample is read for use
        return ()


def image_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels of the upright picture, from the header alone.

    Args:
        data: encoded file; EXIF orientation is applied.

    Raises:
        BadSample: ``corrupt_image`` for a file without a readable header, ``decompression_bomb`` for more than
            ``MAX_PIXELS`` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as picture:
                width, height = picture.size
                known = picture.format != "PNG" or "exif" in picture.info  # else Pillow decodes it all to look for more
                fits = width * height <= MAX_PIXELS
                turned = known and fits and picture.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSED
    except Image.DecompressionBombError as error:
        raise BadSample("decompression_bomb", str(error)) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError) as error:
        raise BadSample("corrupt_image", f"{len(data)} bytes: {codec_fault(error)}") from error
    if not fits:
        raise BadSample("decompression_bomb", f"{width}×{height} pixels, the limit is {MAX_PIXELS:,}")
    return (height, width) if turned else (width, height)


def parse_box(values: Any, counts: Counter[str]) -> tuple[float, float, float, float] | None:
    """Read one xyxy box in 0..1, clipped to the picture.

    Args:
        values: what the JSON holds under ``box``.
        counts: receives the reason for dropping the box, or ``box_clipped``.

    Returns:
        The box, or None where it cannot be used.
    """
    if type(values) is list and [*map(type, values)] == _FOUR_FLOATS:
        x0, y0, x1, y1 = box = tuple([round(value, _BOX_DECIMALS) for value in values])
        if 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1:  # nearly every box; the rest is looked at closely
            return box
    if not isinstance(values, list | tuple) or len(values) != 4 or not all(_is_number(value) for value in values):
        counts["box_malformed"] += 1
        return None
    x0, y0, x1, y1 = box = tuple(round(_to_float(value), _BOX_DECIMALS) for value in values)
    reason = _box_fault(x0, y0, x1, y1)
    if reason:
        counts[reason] += 1
        return None
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0))
    if clipped != box:
        counts["box_clipped"] += 1
    return clipped


def _box_fault(x0: float, y0: float, x1: float, y1: float) -> str | None:
    """Name what makes a box unusable; the most telling reason first."""
    corners = (x0, y0, x1, y1)
    if not all(math.isfinite(value) for value in corners):
        return "box_not_finite"
    if max(abs(value) for value in corners) > PIXEL_BOX:
        return "box_in_pixels"
    if x1 < x0 or y1 < y0:
        return "box_inverted"
    if x0 >= 1 or y0 >= 1 or x1 <= 0 or y1 <= 0:
        return "box_outside"
    return "box_empty" if x1 == x0 or y1 == y0 else None


def _to_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # JSON integers have no bound; one beyond float64 is no coordinate
        return math.inf


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
        record = json.loads(str(data, "utf-8"))
    except UnicodeDecodeError as error:
        raise BadSample("bad_text", f"sample {key!r}: the JSON is not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BadSample("bad_json", f"sample {key!r}: {error}") from error
    if not isinstance(record, dict):
        raise BadSample("bad_json", f"sample {key!r}: an object is needed, not {type(record).__name__}")
    return record


def _read_captions(record: Mapping[str, Any], text: bytes | None, key: str, counts: Counter[str]) -> tuple[str, ...]:
    """Take ``captions``; else img2dataset's ``txt`` member, else its ``caption`` key."""
    given = record.get("captions")
    if given is None and text is not None:
        try:
            given = [str(text, "utf-8")]
        except UnicodeDecodeError as error:
            raise BadSample("bad_text", f"sample {key!r}: the txt member is not UTF-8: {error}") from error
    elif given is None and record.get("caption") is not None:
        given = [record["caption"]]
    if given is None:
        return ()
    return _texts(given if isinstance(given, list) else [given], counts, "caption")


def _texts(values: Iterable[Any], counts: Counter[str], kind: str) -> tuple[str, ...]:
    """Keep the texts that say something, without surrounding space; count the others by reason."""
    kept = []
    for value in values:
        if type(value) is str and value.isascii() and (text := value.strip()):  # nearly every text
            kept.append(text)
        elif not isinstance(value, str):
            counts[f"{kind}_not_text"] += 1
        elif not value.strip():
            counts[f"empty_{kind}"] += 1
        elif not _encodable(value):
            counts[f"{kind}_bad_unicode"] += 1
        else:
            kept.append(value.strip())
    return tuple(kept)


def _encodable(text: str) -> bool:
    """Tell whether UTF-8 can hold the text: JSON may smuggle in lone surrogates, which no tokenizer takes."""
    return text.isascii() or not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _read_regions(record: Mapping[str, Any], key: str, counts: Counter[str]) -> tuple[Region, ...]:
    """Read ``regions``; where the object has none, GRIT's lists."""
    given = record.get("regions")
    if given is None:
        given = grit_regions(record, counts)
    if not isinstance(given, list):
        raise BadSample("bad_json", f"sample {key!r}: regions must be a list, not {type(given).__name__}")
    regions = []
    for index, record in enumerate(given):
        region = _read_region(record, counts)
        if region is not None:
            regions.append(region)
        if len(regions) == MAX_REGIONS and index + 1 < len(given):
            counts["too_many_regions"] += len(given) - index - 1
            break
    return tuple(regions)


def _read_region(record: Any, counts: Counter[str]) -> Region | None:
    if not isinstance(record, dict):
        counts["region_malformed"] += 1
        return None
    box = parse_box(record.get("box"), counts)
    if box is None:
        return None
    phrases = record.get("phrases")
    texts = _texts(phrases if isinstance(phrases, list) else [] if phrases is None else [phrases], counts, "phrase")
    if not texts:
        counts["region_without_phrase"] += 1
        return None
    negatives = record.get("negatives")
    score = record.get("score")
    if score is not None and not (_is_number(score) and math.isfinite(score)):
        counts["score_malformed"] += 1
        score = None
    return Region(
        box=box,
        phrases=texts,
        category=record["category"] if isinstance(record.get("category"), str) else None,
        score=None if score is None else float(score),
        negatives=_texts(negatives, counts, "negative") if isinstance(negatives, list) else (),
        crowd=bool(record.get("crowd", record.get("iscrowd", False))),
    )


def _region_to_json(region: Region) -> dict[str, Any]:
    record: dict[str, Any] = {
        "box": [round(value, _BOX_DECIMALS) for value in region.box],
        "phrases": list(region.phrases),
    }
    if region.category is not None:
        record["category"] = region.category
    if region.score is not None:
        record["score"] = region.score
    if region.negatives:
        record["negatives"] = list(region.negatives)
    if region.crowd:
        record["crowd"] = True
    return record


def _pixels(record: Mapping[str, Any], name: str, key: str) -> int:
    """Read a size in pixels; 0 where it is absent, as img2dataset's JSON has null for failed rows."""
    value = record.get(name)
    if value is None:
        return 0
    if not _is_number(value) or not math.isfinite(value) or value < 0:
        raise BadSample("bad_json", f"sample {key!r}: {name} is {value!r}, a number of pixels is needed")
    return int(value)
