"""PASCAL VOC's XML (Everingham et al. 2010): a file a picture, as VOC, LabelImg, Roboflow, CVAT and others write it.

A parser of our own: XML's entities are refused, groups and parts are kept, and what is left out is counted by reason.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from cloc.contracts import BadSample
from cloc.data.boxes import check_kind
from cloc.data.convert.formats.listing import PictureFolder, files_below, pick_splits, picture_stem, watched
from cloc.data.convert.formats.plain_text import read_lines
from cloc.data.convert.formats.registry import register
from cloc.data.convert.formats.xml_files import parse_xml, root_tag
from cloc.data.convert.records import Record, RecordSource
from cloc.data.shards.keys import Keys

VOC_BOXES = "voc"
_PIXELS = "xyxy_pixels"
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_GROUPS = ("crowd", "iscrowd", "is_crowd", "isgroupof", "is_group_of", "group_of")
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?|[-+]?\d+\.|[-+]?(?:nan|inf)", re.IGNORECASE)
_LOOKED_AT = 200  # XML files, for a box that starts at 0
_PARTS = re.compile(r"_(?:train|val|trainval|test)$")


def _is_voc(source: Path) -> bool:
    if not source.is_dir() or (source / "Sentences").is_dir():  # the latter is Flickr30k Entities
        return False
    return any(root_tag(path) == "annotation" for path in itertools.islice(_xml_files(source, shallow=True), 3))


def _xml_files(source: Path, *, shallow: bool = False) -> Iterator[Path]:
    """XML files of the standard folder, or of the folder and those below it."""
    folder = source / "Annotations"
    if shallow:
        yield from sorted([*folder.glob("*.xml"), *source.glob("*.xml"), *source.glob("*/*.xml")])
    else:
        below = files_below(folder if folder.is_dir() else source)
        yield from (path for path in below if path.suffix.lower() == ".xml")


@register(
    "voc", "a folder of PASCAL VOC's XML files: Annotations/ and JPEGImages/, or each beside its picture", _is_voc
)
def open_voc(
    source: Path,
    *,
    split: str | None = None,
    images: Path | None = None,
    boxes: str = VOC_BOXES,
    ignore_crowd_flag: bool = False,
    difficult_as_crowd: bool = False,
) -> RecordSource:
    """Open one XML file a picture. The name of an object is its phrase; parts of objects are regions too.

    Objects marked ``difficult`` are ordinary regions, counted as ``difficult``.

    Args:
        source: folder of ``Annotations/`` and ``JPEGImages/``, or of XML files beside their pictures.
        split: a list in ImageSets/Main/ or a folder of XML files; several with commas, or all.
        images: folder of the pictures, where they are not in the source.
        boxes: voc: pixels counted from 1, the last one within the box, unless a box starts at 0; else order and unit:
            xyxy, xywh, cxcywh or yxyx, _, and normalized, percent, thousand or pixels.
        ignore_crowd_flag: take groups (iscrowd) for ordinary regions.
        difficult_as_crowd: take objects marked difficult for groups, which are neither trained on nor measured.

    Raises:
        FileNotFoundError: there is no XML file.
        ValueError: there is no such split, or several and none named; there is no such kind of box.
    """
    kind = VOC_BOXES if boxes == VOC_BOXES else check_kind(boxes)
    files, lists, title = _pick(source, [*_xml_files(source)], split)
    if not files:
        raise FileNotFoundError(f"{source}: no XML file of an annotated picture; name the folder of Annotations/")
    first, notes = 0, []
    if kind == VOC_BOXES:
        first = 0 if _starts_at_zero(files) else 1
        counted = "from 0, since a box starts there" if first == 0 else "from 1, the last one within the box, as in VOC"
        notes = [f"pixels are counted {counted}; --boxes says otherwise ({_PIXELS}: corners as they stand)"]
    pictures = PictureFolder.below(images or source)
    options = {"first": first, "difficult": difficult_as_crowd}
    return RecordSource(
        f"{source.resolve().name}{title}",
        (*lists, *watched(path for path in files if path.is_file())),
        _records(files, pictures, options),
        len(files),
        None,
        voc_object,
        boxes=_PIXELS if kind == VOC_BOXES else kind,
        ignore_crowd_flag=ignore_crowd_flag,
        notes=(*notes, *pictures.told(".xml", ".txt")),
    )


def _pick(source: Path, files: list[Path], split: str | None) -> tuple[list[Path], list[Path], str]:
    """The XML files of a split, the lists that say so, and what to add to the name."""
    lists = {path.stem: path for path in sorted((source / "ImageSets/Main").glob("*.txt"))}
    if lists:
        whole = {name: path for name, path in lists.items() if not _PARTS.search(name)}  # others are of one class
        if split is None and "trainval" not in whole and len(whole) != 1:
            pick_splits(whole, None, source / "ImageSets/Main")
        picked = pick_splits(lists if split else whole, split or ("trainval" if "trainval" in whole else None), source)
        stems = {line.split()[0] for name in picked for line in read_lines(lists[name])}
        missing = stems - {path.stem for path in files}
        kept = [path for path in files if path.stem in stems]
        kept += [files[0].parent / f"{stem}.xml" for stem in sorted(missing)] if files else []
        return kept, [lists[name] for name in picked], "_" + "_".join(picked)
    folders = {path.relative_to(source).parts[0] for path in files if len(path.relative_to(source).parts) > 1}
    if (source / "Annotations").is_dir() or len(folders) < 2:
        return files, [], ""
    picked = pick_splits(sorted(folders), split, source)
    kept = [path for path in files if path.relative_to(source).parts[0] in picked]
    return kept, [], "_" + "_".join(picked)


def _starts_at_zero(files: Sequence[Path]) -> bool:
    """Whether a box of the first files starts at pixel 0, which a count from 1 has not."""
    for path in files[:_LOOKED_AT]:
        try:
            tree = parse_xml(path.read_bytes(), path)
        except (OSError, ValueError):
            continue  # counted when it is read
        starts = (box.findtext(side, "").strip() for box in tree.iter("bndbox") for side in ("xmin", "ymin"))
        if any(_NUMBER.fullmatch(text) and float(text) == 0 for text in starts):
            return True
    return False


def _records(files: Sequence[Path], pictures: PictureFolder, options: Mapping[str, Any]) -> Iterator[Record]:
    keys = Keys()
    for path in files:
        picture, fault = _picture_of(path, pictures)
        annotations = {"xml": path, **options}
        yield Record(path.name, keys.unique(path.stem), picture, annotations, fault)


def _picture_of(path: Path, pictures: PictureFolder) -> tuple[Path | None, tuple[str, str] | None]:
    """The picture of the same name; where there is none, or there are several, the one that the XML names."""
    within = path.relative_to(pictures.folder) if path.is_relative_to(pictures.folder) else Path(path.name)
    found = pictures.of(within.with_suffix("").as_posix())
    if len(found) == 1 and _is_of(found[0], path):
        return found[0], None
    try:
        named = (parse_xml(path.read_bytes(), path).findtext("filename") or "").strip().replace("\\", "/")
    except (OSError, ValueError) as error:
        return None, ("bad_annotation", str(error))
    exact = [one for one in found or pictures.named(picture_stem(named)) if one.name == named.rpartition("/")[2]]
    found = exact or (pictures.of(named.rpartition(".")[0]) if named else [])
    found = [one for one in found if _is_of(one, path)]
    if len(found) == 1:
        return found[0], None
    seen = f"{len(found)} pictures" if found else "no picture"
    return None, ("no_image", f"{path}: {seen} of its name or of <filename> {named!r} below {pictures.folder}")


def _is_of(picture: Path, path: Path) -> bool:
    """Whether a picture can be that of an XML file: one in another folder with an XML file beside it is its own."""
    beside = picture.with_suffix(".xml")
    elsewhere = beside == path or beside.stem != path.stem or "Annotations" in path.parts
    return elsewhere or not beside.is_file()


def voc_object(annotations: Mapping[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Make a shard's JSON object of one picture: ``RecordSource.parse`` of this format.

    Args:
        annotations: ``xml``, the file; ``first``, the number of the first pixel; and whether ``difficult`` objects
            are groups.
        counts: receives ``difficult`` for each that is kept.

    Raises:
        BadSample: ``bad_annotation``.
    """
    path: Path = annotations["xml"]
    try:
        tree = parse_xml(path.read_bytes(), path)
    except OSError as error:
        raise BadSample("bad_annotation", f"{path}: {error}") from error
    if tree.tag != "annotation":
        raise BadSample("bad_annotation", f"{path}: the root is <{tree.tag}>, <annotation> is needed")
    regions = []
    for item in tree.iter("object"):
        difficult = _flag(item, ("difficult",))
        counts["difficult"] += difficult
        crowd = _flag(item, _GROUPS) or (difficult and annotations["difficult"])
        regions.append(_region(item, annotations["first"], crowd))
        regions += [_region(part, annotations["first"], crowd) for part in item.findall("part")]
    sides = {side: _number(tree.findtext(f"size/{side}", "")) or 0 for side in ("width", "height")}
    return sides | {"regions": regions}


def _region(item: Element, first: int, crowd: bool) -> dict[str, Any]:
    name = (item.findtext("name") or "").strip()
    texts = [name] if name else []
    return {"box": _box(item, first), "phrases": texts, "category": name or None, "crowd": crowd}


def _box(item: Element, first: int) -> Any:
    """The four sides; the last pixel of a count from 1 is within the box."""
    values = [_number(item.findtext(f"bndbox/{side}", "")) for side in _SIDES]
    if None in values:
        turned = item.find("robndbox")  # roLabelImg's turned boxes: counted as box_malformed
        return [item.findtext(f"bndbox/{side}", "") for side in _SIDES] if turned is None else "robndbox"
    return [value - first * (place < 2) for place, value in enumerate(values) if value is not None]


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text := text.strip()) else None


def _flag(item: Element, names: Sequence[str]) -> bool:
    """Whether an object has one of the flags, as an element or as CVAT's attribute."""
    given = [item.findtext(name, "") for name in names]
    for one in item.iter("attribute"):
        if (one.findtext("name") or "").strip().lower() in names:
            given.append(one.findtext("value", ""))
    return any(text.strip().lower() in ("1", "true", "yes") for text in given)
