"""CVAT's own export, "CVAT for images 1.1": one XML file of all pictures, with labels and attributes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from cloc.data.convert.formats.listing import pick_splits, picture_stem
from cloc.data.convert.formats.peek import entries
from cloc.data.convert.formats.registry import register
from cloc.data.convert.formats.shapes import box_around, turned
from cloc.data.convert.formats.xml_files import root_tag, xml_items
from cloc.data.convert.pictures import MissingPicture, PictureFinder
from cloc.data.convert.records import Record, RecordSource
from cloc.data.shards.keys import Keys

_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_POINTS = ("polygon", "polyline", "points")
_TEXTS = ("caption", "phrase", "description", "text", "expression")
_GROUPS = ("crowd", "iscrowd", "is_crowd", "group")
_NO_SPLIT = "default"


def _is_cvat(source: Path) -> bool:
    return bool(_files(source))


def _files(source: Path) -> list[Path]:
    """CVAT's file; of a folder the one that is called so, else all, as other tools write one for each subset."""
    if source.is_file():
        return [source] if source.suffix.lower() == ".xml" and root_tag(source) == "annotations" else []
    named = source / "annotations.xml"
    return [
        path for path in ([named] if named.is_file() else entries(source, ".xml")) if root_tag(path) == "annotations"
    ]


@register("cvat", "annotations.xml of CVAT for images 1.1, or a folder of it and images/", _is_cvat)
def open_cvat(
    source: Path, *, split: str | None = None, images: Path | None = None, ignore_crowd_flag: bool = False
) -> RecordSource:
    """Open CVAT's XML: boxes, and the boxes around polygons. The label is the phrase.

    Attributes with text that are called caption, phrase, description, text or expression are phrases too, and captions
    where they belong to a tag of the picture; one called crowd, iscrowd or group marks a group. Masks and cuboids are
    counted as ``box_malformed``.

    Args:
        source: the XML file, or the folder of it.
        split: a subset of the task, where it has several; several with commas, or all.
        images: folder of the pictures, where it is not images/ beside the file, or the file's own.
        ignore_crowd_flag: take groups for ordinary regions.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there are several files; there is no such split, or several and none named.
    """
    found = _files(source)
    if not found:
        raise FileNotFoundError(f"{source}: no XML file of CVAT; export the task as 'CVAT for images 1.1'")
    path = found[0]
    if len(found) > 1:
        listed = ", ".join(one.name for one in found)
        raise ValueError(f"{source}: holds {listed}; name one of them as SOURCE, with --images {source / 'images'}")
    subsets = Counter(item.get("subset") or _NO_SPLIT for item in xml_items(path, "image"))
    if not subsets:
        of_video = next(xml_items(path, "track"), None) is not None
        tracks = "; it has tracks of a video: export them as images" if of_video else ""
        raise ValueError(f"{path}: holds no <image>{tracks}")
    picked = pick_splits(subsets, split, path)
    root = images or next((place for place in (path.parent / "images",) if place.is_dir()), path.parent)
    finder = PictureFinder(root)
    labels = sorted({(item.findtext("name") or "").strip() for item in xml_items(path, "label")} - {""})
    return RecordSource(
        "_".join([path.resolve().parent.name, *(picked if len(subsets) > 1 else ())]),
        (path,),
        _records(path, set(picked), finder),
        sum(subsets[name] for name in picked),
        tuple(labels) or None,
        cvat_object,
        boxes="xyxy_pixels",
        ignore_crowd_flag=ignore_crowd_flag,
        finder=finder,
    )


def _records(path: Path, picked: set[str], finder: PictureFinder) -> Iterator[Record]:
    keys = Keys()
    for item in xml_items(path, "image"):
        name, subset = item.get("name", ""), item.get("subset") or _NO_SPLIT
        if subset not in picked:
            continue
        where = f"{path.name} image {item.get('id')} ({name})"
        if not name:
            yield Record(where, fault=("no_image", f"{where}: the image has no name"))
            continue
        yield Record(where, keys.unique(picture_stem(name)), _find(finder, name, subset), {"image": item})


def _find(finder: PictureFinder, name: str, subset: str) -> Path | MissingPicture:
    """CVAT puts subsets into folders of their own, and does not say so in the names."""
    return finder.find(f"{subset}/{name}", name) if subset != _NO_SPLIT else finder.find(name)


def cvat_object(annotations: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Make a shard's JSON object of one picture: ``RecordSource.parse`` of this format.

    Args:
        annotations: ``image``, its element.
        counts: receives ``polygon_boxed`` and ``turned_boxed`` for shapes in whose place the box around them is taken.
    """
    item: Element = annotations["image"]
    regions, captions = [], []
    for shape in item:
        texts, crowd = _attributes(shape)
        label = shape.get("label", "").strip()
        if shape.tag == "tag":
            captions += texts
            continue
        box = _box(shape, counts)
        phrases = [*texts, *([label] if label else [])]
        regions.append({"box": box, "phrases": phrases, "category": label or None, "crowd": crowd})
    size = {side: _number(item.get(side)) for side in ("width", "height")}
    return size | {"captions": captions, "regions": regions}


def _attributes(shape: Element) -> tuple[list[str], bool]:
    given = [(one.get("name", "").lower(), (one.text or "").strip()) for one in shape.findall("attribute")]
    texts = [text for name, text in given if name in _TEXTS and text]
    return texts, any(name in _GROUPS and text.lower() in ("true", "1", "yes") for name, text in given)


def _box(shape: Element, counts: Counter[str]) -> Any:
    if shape.tag in _POINTS:
        points = [point.split(",") for point in shape.get("points", "").split(";")]
        pairs = [(_number(point[0]), _number(point[-1])) for point in points]
        counts["polygon_boxed"] += 1
        return box_around([(x, y) for x, y in pairs if x is not None and y is not None])
    corners = [_number(shape.get(side)) for side in _CORNERS]
    if shape.tag == "ellipse":
        cx, cy, rx, ry = (_number(shape.get(name)) or 0 for name in ("cx", "cy", "rx", "ry"))
        corners = [cx - rx, cy - ry, cx + rx, cy + ry]
    given = [side for side in corners if side is not None]
    degrees = _number(shape.get("rotation")) or 0
    if len(given) < 4 or not degrees:
        return corners
    counts["turned_boxed"] += 1
    return turned(given, degrees)


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
