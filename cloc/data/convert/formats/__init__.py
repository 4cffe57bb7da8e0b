"""Formats of other people's annotated pictures.

Each module opens one family: a function takes the source's path and options and returns a ``RecordSource``, whose
records are listed lazily; pictures are opened later, in any process. Serves ``conversion``, at the start
of ``data → models → losses → evaluation → engine``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cloc.data.convert.formats.coco import open_coco, open_lvis
from cloc.data.convert.formats.flickr30k import open_flickr30k_entities
from cloc.data.convert.formats.img2dataset import open_grit
from cloc.data.convert.formats.jsonl import open_jsonl
from cloc.data.convert.formats.refcoco import open_refcoco
from cloc.data.convert.formats.visual_genome import open_visual_genome
from cloc.data.convert.records import RecordSource


@dataclass(frozen=True, slots=True)
class Format:
    """A source format: what opens it, and what its source is."""

    open: Callable[..., RecordSource]
    reads: str


FORMATS: Mapping[str, Format] = {
    "jsonl": Format(open_jsonl, "a .jsonl file; pictures lie relative to it"),
    "coco": Format(
        open_coco, "a folder with annotations/instances_SPLIT.json, captions_SPLIT.json or both, and SPLIT/"
    ),
    "lvis": Format(open_lvis, "a folder with lvis_v1_SPLIT.json and the pictures of COCO in train2017/ and val2017/"),
    "refcoco": Format(
        open_refcoco, "a folder with refs(SPLIT_BY).json and instances.json, of RefCOCO, RefCOCO+ or RefCOCOg"
    ),
    "flickr30k_entities": Format(open_flickr30k_entities, "a folder with Annotations/, Sentences/ and SPLIT.txt"),
    "visual_genome": Format(
        open_visual_genome, "a folder with region_descriptions.json, image_data.json and VG_100K*/"
    ),
    "grit": Format(open_grit, "a folder of img2dataset's .tar shards"),
}
"""Formats with a source, by name; ``openmoji`` draws its own."""
