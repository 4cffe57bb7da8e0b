"""Detection sets in COCO's JSON layout: COCO itself and LVIS."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cloc.data.formats.files import json_items, need_file, need_folder
from cloc.data.records import Keys, Record, Source

Annotations = Mapping[Any, Sequence[Any]]


def open_coco(source: Path, *, split: str = "val2017", images: Path | None = None) -> Source:
    """Open COCO's standard layout: ``annotations/{instances,captions}_SPLIT.json`` and the pictures in ``SPLIT/``.

    Category names are phrases, crowd flags are kept, masks are not read. One of the two files may be missing.

    Args:
        source: folder that holds ``annotations`` and the pictures.
        split: name of the picture folder.
        images: folder of the pictures; None for ``SPLIT`` in ``source``.

    Raises:
        FileNotFoundError: there is neither annotation file, or no picture folder.
    """
    folder = source / "annotations"
    paths = [folder / f"instances_{split}.json", folder / f"captions_{split}.json"]
    files = [path for path in paths if path.is_file()]
    if not files:
        raise FileNotFoundError(f"{paths[0]}: no such file, nor {paths[1].name}; name a split with --split")
    root = need_folder(
        images or source / split, "name the folder of the pictures with --images, or a split with --split"
    )
    return _open(f"coco_{split}", files, root, str)


def open_lvis(source: Path, *, split: str = "val", images: Path | None = None) -> Source:
    """Open LVIS v1: ``lvis_v1_SPLIT.json`` and COCO's pictures, ``train2017/`` and ``val2017/``.

    A category's name and its synonyms are the phrases, with spaces for underscores.

    Args:
        source: folder of the JSON file, or of ``annotations/`` that holds it.
        split: ``train``, ``val``, or another part of the file's name.
        images: folder of ``train2017/`` and ``val2017/``; None for ``source``.

    Raises:
        FileNotFoundError: there is no such annotation file.
    """
    name = f"lvis_v1_{split}.json"
    path = source / "annotations" / name
    path = path if path.is_file() else need_file(source / name, "name a split with --split")
    return _open(f"lvis_{split}", [path], images or source, lambda name: name.replace("_", " "))


def normalize_xywh(box: Any, image: Mapping[str, Any]) -> Any:
    """Turn a box ``[x, y, width, height]`` in pixels into xyxy in 0..1; what is none stays for the parser to count."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        return box
    x, y, width, height = box
    return [x / image["width"], y / image["height"], (x + width) / image["width"], (y + height) / image["height"]]


def _open(name: str, files: list[Path], root: Path, readable: Callable[[str], str]) -> Source:
    images: dict[Any, Any] = {}
    categories: dict[Any, dict[str, Any]] = {}
    boxes, captions, dropped = defaultdict(list), defaultdict(list), Counter[str]()
    for path in files:
        images.update((image["id"], image) for image in json_items(path, "images.item"))
        categories.update((item["id"], item) for item in json_items(path, "categories.item"))
    for path in files:
        for item in json_items(path, "annotations.item"):
            image = item.get("image_id") if isinstance(item, dict) else None
            if not isinstance(image, int | str) or image not in images:
                dropped["annotation_without_image"] += 1
            elif "caption" in item:
                captions[image].append(item["caption"])
            else:  # the mask, most of the file, is let go
                kind = item.get("category_id")
                boxes[image].append(
                    (item.get("bbox"), kind if isinstance(kind, int | str) else None, item.get("iscrowd"))
                )
    names = {number: readable(item["name"]) for number, item in categories.items()}
    phrases = {
        number: list(dict.fromkeys([names[number], *map(readable, item.get("synonyms") or [])]))
        for number, item in categories.items()
    }
    records = _records(images, boxes, captions, names, phrases, root)
    known = tuple(sorted(set(names.values()))) or None
    return Source(name, tuple(files), records, len(images), known, coco_object, dropped)


def _records(
    images: Mapping[Any, Any],
    boxes: Annotations,
    captions: Annotations,
    names: Mapping[Any, str],
    phrases: Mapping[Any, list[str]],
    root: Path,
) -> Iterator[Record]:
    keys = Keys()
    for number, image in images.items():
        path = file_name(image)
        if path is None:
            yield Record(f"image {number}", fault=("bad_annotation", "neither file_name nor coco_url"))
            continue
        regions = [
            {"box": box, "phrases": phrases.get(kind, []), "category": names.get(kind), "crowd": bool(crowd)}
            for box, kind, crowd in boxes.get(number, ())
        ]
        annotations = {"image": image, "regions": regions, "captions": captions.get(number, [])}
        yield Record(f"image {number}", keys.unique(Path(path).stem), root / path, annotations)


def file_name(image: Mapping[str, Any]) -> str | None:
    """Return a picture's path below the folder of pictures: its name, or in LVIS v1 the last two parts of its URL."""
    if isinstance(image.get("file_name"), str):
        return image["file_name"]
    url = image.get("coco_url")
    return "/".join(urlsplit(url).path.split("/")[-2:]) if isinstance(url, str) else None


def coco_object(annotations: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Make a shard's JSON object of one picture: ``Source.parse`` of this family.

    Args:
        annotations: ``image`` (COCO's object), ``captions``, and ``regions`` with boxes ``[x, y, width, height]`` in
            pixels.
        counts: not used.
    """
    image = annotations["image"]
    return {
        "width": image["width"],
        "height": image["height"],
        "coco_id": image["id"],
        "regions": [{**region, "box": normalize_xywh(region["box"], image)} for region in annotations["regions"]],
        "captions": annotations["captions"],
    }
