"""Flickr30k Entities (Plummer et al. 2015): captions whose phrases are tied to boxes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from cloc.contracts import BadSample
from cloc.data.convert.formats.files import need_file, need_folder
from cloc.data.convert.formats.registry import holds, register
from cloc.data.convert.formats.xml_files import parse_xml
from cloc.data.convert.records import Record, RecordSource
from cloc.data.shards.keys import Keys

_PHRASE = re.compile(r"\[/EN#(\d+)(?:/[^\s\]/]*)*\s+([^\]]*)\]")  # chain id, types, words


@register(
    "flickr30k_entities",
    "a folder with Annotations/, Sentences/ and SPLIT.txt",
    holds("Sentences/*.txt"),
)
def open_flickr30k_entities(source: Path, *, split: str = "val", images: Path | None = None) -> RecordSource:
    """Open ``Annotations/ID.xml``, ``Sentences/ID.txt`` and the split's list of ids.

    A region is a box with every phrase of the five captions that names it; a phrase such as "two dogs" lies on all of
    its boxes.

    Args:
        source: folder of the two folders and of ``SPLIT.txt``.
        split: ``train``, ``val`` or ``test``.
        images: folder of ``ID.jpg``, where it is not ``flickr30k-images`` in the source.

    Raises:
        FileNotFoundError: a file or folder is missing.
    """
    remedy = "download the annotations of Flickr30k Entities and unpack them there"
    listed = need_file(source / f"{split}.txt", "name a split with --split: train, val or test")
    folders = need_folder(source / "Annotations", remedy), need_folder(source / "Sentences", remedy)
    root = need_folder(images or source / "flickr30k-images", "name the folder of the pictures with --images")
    ids = listed.read_text(encoding="utf-8-sig").split()
    records = _records(ids, *folders, root)
    return RecordSource(f"flickr30k_{split}", (listed,), records, len(ids), parse=entities_object, boxes="xyxy_pixels")


def _records(ids: list[str], annotations: Path, sentences: Path, root: Path) -> Iterator[Record]:
    keys = Keys()
    for name in ids:
        paths = {"xml": annotations / f"{name}.xml", "sentences": sentences / f"{name}.txt"}
        yield Record(f"image {name}", keys.unique(name), root / f"{name}.jpg", paths)


def entities_object(annotations: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Make a shard's JSON object of one picture: ``RecordSource.parse`` of this format. Boxes are in pixels.

    Args:
        annotations: paths of the picture's ``xml`` and ``sentences``.
        counts: not used.

    Raises:
        BadSample: ``bad_annotation`` or ``bad_text``.
    """
    try:
        text = annotations["sentences"].read_text(encoding="utf-8-sig")
        tree = parse_xml(annotations["xml"].read_bytes(), annotations["xml"])
    except UnicodeDecodeError as error:
        raise BadSample("bad_text", f"{annotations['sentences']}: {error}") from error
    except (OSError, ValueError) as error:
        raise BadSample("bad_annotation", f"{annotations['xml']}: {error}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    phrases: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for chain, phrase in (found for line in lines for found in _PHRASE.findall(line)):
        phrases[chain][phrase.strip()] = None
    width, height = (int(tree.findtext(f"size/{side}", "")) for side in ("width", "height"))
    boxed = [item for item in tree.findall("object") if item.find("bndbox") is not None]
    regions = [
        {
            "box": _box(item),
            "phrases": list(
                dict.fromkeys(phrase for name in item.findall("name") for phrase in phrases.get(name.text or "", ()))
            ),
        }
        for item in boxed
    ]
    captions = [_PHRASE.sub(r"\2", line).strip() for line in lines]
    return {"width": width, "height": height, "captions": captions, "regions": regions}


def _box(item: Element) -> Any:
    """Read one box in pixels. The file counts them from 1, the last one within the box, as in PASCAL VOC."""
    values = [item.findtext(f"bndbox/{side}", "") for side in ("xmin", "ymin", "xmax", "ymax")]
    if not all(re.fullmatch(r"-?\d+(\.\d+)?", value.strip()) for value in values):
        return values  # counted as box_malformed
    x0, y0, x1, y1 = map(float, values)
    return [x0 - 1, y0 - 1, x1, y1]
