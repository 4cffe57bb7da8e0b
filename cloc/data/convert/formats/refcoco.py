"""RefCOCO and RefCOCO+ (Yu et al. 2016) and RefCOCOg (Mao et al. 2016), in the layout of the ``refer`` API."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from cloc.data.convert.formats.coco import CATEGORIES, COCO_BOXES, IMAGES, file_name
from cloc.data.convert.formats.files import json_objects, need_file, need_folder
from cloc.data.convert.formats.ids import Kind, collect, id_of
from cloc.data.convert.records import Keys, Record, RecordSource

_OBJECTS = Kind(
    "annotation",
    lambda item: item.get("bbox"),
    lambda one, two: all(one.get(name) == two.get(name) for name in ("image_id", "bbox", "category_id")),
)
_PICTURES = "images/mscoco/images/train2014"


def open_refcoco(
    source: Path, *, split: str = "val", split_by: str | None = None, images: Path | None = None
) -> RecordSource:
    """Open ``refs(SPLIT_BY).json`` and ``instances.json``.

    The published file of references is a pickle, which is never loaded here; its content as JSON is needed. A region is
    an object with all sentences that refer to it; objects without one are no regions, pictures without one no samples.

    Args:
        source: folder of the two files.
        split: ``train``, ``val``, ``test``, ``testA`` or ``testB``; ``test`` takes all three.
        split_by: ``unc``, ``umd`` or ``google``; None where there is one file of references.
        images: folder of COCO's ``train2014`` pictures; None for ``images/mscoco/images/train2014`` beside ``source``.

    Raises:
        FileNotFoundError: a file is missing, or is there as a pickle only.
        ValueError: there are several files of references and no ``split_by``; there is no such split; an id stands for
            two pictures, classes or objects.
    """
    refs = _find_refs(source, split_by)
    instances = need_file(source / "instances.json", "it belongs to the same download as the references")
    root = need_folder(
        images or source.parent / _PICTURES, "name the folder of COCO's train2014 pictures with --images"
    )
    by_image: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    splits: Counter[Any] = Counter()
    for ref in json_objects(refs, "item"):
        splits[str(ref.get("split"))] += 1
        if ref.get("split") == split or (split == "test" and str(ref.get("split")).startswith("test")):
            by_image[id_of(ref.get("image_id")) or ""].append(ref)
    if not by_image:
        seen = ", ".join(f"{name} ({count:,})" for name, count in splits.items()) or "no reference at all"
        raise ValueError(f"{refs}: no reference of split {split!r}, but {seen}; name one with --split")
    wanted = {id_of(ref.get("ann_id")) for group in by_image.values() for ref in group} - {None}
    known: dict[str, dict[str, Any]] = {}
    categories: dict[str, dict[str, Any]] = {}
    objects: dict[str, dict[str, Any]] = {}
    collect(known, _some(instances, "images.item", by_image), instances, IMAGES)
    collect(categories, json_objects(instances, "categories.item"), instances, CATEGORIES)
    collect(objects, _some(instances, "annotations.item", wanted), instances, _OBJECTS)
    names = {number: item["name"] for number, item in categories.items()}
    records = _records(by_image, known, objects, names, root)
    title, classes = f"{source.name}_{split}", tuple(sorted(set(names.values())))
    return RecordSource(title, (refs, instances), records, len(by_image), classes, refcoco_object, boxes=COCO_BOXES)


def _some(path: Path, prefix: str, wanted: Container[str | None]) -> Iterator[dict[str, Any]]:
    """Yield the items of wanted ids, without their masks."""
    for item in json_objects(path, prefix):
        if id_of(item.get("id")) in wanted:
            yield {name: value for name, value in item.items() if name != "segmentation"}


def _find_refs(source: Path, split_by: str | None) -> Path:
    found = sorted(source.glob(f"refs({split_by or '*'}).json"))
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{source}: holds {', '.join(path.name for path in found)}; name one with --split-by")
    pickles = sorted(source.glob(f"refs({split_by or '*'}).p"))
    if pickles:
        path = pickles[0]
        code = f"import json, pickle; json.dump(pickle.load(open('{path.name}', 'rb')), open('{path.stem}.json', 'w'))"
        remedy = f'if you trust the file, turn it into JSON once, in its folder: python -c "{code}"'
        raise FileNotFoundError(f"{path}: a pickle, which can run code and is never loaded here; {remedy}")
    raise FileNotFoundError(f"{source}: no refs({split_by or 'SPLIT_BY'}).json; name the folder of one of the sets")


def _records(
    by_image: Mapping[str, list[dict[str, Any]]],
    images: Mapping[str, dict[str, Any]],
    objects: Mapping[str, dict[str, Any]],
    names: Mapping[str, str],
    root: Path,
) -> Iterator[Record]:
    keys = Keys()
    for number, refs in by_image.items():
        image = images.get(number)
        path = file_name(image) if image else None
        if path is None:
            detail = "instances.json has no such picture" if image is None else "it has no file_name"
            yield Record(f"image {number}", fault=("bad_annotation", detail))
            continue
        told = []
        for ref in refs:
            own = objects.get(id_of(ref.get("ann_id")) or "")
            if own is not None and id_of(own.get("image_id")) != number:
                own = None  # an object of another picture is none of this one, whatever the reference says
            category = names.get(id_of(own.get("category_id")) or "") if own is not None else None
            told.append((ref.get("sentences"), own, category))
        yield Record(f"image {number}", keys.unique(Path(path).stem), root / path, {"image": image, "refs": told})


def refcoco_object(annotations: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Make a shard's JSON object of one picture: ``RecordSource.parse`` of this format. Boxes stay in pixels.

    Args:
        annotations: ``image`` (COCO's object) and ``refs``: of each the sentences, the object (COCO's annotation) and
            its category.
        counts: receives ``box_joined`` for a second reference to the same object.
    """
    image = annotations["image"]
    regions: dict[Any, Any] = {}
    for place, (sentences, found, category) in enumerate(annotations["refs"]):
        if found is None:  # counted as region_malformed
            regions[("missing", place)] = None
            continue
        number = id_of(found["id"])
        if number in regions:
            counts["box_joined"] += 1
        else:
            box, crowd = found.get("bbox"), found.get("iscrowd")
            regions[number] = {"box": box, "phrases": [], "category": category, "crowd": crowd}
        texts = [sentence["sent"] for sentence in sentences]
        regions[number]["phrases"] = list(dict.fromkeys([*regions[number]["phrases"], *texts]))
    size = {"width": image.get("width"), "height": image.get("height"), "coco_id": image["id"]}
    return size | {"regions": list(regions.values())}
