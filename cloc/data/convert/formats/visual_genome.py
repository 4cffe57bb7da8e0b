"""Region descriptions of Visual Genome (Krishna et al. 2017)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cloc.data.convert.formats.coco import COCO_BOXES
from cloc.data.convert.formats.files import json_items, json_objects, need_file
from cloc.data.convert.formats.ids import Kind, collect, id_of, same_picture
from cloc.data.convert.formats.registry import holds, register
from cloc.data.convert.records import Record, RecordSource
from cloc.data.json_values import parse_json
from cloc.data.shards.keys import Keys

_SPLITS = "densecap_splits.json"


def _path(picture: Mapping[str, Any]) -> str | None:
    """Return a picture's path below the folder of the two folders: the last two parts of its URL."""
    url = picture.get("url")
    return "/".join(urlsplit(url).path.split("/")[-2:]) if isinstance(url, str) else None


_PICTURES = Kind("picture", _path, lambda one, two: same_picture(one, two, _path), "image_id")


@register(
    "visual_genome",
    "a folder with region_descriptions.json, image_data.json and VG_100K*/",
    holds("region_descriptions.json"),
)
def open_visual_genome(source: Path, *, split: str | None = None, images: Path | None = None) -> RecordSource:
    """Open ``region_descriptions.json``, ``image_data.json`` and the pictures in ``VG_100K/`` and ``VG_100K_2/``.

    Descriptions of one box are its phrases. There are no captions and no categories.

    Args:
        source: folder of the files.
        split: ``train``, ``val`` or ``test`` of DenseCap's ``densecap_splits.json`` in the source; all pictures where
            it is left out, since Visual Genome has no splits of its own.
        images: folder of the two folders of pictures, where it is not the source.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no such split; an id stands for two pictures.
    """
    remedy = "download it from the Visual Genome site"
    regions = need_file(source / "region_descriptions.json", remedy)
    data = need_file(source / "image_data.json", remedy)
    files: tuple[Path, ...] = (regions, data)
    pictures: dict[str, dict[str, Any]] = {}
    items = ({**item, "image_id": item.get("image_id", item.get("id"))} for item in json_objects(data, "item"))
    collect(pictures, items, data, _PICTURES)
    if split is not None:
        files = (*files, need_file(source / _SPLITS, "it comes with DenseCap; leave --split out for all pictures"))
        splits = parse_json((source / _SPLITS).read_bytes())
        if not isinstance(splits, dict) or not all(isinstance(ids, list) for ids in splits.values()):
            raise ValueError(f"{source / _SPLITS}: an object of lists of ids is needed; download it again")
        if split not in splits:
            raise ValueError(f"{source / _SPLITS}: no split {split!r}, but {', '.join(splits)}; name one with --split")
        wanted = {str(id_of(number)) for number in splits[split]}
    else:
        wanted = None
    records = _records(regions, pictures, wanted, images or source)
    total = len(pictures if wanted is None else wanted)
    name = f"visual_genome{'' if split is None else '_' + split}"
    return RecordSource(name, files, records, total, parse=genome_object, boxes=COCO_BOXES)


def _records(path: Path, pictures: Mapping[str, Any], wanted: set[str] | None, root: Path) -> Iterator[Record]:
    keys = Keys()
    missing = set(wanted or ())
    for place, item in enumerate(json_items(path, "item")):
        number = id_of(item.get("id")) if isinstance(item, dict) else None
        if wanted is not None and number not in wanted:
            continue
        missing.discard(number)
        where = f"image {number}, item {place} of {path.name}"
        picture = pictures.get(number or "")
        name = _path(picture) if picture is not None else None
        if name is None:
            yield Record(where, fault=("bad_annotation", "image_data.json has no such picture, or no url of it"))
            continue
        annotations = {"image": picture, "regions": item.get("regions") or []}
        yield Record(where, keys.unique(Path(name).stem), root / name, annotations)
    for number in sorted(missing, key=lambda number: (len(number), number)):
        yield Record(f"image {number}", fault=("bad_annotation", f"{path.name} has no such picture"))


def genome_object(annotations: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Make a shard's JSON object of one picture: ``RecordSource.parse`` of this format. Boxes stay in pixels.

    Args:
        annotations: ``image``, an item of ``image_data.json``, and ``regions`` of ``region_descriptions.json``.
        counts: receives ``box_joined`` for each further description of a box.
    """
    image = annotations["image"]
    regions: dict[Any, Any] = {}
    for place, region in enumerate(annotations["regions"]):
        if not isinstance(region, dict):  # counted as region_malformed
            regions[place] = None
            continue
        box = [region.get(name) for name in ("x", "y", "width", "height")]
        if repr(box) not in regions:
            regions[repr(box)] = {"box": box, "phrases": [region.get("phrase")]}
            continue
        counts["box_joined"] += 1
        if region.get("phrase") not in regions[repr(box)]["phrases"]:
            regions[repr(box)]["phrases"].append(region.get("phrase"))
    return {
        "width": image.get("width"),
        "height": image.get("height"),
        "vg_id": image["image_id"],
        "coco_id": image.get("coco_id"),
        "regions": list(regions.values()),
    }
