"""Karpathy's splits (Karpathy and Fei-Fei 2015) as JSON: ``dataset_coco.json``, ``dataset_flickr30k.json``.

The files on which retrieval is reported: 5,000 and 1,000 pictures of the split ``test``, five captions each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloc.data.convert.formats.files import json_objects
from cloc.data.convert.formats.listing import ALL, pick_splits, picture_stem
from cloc.data.convert.formats.peek import peek_json
from cloc.data.convert.formats.registry import register
from cloc.data.convert.pictures import PictureFinder
from cloc.data.convert.records import Record, RecordSource
from cloc.data.json_values import shown
from cloc.data.shards.keys import Keys

_PATTERN = "dataset_*.json"


def _is_karpathy(source: Path) -> bool:
    if source.is_dir():
        return any(_is_karpathy(path) for path in source.glob(_PATTERN))
    seen = peek_json(source) if source.suffix.lower() == ".json" else None
    return seen is not None and "sentences" in seen.item("images")


@register(
    "karpathy", "dataset_coco.json, dataset_flickr30k.json or dataset_flickr8k.json, or a folder of one", _is_karpathy
)
def open_karpathy(source: Path, *, split: str = "test", images: Path | None = None) -> RecordSource:
    """Open Karpathy's JSON: ``images`` with ``filename``, ``split`` and the captions in ``sentences[].raw``.

    Args:
        source: the file, or the folder of it.
        split: train, restval, val or test; several with commas, or all.
        images: folder of the pictures (of ``train2014/`` and ``val2014/`` for COCO), where it is not the file's own.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder has several of them; there is no such split.
    """
    path = _file_of(source)
    counts = Counter(str(item.get("split")) for item in json_objects(path, "images.item"))
    picked = pick_splits(counts, split, f"{path} ({', '.join(f'{name} {count:,}' for name, count in counts.items())})")
    total = sum(counts[name] for name in picked)
    name = "_".join([path.stem.removeprefix("dataset_"), *(picked if split != ALL else ())])
    finder = PictureFinder(images or path.parent)
    return RecordSource(name, (path,), _records(path, set(picked), finder), total, finder=finder)


def _file_of(source: Path) -> Path:
    if source.is_file():
        return source
    found = sorted(source.glob(_PATTERN))
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or f"no {_PATTERN}"
        raise (ValueError if found else FileNotFoundError)(f"{source}: holds {listed}; name the file itself as SOURCE")
    return found[0]


def _records(path: Path, picked: set[str], finder: PictureFinder) -> Iterator[Record]:
    keys = Keys()
    for place, item in enumerate(json_objects(path, "images.item")):
        if str(item.get("split")) not in picked:
            continue
        where, name, folder = f"{path.name} images[{place}]", item.get("filename"), item.get("filepath") or ""
        sentences = item.get("sentences")
        if not isinstance(name, str) or not isinstance(folder, str):
            yield Record(where, fault=("no_image", f"{where}: filename is {shown(name)}, a text is needed"))
        elif not isinstance(sentences, list):
            yield Record(where, fault=("bad_annotation", f"{where}: sentences is {shown(sentences)}, a list is needed"))
        else:
            captions = [one.get("raw") if isinstance(one, dict) else one for one in sentences]
            picture = finder.find(f"{folder}/{name}" if folder else name)
            yield Record(where, keys.unique(picture_stem(name)), picture, _annotations(item, captions))


def _annotations(item: dict[str, Any], captions: list[Any]) -> dict[str, Any]:
    kept = {"coco_id": item["cocoid"]} if "cocoid" in item else {}
    return kept | {"captions": captions}
