"""Readers of other people's annotation formats, and the account they keep.

Serves ``convert`` at the start of ``data → models → losses → evaluation → engine``. Each format is a generator of
``Sample``. All of them build samples through the shards' own JSON parser, so that every rule about boxes and texts has
one home.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from cloc.contracts import BadSample, Sample
from cloc.data.schema import IMAGE_EXTENSIONS, MAX_MEMBER_BYTES, image_size, parse_sample
from cloc.data.shards import Manifest

SHOWN_EXAMPLES = 5
"""Records of each reason that a report names."""

_SAME_RATIO = 0.02  # tolerance between width / height of one size and height / width of another


@dataclass(slots=True)
class Report:
    """What a conversion read and left out.

    Attributes:
        counts: samples, regions, phrases and captions written.
        skipped: whole records left out, by reason.
        mended: captions and regions dropped or mended within kept records, by reason.
        examples: where the first records of each reason were, with what was wrong.
        seconds: wall-clock time.
        manifests: what was written.
    """

    counts: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0
    manifests: list[Manifest] = field(default_factory=list)

    def skip(self, error: BadSample, where: str) -> None:
        """Count a record that cannot be used."""
        self.skipped[error.reason] += 1
        if self.skipped[error.reason] <= SHOWN_EXAMPLES:
            self.examples.append(f"{where}: {error}")

    def tally(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Pass samples on, counting what they hold."""
        for sample in samples:
            self.counts["samples"] += 1
            self.counts["captions"] += len(sample.captions)
            self.counts["regions"] += len(sample.regions)
            self.counts["phrases"] += sum(len(region.phrases) for region in sample.regions)
            yield sample


def read_jsonl(source: Path, report: Report, *, images: Path | None = None) -> Iterator[Sample]:
    """Read one JSON object a line; ``image`` is a path relative to the file, the rest is a shard's JSON member.

    Args:
        source: the ``.jsonl`` file.
        images: folder that the picture paths are relative to; None for the file's own.
        report: receives what is left out, with line numbers.
    """
    taken: Counter[str] = Counter()
    root = images or source.parent
    with source.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = _json_object(line)
                image = record.pop("image", None)
                if not isinstance(image, str):
                    raise BadSample("no_image", f"image is {image!r}, a path relative to {root} is needed")
                yield _sample(record, root / image, source.stem, report, taken)
            except BadSample as error:
                report.skip(error, f"{source.name} line {number}")


def read_coco(source: Path, report: Report, *, split: str = "val2017") -> Iterator[Sample]:
    """Read COCO's standard layout: ``annotations/{instances,captions}_SPLIT.json`` and the pictures in ``SPLIT/``.

    Boxes become normalized xyxy of the size that the annotations state, crowd flags are kept, and category names are
    phrases. Captions are optional.

    Args:
        source: folder that holds ``annotations`` and the pictures.
        report: receives what is left out, with image ids.
        split: name of the picture folder.

    Raises:
        FileNotFoundError: there is no ``instances_SPLIT.json`` or no picture folder.
    """
    instances = _load_coco(source / "annotations" / f"instances_{split}.json")
    captions_path = source / "annotations" / f"captions_{split}.json"
    captions = _load_coco(captions_path) if captions_path.is_file() else None
    if not (source / split).is_dir():
        raise FileNotFoundError(f"{source / split}: no such folder of pictures; name one with split (--split)")
    names = {category["id"]: category["name"] for category in instances.loadCats(instances.getCatIds())}
    taken: Counter[str] = Counter()
    for image in instances.loadImgs(instances.getImgIds()):
        try:
            told = captions.imgToAnns[image["id"]] if captions else []
            record = _coco_record(image, instances.imgToAnns[image["id"]], told, names)
            yield _sample(record, source / split / image["file_name"], f"coco_{split}", report, taken)
        except BadSample as error:
            report.skip(error, f"image {image['id']}")


def _sample(record: dict[str, Any], path: Path, source: str, report: Report, taken: Counter[str]) -> Sample:
    """Build a sample from a JSON object and a picture's path; the stored size becomes that of the upright picture."""
    extension = path.suffix[1:].lower()
    if extension not in IMAGE_EXTENSIONS:
        raise BadSample("no_image", f"{path}: the name ends in none of {IMAGE_EXTENSIONS}")
    try:
        if path.stat().st_size > MAX_MEMBER_BYTES:
            raise BadSample("giant_member", f"{path}: the limit is {MAX_MEMBER_BYTES:,} bytes")
        image = path.read_bytes()
    except OSError as error:
        raise BadSample("image_unreadable", str(error)) from error
    width, height = image_size(image)
    _verify(image, path)
    _check_orientation(record, width, height, path)
    key = _unique_key(path.stem, taken)
    sample, mended = parse_sample({extension: image, "json": json.dumps(record).encode()}, key, source)
    report.mended.update(mended)
    return replace(sample, width=width, height=height)


def _verify(image: bytes, path: Path) -> None:
    """Decode the picture whole: a file that is cut off has a header like any other."""
    try:
        with Image.open(io.BytesIO(image)) as picture:
            picture.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise BadSample("corrupt_image", f"{path}: {error}") from error


def _check_orientation(record: Mapping[str, Any], width: int, height: int, path: Path) -> None:
    """Refuse boxes of a picture that lies on its side: they belong to the upright one, after EXIF orientation."""
    stated = (record.get("width"), record.get("height"))
    if not all(isinstance(side, int | float) and side > 0 for side in stated):
        return
    ratio, real = stated[0] / stated[1], width / height
    if (ratio - 1) * (real - 1) < 0 and abs(ratio * real - 1) < _SAME_RATIO and record.get("regions"):
        detail = f"{path} is {width}×{height} when upright, its boxes are of {stated[0]}×{stated[1]}; turn them"
        raise BadSample("orientation_conflict", detail)


def _unique_key(stem: str, taken: Counter[str]) -> str:
    """Make a name that a tar key may have: no dots, no slashes, none twice."""
    base = key = re.sub(r"[./\\\x00\s]+", "_", stem) or "image"
    while taken[key]:
        key = f"{base}-{taken[base]}"
        taken[base] += 1
    taken[key] += 1
    return key


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadSample("bad_text", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise BadSample("bad_json", str(error)) from error
    if not isinstance(record, dict):
        raise BadSample("bad_json", f"an object is needed, not {type(record).__name__}")
    return record


def _load_coco(path: Path) -> Any:
    from pycocotools.coco import COCO

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; COCO's standard layout has it")
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def _coco_record(
    image: Mapping[str, Any],
    boxes: Iterable[Mapping[str, Any]],
    told: Iterable[Mapping[str, Any]],
    names: Mapping[int, str],
) -> dict[str, Any]:
    try:
        return {
            "width": image["width"],
            "height": image["height"],
            "coco_id": image["id"],
            "regions": [_coco_region(item, image, names) for item in boxes],
            "captions": [item["caption"] for item in told],
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise BadSample("bad_annotation", f"{type(error).__name__}: {error}") from error


def _coco_region(item: Mapping[str, Any], image: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    x, y, width, height = item["bbox"]
    name = names[item["category_id"]]
    box = [x / image["width"], y / image["height"], (x + width) / image["width"], (y + height) / image["height"]]
    return {"box": box, "phrases": [name], "category": name, "crowd": bool(item.get("iscrowd", 0))}
