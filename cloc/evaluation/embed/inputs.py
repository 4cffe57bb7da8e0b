"""What can be embedded: shards, a folder of pictures, a COCO annotation file; each as pictures by their number."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from cloc.contracts import BadSample, Sample
from cloc.data.convert.formats.coco import COCO_BOXES, coco_object, file_name, read_coco
from cloc.data.convert.records import normalize_regions, stated_size
from cloc.data.decode import upright_size
from cloc.data.sample import IMAGE_EXTENSIONS, parse_object
from cloc.data.shards.index import load_manifest
from cloc.data.shards.reader import ShardReader
from cloc.evaluation.cache import digest_of
from cloc.files import read_file

PICTURE_ENDINGS = (*IMAGE_EXTENSIONS, "gif", "bmp", "tif", "tiff", "avif", "jp2")
"""Endings of a plain folder's pictures, in any case; what decodes them looks at the bytes alone."""

MAX_FILE_BYTES = 2**28
"""Largest file that is read as a picture: more than the largest picture takes without compression."""


@dataclass(frozen=True, slots=True)
class EmbedInput:
    """Pictures to embed.

    Attributes:
        read: index → sample with its picture's bytes; raises ``BadSample``.
        count: of pictures.
        digest: changes with the data.
        folder: the samples' keys are paths of pictures below it; None for shards.
        others: files among the pictures that are none, by ending.
        name: index → what a picture is called where it cannot be read.
    """

    read: Callable[[int], Sample]
    count: int
    digest: str
    folder: Path | None = None
    others: Mapping[str, int] = field(default_factory=dict)
    name: Callable[[int], str] = "number {}".format


def open_source(data: Path, images: Path | None = None) -> EmbedInput:
    """Open shards, a folder of pictures, or a COCO annotation file.

    Raises:
        ValueError: none of these, or no picture.
        FileNotFoundError: nothing there.
    """
    if data.is_file() and data.suffix == ".json":
        return _coco(data, images)
    if not data.is_dir():
        raise FileNotFoundError(f"{data}: no folder, and no COCO annotation file (.json)")
    return _shards(data) if any(data.glob("*.tar")) else _folder(data)


def _shards(data: Path) -> EmbedInput:
    manifest = load_manifest(data)
    reader = ShardReader(manifest)
    places = manifest.places()

    def read(index: int) -> Sample:
        return reader.read_sample(places[index], data.name)[0]

    return EmbedInput(read, len(places), manifest.digest)


def _folder(data: Path) -> EmbedInput:
    """All pictures below a folder, hidden ones and those behind linked folders aside."""
    files, others = list_pictures(data)
    if not files:
        told = f"; it holds {told_others(others)}" if others else "; it is empty"
        raise ValueError(f"{data}: neither shards (*.tar) nor pictures ({', '.join(PICTURE_ENDINGS)}){told}")
    names = [str(file.relative_to(data)) for file in files]
    stamps = [(name, *_stamp(file)) for name, file in zip(names, files, strict=True)]

    def read(index: int) -> Sample:
        file = files[index]
        return Sample(names[index], read_picture(file), file.suffix.lower().lstrip("."))

    return EmbedInput(read, len(files), digest_of(stamps), data, others, names.__getitem__)


def _stamp(file: Path) -> tuple[int, int]:
    """Size and time of change; of a link to nothing none."""
    try:
        found = file.stat()
    except OSError:  # counted when it is read
        return -1, 0
    return found.st_size, found.st_mtime_ns


def list_pictures(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Pictures below a folder, sorted, and how many other files there are by ending.

    Raises:
        OSError: a folder in it cannot be read.
    """
    files: list[Path] = []
    others: Counter[str] = Counter()
    for above, folders, names in os.walk(folder, onerror=_fail):
        for name in list(folders):
            reason = "hidden folders" if name.startswith(".") else "linked folders" * Path(above, name).is_symlink()
            if reason:
                folders.remove(name)
                others[reason] += 1
        for name in names:
            reason = _no_picture(name)
            if reason:
                others[reason] += 1
            else:
                files.append(Path(above, name))
    return sorted(files), others


def _no_picture(name: str) -> str:
    """Why a file is passed over, by its name; empty for a picture."""
    if name.startswith("."):
        return "hidden"
    if not name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in name):
        return "names that are not UTF-8"
    ending = Path(name).suffix.lower()
    return "" if ending.lstrip(".") in PICTURE_ENDINGS else ending or "without ending"


def _fail(error: OSError) -> NoReturn:
    raise error


def told_others(others: Mapping[str, int]) -> str:
    """Other files in words: ``3 .heic, 1 hidden``."""
    known = sorted(others.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{count} {name}" for name, count in known[:8]) + (" and more" if len(known) > 8 else "")


def read_picture(file: Path) -> bytes:
    """The bytes of a picture's file.

    Raises:
        BadSample: ``unreadable`` or ``giant_file``.
    """
    try:
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise BadSample("giant_file", f"{file}: {size:,} bytes, the limit is {MAX_FILE_BYTES:,}")
        return read_file(file)
    except OSError as error:
        raise BadSample("unreadable", f"{file}: {error.strerror or error}") from error


def _coco(file: Path, images: Path | None) -> EmbedInput:
    """A COCO annotation file, with the boxes, phrases and captions that ``data convert coco`` finds in it."""
    try:
        found = read_coco([file])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: no COCO annotation file ({type(error).__name__}: {error})") from error
    if not found.images:
        raise ValueError(f"{file}: no COCO annotation file (it has no 'images')")
    numbers = list(found.images)
    folder = images or _coco_folder(file, str(file_name(found.images[numbers[0]])))

    def name_of(index: int) -> str:
        return str(file_name(found.images[numbers[index]]))

    def read(index: int) -> Sample:
        name = name_of(index)
        path = folder / name
        if not path.is_file():
            raise BadSample("no_image", str(path))
        data, extension = read_picture(path), path.suffix.lower().lstrip(".")
        record = coco_object(found.of(numbers[index]), Counter())
        size = stated_size(record["width"], record["height"]) or upright_size(data)
        if not record["captions"] and not record["regions"]:
            return Sample(name, data, extension)
        return parse_object(normalize_regions(record, COCO_BOXES, size), data, extension, name, file.stem)[0]

    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return EmbedInput(read, len(numbers), digest_of(digest, str(folder)), folder, name=name_of)


def _coco_folder(file: Path, first: str) -> Path:
    """``annotations/instances_val2017.json`` names pictures of ``val2017/`` beside ``annotations/``."""
    split = file.stem.rpartition("_")[2]
    choices = [file.parent, file.parent / "images", file.parent.parent / split, file.parent.parent / "images"]
    found = next((folder for folder in choices if (folder / first).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{file}: its first picture {first!r} is in none of {[str(c) for c in choices]}")
    return found
