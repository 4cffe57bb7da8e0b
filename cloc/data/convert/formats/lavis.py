"""The lists of captions of ALBEF, BLIP and LAVIS: ``[{"image": …, "caption": …}, …]``.

``coco_karpathy_train.json`` and its like give a caption an item, the lists that retrieval is tested on
(``coco_karpathy_test.json``, ``flickr30k_test.json``) all captions of a picture in one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cloc.data.convert.formats.files import json_objects, need_file
from cloc.data.convert.formats.grouping import grouped
from cloc.data.convert.formats.listing import picture_stem
from cloc.data.convert.formats.peek import peek_json
from cloc.data.convert.formats.registry import register
from cloc.data.convert.pictures import PictureFinder
from cloc.data.convert.records import Record, RecordSource
from cloc.data.json_values import shown
from cloc.data.shards.keys import Keys

_PICTURE = ("image", "image_path", "file_name", "filename", "filepath", "img", "img_path")
_OTHERS = {"data", "annotations", "conversations"}  # of tasks of Label Studio, of dialogs
_CAPTION = ("caption", "captions", "text", "title", "sentence", "sentences")


def _is_lavis(source: Path) -> bool:
    seen = peek_json(source) if source.suffix.lower() == ".json" else None
    keys = seen.item() if seen is not None and seen.is_list else frozenset()
    return not keys.isdisjoint(_PICTURE) and not keys.isdisjoint(_CAPTION) and not keys & _OTHERS


@register("lavis", "a .json list of {image, caption}, as ALBEF, BLIP and LAVIS have it", _is_lavis)
def open_lavis(source: Path, *, images: Path | None = None) -> RecordSource:
    """Open a list of objects with a picture's path (``image``) and its ``caption``: a text, or a list of texts.

    Captions of one picture in several items are joined.

    Args:
        source: the file.
        images: folder that the pictures' paths are relative to, where it is not the file's own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no list of objects, or none has a picture or a caption.
    """
    need_file(source, "format 'lavis' reads one .json file")
    first = next(json_objects(source, "item"), None)
    if first is None:
        raise ValueError(f"{source}: an empty list; restore the file")
    for names, what in ((_PICTURE, "picture"), (_CAPTION, "caption")):
        if first.keys().isdisjoint(names):
            seen = ", ".join(first) or "nothing"
            raise ValueError(f"{source}: its items have no {what} ({', '.join(names)}), but {seen}; rename the key")
    total, groups = grouped(partial(_rows, source))
    finder = PictureFinder(images or source.parent)
    return RecordSource(source.stem, (source,), _records(groups, finder, source.name), total, finder=finder)


def _rows(source: Path) -> Iterator[tuple[str, tuple[int, Any, dict[str, Any]]]]:
    for place, item in enumerate(json_objects(source, "item")):
        name = _first(item, _PICTURE)
        yield (name if isinstance(name, str) else f"item {place}"), (place, name, item)


def _records(groups: Iterator[tuple[str, list[Any]]], finder: PictureFinder, file: str) -> Iterator[Record]:
    keys = Keys()
    for name, rows in groups:
        place, given, item = rows[0]
        where = f"{file} item {place}"
        if not isinstance(given, str):
            yield Record(where, fault=("no_image", f"{where}: image is {shown(given)}, a path is needed"))
            continue
        texts = [text for _, _, one in rows for text in _texts(_first(one, _CAPTION))]
        kept = {key: item[key] for key in ("image_id", "id") if key in item}
        yield Record(where, keys.unique(picture_stem(name)), finder.find(name), kept | {"captions": texts})


def _first(item: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((item[name] for name in names if name in item), None)


def _texts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
