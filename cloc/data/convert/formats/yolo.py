"""YOLO's labels: Ultralytics' ``data.yaml``, Darknet's ``obj.data``, and a plain ``images/`` beside ``labels/``.

A parser of our own: it takes splits, lists of pictures, polygons and confidences, tells labels that belong to no
picture, and counts what is left out by reason.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloc.data.convert.formats.listing import (
    ClassNames,
    PictureFolder,
    class_names,
    files_below,
    has_picture,
    pick_splits,
    picture_stem,
    read_classes,
    read_yaml,
    watched,
)
from cloc.data.convert.formats.plain_text import first_line, read_lines
from cloc.data.convert.formats.registry import register
from cloc.data.convert.formats.shapes import Point, box_around
from cloc.data.convert.pictures import MissingPicture, PictureFinder
from cloc.data.convert.records import Record, RecordSource
from cloc.data.shards.keys import Keys

_SPLITS = ("train", "val", "valid", "test")
_CLASS_FILES = ("classes.txt", "obj.names", "classes.names", "labels/classes.txt", "predefined_classes.txt")
_PICTURES, _LABELS = "images", "labels"


@dataclass(slots=True)
class _Layout:
    """What a source says of itself: folders or lists of pictures by split, and its classes."""

    splits: dict[str, list[Path]] = field(default_factory=dict)
    classes: ClassNames | None = None
    files: tuple[Path, ...] = ()
    keypoints: bool = False
    notes: tuple[str, ...] = ()


def _is_yolo(source: Path) -> bool:
    if source.is_file():
        return source.suffix.lower() in (".yaml", ".yml") and _yaml_of(source) is not None
    if not source.is_dir():
        return False
    if any(source.glob("*.data")) or any(_yaml_of(path) is not None for path in _yamls(source)):
        return True
    labels = source / _LABELS if (source / _LABELS).is_dir() else source
    return (labels != source or has_picture(source)) and _has_label(labels)


def _has_label(folder: Path) -> bool:
    """Whether the first text file below a folder that is no list of classes starts with a label."""
    texts = (path for path in files_below(folder) if path.suffix.lower() == ".txt" and path.name != "classes.txt")
    return any(_is_label(first_line(path)) for path in itertools.islice(texts, 20))


def _is_label(line: str) -> bool:
    words = line.split()
    try:
        return len(words) >= 5 and float(words[0]).is_integer() and bool([*map(float, words)])
    except ValueError:
        return False


@register(
    "yolo",
    "a data.yaml or a folder with one (Ultralytics), with obj.data (Darknet), or with images/, labels/, classes.txt",
    _is_yolo,
)
def open_yolo(
    source: Path, *, split: str | None = None, images: Path | None = None, classes: Path | None = None
) -> RecordSource:
    """Open YOLO's text files: a line a box, ``class cx cy width height [confidence]``, or ``class`` and a polygon.

    A polygon (segments, oriented boxes) becomes the box around it. The name of the class is the phrase. A picture
    without a label file is background.

    Args:
        source: the data.yaml, or the folder.
        split: one of those that the source has, several with commas, or all; needed where there are several.
        images: folder of the pictures, where they are not in images; labels are still found beside them or in labels.
        classes: file of class names, where it is not in the source.

    Raises:
        FileNotFoundError: a folder or list of pictures is missing.
        ValueError: there is no list of classes; no such split, or several and none named.
    """
    folder = source if source.is_dir() else source.parent
    layout = _read_layout(source, folder)
    names = read_classes(classes) if classes is not None else layout.classes
    if names is None:
        raise ValueError(f"{source}: no list of class names ({', '.join(_CLASS_FILES)}, names in data.yaml); "
                         "give a file with a name a line: --classes FILE")  # fmt: skip
    picked = pick_splits(layout.splits, split, source)
    given = [entry for name in picked for entry in layout.splits[name]] if images is None else [images]
    listed = _Listed(folder, PictureFinder(*([images] if images is not None else []), folder))
    for entry in given:
        listed.add(entry)
    notes = [*layout.notes]
    notes += [note for one in listed.folders for note in one.told(".txt", ".cache", ".yaml", ".json", ".names")]
    lists = [path for path in (*layout.files, classes, *given) if path is not None and path.is_file()]
    files = (*lists, *watched(label for _, label in listed.pictures.values() if label is not None))
    records = _records(listed, names, layout.keypoints)
    title = "_".join([folder.resolve().name, *(picked if len(layout.splits) > 1 else ())])
    total = len(listed.pictures) + len(listed.lonely)
    return RecordSource(
        title, files or (folder,), records, total, names.categories, yolo_object, boxes="cxcywh_normalized",
        notes=tuple(notes),
        finder=listed.finder,
    )  # fmt: skip


def _yamls(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")], key=lambda path: (path.name != "data.yaml", path))


def _yaml_of(path: Path) -> dict[str, Any] | None:
    """What a YAML file says, where it is of a YOLO data set."""
    try:
        given = read_yaml(path)
    except (OSError, ValueError):
        return None
    known = isinstance(given, dict) and isinstance(given.get("names"), list | dict)
    return given if known and not given.keys().isdisjoint({"nc", "path", *_SPLITS}) else None


def _read_layout(source: Path, folder: Path) -> _Layout:
    if source.is_file():
        return _from_yaml(source, class_names(read_yaml(source), source))
    for path in _yamls(source):
        if _yaml_of(path) is not None:
            return _from_yaml(path, class_names(read_yaml(path), path))
    data = sorted(source.glob("*.data"))
    lists = next((path for name in _CLASS_FILES if (path := folder / name).is_file()), None)
    names = read_classes(lists) if lists is not None else None
    files = (lists,) if lists is not None else ()
    if data:
        return _Layout(_from_darknet(data[0]), names, (data[0], *files))
    return _Layout(_plain_splits(folder), names, files)


def _from_yaml(path: Path, names: ClassNames) -> _Layout:
    given: dict[str, Any] = read_yaml(path)
    splits = {}
    for name in _SPLITS:
        entries = given.get(name)
        texts = [entry for entry in (entries if isinstance(entries, list) else [entries]) if entry]
        if texts:
            splits[name] = [_place(str(text), path, str(given.get("path") or "")) for text in texts]
    absent = [(name, place) for name, places in splits.items() for place in places if not place.exists()]
    for name, _ in absent:
        splits.pop(name, None)
    if absent and not splits:
        raise FileNotFoundError(f"{path}: {absent[0][0]} is {absent[0][1]}: no such folder or list; correct it there")
    notes = tuple(f"warning: {path}: {name} is {place}: not there, not read" for name, place in absent)
    return _Layout(splits or _plain_splits(path.parent), names, (path,), bool(given.get("kpt_shape")), notes)


def _place(text: str, path: Path, base: str) -> Path:
    """Where an entry of ``data.yaml`` lies: below ``path``, beside the file, or, as Roboflow writes it, one up."""
    text, base = text.replace("\\", "/"), base.replace("\\", "/")
    tried = [path.parent / base / text, path.parent / text, path.parent / text.removeprefix("../")]
    return next((place for place in tried if place.exists()), tried[0])


def _from_darknet(path: Path) -> dict[str, list[Path]]:
    """The lists of pictures that ``obj.data`` names."""
    pairs = [line.partition("=") for line in read_lines(path)]
    named = {key.strip(): value.strip().replace("\\", "/") for key, _, value in pairs}
    found = {}
    for name in _SPLITS:
        if named.get(name):
            tried = [path.parent / named[name], path.parent / Path(named[name]).name]
            found[name] = [next((place for place in tried if place.exists()), tried[0])]
    if not found:
        raise ValueError(f"{path}: names no list of pictures (train = …, valid = …); correct it there")
    return found


def _plain_splits(folder: Path) -> dict[str, list[Path]]:
    """Folders of pictures where nothing names them: ``images/SPLIT``, ``SPLIT/images``, ``images``, or the folder."""
    within = {name: folder / _PICTURES / name for name in _SPLITS if (folder / _PICTURES / name).is_dir()}
    above = {name: folder / name for name in _SPLITS if (folder / name / _LABELS).is_dir()}
    plain = folder / _PICTURES if (folder / _PICTURES).is_dir() else folder
    return {name: [place] for name, place in (within or above or {"all": plain}).items()}


@dataclass(slots=True)
class _Listed:
    """Pictures with their label files, and label files without a picture."""

    root: Path
    finder: PictureFinder
    pictures: dict[str, tuple[Path | MissingPicture, Path | None]] = field(default_factory=dict)
    lonely: list[Path] = field(default_factory=list)
    folders: list[PictureFolder] = field(default_factory=list)

    def add(self, entry: Path) -> None:
        """Add a folder of pictures, or a file that lists them."""
        if entry.is_dir():
            self._add_folder(PictureFolder.below(entry))
        elif entry.is_file():
            for line in read_lines(entry):
                path = self.finder.find(line)
                self.pictures[line] = (path, _label_of(path, self.root) if isinstance(path, Path) else None)
        else:
            raise FileNotFoundError(f"{entry}: no such folder or list of pictures; name the folder with --images")

    def _add_folder(self, found: PictureFolder) -> None:
        self.folders.append(found)
        for path in found.paths():
            self.pictures[str(path)] = (path, _label_of(path, self.root))
        used = {label for _, label in self.pictures.values()}
        texts = (path for path in files_below(_swapped(found.folder, self.root)) if path.suffix.lower() == ".txt")
        self.lonely += [path for path in texts if path not in used and _is_label(first_line(path))]


def _label_of(picture: Path, root: Path) -> Path | None:
    tried = [_swapped(picture, root).with_suffix(".txt"), picture.with_suffix(".txt")]
    tried.append(root / _LABELS / f"{picture.stem}.txt")
    return next((path for path in tried if path.is_file()), None)


def _swapped(path: Path, root: Path) -> Path:
    """The path with the last ``images`` of it, below the source, as ``labels``."""
    within = path.relative_to(root) if path.is_relative_to(root) else path
    parts = list(within.parts)
    places = [place for place, part in enumerate(parts) if part.lower() == _PICTURES]
    if places:
        parts[places[-1]] = _LABELS
    return root / Path(*parts)


def _records(listed: _Listed, names: ClassNames, keypoints: bool) -> Iterator[Record]:
    keys = Keys()
    owners = Counter(label for label, _ in {(label, picture) for picture, label in listed.pictures.values()})
    for name, (picture, label) in listed.pictures.items():
        annotations = {"labels": label, "classes": names, "keypoints": keypoints}
        fault = (picture.reason, picture.detail) if isinstance(picture, MissingPicture) else None
        if label is not None and owners[label] > 1:
            seen = f"{label}: can be the labels of {owners[label]} pictures, one of them {picture}"
            fault = ("picture_ambiguous", f"{seen}; keep the folders of pictures in labels/, or rename the pictures")
        yield Record(picture_stem(name), keys.unique(picture_stem(name)), picture, annotations, fault)
    for label in listed.lonely:
        yield Record(label.name, fault=("no_image", f"{label}: labels of no picture; restore it, or remove them"))


def yolo_object(annotations: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Make a shard's JSON object of one picture: ``RecordSource.parse`` of this format. Boxes are shares, cxcywh.

    Args:
        annotations: ``labels``, the file of the picture's boxes, or None; ``classes``; and whether there are
            ``keypoints`` behind each box.
        counts: receives ``polygon_boxed`` for each polygon.

    Raises:
        BadSample: ``class_without_name``.
    """
    path: Path | None = annotations["labels"]
    regions: list[dict[str, Any] | None] = []
    for number, line in enumerate(read_lines(path) if path is not None else (), 1):
        words, where = line.split(), f"{path} line {number}"
        try:
            values = [*map(float, words[1:])]
        except ValueError:
            regions.append(None)  # counted as region_malformed
            continue
        name = annotations["classes"].name(words[0], where)
        regions.append(_region(values, name, annotations["keypoints"], counts))
    return {"regions": regions}


def _region(values: list[float], name: str, keypoints: bool, counts: Counter[str]) -> dict[str, Any]:
    region: dict[str, Any] = {"box": values, "phrases": [name], "category": name}
    if len(values) == 5 or keypoints:
        more = values[4:] if len(values) == 5 else []
        return region | {"box": values[:4]} | ({"score": more[0]} if more else {})
    if len(values) >= 6 and len(values) % 2 == 0:
        counts["polygon_boxed"] += 1
        return region | {"box": _boxed([*zip(values[::2], values[1::2], strict=True)])}
    return region  # four numbers, or a count that is dropped as box_malformed


def _boxed(points: list[Point]) -> list[float]:
    """The cxcywh of the box around points."""
    x0, y0, x1, y1 = box_around(points) or [0.0] * 4
    return [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
