"""Detection sets in COCO's JSON layout: COCO itself, LVIS, and what others write in it.

Beside COCO's own fields these are read: texts of a box (``caption`` and its like beside ``bbox``), texts of a picture
(``caption`` of an image), and the grounding files of MDETR and GLIP, whose boxes point into the picture's caption.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from cloc.data.boxes import check_kind
from cloc.data.convert.formats.coco_files import find_coco, find_pictures, recognizes_coco
from cloc.data.convert.formats.files import as_json, json_objects, named_file
from cloc.data.convert.formats.ids import Kind, collect, id_of, refuse_other_numbers, same_picture
from cloc.data.convert.formats.registry import holds, register
from cloc.data.convert.pictures import PictureFinder
from cloc.data.convert.records import Record, RecordSource
from cloc.data.drops import WITHOUT_IMAGE
from cloc.data.grit import cut
from cloc.data.shards.keys import Keys

COCO_BOXES = "xywh_pixels"

TEXT_KEYS = (
    "caption", "captions", "phrase", "phrases", "description", "descriptions", "object_description", "sentence",
    "sentences", "expression", "expressions", "text",
)  # fmt: skip
"""Keys of an annotation that hold texts of its box, or of the picture where it has none: a text, or a list of texts or
of RefCOCO's sentences."""

_OBJECTS365_FOLDER = "images/v"  # of file_name, where the downloads have the folders patchN alone
_NO_PARENT = (None, "", "none", "None")


def file_name(image: Mapping[str, Any]) -> str | None:
    """Return a picture's path below the folder of pictures: its name, or in LVIS v1 the last two parts of its URL."""
    name = image.get("file_name")
    if isinstance(name, str):
        return name
    url = image.get("coco_url")
    return "/".join(urlsplit(url).path.split("/")[-2:]) if isinstance(url, str) else None


IMAGES = Kind("image", file_name, lambda one, two: same_picture(one, two, file_name))
CATEGORIES = Kind("category", lambda item: item["name"], lambda one, two: one["name"] == two["name"], text="name")


class Box(NamedTuple):
    """What is kept of an annotation with a box; the mask, most of a file, is let go."""

    box: Any
    category: str | None
    crowd: Any
    texts: tuple[Any, ...] = ()
    spans: Any = None
    phrases: Any = None


@dataclass(slots=True)
class CocoFiles:
    """What COCO files hold, by id.

    Attributes:
        images: COCO's objects, in the order of the files.
        names: class names.
        phrases: of each class, the name first.
        boxes: of each picture.
        captions: of each picture, those of the images' own ``caption`` aside.
        categories: class names of the set, without what only stands above the classes.
        roots: names that only stand above them.
        counts: what was dropped or mended, by reason.
        annotations: of pictures in the files.
    """

    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    phrases: dict[str, list[str]] = field(default_factory=dict)
    boxes: dict[str, list[Box]] = field(default_factory=lambda: defaultdict(list))
    captions: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    categories: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    annotations: int = 0

    def of(self, number: str) -> dict[str, Any]:
        """Return the annotations of one picture, as ``coco_object`` takes them."""
        boxes = [
            (box, self.phrases.get(box.category or "", []), self.names.get(box.category or ""))
            for box in self.boxes.get(number, ())
        ]
        return {"image": self.images[number], "boxes": boxes, "captions": self.captions.get(number, [])}


@register(
    "coco", "a JSON file of COCO's, or a folder with annotations/instances_SPLIT.json or one of them", recognizes_coco
)
def open_coco(
    source: Path,
    *,
    split: str | None = None,
    images: Path | None = None,
    boxes: str = COCO_BOXES,
    ignore_crowd_flag: bool = False,
) -> RecordSource:
    """Open COCO's JSON under any name: a file, or a folder that holds one.

    A box's phrases are its own texts, then the name of its category; in grounding files the words of the picture's
    caption that it points at. Crowd flags are kept, masks are not read. ``instances_SPLIT.json`` and
    ``captions_SPLIT.json`` of a folder are read together; one of the two may be missing.

    Args:
        source: the file, or a folder that holds it, or ``annotations`` or folders of splits with one each.
        split: which file of a folder: SPLIT of its name, or the folder that it is in; val2017, or the only one, else.
        images: folder of the pictures, where they are neither beside the file nor in SPLIT, images or data.
        boxes: order and unit of the boxes: xyxy, xywh, cxcywh or yxyx, _, and normalized, percent, thousand or pixels.
        ignore_crowd_flag: take groups (iscrowd) for ordinary regions.

    Raises:
        FileNotFoundError: there is no annotation file, or no picture folder.
        ValueError: there are several files; an id stands for two pictures or two classes, or two files number their
            pictures differently.
    """
    found = find_coco(source, split)
    coco = read_coco(found.files)
    names = [name for image in itertools.islice(coco.images.values(), 100) if (name := file_name(image)) is not None]
    finder = find_pictures(found, names, images)
    title = f"coco_{found.split}" if found.split else found.files[0].stem
    return open_annotations(title, found.files, coco, finder, check_kind(boxes), ignore_crowd_flag)


@register(
    "lvis",
    "lvis_v1_SPLIT.json, or a folder with it, and the pictures of COCO in train2017/ and val2017/",
    lambda source: source.name.startswith("lvis_v1_") or holds("lvis_v1_*.json", "annotations/lvis_v1_*.json")(source),
)
def open_lvis(source: Path, *, split: str | None = None, images: Path | None = None) -> RecordSource:
    """Open LVIS v1: ``lvis_v1_SPLIT.json`` and COCO's pictures, ``train2017/`` and ``val2017/``.

    A category's name and its synonyms are the phrases, with spaces for underscores.

    Args:
        source: the JSON file, its folder, or the folder of ``annotations/`` that holds it.
        split: train, val, minival_inserted_image_name, or another part of the file's name; val, or the only one, else.
        images: folder of ``train2017/`` and ``val2017/``, where it is not the source.

    Raises:
        FileNotFoundError: there is no such annotation file.
        ValueError: there are several; an id stands for two pictures or two classes.
    """
    path = named_file(source, "lvis_v1_{}.json", split, "val")
    root = images or (path.parent if source.is_file() else source)
    title = f"lvis_{path.stem.removeprefix('lvis_v1_')}"
    coco = read_coco([path], lambda name: name.replace("_", " "))
    return open_annotations(title, [path], coco, PictureFinder(root))


def open_annotations(
    name: str,
    files: Sequence[Path],
    coco: CocoFiles,
    finder: PictureFinder,
    boxes: str = COCO_BOXES,
    ignore_crowd_flag: bool = False,
) -> RecordSource:
    """Return the source of what COCO-like files hold.

    Args:
        name: of the source.
        files: which were read.
        coco: what they hold.
        finder: finds the pictures.
        boxes: order and unit of the boxes.
        ignore_crowd_flag: take groups for ordinary regions.
    """
    above = ", ".join(map(repr, coco.roots))
    notes = (f"no class, since it has no box and only stands above the classes: {above}",) if above else ()
    return RecordSource(
        name,
        tuple(files),
        _records(coco, finder),
        len(coco.images),
        coco.categories or None,
        coco_object,
        coco.counts,
        boxes,
        ignore_crowd_flag,
        coco.annotations,
        notes,
        finder,
    )


def read_coco(
    files: Sequence[Path], readable: Callable[[str], str] = str, synonyms: Callable[[str], list[str]] | None = None
) -> CocoFiles:
    """Read all but the masks of one or two files of the same pictures.

    Args:
        files: COCO's JSON.
        readable: makes a phrase of a category's name, which is the class too.
        synonyms: makes the phrases of a category's name, where that is none itself.

    Raises:
        ValueError: an id stands for two pictures or two classes, or two files number their pictures differently; a
            list is none, an item of it is no object, or a class has no text for a name.
    """
    coco = CocoFiles()
    categories: dict[str, dict[str, Any]] = {}
    earlier: set[int] = set()
    for path in files:
        images: dict[str, dict[str, Any]] = {}
        collect(images, json_objects(path, "images.item"), path, IMAGES)
        refuse_other_numbers(coco.images, images, (files[0], path), IMAGES)
        collect(coco.images, images.values(), path, IMAGES)
        collect(categories, json_objects(path, "categories.item"), path, CATEGORIES)
    for path in files:
        _read_annotations(path, coco, earlier)
    used = {box.category for boxes in coco.boxes.values() for box in boxes}
    roots = _roots(categories, used)
    placeholder = len(categories) == 1 and any(box.spans for boxes in coco.boxes.values() for box in boxes)
    for number, item in categories.items():
        if number not in roots and not placeholder:
            coco.names[number] = readable(item["name"])
            own = [coco.names[number]] if synonyms is None else synonyms(coco.names[number])
            phrases = [*own, *map(readable, _synonyms(item, number, files))]
            coco.phrases[number] = list(dict.fromkeys(phrases))
    coco.categories = tuple(sorted(set(coco.names.values())))
    coco.roots = tuple(sorted({str(categories[number]["name"]) for number in roots} - set(coco.categories)))
    return coco


def _synonyms(item: Mapping[str, Any], number: str, files: Sequence[Path]) -> list[str]:
    given = item.get("synonyms") or []
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        where = f"{' or '.join(map(str, files))}: category id {number} has the synonyms {as_json(given)}"
        raise ValueError(f"{where}; a list of texts is needed, correct it there")
    return given


def _roots(categories: Mapping[str, dict[str, Any]], used: set[str | None]) -> set[str]:
    """Find what is no class: without a box or a parent, and the parent of others, as Roboflow writes its project."""
    parents = {parent for item in categories.values() if isinstance(parent := item.get("supercategory"), str)}
    return {
        number
        for number, item in categories.items()
        if number not in used and item.get("supercategory") in _NO_PARENT and item["name"] in parents
    }


def _read_annotations(path: Path, coco: CocoFiles, earlier: set[int]) -> None:
    """Add the annotations of one file; ``earlier`` holds a fingerprint of each."""
    for item in json_objects(path, "annotations.item"):
        image = id_of(item.get("image_id"))
        if image is None or image not in coco.images:
            coco.counts[WITHOUT_IMAGE] += 1
            continue
        texts, box = _texts(item), item.get("bbox")
        spans, phrases = item.get("tokens_positive"), item.get("phrase_ids")
        kept = Box(box, id_of(item.get("category_id")), item.get("iscrowd"), tuple(texts), spans, phrases)
        fingerprint = hash((id_of(item.get("id")), image, repr(kept)))
        if "id" in item and fingerprint in earlier:
            coco.counts["annotation_twice"] += 1
            continue
        earlier.add(fingerprint)
        coco.annotations += 1
        if not box and any(key in item for key in TEXT_KEYS):
            coco.captions[image] += texts or [None]  # counted as caption_not_text
        else:
            coco.boxes[image].append(kept)


def _texts(item: Mapping[str, Any]) -> list[Any]:
    """Return the texts of an annotation; what is none stays for the parser to count."""
    texts = []
    for key in TEXT_KEYS:
        value = item.get(key)
        for text in value if isinstance(value, list) else [value]:
            texts.append(text.get("sent", text.get("raw")) if isinstance(text, dict) else text)
    return [text for text in texts if text is not None]


def _records(coco: CocoFiles, finder: PictureFinder) -> Iterator[Record]:
    keys = Keys()
    for number, image in coco.images.items():
        names = list(_names(image))
        if not names:
            yield Record(f"image {number}", fault=("bad_annotation", "neither file_name nor coco_url"))
            continue
        key = keys.unique(PureWindowsPath(names[0]).stem)  # whose separators are both
        yield Record(f"image {number}", key, finder.find(*names), coco.of(number))


def _names(image: Mapping[str, Any]) -> Iterator[str]:
    """The names by which a picture is looked for; where its own has no folder, COCO's folders have it too."""
    name, of_url = file_name(image), file_name({"coco_url": image.get("coco_url")})
    yield from () if name is None else (name,)
    if name is not None and "/" not in name and of_url is not None and of_url != name:
        yield of_url
    if name is not None and name.startswith(_OBJECTS365_FOLDER):
        parts = name.split("/")
        yield from ("/".join(parts[-2:]), parts[-1])


def coco_object(annotations: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Make a shard's JSON object of one picture: ``RecordSource.parse`` of this family. Boxes stay as they are.

    Args:
        annotations: ``image`` (COCO's object), ``captions``, and ``boxes``, of each the ``Box``, the names of its class
            and the class itself.
        counts: receives ``phrase_span_malformed`` for each span that cuts no phrase out of the picture's caption.
    """
    image = annotations["image"]
    own = image.get("caption", image.get("captions"))
    return {
        "width": image.get("width"),
        "height": image.get("height"),
        "coco_id": image["id"],
        "regions": [
            {
                "box": box.box,
                "phrases": _phrases(box, names, image, counts),
                "category": category,
                "crowd": box.crowd,
            }
            for box, names, category in annotations["boxes"]
        ],
        "captions": [*(own if isinstance(own, list) else [] if own is None else [own]), *annotations["captions"]],
    }


def _phrases(box: Box, names: Sequence[str], image: Mapping[str, Any], counts: Counter[str]) -> list[Any]:
    """The box's own texts and spans; the names of its class unless spans say what it is."""
    pointed = _cut_spans(image.get("caption"), _spans(box, image), counts)
    texts = [*box.texts, *pointed, *(() if pointed else names)]
    return list({repr(text): text for text in texts}.values())


def _spans(box: Box, image: Mapping[str, Any]) -> list[Any]:
    """The character spans of a box: its own, or those of its phrases in the picture's list of them."""
    listed = image.get("tokens_positive_eval")
    if box.spans is None and box.phrases is not None and isinstance(listed, list):
        numbers = box.phrases if isinstance(box.phrases, list) else [box.phrases]
        known = [listed[number] for number in numbers if isinstance(number, int) and 0 <= number < len(listed)]
        return [span for spans in known for span in (spans if isinstance(spans, list) else [spans])]
    if box.spans is None:
        return []
    flat = not isinstance(box.spans, list) or (len(box.spans) == 2 and not any(isinstance(n, list) for n in box.spans))
    return [box.spans] if flat else box.spans


def _cut_spans(caption: Any, spans: Sequence[Any], counts: Counter[str]) -> list[str]:
    pairs = [span if isinstance(span, list) and len(span) == 2 else (None, None) for span in spans]
    phrases = [cut(caption, *pair) for pair in pairs]
    counts.update({"phrase_span_malformed": lost} if (lost := phrases.count(None)) else {})
    return [phrase for phrase in phrases if phrase is not None]
