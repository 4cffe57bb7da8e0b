"""Two small pictures with three boxes, as each tool writes them: what ``data convert auto`` must read back box for box.

Each function writes one into a folder, after the layout that its docstring names, and says what is to be found there.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kit.sources import jpeg, write

WIDTH, HEIGHT = 40, 20
DOG, BUS = "dog", "red bus"
CLASSES = (DOG, BUS)
PIXELS = {"one": [(DOG, (4, 2, 24, 12)), (BUS, (20, 10, 40, 20))], "two": [(DOG, (0, 0, 20, 10))]}
"""Boxes by picture: class, and xyxy in pixels."""

Regions = list[tuple[tuple[float, ...], tuple[str, ...], str | None, bool]]


def shares(box: Iterable[float]) -> tuple[float, ...]:
    """xyxy in 0..1."""
    return tuple(round(value / side, 6) for value, side in zip(box, (WIDTH, HEIGHT) * 2, strict=True))


def as_regions(crowds: Iterable[str] = (), category: bool = True) -> dict[str, Regions]:
    """What is to be found: box, phrases, class, group; the class in ``crowds`` is one of groups."""
    return {
        name: [(shares(box), (label,), label if category else None, label in crowds) for label, box in boxes]
        for name, boxes in PIXELS.items()
    }


@dataclass
class Miniature:
    """A source that was written.

    Attributes:
        source: its path.
        options: of the conversion.
        regions: by picture.
        captions: by picture.
    """

    source: Path
    options: dict[str, Any] = field(default_factory=dict)
    regions: dict[str, Regions] = field(default_factory=as_regions)
    captions: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"one": (), "two": ()})


TEXTS = {"one": ("A dog before a bus.", "Ein Hund, größer."), "two": ("A dog.",)}
MINIATURES: dict[str, tuple[str, Callable[[Path], Miniature]]] = {}
"""By a name of the layout: the format that reads it, and what writes it."""


def miniature(format: str, layout: str = "") -> Callable[[Callable[[Path], Miniature]], Callable[[Path], Miniature]]:
    """Put the decorated function into the list."""

    def add(function: Callable[[Path], Miniature]) -> Callable[[Path], Miniature]:
        MINIATURES[f"{format} {layout}".strip()] = (format, function)
        return function

    return add


def pictures(folder: Path, suffix: str = ".jpg") -> None:
    for name in PIXELS:
        write(folder / f"{name}{suffix}", jpeg((WIDTH, HEIGHT)))


def table(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _yolo_line(label: str, box: tuple[int, ...]) -> str:
    x0, y0, x1, y1 = shares(box)
    return f"{CLASSES.index(label)} {(x0 + x1) / 2} {(y0 + y1) / 2} {x1 - x0} {y1 - y0}"


def yolo_labels(folder: Path) -> None:
    for name, boxes in PIXELS.items():
        write(folder / f"{name}.txt", "\n".join(_yolo_line(*one) for one in boxes))


@miniature("yolo", "Ultralytics")
def ultralytics(folder: Path) -> Miniature:
    """https://docs.ultralytics.com/datasets/detect/ ."""
    for split in ("train", "val"):
        pictures(folder / f"images/{split}")
        yolo_labels(folder / f"labels/{split}")
    write(
        folder / "data.yaml",
        "path: /data/of/somebody\ntrain: images/train\nval: images/val\nnames:\n  0: dog\n  1: red bus\n",
    )
    return Miniature(folder, {"split": "val"})


@miniature("yolo", "Roboflow")
def roboflow(folder: Path) -> Miniature:
    """Roboflow's export "YOLOv8": ``train: ../train/images``, which is one folder too high."""
    pictures(folder / "train/images")
    yolo_labels(folder / "train/labels")
    write(folder / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['dog', 'red bus']\n")
    return Miniature(folder)


@miniature("yolo", "Darknet")
def darknet(folder: Path) -> Miniature:
    """https://docs.cvat.ai/docs/manual/advanced/formats/format-yolo/ ."""
    pictures(folder / "obj_train_data")
    yolo_labels(folder / "obj_train_data")
    write(folder / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    write(folder / "obj.names", "dog\nred bus\n")
    write(folder / "train.txt", "data/obj_train_data/one.jpg\ndata/obj_train_data/two.jpg\n")
    return Miniature(folder)


@miniature("yolo", "LabelImg")
def labelimg(folder: Path) -> Miniature:
    """https://github.com/HumanSignal/labelImg: texts and classes.txt beside the pictures."""
    pictures(folder)
    yolo_labels(folder)
    write(folder / "classes.txt", b"\xef\xbb\xbfdog\r\nred bus\r\n")
    return Miniature(folder)


@miniature("yolo", "segments")
def segments(folder: Path) -> Miniature:
    """https://docs.ultralytics.com/datasets/segment/ : polygons; Label Studio's ``classes.txt`` with ``images``."""
    pictures(folder / "images")
    for name, boxes in PIXELS.items():
        corners = [(CLASSES.index(label), shares(box)) for label, box in boxes]
        lines = [f"{number} {x0} {y0} {x1} {y0} {x1} {y1} {x0} {y1}" for number, (x0, y0, x1, y1) in corners]
        write(folder / f"labels/{name}.txt", "\n".join(lines))
    write(folder / "classes.txt", "dog\nred bus\n")
    return Miniature(folder)


def voc_xml(name: str, first: int, **flags: str) -> str:
    """One XML file; ``flags`` of each class are further elements."""
    objects = "".join(
        f"<object><name>{label}</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>"
        f"{flags.get(label, '')}<bndbox><xmin>{x0 + first}</xmin><ymin>{y0 + first}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for label, (x0, y0, x1, y1) in PIXELS[name]
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><folder>x</folder><filename>{name}.jpg</filename>{size}{objects}</annotation>"


@miniature("voc", "VOC2012")
def voc(folder: Path) -> Miniature:
    """http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ : pixels from 1, lists of splits."""
    pictures(folder / "JPEGImages")
    for name in PIXELS:
        write(folder / f"Annotations/{name}.xml", voc_xml(name, 1, dog="<crowd>1</crowd>"))
    write(folder / "ImageSets/Main/trainval.txt", "one\ntwo\n")
    write(folder / "ImageSets/Main/dog_trainval.txt", "one  1\ntwo  1\n")
    return Miniature(folder, regions=as_regions(crowds=(DOG,)))


@miniature("voc", "Roboflow")
def voc_beside(folder: Path) -> Miniature:
    """Roboflow's "Pascal VOC": each file beside its picture, pixels from 0."""
    pictures(folder / "train")
    for name in PIXELS:
        write(folder / f"train/{name}.xml", voc_xml(name, 0))
    return Miniature(folder)


@miniature("odvg", "detection")
def odvg(folder: Path) -> Miniature:
    """https://github.com/longzw1997/Open-GroundingDino/blob/main/data_format.md ."""
    pictures(folder)
    lines = []
    for name, boxes in PIXELS.items():
        instances = [{"bbox": box, "label": CLASSES.index(label), "category": label} for label, box in boxes]
        size = {"filename": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}
        lines.append(json.dumps({**size, "detection": {"instances": instances}}))
    return Miniature(write(folder / "train.jsonl", "\n".join(lines)))


@miniature("odvg", "grounding")
def odvg_grounding(folder: Path) -> Miniature:
    """MM-Grounding-DINO, https://github.com/open-mmlab/mmdetection/tree/main/configs/mm_grounding_dino ."""
    pictures(folder / "pictures")
    lines = []
    for name, boxes in PIXELS.items():
        regions = [
            {"bbox": [box], "phrase": [label, f"a {label}"], "tokens_positive": [[2, 5]]} for label, box in boxes
        ]
        grounding = {"caption": TEXTS[name][0], "regions": regions}
        size = {"filename": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}
        lines.append(json.dumps({**size, "grounding": grounding}))
    found = {
        name: [(shares(box), (label, f"a {label}"), None, False) for label, box in boxes]
        for name, boxes in PIXELS.items()
    }
    captions = {name: texts[:1] for name, texts in TEXTS.items()}
    source = write(folder / "train_vg.jsonl", "\n".join(lines))
    return Miniature(source, {"images": folder / "pictures"}, found, captions)


@miniature("image_text")
def image_text(folder: Path) -> Miniature:
    """A text of the same name beside each picture, as kohya's and other trainers read them."""
    pictures(folder)
    for name, texts in TEXTS.items():
        write(folder / f"{name}.txt", "\r\n".join(texts))
    return Miniature(folder, regions={"one": [], "two": []}, captions=dict(TEXTS))


@miniature("img2dataset_files")
def img2dataset_files(folder: Path) -> Miniature:
    """https://github.com/rom1504/img2dataset , ``--output_format files``."""
    for number, (name, texts) in enumerate(TEXTS.items()):
        base = folder / f"00000/{number:09d}"
        told = {"caption": texts[0], "url": f"http://x/{name}", "key": base.name, "status": "success", "sha256": "0"}
        write(base.with_suffix(".jpg"), jpeg((WIDTH, HEIGHT)))
        write(base.with_suffix(".txt"), texts[0])
        write(base.with_suffix(".json"), told | {"width": WIDTH, "height": HEIGHT, "exif": "{}"})
    write(folder / "00000_stats.json", {"count": 2, "successes": 2})
    captions = {"000000000": TEXTS["one"][:1], "000000001": TEXTS["two"]}
    return Miniature(folder, regions={"000000000": [], "000000001": []}, captions=captions)


def open_images_rows() -> list[dict[str, Any]]:
    labels = {DOG: "/m/0bt9lr", BUS: "/m/01bjv"}
    rows = []
    for name, boxes in PIXELS.items():
        for label, box in boxes:
            x0, y0, x1, y1 = shares(box)
            sides = {"XMin": x0, "XMax": x1, "YMin": y0, "YMax": y1, "IsGroupOf": int(label == BUS)}
            rows.append({"ImageID": name, "Source": "xclick", "LabelName": labels[label], "Confidence": 1, **sides})
    return rows


@miniature("open_images")
def open_images(folder: Path) -> Miniature:
    """https://storage.googleapis.com/openimages/web/download_v7.html ."""
    pictures(folder / "validation")
    write(folder / "validation-annotations-bbox.csv", table(open_images_rows()))
    write(folder / "class-descriptions-boxable.csv", "/m/0bt9lr,dog\n/m/01bjv,red bus\n/m/0cmf2,Airplane\n")
    return Miniature(folder, regions=as_regions(crowds=(BUS,)))


@miniature("table", "open_clip")
def open_clip_table(folder: Path) -> Miniature:
    """https://github.com/mlfoundations/open_clip , ``--csv-img-key filepath --csv-caption-key title``."""
    pictures(folder / "pictures")
    rows = [{"filepath": f"pictures/{name}.jpg", "title": text} for name, texts in TEXTS.items() for text in texts]
    return Miniature(write(folder / "train.csv", table(rows, "\t")), {}, {"one": [], "two": []}, dict(TEXTS))


@miniature("table", "a box a row")
def box_table(folder: Path) -> Miniature:
    """Roboflow's "Tensorflow Object Detection CSV"."""
    pictures(folder)
    rows = [
        {"filename": f"{name}.jpg", "width": WIDTH, "height": HEIGHT, "class": label}
        | dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        for name, boxes in PIXELS.items()
        for label, box in boxes
    ]
    return Miniature(write(folder / "_annotations.csv", table(rows)))


@miniature("table", "lists")
def list_table(folder: Path) -> Miniature:
    """pandas' ``to_csv`` of columns of lists, as Kaggle has them."""
    pictures(folder)
    rows = [
        {"image": f"{name}.jpg", "boxes": [list(box) for _, box in boxes], "labels": [label for label, _ in boxes],
         "captions": list(TEXTS[name])}
        for name, boxes in PIXELS.items()
    ]  # fmt: skip
    return Miniature(write(folder / "set.tsv", table(rows, "\t")), {"boxes": "xyxy_pixels"}, captions=dict(TEXTS))


@miniature("table", "captions.txt")
def flickr8k_table(folder: Path) -> Miniature:
    """Flickr8k's ``captions.txt`` as Kaggle has it: a caption a row, with commas in it."""
    pictures(folder / "Images")
    rows = [{"image": f"{name}.jpg", "caption": text} for name, texts in TEXTS.items() for text in texts]
    return Miniature(write(folder / "captions.txt", table(rows)), {}, {"one": [], "two": []}, dict(TEXTS))


def objects(name: str) -> dict[str, Any]:
    """Hugging Face's dict of lists: boxes as xywh, numbers of classes."""
    boxes = [[x0, y0, x1 - x0, y1 - y0] for _, (x0, y0, x1, y1) in PIXELS[name]]
    return {"bbox": boxes, "categories": [CLASSES.index(label) for label, _ in PIXELS[name]]}


@miniature("imagefolder")
def imagefolder(folder: Path) -> Miniature:
    """https://huggingface.co/docs/datasets/image_dataset ."""
    pictures(folder / "train")
    lines = [{"file_name": f"{name}.jpg", "text": TEXTS[name][0], "objects": objects(name)} for name in PIXELS]
    write(folder / "train/metadata.jsonl", "\n".join(map(json.dumps, lines)))
    classes = write(folder.parent / "names.txt", "dog\nred bus\n")
    captions = {name: texts[:1] for name, texts in TEXTS.items()}
    return Miniature(folder, {"classes": classes}, captions=captions)


@miniature("karpathy")
def karpathy(folder: Path) -> Miniature:
    """https://cs.stanford.edu/people/karpathy/deepimagesent/ ."""
    pictures(folder / "val2014")
    items = [
        {"filepath": "val2014", "filename": f"{name}.jpg", "split": "test", "cocoid": number, "sentids": [0],
         "sentences": [{"tokens": ["a"], "raw": text, "imgid": 0, "sentid": 0} for text in texts]}
        for number, (name, texts) in enumerate(TEXTS.items())
    ]  # fmt: skip
    items.append({**items[0], "split": "restval"})
    source = write(folder / "dataset_coco.json", {"images": items, "dataset": "coco"})
    return Miniature(source, regions={"one": [], "two": []}, captions=dict(TEXTS))


@miniature("lavis")
def lavis(folder: Path) -> Miniature:
    """https://github.com/salesforce/LAVIS , ``coco_karpathy_test.json``: several captions an item."""
    pictures(folder / "val2014")
    items = [{"image": f"val2014/{name}.jpg", "caption": list(texts)} for name, texts in TEXTS.items()]
    source = write(folder / "coco_karpathy_test.json", items)
    return Miniature(source, regions={"one": [], "two": []}, captions=dict(TEXTS))


@miniature("lavis", "a caption an item")
def lavis_train(folder: Path) -> Miniature:
    """https://github.com/salesforce/BLIP , ``coco_karpathy_train.json``; paths of another machine."""
    pictures(folder / "images")
    items = [
        {"caption": text, "image": f"/export/share/coco/images/{name}.jpg", "image_id": f"coco_{name}"}
        for name, texts in TEXTS.items()
        for text in texts
    ]
    source = write(folder / "coco_karpathy_train.json", [items[0], items[2], items[1]])
    return Miniature(source, regions={"one": [], "two": []}, captions=dict(TEXTS))


@miniature("cvat")
def cvat(folder: Path) -> Miniature:
    """https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/ , "CVAT for images 1.1"."""
    pictures(folder / "images")
    items = ""
    for number, (name, boxes) in enumerate(PIXELS.items()):
        shapes = "".join(
            f'<box label="{label}" occluded="0" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}" z_order="0">'
            f'<attribute name="iscrowd">{"true" if label == BUS else "false"}</attribute></box>'
            for label, (x0, y0, x1, y1) in boxes
        )
        items += f'<image id="{number}" name="{name}.jpg" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
    labels = "".join(f"<label><name>{label}</name><attributes/></label>" for label in CLASSES)
    meta = f"<meta><job><labels>{labels}</labels></job></meta>"
    write(
        folder / "annotations.xml",
        f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{meta}{items}</annotations>',
    )
    return Miniature(folder, regions=as_regions(crowds=(BUS,)))


@miniature("label_studio")
def label_studio(folder: Path) -> Miniature:
    """https://labelstud.io/guide/export , "JSON": percent, a text area for each box."""
    pictures(folder)
    tasks: list[dict[str, Any]] = []
    for number, (name, boxes) in enumerate(PIXELS.items()):
        results: list[dict[str, Any]] = [{"id": "c", "type": "textarea", "value": {"text": list(TEXTS[name])}}]
        for place, (label, box) in enumerate(boxes):
            x0, y0, x1, y1 = (100 * value for value in shares(box))
            shape = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "rotation": 0}
            sizes = {"id": f"r{place}", "original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
            results.append({**sizes, "type": "rectanglelabels", "value": {**shape, "rectanglelabels": [label]}})
            results.append({**sizes, "type": "textarea", "value": {**shape, "text": [f"the {label}"]}})
        data = {"image": f"/data/upload/1/0a1b2c3d-{name}.jpg"}
        tasks.append(
            {"id": number, "data": data, "annotations": [{"id": 9, "was_cancelled": False, "result": results}]}
        )
    found = {
        name: [(shares(box), (f"the {label}", label), label, False) for label, box in boxes]
        for name, boxes in PIXELS.items()
    }
    return Miniature(write(folder / "project-1.json", tasks), regions=found, captions=dict(TEXTS))
