"""Label Studio's own exports: JSON, and JSON_MIN; rectangles in percent of the picture, labels, texts.

Its COCO, YOLO and VOC exports are read by these formats; only its own keep the texts of regions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cloc.contracts import BadSample
from cloc.data.boxes import is_number
from cloc.data.convert.formats.files import json_objects, need_file
from cloc.data.convert.formats.listing import picture_stem
from cloc.data.convert.formats.peek import peek_json
from cloc.data.convert.formats.registry import register
from cloc.data.convert.formats.shapes import box_around, turned
from cloc.data.convert.pictures import MissingPicture, PictureFinder
from cloc.data.convert.records import Record, RecordSource, stated_size
from cloc.data.json_values import shown
from cloc.data.shards.keys import Keys

_PICTURE = ("image", "img", "picture", "photo", "url", "image_url")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file
_RECTANGLE = ("x", "y", "width", "height")
_OTHERS = {"points", "radiusX", "rle", "vertices", "keypointlabels"}  # keys of shapes that are no rectangle
_LABELS = ("rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels", "labels", "keypointlabels")


def _is_label_studio(source: Path) -> bool:
    seen = peek_json(source) if source.suffix.lower() == ".json" else None
    if seen is None or not seen.is_list:
        return False
    keys = seen.item()
    tasks = "data" in keys and not keys.isdisjoint(("annotations", "predictions"))
    return tasks or {"annotation_id", "annotator"} <= keys  # the latter of JSON_MIN


@register("label_studio", "a .json export of Label Studio (JSON or JSON_MIN)", _is_label_studio)
def open_label_studio(source: Path, *, images: Path | None = None) -> RecordSource:
    """Open the tasks of an export. A label is a phrase; a text area of a region gives phrases, one of none captions.

    Of a task that several people annotated the first annotation is taken, and the others are counted; so are
    predictions, which count where there is no annotation. Polygons and turned rectangles become the box around them.

    Args:
        source: the file.
        images: folder of the pictures, which are found by their names, where they are not beside the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no list of objects.
    """
    need_file(source, "format 'label_studio' reads one .json file")
    total = sum(1 for _ in json_objects(source, "item"))
    finder = PictureFinder(images or source.parent)
    records = _records(source, finder)
    return RecordSource(
        source.stem, (source,), records, total, parse=label_studio_object, boxes="xyxy_percent", finder=finder
    )


def _records(source: Path, finder: PictureFinder) -> Iterator[Record]:
    keys = Keys()
    for place, item in enumerate(json_objects(source, "item")):
        where = f"{source.name} task {item.get('id', place)}"
        data = item.get("data") if isinstance(item.get("data"), dict) else item
        name = _picture_name(data if isinstance(data, dict) else {})
        if name is None:
            yield Record(where, fault=("no_image", f"{where}: no path of a picture in its data"))
        else:
            picture = _find(name, finder)
            key = picture.stem if isinstance(picture, Path) else picture_stem(name)
            yield Record(where, keys.unique(key), picture, {"task": item})


def _picture_name(data: Mapping[str, Any]) -> str | None:
    """The path of a task's picture, below whatever stores it."""
    given = next((data[name] for name in _PICTURE if isinstance(data.get(name), str)), None)
    if given is None:
        texts = (value for value in data.values() if isinstance(value, str))
        given = next((text for text in texts if re.search(r"\.\w{3,4}$", urlsplit(text).path)), None)
    if given is None:
        return None
    url = urlsplit(given.replace("\\", "/"))
    return unquote((parse_qs(url.query).get("d") or [url.path])[0]).lstrip("/")


def _find(name: str, finder: PictureFinder) -> Path | MissingPicture:
    """An uploaded picture may lie there under the name that it had before."""
    found = finder.find(name)
    folder, _, last = name.rpartition("/")
    if isinstance(found, MissingPicture) and _UPLOADED.match(last):
        return finder.find(_UPLOADED.sub("", last))
    return found


def label_studio_object(annotations: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Make a shard's JSON object of one task: ``RecordSource.parse`` of this format. Boxes are xyxy in percent.

    Args:
        annotations: ``task``, its object.
        counts: receives ``polygon_boxed`` and ``turned_boxed`` for shapes in whose place the box around them is taken,
            ``more_annotations`` for those of other people.

    Raises:
        BadSample: ``bad_annotation``.
    """
    task = annotations["task"]
    results = _results(task, counts) if isinstance(task.get("data"), dict) else _short_results(task)
    by_id: dict[str, list[dict[str, Any]]] = {}
    captions: list[Any] = []
    for place, one in enumerate(results):
        value = one.get("value")
        if not isinstance(value, dict):
            continue
        if (_turn := one.get("image_rotation")) and is_number(_turn) and _turn % 360:
            raise BadSample(
                "orientation_conflict", f"the picture was turned by {_turn} degrees in Label Studio; turn it"
            )
        if _has_shape(value):
            by_id.setdefault(str(one.get("id", place)), []).append(one)
        elif one.get("type") == "textarea" or "text" in value:
            captions += _texts(value.get("text"))
    size = _size(results)
    regions = [_region(group, size, counts) for group in by_id.values()]
    caption = task.get("caption")
    return {"captions": [*captions, *([] if caption is None else _texts(caption))], "regions": regions}


def _results(task: Mapping[str, Any], counts: Counter[str]) -> list[dict[str, Any]]:
    """What the first annotation says, else the first prediction."""
    done = [one for one in task.get("annotations") or [] if isinstance(one, dict) and not one.get("was_cancelled")]
    given = done or [one for one in task.get("predictions") or [] if isinstance(one, dict)]
    counts["more_annotations"] += max(0, len(given) - 1)
    results = given[0].get("result") if given else []
    if not isinstance(results, list):
        raise BadSample("bad_annotation", f"result is {shown(results)}, a list is needed")
    return [one for one in results if isinstance(one, dict)]


def _short_results(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of JSON_MIN: what lies in lists of shapes, whatever they are called."""
    lists = [value for value in task.values() if isinstance(value, list)]
    return [{**one, "value": one} for values in lists for one in values if isinstance(one, dict)]


def _has_shape(value: Mapping[str, Any]) -> bool:
    return all(side in value for side in _RECTANGLE) or not _OTHERS.isdisjoint(value)


def _size(results: list[dict[str, Any]]) -> tuple[float, float]:
    sides = (stated_size(one.get("original_width"), one.get("original_height")) for one in results)
    return next((size for size in sides if size is not None), (100.0, 100.0))


def _region(group: list[dict[str, Any]], size: tuple[float, float], counts: Counter[str]) -> dict[str, Any]:
    """One region of what was said about one shape: its labels, and its texts."""
    values = [one["value"] for one in group]
    texts = [text for value in values for text in _texts(value.get("text"))]
    labels = [label for value in values for key in _LABELS for label in _texts(value.get(key))]
    category = labels[0] if labels and isinstance(labels[0], str) else None
    return {"box": _box(values[0], size, counts), "phrases": [*texts, *labels], "category": category}


def _texts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _box(value: Mapping[str, Any], size: tuple[float, float], counts: Counter[str]) -> Any:
    if "points" in value:
        points = value["points"] if isinstance(value["points"], list) else []
        counts["polygon_boxed"] += 1
        return box_around([tuple(point) for point in points if _is_pair(point)])
    if "radiusX" in value:
        given = [value.get(name, 0) for name in ("x", "y", "radiusX", "radiusY")]
    else:
        given = [value.get(side) for side in _RECTANGLE]
    if not all(map(is_number, given)):
        return given  # counted as box_malformed
    x, y, width, height = (float(side) for side in given)
    if "radiusX" in value:  # the middle and half of the sides
        x, y, width, height = x - width, y - height, 2 * width, 2 * height
    degrees = value.get("rotation") or 0
    if not is_number(degrees) or not degrees % 360:
        return [x, y, x + width, y + height]
    counts["turned_boxed"] += 1
    scale = (size[0] / 100, size[1] / 100)
    corners = [x * scale[0], y * scale[1], (x + width) * scale[0], (y + height) * scale[1]]
    x0, y0, x1, y1 = turned(corners, degrees, None if "radiusX" in value else (corners[0], corners[1]))
    return [x0 / scale[0], y0 / scale[1], x1 / scale[0], y1 / scale[1]]


def _is_pair(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(map(is_number, point))
