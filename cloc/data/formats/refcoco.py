"""RefCOCO and RefCOCO+ (Yu et al. 2016) and RefCOCOg (Mao et al. 2016), in the layout of the ``refer`` API."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cloc.data.formats.coco import file_name, normalize_xywh
from cloc.data.formats.files import json_items, need_file, need_folder
from cloc.data.records import Keys, Record, Source

_PICTURES = "images/mscoco/images/train2014"


def open_refcoco(
    source: Path, *, split: str = "val", split_by: str | None = None, images: Path | None = None
) -> Source:
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
        ValueError: there are several files of references and no ``split_by``; there is no such split.
    """
    refs = _find_refs(source, split_by)
    instances = need_file(source / "instances.json", "it belongs to the same download as the references")
    root = need_folder(
        images or source.parent / _PICTURES, "name the folder of COCO's train2014 pictures with --images"
    )
    by_image: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    splits: Counter[Any] = Counter()
    for ref in json_items(refs, "item"):
        splits[ref.get("split")] += 1
        if ref.get("split") == split or (split == "test" and str(ref.get("split")).startswith("test")):
            by_image[ref.get("image_id")].append(ref)
    if not by_image:
        seen = ", ".join(f"{name} ({count:,})" for name, count in splits.items()) or "no reference at all"
        raise ValueError(f"{refs}: no reference of split {split!r}, but {seen}; name one with --split")
    names = {item["id"]: item["name"] for item in json_items(instances, "categories.item")}
    known = {item["id"]: item for item in json_items(instances, "images.item") if item["id"] in by_image}
    wanted = {ref.get("ann_id") for group in by_image.values() for ref in group}
    objects = {
        item["id"]: (item.get("bbox"), names.get(item.get("category_id")), bool(item.get("iscrowd")))
        for item in json_items(instances, "annotations.item")
        if item["id"] in wanted
    }
    records = _records(by_image, known, objects, root)
    name = f"{source.name}_{split}"
    return Source(name, (refs, instances), records, len(by_image), tuple(sorted(set(names.values()))), refcoco_object)


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
    by_image: Mapping[Any, list[dict[str, Any]]],
    images: Mapping[Any, dict[str, Any]],
    objects: Mapping[Any, tuple[Any, str | None, bool]],
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
        told = [(ref.get("ann_id"), ref.get("sentences"), objects.get(ref.get("ann_id"))) for ref in refs]
        yield Record(f"image {number}", keys.unique(Path(path).stem), root / path, {"image": image, "refs": told})


def refcoco_object(annotations: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Make a shard's JSON object of one picture: ``Source.parse`` of this format.

    Args:
        annotations: ``image`` (COCO's object) and ``refs``: of each the object's id, the sentences, and the object's
            box, category and crowd flag.
        counts: receives ``box_joined`` for a second reference to the same object.
    """
    image = annotations["image"]
    regions: dict[Any, Any] = {}
    for place, (number, sentences, found) in enumerate(annotations["refs"]):
        if found is None:  # counted as region_malformed
            regions[("missing", place)] = None
            continue
        box, category, crowd = found
        if number in regions:
            counts["box_joined"] += 1
        else:
            box = normalize_xywh(box, image)
            regions[number] = {"box": box, "phrases": [], "category": category, "crowd": crowd}
        texts = [sentence["sent"] for sentence in sentences]
        regions[number]["phrases"] = list(dict.fromkeys([*regions[number]["phrases"], *texts]))
    size = {"width": image["width"], "height": image["height"], "coco_id": image["id"]}
    return size | {"regions": list(regions.values())}
