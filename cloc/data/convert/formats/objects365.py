"""Objects365 (Shao et al. 2019), version 2, in the layout of its download: COCO's JSON with odd file names."""

from __future__ import annotations

from pathlib import Path

from cloc.data.convert.formats.coco import file_name, open_annotations, read_coco
from cloc.data.convert.formats.coco_files import CocoSet, find_pictures
from cloc.data.convert.formats.files import named_file
from cloc.data.convert.formats.registry import holds, register
from cloc.data.convert.records import RecordSource

_NAME = "zhiyuan_objv2_{}.json"
_PATTERN = "zhiyuan_objv2_*.json"


@register(
    "objects365",
    "zhiyuan_objv2_SPLIT.json, or a folder with it, and the pictures in SPLIT/patch*/",
    lambda source: source.name.startswith("zhiyuan_objv2_") or holds(_PATTERN, f"annotations/{_PATTERN}")(source),
)
def open_objects365(
    source: Path, *, split: str | None = None, images: Path | None = None, ignore_crowd_flag: bool = False
) -> RecordSource:
    """Open Objects365 v2: ``zhiyuan_objv2_SPLIT.json`` and the pictures in ``SPLIT/patchN/``.

    ``file_name`` is ``images/v1/patchN/NAME.jpg``; the picture is looked for there, in ``patchN/`` and by its name. The
    words of a class such as ``Cabinet/shelf`` are each a phrase.

    Args:
        source: the JSON file, its folder, or the folder of ``annotations/`` that holds it.
        split: train or val; val, or the only one, else.
        images: folder of the pictures, where it is not SPLIT.
        ignore_crowd_flag: take groups (iscrowd) for ordinary regions.

    Raises:
        FileNotFoundError: there is no such annotation file.
        ValueError: there are several; an id stands for two pictures or two classes.
    """
    path = named_file(source, _NAME, split, "val")
    own = path.stem.removeprefix("zhiyuan_objv2_")
    coco = read_coco([path], synonyms=lambda name: [word.strip() for word in name.split("/") if word.strip()])
    names = [name for image in list(coco.images.values())[:100] if (name := file_name(image)) is not None]
    finder = find_pictures(CocoSet([path], own), names, images)
    return open_annotations(f"objects365_{own}", [path], coco, finder, ignore_crowd_flag=ignore_crowd_flag)
