"""Ids in RefCOCO and Visual Genome: joined as they are meant, refused where they stand for two things."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloc.data.convert.conversion import convert
from tests.data.convert.test_formats import QUIET, make_genome, make_refcoco, phrases, run, write


def test_visual_genome_refuses_an_id_of_two_pictures(tmp_path: Path) -> None:
    source = make_genome(tmp_path / "in")
    data = json.loads((source / "image_data.json").read_text())
    write(source / "image_data.json", [*data, data[0] | {"image_id": "1"}])
    run("visual_genome", source, tmp_path / "out")
    write(source / "image_data.json", [*data, data[0] | {"url": data[1]["url"]}])
    with pytest.raises(ValueError, match="picture image_id 1 stands for 'VG_100K_2/1.jpg' and for 'VG_100K/2.jpg'"):
        convert("visual_genome", source, tmp_path / "b", console=QUIET)


@pytest.mark.parametrize(
    ("kind", "extra", "message"),
    [
        ("images", {"id": 1, "file_name": "other.jpg"}, "image id 1 stands for 'COCO_.*' and for 'other.jpg'"),
        ("categories", {"id": "1", "name": "bus"}, "category id 1 stands for 'person' and for 'bus'"),
        ("annotations", {"id": 10, "image_id": 2, "bbox": [0, 0, 9, 9]}, "annotation id 10 stands for"),
    ],
)
def test_refcoco_refuses_an_id_of_two_things(tmp_path: Path, kind: str, extra: dict[str, Any], message: str) -> None:
    source = make_refcoco(tmp_path / "refcoco")
    stored = json.loads((source / "instances.json").read_text())
    stored[kind].append(extra)
    write(source / "instances.json", stored)
    with pytest.raises(ValueError, match=message):
        convert("refcoco", source, tmp_path / "out", console=QUIET)


def test_refcoco_joins_ids_of_text_and_never_boxes_of_another_picture(tmp_path: Path) -> None:
    source = make_refcoco(tmp_path / "refcoco")
    refs = json.loads((source / "refs(unc).json").read_text())
    refs[0] |= {"ann_id": "10", "image_id": "1"}
    refs[1]["ann_id"] = 21  # an object of picture 2
    write(source / "refs(unc).json", refs)
    report, samples = run("refcoco", source, tmp_path / "out")
    assert phrases(samples["COCO_train2014_000000000001"]) == [("man", "left man", "the one on the left")]
    assert report.mended == {"box_joined": 1, "region_malformed": 2}
