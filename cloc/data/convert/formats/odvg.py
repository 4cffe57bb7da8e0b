"""ODVG, the JSON lines of Grounding DINO's training (Open-GroundingDino, MM-Grounding-DINO).

Each line is a picture with ``detection`` (boxes of classes) or ``grounding`` (a caption and the boxes of its phrases).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cloc.contracts import BadSample
from cloc.data.boxes import check_kind, is_box
from cloc.data.convert.formats.files import need_file
from cloc.data.convert.formats.listing import ClassNames, picture_stem, read_classes
from cloc.data.convert.formats.peek import peek_json
from cloc.data.convert.formats.plain_text import json_lines
from cloc.data.convert.formats.registry import register
from cloc.data.convert.pictures import PictureFinder
from cloc.data.convert.records import Record, RecordSource
from cloc.data.grit import cut
from cloc.data.json_values import shown
from cloc.data.shards.keys import Keys

_KINDS = ("detection", "grounding")
_MAPS = "*label_map*.json"


def is_odvg(source: Path) -> bool:
    """Tell whether the first line of a file is ODVG's; only its keys are looked at."""
    seen = peek_json(source) if source.suffix.lower() in (".jsonl", ".json", ".odvg") else None
    return (
        seen is not None
        and not seen.is_list
        and not {"filename", "file_name"}.isdisjoint(seen.keys)
        and (not set(_KINDS).isdisjoint(seen.keys))
    )


@register("odvg", "a .jsonl file of Grounding DINO: filename, and detection or grounding", is_odvg)
def open_odvg(
    source: Path,
    *,
    images: Path | None = None,
    classes: Path | None = None,
    boxes: str = "xyxy_pixels",
    ignore_crowd_flag: bool = False,
) -> RecordSource:
    """Open ODVG: ``detection.instances`` and ``grounding.regions``, the caption of the latter as the picture's.

    A region of several boxes is one region each; several phrases of one box are its phrases.

    Args:
        source: the file.
        images: folder that the names of the pictures are relative to, where it is not the file's own.
        classes: the label map, where instances have no category; a file with label_map in its name beside the source is
            found by itself.
        boxes: order and unit of the boxes: xyxy, xywh, cxcywh or yxyx, _, and normalized, percent, thousand or pixels.
        ignore_crowd_flag: take groups (iscrowd) for ordinary regions.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the label map is none, or there are several; there is no such kind of box.
    """
    need_file(source, "format 'odvg' reads one .jsonl file")
    path = classes or _label_map(source)
    names = read_classes(path) if path is not None else None
    with source.open("rb") as lines:
        total = sum(1 for line in lines if line.strip())
    files = (source,) if path is None else (source, path)
    finder = PictureFinder(images or source.parent)
    return RecordSource(
        source.stem,
        files,
        _records(source, finder, names),
        total,
        names.categories if names is not None else None,
        odvg_object,
        boxes=check_kind(boxes),
        ignore_crowd_flag=ignore_crowd_flag,
        finder=finder,
    )


def _label_map(source: Path) -> Path | None:
    found = sorted(source.parent.glob(_MAPS))
    own = [path for path in found if path.name.startswith(source.stem)]
    if len(own or found) > 1:
        listed = ", ".join(path.name for path in own or found)
        raise ValueError(f"{source.parent}: has the label maps {listed}; name one with --classes")
    return next(iter(own or found), None)


def _records(source: Path, finder: PictureFinder, names: ClassNames | None) -> Iterator[Record]:
    keys = Keys()
    for where, item in json_lines(source):
        if isinstance(item, BadSample):
            yield Record(where, fault=(item.reason, item.detail))
            continue
        name = item.get("filename", item.get("file_name"))
        if not isinstance(name, str):
            yield Record(where, fault=("no_image", f"{where}: filename is {shown(name)}, a text is needed"))
            continue
        annotations = {"item": item, "classes": names, "where": where}
        yield Record(where, keys.unique(picture_stem(name)), finder.find(name), annotations)


def odvg_object(annotations: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Make a shard's JSON object of one line: ``RecordSource.parse`` of this format.

    Args:
        annotations: ``item``, the line's object; ``classes``, the label map or None; and ``where`` it stands.
        counts: receives ``phrase_span_malformed`` for each span that cuts no phrase out of the caption.

    Raises:
        BadSample: ``bad_annotation``, or ``class_without_name``.
    """
    item, where = annotations["item"], annotations["where"]
    if not any(isinstance(item.get(kind), dict) for kind in _KINDS):
        raise BadSample(
            "bad_annotation", f"{where}: neither detection nor grounding, but {', '.join(item) or 'nothing'}"
        )
    detection, grounding = (item.get(kind) or {} for kind in _KINDS)
    instances = _list(detection, "instances", where)
    regions = [_instance(one, annotations["classes"], where) for one in instances]
    caption = grounding.get("caption")
    for one in _list(grounding, "regions", where):
        regions += _grounded(one, caption, counts)
    captions = [] if caption is None else caption if isinstance(caption, list) else [caption]
    size = {side: item.get(side) for side in ("width", "height")}
    return size | {"captions": captions, "regions": regions}


def _list(holder: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = holder.get(key) or []
    if not isinstance(value, list):
        raise BadSample("bad_annotation", f"{where}: {key} is {shown(value)}, a list is needed")
    return value


def _instance(one: Any, names: ClassNames | None, where: str) -> Any:
    if not isinstance(one, dict):
        return None  # counted as region_malformed
    category = one.get("category")
    if not isinstance(category, str):
        known = names or ClassNames({}, "no label map was found, which")
        category = known.name(one.get("label"), where)
    crowd = one.get("iscrowd", one.get("ignore"))
    return {"box": one.get("bbox"), "phrases": [category], "category": category, "crowd": crowd}


def _grounded(one: Any, caption: Any, counts: Counter[str]) -> list[Any]:
    if not isinstance(one, dict):
        return [None]
    given, phrase = one.get("bbox"), one.get("phrase")
    boxes = given if isinstance(given, list) and given and not is_box(given) and isinstance(given[0], list) else [given]
    phrases = phrase if isinstance(phrase, list) else [] if phrase is None else [phrase]
    spans = one.get("tokens_positive")
    if not phrases and isinstance(spans, list):
        pairs = [span if isinstance(span, list) and len(span) == 2 else (None, None) for span in spans]
        phrases = [cut(caption, *pair) for pair in pairs]
        counts["phrase_span_malformed"] += phrases.count(None)
        phrases = [text for text in phrases if text is not None]
    texts = list({json.dumps(text): text for text in phrases}.values())
    return [{"box": box, "phrases": texts, "crowd": one.get("iscrowd")} for box in boxes]
