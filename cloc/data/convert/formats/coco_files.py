"""Finds the annotation files of a COCO-like set and the folder of its pictures, in the layouts that tools write.

Serves ``coco``. Known by what it holds is any JSON file with COCO's lists; so the layouts of COCO itself, Roboflow
(``SPLIT/_annotations.coco.json`` beside the pictures), CVAT (``annotations/instances_default.json``, ``images/``),
FiftyOne (``labels.json``, ``data/``) and Label Studio (``result.json``, ``images/``) need no rule of their own.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cloc.data.convert.formats.files import need_folder
from cloc.data.convert.formats.peek import JsonPeek, entries, peek_json
from cloc.data.convert.pictures import PictureFinder

STANDARD_SPLIT = "val2017"

_PAIRED = ("instances_", "captions_")
_OTHERS = ("lvis_v", "zhiyuan_obj", "sample_2020")  # have formats of their own
_NO_SPLIT = ("annotations", "coco", "default", "instances", "labels", "result", "captions")
_OF_SPLITS = ("_annotations.coco.json", "labels.json")  # ends of names, in SPLIT/
_ANNOTATION_FOLDERS = ("annotations", "annotation", "labels", "json")
_PLACES = ("{split}", "images/{split}", "{split}/images", "images", "data", ".")
_SPLITS = ("train", "val", "test", "dev", "minival")  # beginnings of names
_MAX_FILES, _MAX_FOLDERS, _SAMPLED = 50, 50, 20


class CocoSet(NamedTuple):
    """Annotation files of the same pictures.

    Attributes:
        files: one, or ``instances_SPLIT.json`` and ``captions_SPLIT.json``.
        split: what the names of the file or its folder say; "" where they say nothing.
    """

    files: list[Path]
    split: str


def is_coco(path: Path) -> bool:
    """Tell by a file's beginning whether it has COCO's lists."""
    return path.suffix.lower() == ".json" and _has_lists(peek_json(path))


def recognizes_coco(source: Path) -> bool:
    """Tell whether a source is a COCO-like file, or a folder with one, of no format of its own."""
    if source.is_file():
        return not source.name.startswith(_OTHERS) and is_coco(source)
    if not source.is_dir() or any(source.glob("refs(*).*")):
        return False
    found = next((path for path in _coco_files(source) if _is_part(path.parent, source)), None)
    return found is not None and not found.name.startswith(_OTHERS)


def _is_part(folder: Path, source: Path) -> bool:
    """Whether a folder is the source, or a part of it by its name; else it may be one data set of several."""
    name = folder.name.lower()
    return folder == source or name in _ANNOTATION_FOLDERS or name.startswith(_SPLITS)


def find_coco(source: Path, split: str | None) -> CocoSet:
    """Find the annotation files of a source.

    Args:
        source: a JSON file, or a folder.
        split: a part of the set, where the folder holds several; None for COCO's ``val2017``, or the only one.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several; or the file has none of COCO's lists.
    """
    if source.is_file():
        shown = peek_json(source)
        if not _has_lists(shown):
            seen = "no JSON" if shown is None else f"a list of {sorted(shown.item())}" if shown.is_list else shown.keys
            raise ValueError(f"{source}: not COCO's JSON, which has images and annotations, but {seen}")
        return CocoSet([source], split or _split_of(source))
    standard = _standard(source, split or STANDARD_SPLIT)
    if standard.files:
        return standard
    found = _sets(source)
    fitting = [one for one in found if split is None or split in (one.split, *_words(one.files[0]))]
    own = [one for one in fitting if one.files[0].name.startswith(_PAIRED)]  # beside keypoints, stuff, panoptic
    if len(fitting) == 1 or len(own) == 1:
        return (own or fitting)[0]
    names = ", ".join(str(file.relative_to(source)) for one in fitting or found for file in one.files)
    if not found:
        where = f"{source / 'annotations'}/instances_{split or STANDARD_SPLIT}.json"
        others = ", ".join(path.name for path in entries(source, ".json")[:_MAX_FILES]) or "no .json at all"
        raise FileNotFoundError(
            f"{where}: no such file, nor another JSON of COCO's in {source} or a folder of it, but {others}; "
            "name the file as SOURCE, or a split with --split"
        )
    if not fitting:
        raise FileNotFoundError(f"{source}: no file of split {split!r}, but {names}; name another with --split")
    raise ValueError(f"{source}: holds {names}; name one as SOURCE, or its split with --split")


def find_pictures(found: CocoSet, names: Sequence[str], images: Path | None) -> PictureFinder:
    """Find the folder of the pictures: of the usual places the one that holds most of them by their names.

    Args:
        found: the annotation files.
        names: of pictures; the first ones are looked for.
        images: what the user says; the only folder then.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if images is not None:
        return PictureFinder(need_folder(images, "name the folder of the pictures with --images"))
    folder = found.files[0].parent
    base = folder.parent if folder.name.lower() in _ANNOTATION_FOLDERS else folder
    places = [base / place.format(split=found.split) for place in _PLACES if found.split or "{" not in place]
    places = [place for place in dict.fromkeys((*places, folder)) if place.is_dir()]
    best = max(places, key=lambda place: sum(os.path.isfile(place / name) for name in names[:_SAMPLED]))
    return PictureFinder(best, as_written=tuple(place for place in places if place != best))


def _has_lists(shown: JsonPeek | None) -> bool:
    if shown is None or shown.is_list:
        return False
    pictures, annotations = shown.item("images"), shown.item("annotations")
    if "image_id" in annotations:
        return True
    if shown.whole:
        return {"images", "annotations"} <= set(shown.keys) and (not pictures or "id" in pictures)
    return "id" in pictures and not pictures.isdisjoint({"file_name", "coco_url"})


def _standard(source: Path, split: str) -> CocoSet:
    folder = source / "annotations"
    return CocoSet([path for kind in _PAIRED if (path := folder / f"{kind}{split}.json").is_file()], split)


def _coco_files(source: Path) -> Iterator[Path]:
    """COCO-like files of a folder, of ``annotations`` in it, and of splits as Roboflow and FiftyOne name them.

    Any other folder in it may be another data set.
    """
    try:
        with os.scandir(source) as listed:
            names = sorted(one.name for one in itertools.islice(listed, 10 * _MAX_FOLDERS) if one.is_dir())
    except OSError:
        return
    yield from filter(is_coco, entries(source, ".json")[:_MAX_FILES])
    for name in names[:_MAX_FOLDERS]:
        suffixes = (".json",) if name.lower() in _ANNOTATION_FOLDERS else _OF_SPLITS
        yield from filter(is_coco, entries(source / name, *suffixes)[:_MAX_FILES])


def _sets(source: Path) -> list[CocoSet]:
    """The sets of a folder; the two files of one split are one."""
    found: dict[tuple[Path, str], CocoSet] = {}
    for path in _coco_files(source):
        kind = next((kind for kind in _PAIRED if path.name.startswith(kind)), None)
        key = (path.parent, path.name if kind is None else path.stem.removeprefix(kind))
        found.setdefault(key, CocoSet([], _split_of(path))).files.append(path)
    return [
        CocoSet(sorted(one.files, key=lambda path: path.name.startswith("captions_")), one.split)
        for one in found.values()
    ]


def _split_of(path: Path) -> str:
    """``instances_train.json`` → ``train``; ``train/_annotations.coco.json`` → ``train``; ``result.json`` → ""."""
    for kind in _PAIRED:
        if path.name.startswith(kind):
            return path.stem.removeprefix(kind)
    if all(word in _NO_SPLIT for word in _words(path)):
        return "" if path.parent.name.lower() in _ANNOTATION_FOLDERS else path.parent.name
    return path.stem


def _words(path: Path) -> list[str]:
    return [word for word in re.split(r"[^a-zA-Z0-9]+", path.stem) if word]
