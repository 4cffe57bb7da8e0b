"""Folders of pictures with a text of the same name beside each: plain ones, and those that img2dataset wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cloc.contracts import BadSample
from cloc.data.convert.formats.files import need_folder
from cloc.data.convert.formats.listing import PictureFolder, files_below, pick_splits, watched
from cloc.data.convert.formats.plain_text import read_text
from cloc.data.convert.formats.registry import register
from cloc.data.convert.picture_bytes import PICTURE_SUFFIXES
from cloc.data.convert.records import Record, RecordSource
from cloc.data.sample import read_object
from cloc.data.shards.keys import Keys

_TEXTS = (".txt", ".caption")
_LOOKED_AT = 50
_ABOUT = {"readme", "license", "licence", "attribution", "copying", "notice", "credits", "classes"}


def _is_image_text(source: Path) -> bool:
    """Pictures with texts beside them, which are no labels of YOLO."""
    if not source.is_dir() or _is_img2dataset(source):
        return False
    return any(_beside(folder) for folder in (source, *_folders(source)))


def _folders(source: Path) -> list[Path]:
    return sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))[:_LOOKED_AT]


def _beside(folder: Path) -> bool:
    """Whether one of the first pictures of a folder has a text beside it that is more than numbers."""
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)[:_LOOKED_AT]
    return any(_says_something(path.with_suffix(suffix)) for path in pictures for suffix in _TEXTS)


def _says_something(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        words = file.read(512).split()
    return not all(word.replace(b".", b"").replace(b"-", b"").isdigit() for word in words)


def _is_img2dataset(source: Path) -> bool:
    """``00000/000000000.jpg`` beside ``00000_stats.json``, or beside a JSON with a status and a key."""
    if not source.is_dir():
        return False
    for folder in _folders(source):
        if folder.name.isdigit() and (source / f"{folder.name}_stats.json").is_file():
            return True
        if folder.name.isdigit() and any(folder.glob("*.json")):
            with next(folder.glob("*.json")).open("rb") as file:
                head = file.read(2**14)
            return b'"status"' in head and b'"key"' in head
    return False


@register("image_text", "a folder of pictures, each with a .txt (or .caption) of the same name", _is_image_text)
def open_image_text(source: Path, *, split: str | None = None, whole_file: bool = False) -> RecordSource:
    """Open pictures with a text of the same name beside each, in the folder and in those below it.

    A picture without a text is counted as ``without_text`` and left out, and so is a text without a picture.

    Args:
        source: the folder.
        split: a folder in it, several with commas, or all; all where it is left out.
        whole_file: a file is one caption, whatever its lines; otherwise each line is one.

    Raises:
        FileNotFoundError: there is no such folder, or no picture in it.
        ValueError: there is no such split.
    """
    need_folder(source, "format 'image_text' reads a folder of pictures and texts")
    picked = pick_splits([path.name for path in _folders(source)], split, source) if split is not None else [""]
    folders = [PictureFolder.below(source / name) for name in picked]
    if not any(found.pictures for found in folders):
        raise FileNotFoundError(f"{source}: no picture; name the folder that holds them")
    pairs = [pair for found in folders for pair in _pairs(found)]
    notes = tuple(note for found in folders for note in found.told(*_TEXTS))
    texts = (path for found in folders for path in files_below(found.folder) if path.suffix.lower() in _TEXTS)
    about = [path.name for path in texts if _is_about(path)]
    notes += (f"no captions of a picture, not read: {', '.join(about[:5])}",) if about else ()
    name = "_".join(filter(None, (source.resolve().name, *picked)))
    records = _text_records(pairs, source, whole_file)
    files = (source, *watched(text for _, text in pairs if text is not None))
    return RecordSource(name, files, records, len(pairs), parse=text_object, notes=notes)


def _pairs(found: PictureFolder) -> list[tuple[Path | None, Path | None]]:
    """Pictures with their texts, then texts without a picture."""
    pairs: list[tuple[Path | None, Path | None]] = []
    for picture in found.paths():
        pairs.append((picture, next((text for end in _TEXTS if (text := picture.with_suffix(end)).is_file()), None)))
    texts = [path for path in files_below(found.folder) if path.suffix.lower() in _TEXTS]
    used = {text for _, text in pairs}
    return pairs + [(None, text) for text in texts if text not in used and not _is_about(text)]


def _is_about(text: Path) -> bool:
    """Whether a text is of the whole set: a caption's file is named as its picture."""
    return text.stem.lower() in _ABOUT


def _text_records(pairs: list[tuple[Path | None, Path | None]], source: Path, whole: bool) -> Iterator[Record]:
    keys = Keys()
    for picture, text in pairs:
        where = (picture or text or source).relative_to(source).as_posix()
        if picture is None:
            yield Record(where, fault=("no_image", f"{text}: no picture of that name beside it"))
        elif text is None:
            yield Record(where, fault=("without_text", f"{picture}: no {' or '.join(_TEXTS)} of that name beside it"))
        else:
            yield Record(where, keys.unique(picture.stem), picture, {"text": text, "whole": whole})


def text_object(annotations: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Make a shard's JSON object of one picture: ``RecordSource.parse`` of ``image_text``.

    Args:
        annotations: ``text``, the file; and whether its ``whole`` content is one caption.
        counts: not used.

    Raises:
        BadSample: ``bad_text``.
    """
    path: Path = annotations["text"]
    text = _read(path)
    lines = [text] if annotations["whole"] else [line for line in text.splitlines() if line.strip()]
    return {"captions": lines or [text]}


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise BadSample("bad_text", str(error)) from error


@register(
    "img2dataset_files", "a folder that img2dataset --output_format files wrote: 00000/000000000.jpg", _is_img2dataset
)
def open_img2dataset_files(source: Path) -> RecordSource:
    """Open the folders ``00000``, ``00001``, … of img2dataset: a picture, its ``.txt`` and its ``.json``.

    What it could not download has no picture and no record. GRIT's regions in the JSON are read.

    Args:
        source: the folder of these folders.

    Raises:
        FileNotFoundError: there is no picture in them.
    """
    need_folder(source, "format 'img2dataset_files' reads the folder that img2dataset wrote")
    found = PictureFolder.below(source)
    if not found.pictures:
        raise FileNotFoundError(f"{source}: no picture in 00000/ and so on; name img2dataset's --output_folder")
    pictures = [*found.paths()]
    reports = tuple(sorted(source.glob("*_stats.json")))
    notes = found.told(".txt", ".json", ".parquet")
    records = _downloaded(pictures, source)
    return RecordSource(source.resolve().name, reports or (source,), records, len(pictures), parse=downloaded_object,
                        notes=notes)  # fmt: skip


def _downloaded(pictures: list[Path], source: Path) -> Iterator[Record]:
    keys = Keys()
    for picture in pictures:
        where = picture.relative_to(source).as_posix()
        yield Record(where, keys.unique(picture.stem), picture, {"picture": picture})


def downloaded_object(annotations: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Make a shard's JSON object of one picture: ``RecordSource.parse`` of ``img2dataset_files``.

    Args:
        annotations: path of the ``picture``, whose texts lie beside it.
        counts: not used.

    Raises:
        BadSample: ``bad_text``, ``bad_json``, or ``bad_annotation`` where neither file is there.
    """
    picture: Path = annotations["picture"]
    told, text = picture.with_suffix(".json"), picture.with_suffix(".txt")
    if not told.is_file() and not text.is_file():
        raise BadSample("bad_annotation", f"{picture}: neither {told.name} nor {text.name} beside it")
    record = read_object(told.read_bytes(), told.name) if told.is_file() else {}
    if record.get("caption") is None and text.is_file():
        record["caption"] = _read(text)
    return record
