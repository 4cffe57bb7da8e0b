"""Says which columns of a table hold pictures, texts and boxes, and makes a shard's object of a picture's rows."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloc.contracts import BadSample
from cloc.data.boxes import is_box, is_number
from cloc.data.convert.formats.coco import TEXT_KEYS
from cloc.data.convert.formats.listing import ClassNames, class_number
from cloc.data.json_values import parse_json, shown

_PICTURES = (
    "image", "picture", "img", "photo", "filepath", "file_path", "image_path", "img_path", "path", "file_name",
    "filename", "image_file_name", "image_file", "image_name", "jpg", "jpeg", "png", "webp",
)  # fmt: skip
_URLS = ("url", "image_url", "img_url", "image_urls", "link")
_CAPTIONS = (
    "caption", "captions", "title", "text", "texts", "sentence", "sentences", "raw", "description", "descriptions",
    "comment", "alt_text", "prompt", "phrase_caption",
)  # fmt: skip
_NUMBERED = re.compile(r"(?:caption|text|sentence)s?_?\d+")
_NESTED = ("objects", "annotations", "regions", "boxes", "bboxes", "bbox", "box", "detections", "instances")
_FLAT = {
    "xyxy": (
        ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"), ("x1", "y1", "x2", "y2"),
        ("x0", "y0", "x1", "y1"), ("left", "top", "right", "bottom"),
    ),
    "xywh": (
        ("bbox_x", "bbox_y", "bbox_width", "bbox_height"), ("x", "y", "w", "h"), ("x", "y", "width", "height"),
        ("left", "top", "width", "height"),
    ),
    "cxcywh": (
        ("x_center", "y_center", "width", "height"), ("xcenter", "ycenter", "width", "height"), ("cx", "cy", "w", "h"),
        ("cx", "cy", "width", "height"), ("center_x", "center_y", "width", "height"),
    ),
}  # fmt: skip
_LABELS = (
    "category", "categories", "label", "labels", "class", "classes", "class_name", "label_name", "category_name",
    "name", "names", "category_id", "class_id", "label_id", "class_label",
)  # fmt: skip
_BOXES = ("bbox", "bboxes", "box", "boxes", "bounding_box", "bounding_boxes")
_CROWDS = ("iscrowd", "crowd", "is_crowd", "isgroupof", "is_group_of")
_SIZES = (("image_width", "image_height"), ("img_width", "img_height"), ("width", "height"))
_FOUR = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")
_LONGEST = 2**20  # characters of a cell that are read as a list


@dataclass(frozen=True, slots=True)
class Chosen:
    """Columns that the user names; None where they are guessed."""

    picture: str | None = None
    caption: str | None = None
    box: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds what.

    Attributes:
        picture: path or bytes of the picture.
        captions: texts of the picture.
        boxes: a column of lists of boxes, or four of one box.
        layout: order of four columns; empty where a list holds the boxes.
        labels: classes or phrases of the boxes, where they stand in a column beside them.
        crowd: flag of a group, of a row that is a box.
        size: width and height of the picture.
        classes: names of classes by column; below "" those that the user gave.
    """

    picture: str
    captions: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()
    layout: str = ""
    labels: tuple[str, ...] = ()
    crowd: str | None = None
    size: tuple[str, ...] = ()
    classes: Mapping[str, ClassNames] = field(default_factory=dict)

    @property
    def used(self) -> list[str]:
        """All that are read."""
        given = [
            self.picture,
            *self.captions,
            *self.boxes,
            *self.labels,
            *([self.crowd] if self.crowd else []),
            *self.size,
        ]
        return list(dict.fromkeys(given))

    @property
    def told(self) -> str:
        """What was taken for what, in a line."""
        parts = {"pictures": (self.picture,), "captions": self.captions, "boxes": self.boxes, "labels": self.labels}
        return "columns: " + "; ".join(f"{what} {', '.join(names)}" for what, names in parts.items() if names)


def guess_columns(
    names: Sequence[str], where: str, chosen: Chosen, classes: Mapping[str, ClassNames] | None = None
) -> Columns:
    """Return which column holds what, by the user's word or by its name.

    Args:
        names: of all columns.
        where: what has them, for the error.
        chosen: the user's word.
        classes: names of classes by column.

    Raises:
        ValueError: a named column is not there; none of pictures, or none of captions and none of boxes is found.
    """
    lower = {name.strip().lower(): name for name in reversed(names)}
    has = f"it has {', '.join(map(repr, names)) or 'none'}"

    def need(name: str, option: str) -> str:
        if name not in names:
            raise ValueError(f"{where}: no column {name!r} (--{option}-column); {has}")
        return name

    def first(known: Iterable[str]) -> list[str]:
        return [lower[name] for name in known if name in lower][:1]

    pictures = [need(chosen.picture, "picture")] if chosen.picture else first(_PICTURES)
    if not pictures:
        links = first(_URLS)
        remedy = "download them first (img2dataset)" if links else f"looked for {', '.join(_PICTURES)}"
        seen = f"; {links[0]!r} holds addresses" if links else ""
        raise ValueError(f"{where}: no column of pictures{seen}; {has}; {remedy}, or name it with --picture-column")
    layout, boxes = _box_columns(lower) if chosen.box is None else ("", [])
    if chosen.box is not None:
        boxes = [need(name.strip(), "box") for name in chosen.box.split(",")]
        layout = "xyxy" if len(boxes) == 4 else ""
    if chosen.caption:
        captions = [need(name.strip(), "caption") for name in chosen.caption.split(",")]
    else:
        numbered = [lower[name] for name in lower if _NUMBERED.fullmatch(name)]
        captions = [name for name in [*first(_CAPTIONS), *reversed(numbered)] if name not in pictures]
    labels = [need(name.strip(), "label") for name in chosen.label.split(",")] if chosen.label else []
    labels = labels or ([*first(_LABELS), *first(("phrase", "phrases"))] if boxes else [])
    if not captions and not boxes:
        looked = f"looked for {', '.join(_CAPTIONS)}, {', '.join(_NESTED)}, xmin, …"
        raise ValueError(f"{where}: no column of captions or boxes; {has}; {looked}; name it with --caption-column")
    sizes = [tuple(lower[side] for side in pair) for pair in _SIZES if all(side in lower for side in pair)]
    size = next((pair for pair in sizes if not set(pair) & set(boxes)), ())
    crowd = first(_CROWDS) if layout else []
    return Columns(
        pictures[0], tuple(captions), tuple(boxes), layout, tuple(labels), next(iter(crowd), None), size, classes or {}
    )


def _box_columns(lower: Mapping[str, str]) -> tuple[str, list[str]]:
    for layout, sets in _FLAT.items():
        for sides in sets:
            if all(side in lower for side in sides):
                return layout, [lower[side] for side in sides]
    return "", [lower[name] for name in _NESTED if name in lower][:1]


def table_object(annotations: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Make a shard's JSON object of one picture: ``RecordSource.parse`` of tables. Boxes stay as they are.

    Args:
        annotations: ``rows``, dicts by column; ``columns``; ``order`` in which a box with named sides is wanted, xyxy
            or xywh; and ``where`` the first row stands.
        counts: receives ``caption_twice`` for texts that rows of several boxes repeat.

    Raises:
        BadSample: ``class_without_name``, or ``bad_annotation`` for lists of different lengths.
    """
    rows, columns, where = annotations["rows"], annotations["columns"], annotations["where"]
    captions = [
        text for row in rows for name in columns.captions for text in _texts(row.get(name), columns, name, where)
    ]
    if columns.layout and len(rows) > 1:
        kept = list({repr(text): text for text in captions}.values())
        counts["caption_twice"] += len(captions) - len(kept)
        captions = kept
    regions = [region for row in rows for region in _regions(row, columns, annotations["order"], where)]
    size = dict(zip(("width", "height"), (_number(rows[0].get(name)) for name in columns.size), strict=False))
    return size | {"captions": captions, "regions": regions}


def _texts(value: Any, columns: Columns, name: str, where: str) -> list[Any]:
    """Texts of a cell: one, a list, or the text of a list; a number is that of a class."""
    value = _unpacked(value)
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, list):
        return [text for one in value for text in ([one] if one is None else _texts(one, columns, name, where))]
    if isinstance(value, dict):
        inner = next((value[key] for key in ("raw", *TEXT_KEYS) if key in value), None)
        return [inner] if not isinstance(inner, list) else inner
    if is_number(value) and name in columns.classes:
        return [columns.classes[name].name(value, where)]
    return [value]


def _regions(row: Mapping[str, Any], columns: Columns, order: str, where: str) -> list[Any]:
    if not columns.boxes:
        return []
    if columns.layout:
        sides = [_number(row.get(name)) for name in columns.boxes]
        if all(side is None for side in sides):
            return []  # a picture without a box
        crowd = row.get(columns.crowd) if columns.crowd else None
        return [_region(sides, {name: row.get(name) for name in columns.labels}, crowd, None, columns, where)]
    value = _unpacked(row.get(columns.boxes[0]))
    if value is None or value == "":
        return []
    items = _items(value, {name: _unpacked(row.get(name)) for name in columns.labels}, columns.boxes[0], where)
    return [_nested(item, order, columns, where) for item in items]


def _items(value: Any, beside: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """One object a box, of an object of lists, a list of objects, or lists beside each other."""
    if isinstance(value, list) and any(isinstance(item, dict) and not _BOX_KEYS.isdisjoint(item) for item in value):
        return value
    if is_box(value):
        value, beside = [value], {key: [label] for key, label in beside.items()}
    lists = value if isinstance(value, dict) else {"bbox": value, **beside}
    lists = {key: given for key, given in lists.items() if isinstance(given, list)}
    boxes = next((key for key in _BOXES if key in lists), None)
    if boxes is None:
        raise BadSample("bad_annotation", f"{where}: {name} is {shown(value)}; a list of boxes is needed ({_BOXES[0]})")
    count = len(lists[boxes])
    wrong = next((key for key, given in lists.items() if key in _SAME_LENGTH and len(given) != count), None)
    if wrong is not None:
        raise BadSample("bad_annotation", f"{where}: {name} has {count} {boxes} and {len(lists[wrong])} {wrong}")
    return [{key: given[place] for key, given in lists.items() if len(given) == count} for place in range(count)]


_BOX_KEYS = frozenset(_BOXES)
_SAME_LENGTH = frozenset((*_BOXES, *_LABELS, *TEXT_KEYS, *_CROWDS))


def _nested(item: Any, order: str, columns: Columns, where: str) -> Any:
    if not isinstance(item, dict):
        return None  # counted as region_malformed
    box = next((item[key] for key in _BOXES if key in item), None)
    labels = {key: item[key] for key in (*TEXT_KEYS, *_LABELS, *columns.labels) if key in item}
    crowd = next((item[key] for key in _CROWDS if key in item), None)
    return _region(_sides(box, order), labels, crowd, item.get("score"), columns, where)


def _region(
    box: Any, labels: Mapping[str, Any], crowd: Any, score: Any, columns: Columns, where: str
) -> dict[str, Any]:
    """One region; of its labels those of known names of columns are its class, others its phrases."""
    phrases: list[Any] = []
    category = None
    for key, value in labels.items():
        given = value if isinstance(value, list) else [value]
        if key.strip().lower() in _LABELS:
            names = [_class(one, key, columns, where) for one in given if one is not None and one != ""]
            category = category or next(iter(names), None)
            phrases += names
        else:
            phrases += [text for text in given if text is not None]
    region = {"box": box, "phrases": list({repr(text): text for text in phrases}.values()), "category": category}
    return region | ({} if crowd is None else {"crowd": crowd}) | ({} if score is None else {"score": score})


def _class(value: Any, key: str, columns: Columns, where: str) -> str:
    """The name of a class; a number, also as text, must have one."""
    if isinstance(value, str) and class_number(value) is None:
        return value
    names = columns.classes.get("") or columns.classes.get(key) or ClassNames({}, f"column {key!r}")
    return names.name(value, where)


def _sides(box: Any, order: str) -> Any:
    """Four numbers of a box whose sides have names."""
    if isinstance(box, str):
        box = _unpacked(box)
    if not isinstance(box, dict):
        return [*box] if isinstance(box, tuple) else box
    sides = {str(key).lower(): value for key, value in box.items()}
    for layout, sets in _FLAT.items():
        for names in sets:
            if all(is_number(sides.get(name)) for name in names):
                a, b, c, d = (sides[name] for name in names)
                return _ordered([a, b, c, d], layout, order)
    return box  # counted as box_malformed


def _ordered(sides: list[Any], layout: str, order: str) -> list[Any]:
    """Named sides in another order; x and y beside a width are of the middle where the user says so."""
    a, b, c, d = sides
    if layout == order or (layout, order) == ("xywh", "cxcywh"):
        return sides
    if layout == "cxcywh":
        a, b = a - c / 2, b - d / 2
    x0, y0, x1, y1 = (a, b, c, d) if layout == "xyxy" else (a, b, a + c, b + d)
    orders = {
        "xyxy": [x0, y0, x1, y1],
        "xywh": [x0, y0, x1 - x0, y1 - y0],
        "cxcywh": [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0],
        "yxyx": [y0, x0, y1, x1],
    }
    return orders[order]


def _unpacked(value: Any) -> Any:
    """The list or object that a cell of text spells, in JSON or as Python prints it; any other value as it is."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{") or len(value) > _LONGEST:
        return value
    try:
        return parse_json(value)
    except ValueError:
        pass
    try:
        return ast.literal_eval(value.strip())  # literals alone, nothing is run
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        numbers = _FOUR.findall(value)  # as numpy prints a box
        return (
            [float(number) for number in numbers] if len(numbers) == 4 and not re.search(r"[A-Za-z]", value) else value
        )


def _number(value: Any) -> Any:
    """A number that a cell spells; None where it is empty; other text as it is."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return float(value)
    except ValueError:
        return value
