"""ShardSources whose values are of another type than their format says, and text files with a byte order mark."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cloc.data.convert.conversion import convert
from cloc.data.convert.formats.files import json_items
from cloc.data.convert.formats.visual_genome import open_visual_genome
from cloc.data.sample import parse_sample
from cloc.evaluation.sets.class_names import frequencies_of, read_lines
from cloc.evaluation.sets.relations import _read
from tests.data.convert.test_formats import make_entities, make_genome, make_refcoco, run
from tests.kit.sources import box, image, jpeg, read_samples, write, write_coco

QUIET = Console(quiet=True)
NO_TEXT = [(None, "null"), (True, "true"), (5, "5"), (["a", "b"], r"\['a', 'b'\]"), ({"en": "a"}, r"\{'en': 'a'\}")]


def refused(format: str, source: Path, told: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        convert(format, source, source.parent / "out", console=QUIET, **options)
    assert "\n" not in str(caught.value) and not (source.parent / "out").exists()


@pytest.mark.parametrize(("name", "shown"), NO_TEXT)
def test_a_category_has_a_text_for_a_name(tmp_path: Path, name: Any, shown: str) -> None:
    categories = [{"id": 1, "name": "bus"}, {"id": 7, "name": name}]
    source = write_coco(tmp_path / "in", [image(1, "a.jpg")], [box(1, 1)], categories)
    refused("coco", source, rf"instances_val2017\.json: category id 7 has the name {shown}; a text is needed")
    lvis = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "bus", "synonyms": [name]}]}
    write(tmp_path / "lvis/lvis_v1_val.json", lvis)
    refused("lvis", tmp_path / "lvis", r"lvis_v1_val\.json: category id 1 has the synonyms")
    refs = make_refcoco(tmp_path / "refcoco")
    content = json.loads((refs / "instances.json").read_text())
    content["categories"][0]["name"] = name
    write(refs / "instances.json", content)
    refused("refcoco", refs, rf"instances\.json: category id .* has the name {shown}; a text is needed")


def test_a_category_without_a_name_or_an_id(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "in", [image(1, "a.jpg")], [box(1, 1)], [{"id": 1}])
    refused("coco", source, "category id 1 has no name; a text is needed")
    source = write_coco(tmp_path / "in", [image(1, "a.jpg")], [box(1, 1)], [{"name": "bus"}])
    refused("coco", source, "category id is missing")


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "KEY is null, a list is needed"),
        ("x", "KEY is 'x', a list is needed"),
        (5, "KEY is 5, a list is needed"),
        ({"1": {}}, "KEY is an object, a list is needed"),
        ([None], r"KEY\[0\] is null, an object is needed"),
        ([7], r"KEY\[0\] is 7, an object is needed"),
        ([["a"]], r"KEY\[0\] is \['a'\], an object is needed"),
    ],
)
def test_lists_of_coco_are_lists_of_objects(tmp_path: Path, key: str, value: Any, told: str) -> None:
    source = write_coco(tmp_path / "in", [image(1, "a.jpg")], [box(1, 1)])
    file = source / "annotations/instances_val2017.json"
    write(file, json.loads(file.read_text()) | {key: value})
    refused("coco", source, rf"{file}: {told.replace('KEY', key)}")


def test_a_missing_or_an_empty_list_is_none(tmp_path: Path) -> None:
    """A file of captions has no categories."""
    file = write(tmp_path / "x.json", {"images": [], "annotations": [{"categories": 5}]})
    assert [list(json_items(file, f"{key}.item")) for key in ("images", "categories")] == [[], []]


@pytest.mark.parametrize("content", [None, {}, 5, [None], [3]])
def test_lists_of_other_formats_are_lists_of_objects(tmp_path: Path, content: Any) -> None:
    refs = make_refcoco(tmp_path / "refcoco")
    write(refs / "refs(unc).json", content)
    refused("refcoco", refs, r"refs\(unc\)\.json: .* is needed")
    genome = make_genome(tmp_path / "genome")
    write(genome / "image_data.json", content)
    refused("visual_genome", genome, r"image_data\.json: .* is needed")
    genome = make_genome(tmp_path / "genome")
    write(genome / "densecap_splits.json", content if content else {"train": 3})
    refused("visual_genome", genome, r"densecap_splits\.json: an object of lists", split="train")


def test_a_category_of_jsonl_that_is_no_text_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "in/a.jpg", jpeg())
    region = {"box": [0, 0, 1, 1], "phrases": ["a bus"]}
    record = {"image": "a.jpg", "regions": [region | {"category": value} for value in (None, "bus", 5, ["bus"], True)]}
    write(tmp_path / "in/x.jsonl", json.dumps(record))
    report, samples = run("jsonl", tmp_path / "in/x.jsonl", tmp_path / "out")
    assert report.mended == {"category_malformed": 3}
    assert [region.category for region in samples["a"].regions] == [None, "bus", None, None, None]


# --- a byte order mark ------------------------------------------------------------------------------------------------


def mark(*files: Path) -> None:
    for file in files:
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())


def test_a_byte_order_mark_costs_no_record(tmp_path: Path) -> None:
    coco = write_coco(tmp_path / "coco", [image(1, "a.jpg")], [box(1, 1)])
    genome, refs, flickr = make_genome(tmp_path / "vg"), make_refcoco(tmp_path / "r"), make_entities(tmp_path / "f")
    write(tmp_path / "j/a.jpg", jpeg())
    lines = [json.dumps({"image": "a.jpg", "captions": [text]}) for text in ("a bus", "two buses")]
    write(tmp_path / "j/x.jsonl", "\n".join(lines))
    sources = {"coco": coco, "visual_genome": genome, "refcoco": refs, "flickr30k_entities": flickr}
    sources["jsonl"] = tmp_path / "j/x.jsonl"

    def converted(out: str) -> dict[str, Any]:
        for format, source in sources.items():
            convert(format, source, tmp_path / out / format, max_skip_share=1.0, max_drop_share=1.0, console=QUIET)
        return {format: read_samples(tmp_path / out / format) for format in sources}

    before = converted("before")
    kinds = (".json", ".jsonl", ".txt", ".xml")
    mark(*(file for name in "coco vg r f j".split() for file in (tmp_path / name).rglob("*") if file.suffix in kinds))
    after = converted("after")
    assert after == before and len(after["jsonl"]) == 2
    assert open_visual_genome(genome, split="train").total == 2


def test_a_byte_order_mark_in_lists_for_evaluation_and_in_shards(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.txt", "a bus\na car"), write(tmp_path / "a.json", ["a bus", "a car"])]
    files += [write(tmp_path / "f.json", {"a bus": "r"}), write(tmp_path / "r.json", {"0": {}})]
    mark(*files)
    assert read_lines(str(files[0]), "x") == read_lines(str(files[1]), "x") == ["a bus", "a car"]
    assert frequencies_of(str(files[2]), "x") == {"a bus": "rare"} and _read(files[3]) == {"0": {}}
    text = codecs.BOM_UTF8 + b"a bus"
    assert parse_sample({"jpg": jpeg(), "txt": text}, "k", "s")[0].captions == ("a bus",)
    members = {"jpg": jpeg(), "json": codecs.BOM_UTF8 + b'{"captions": ["a bus"]}'}
    assert parse_sample(members, "k", "s")[0].captions == ("a bus",)
