"""Reads ``jsonl``: one JSON object a line, a shard's JSON member and the path of its picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cloc.contracts import BadSample
from cloc.data.boxes import NORMALIZED, check_kind
from cloc.data.convert.formats.peek import peek_json
from cloc.data.convert.formats.plain_text import json_lines
from cloc.data.convert.formats.registry import register
from cloc.data.convert.records import Record, RecordSource
from cloc.data.json_values import shown
from cloc.data.shards.keys import Keys


def _is_jsonl(source: Path) -> bool:
    """Lines that name no picture as Hugging Face's metadata and ODVG do."""
    seen = peek_json(source) if source.suffix.lower() == ".jsonl" else None
    return source.suffix.lower() == ".jsonl" and (seen is None or {"filename", "file_name"}.isdisjoint(seen.keys))


@register("jsonl", "a .jsonl file; pictures lie relative to it", _is_jsonl)
def open_jsonl(
    source: Path, *, images: Path | None = None, boxes: str = NORMALIZED, ignore_crowd_flag: bool = False
) -> RecordSource:
    """Open a ``.jsonl`` file; ``image`` is a path relative to it, the rest of a line is a shard's JSON member.

    Args:
        source: the file.
        images: folder that the pictures' paths are relative to, where it is not the file's own.
        boxes: order and unit of the boxes: xyxy, xywh, cxcywh or yxyx, _, and normalized, percent, thousand or pixels.
        ignore_crowd_flag: take groups (iscrowd) for ordinary regions.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such kind of box.
    """
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no file; format 'jsonl' reads one .jsonl file")
    with source.open("rb") as lines:
        total = sum(1 for line in lines if line.strip())
    records = _records(source, images or source.parent)
    kind = check_kind(boxes)
    return RecordSource(source.stem, (source,), records, total, boxes=kind, ignore_crowd_flag=ignore_crowd_flag)


def _records(source: Path, root: Path) -> Iterator[Record]:
    keys = Keys()
    for where, record in json_lines(source):
        if isinstance(record, BadSample):
            yield Record(where, fault=(record.reason, record.detail))
            continue
        image = record.pop("image", None)
        if isinstance(image, str):
            yield Record(where, keys.unique(Path(image).stem), root / image, record)
        else:
            fault = ("no_image", f"image is {shown(image)}, a path relative to {root} is needed")
            yield Record(where, annotations=record, fault=fault)
