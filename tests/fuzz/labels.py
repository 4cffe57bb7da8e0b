"""Boxes in YOLO's lines and VOC's XML; the references are ``str.split`` and the standard library's ``ElementTree``."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cloc.contracts import BadSample
from cloc.data.convert.formats.listing import ClassNames
from cloc.data.convert.formats.voc import voc_object
from cloc.data.convert.formats.yolo import yolo_object

from . import mutate
from .kinds import Case, Kind, Unreadable

NAMES = ("dog", "red bus", "Straße")
SIDES = ("xmin", "ymin", "xmax", "ymax")
NUMBERS = ("nan", "inf", "1e400", "-0.5", "1.5", "", "1,5", "0x10", "７", "1_0", "1e-2", "+3", "9" * 400)


def prepare(folder: Path) -> None:
    """Nothing is needed."""


def make(rng: random.Random, folder: Path, prepared: None) -> Case:
    """One file of labels: as it should be, with another number, or damaged in its bytes."""
    yolo = rng.random() < 0.5
    text, what = (_lines if yolo else _document)(rng), "as it is"
    if rng.random() < 0.4:
        what, old = "another number", rng.choice("0123456789")
        text = text.replace(old, rng.choice(NUMBERS), rng.choice((1, 2)))
    data = text.encode(rng.choice(("utf-8",) * 8 + ("utf-16", "utf-8-sig", "latin-1")), "replace")
    if rng.random() < 0.4:
        what, data = mutate.damage(data, rng)
    path = folder / ("one.txt" if yolo else "one.xml")
    path.write_bytes(data)
    read, reference = (_read_yolo, _yolo) if yolo else (_read_voc, _voc)
    name = "yolo" if yolo else "voc"
    return Case(f"{name}: {what}", partial(read, path), partial(reference, data), (BadSample, ValueError), data)


def _numbers(rng: random.Random, count: int) -> list[str]:
    return [f"{rng.random():.{rng.choice((1, 3, 6))}f}" for _ in range(count)]


def _lines(rng: random.Random) -> str:
    counts = [rng.choice((4, 4, 4, 5, 6, 8)) for _ in range(rng.randrange(5))]
    lines = [" ".join([str(rng.randrange(len(NAMES))), *_numbers(rng, count)]) for count in counts]
    return rng.choice(("\n", "\r\n", "\n\n")).join(lines) + rng.choice(("", "\n"))


def _document(rng: random.Random) -> str:
    objects = []
    for _ in range(rng.randrange(4)):
        x, y = rng.randrange(1, 300), rng.randrange(1, 200)
        sides = dict(zip(SIDES, (x, y, x + 50, y + 70.5), strict=True))
        inner = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
        objects.append(f"<object><name>{rng.choice(NAMES)}</name><bndbox>{inner}</bndbox></object>")
    bomb = '<!DOCTYPE a [<!ENTITY a "dog">]>' if rng.random() < 0.05 else ""
    return f"{bomb}<annotation><size><width>640</width></size>{''.join(objects)}</annotation>"


def _read_yolo(path: Path) -> list[Any]:
    classes = ClassNames(dict(enumerate(NAMES)), "names")
    given = {"labels": path, "classes": classes, "keypoints": False}
    return [one and (one["category"], repr(one["box"])) for one in yolo_object(given, Counter())["regions"]]


def _yolo(data: bytes) -> list[Any]:
    marked = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if marked else "utf-8-sig")
        return [_yolo_line(line.split()) for line in text.splitlines() if line.strip()]
    except (ValueError, IndexError) as error:
        raise Unreadable(str(error)[:80]) from error


def _yolo_line(words: list[str]) -> Any:
    try:
        values = [float(word) for word in words[1:]]
    except ValueError:
        return None
    number = int(float(words[0]))
    if number != float(words[0]) or number < 0:
        raise ValueError(words[0])
    if len(values) == 5:
        values = values[:4]
    elif len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[::2], values[1::2]
        x0, y0, x1, y1 = min(xs), min(ys), max(xs), max(ys)
        values = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
    return NAMES[number], repr(values)


def _read_voc(path: Path) -> list[Any]:
    found = voc_object({"xml": path, "first": 1, "difficult": False}, Counter())["regions"]
    return [(one["category"], repr(one["box"]) if _are_numbers(one["box"]) else None) for one in found]


def _are_numbers(box: Any) -> bool:
    return isinstance(box, list) and all(isinstance(side, float) for side in box)


def _voc(data: bytes) -> list[Any]:
    if b"<!ENTITY" in data:
        raise Unreadable("an entity")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise Unreadable(str(error)[:80]) from error
    if root.tag != "annotation":
        raise Unreadable(root.tag)
    return [((one.findtext("name") or "").strip() or None, _voc_box(one)) for one in root.iter("object")]


def _voc_box(item: ElementTree.Element) -> str | None:
    texts = [item.findtext(f"bndbox/{side}", "") for side in SIDES]
    try:
        if any("_" in text or "infinity" in text.lower() for text in texts):
            return None
        x0, y0, x1, y1 = map(float, texts)
    except ValueError:
        return None
    return repr([x0 - 1, y0 - 1, x1, y1])


LABELS = Kind("label", 0.10, prepare, make)
