"""Other people's formats: small sources in the published layouts, converted and read back, box for box.

The originals are large and licensed, so every source here is generated.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from cloc.contracts import Region, Sample
from cloc.data.convert.conversion import convert
from cloc.data.inspect.check import check
from cloc.data.jobs.report import Report
from cloc.data.sample import parse_box, parse_sample
from cloc.data.shards.index import load_manifest
from tests.kit.sources import read_samples, write

QUIET = Console(quiet=True)
WIDTH, HEIGHT = 40, 20


def jpeg(size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 50, 50)).save(buffer, "JPEG")
    return buffer.getvalue()


def run(format: str, source: Path, out: Path, **options: Any) -> tuple[Report, dict[str, Sample]]:
    options = {"max_skip_share": 0.9, "max_drop_share": 0.9} | options
    report = convert(format, source, out, console=QUIET, **options).report
    assert check(out).ok and report.imbalance() == ""
    return report, read_samples(out)


def phrases(sample: Sample) -> list[tuple[str, ...]]:
    return [region.phrases for region in sample.regions]


def test_coco_captions_alone_and_annotations_of_no_picture(tmp_path: Path) -> None:
    write(tmp_path / "in/val2017/9.jpg", jpeg())
    images = [{"id": 9, "width": WIDTH, "height": HEIGHT, "file_name": "9.jpg"}]
    told = [{"image_id": image, "caption": f"caption {image}"} for image in (9, 9, 10)]
    write(tmp_path / "in/annotations/captions_val2017.json", {"images": images, "annotations": told})
    report, samples = run("coco", tmp_path / "in", tmp_path / "out")
    assert samples["9"].captions == ("caption 9", "caption 9") and samples["9"].regions == ()
    assert report.mended == {"annotation_without_image": 1}


def test_coco_drops_one_bad_box_and_keeps_the_picture(tmp_path: Path) -> None:
    write(tmp_path / "in/pictures/9.jpg", jpeg())
    images = [{"id": 9, "width": WIDTH, "height": HEIGHT, "file_name": "9.jpg"}, {"id": 10, "file_name": "10.jpg"}]
    boxes = [[0, 0, 20, 10], None, [0, 0, 1], [0, 0, -4, 2], ["0", 0, 1, 1]]
    annotations: list[Any] = [{"image_id": 9, "category_id": 1, "bbox": box} for box in boxes]
    annotations += [{"image_id": 9, "category_id": 5, "bbox": boxes[0]}, {"image_id": [9]}]
    categories = [{"id": 1, "name": "hot_dog"}, {"id": 2, "name": "never seen"}]
    record = {"images": images, "annotations": annotations, "categories": categories}
    write(tmp_path / "in/annotations/instances_mine.json", record)
    shares = {"max_skip_share": 0.5, "max_drop_share": 1.0}
    options = {"split": "mine", "images": tmp_path / "in/pictures"}
    report, samples = run("coco", tmp_path / "in", tmp_path / "out", **options, **shares)
    assert samples["9"].regions == (Region((0.0, 0.0, 0.5, 0.5), ("hot_dog",), "hot_dog"),)
    reasons = {"box_malformed": 3, "box_inverted": 1, "region_without_phrase": 1, "annotation_without_image": 1}
    assert report.mended == reasons and not report.skipped
    assert report.given == {"records": 2, "regions": 6, "captions": 0, "background": 1}
    assert load_manifest(tmp_path / "out").categories == ("hot_dog", "never seen")


def test_lvis(tmp_path: Path) -> None:
    images = []
    for number, folder in ((1, "train2017"), (2, "val2017")):
        write(tmp_path / f"in/{folder}/{number:012d}.jpg", jpeg())
        url = f"http://images.cocodataset.org/{folder}/{number:012d}.jpg"
        images.append({"id": number, "coco_url": url, "width": WIDTH, "height": HEIGHT, "neg_category_ids": [3]})
    images.append({"id": 3, "width": WIDTH, "height": HEIGHT})
    names = [
        ("aerosol_can", ["aerosol_can", "spray_can"]),
        ("mouse_(computer_equipment)", ["mouse_(computer_equipment)"]),
    ]
    categories = [
        {"id": n, "name": name, "synonyms": texts, "frequency": "c"} for n, (name, texts) in enumerate(names, 1)
    ]
    annotations = [
        {
            "id": n,
            "image_id": n,
            "category_id": n,
            "bbox": [4.0, 2.0, 8.0, 4.0],
            "segmentation": [[0.5] * 8],
            "area": 32.0,
        }
        for n in (1, 2)
    ]
    record = {"images": images, "annotations": annotations, "categories": categories}
    write(tmp_path / "in/lvis_v1_val.json", record)
    report, samples = run("lvis", tmp_path / "in", tmp_path / "out")
    assert samples["000000000001"].regions[0].phrases == ("aerosol can", "spray can")
    region = samples["000000000002"].regions[0]
    assert (region.box, region.phrases) == ((0.1, 0.1, 0.3, 0.3), ("mouse (computer equipment)",))
    assert load_manifest(tmp_path / "out").categories == ("aerosol can", "mouse (computer equipment)")
    assert report.skipped == {"bad_annotation": 1} and report.counts["regions"] == len(annotations)


SENTENCES = """[/EN#1/people A man] walks [/EN#2/animals two dogs] along [/EN#3/scene the beach] .
[/EN#1/people/other Somebody] is out with [/EN#2/animals his pets] for [/EN#0/notvisual a while] .
"""
ENTITIES = """<annotation><filename>36.jpg</filename><size><width>40</width><height>20</height><depth>3</depth></size>
<object><name>1</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object>
<object><name>2</name><bndbox><xmin>21</xmin><ymin>11</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object>
<object><name>2</name><name>4</name><bndbox><xmin>31</xmin><ymin>11</ymin><xmax>40</xmax><ymax>20</ymax></bndbox></object>
<object><name>4</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
<object><name>1</name><bndbox><xmin>x</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>
<object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object>
</annotation>"""


def make_entities(folder: Path) -> Path:
    for name in ("36", "37", "38", "39"):
        write(folder / f"flickr30k-images/{name}.jpg", jpeg())
        write(folder / f"Annotations/{name}.xml", ENTITIES)
        write(folder / f"Sentences/{name}.txt", SENTENCES)
    write(folder / "val.txt", "36\n37\n38\n39\n")
    write(folder / "test.txt", "37\n")
    return folder


def test_flickr30k_entities(tmp_path: Path) -> None:
    source = make_entities(tmp_path / "in")
    write(source / "Annotations/37.xml", ENTITIES.replace("<width>40", "<width>30"))
    write(source / "Annotations/38.xml", ENTITIES[:200])
    write(source / "Sentences/39.txt", b"[/EN#1/people \xff]")
    report, samples = run("flickr30k_entities", source, tmp_path / "out")
    assert report.skipped == {"shape_conflict": 1, "bad_annotation": 1, "bad_text": 1}
    assert report.mended == {"region_without_phrase": 1, "box_malformed": 1}
    sample = samples["36"]
    first, second = "A man walks two dogs along the beach .", "Somebody is out with his pets for a while ."
    assert sample.captions == (first, second) and sample.source == "flickr30k_val"
    assert [region.box for region in sample.regions] == [(0, 0, 0.5, 1), (0.5, 0.5, 0.75, 1), (0.75, 0.5, 1, 1)]
    group = ("two dogs", "his pets")  # owns two boxes
    assert phrases(sample) == [("A man", "Somebody"), group, group]


def test_flickr30k_entities_split_and_missing_parts(tmp_path: Path) -> None:
    source = make_entities(tmp_path / "in")
    _, samples = run("flickr30k_entities", source, tmp_path / "out", split="test")
    assert list(samples) == ["37"]
    with pytest.raises(FileNotFoundError, match=r"train\.txt.*--split"):
        convert("flickr30k_entities", source, tmp_path / "b", split="train", console=QUIET)
    with pytest.raises(FileNotFoundError, match=r"nowhere.*--images"):
        convert("flickr30k_entities", source, tmp_path / "b", images=tmp_path / "nowhere", console=QUIET)


def make_genome(folder: Path) -> Path:
    data, described = [], []
    for number, place in ((1, "VG_100K_2"), (2, "VG_100K"), (3, "VG_100K")):
        write(folder / f"{place}/{number}.jpg", jpeg())
        url = f"https://cs.stanford.edu/people/rak248/{place}/{number}.jpg"
        data.append(
            {"image_id": number, "width": WIDTH, "height": HEIGHT, "url": url, "coco_id": None, "flickr_id": None}
        )
        box = {"image_id": number, "x": 10, "y": 5, "width": 20, "height": 10}
        told = ["the clock is green", "a street clock", "a street clock", 7]
        regions: list[Any] = [{"region_id": n, **box, "phrase": phrase} for n, phrase in enumerate(told)]
        regions += [{**box, "x": 0, "phrase": "a clock"}, {**box, "x": None, "phrase": "lost"}, "broken"]
        described.append({"id": number, "regions": regions})
    write(folder / "image_data.json", data)
    write(folder / "region_descriptions.json", [*described, {"id": 4, "regions": []}])
    write(folder / "densecap_splits.json", {"train": [1, 9], "val": [3], "test": []})
    return folder


def test_visual_genome(tmp_path: Path) -> None:
    report, samples = run("visual_genome", make_genome(tmp_path / "in"), tmp_path / "out")
    assert list(samples) == ["1", "2", "3"] and report.skipped == {"bad_annotation": 1}
    assert samples["1"].regions == (
        Region((0.25, 0.25, 0.75, 0.75), ("the clock is green", "a street clock")),
        Region((0.0, 0.25, 0.5, 0.75), ("a clock",)),
    )
    assert samples["1"].extra == {"vg_id": 1, "coco_id": None}
    assert report.mended == {"box_joined": 9, "phrase_not_text": 3, "box_malformed": 3, "region_malformed": 3}
    assert report.given["regions"] == 3 * 7


def test_visual_genome_takes_densecaps_splits(tmp_path: Path) -> None:
    source = make_genome(tmp_path / "in")
    report, samples = run("visual_genome", source, tmp_path / "out", split="train")
    assert list(samples) == ["1"] and report.skipped == {"bad_annotation": 1}  # 9 is listed and not described
    with pytest.raises(ValueError, match="no split 'mine', but train, val, test"):
        convert("visual_genome", source, tmp_path / "b", split="mine", console=QUIET)


def make_refcoco(folder: Path, name: str = "refs(unc).json") -> Path:
    instances: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    for number in (1, 2, 3):
        file = f"COCO_train2014_{number:012d}.jpg"
        if number < 3:
            write(folder.parent / f"images/mscoco/images/train2014/{file}", jpeg())
        instances["images"].append({"id": number, "width": WIDTH, "height": HEIGHT, "file_name": file})
        for place in range(2):
            box = [20 * place, 0, 20, 20]
            item = {"id": 10 * number + place, "image_id": number, "category_id": 1, "bbox": box, "iscrowd": place}
            instances["annotations"].append(item)

    def ref(image: int, place: int, split: str, *texts: str) -> dict[str, Any]:
        sentences = [{"sent_id": 0, "raw": text.upper(), "sent": text, "tokens": text.split()} for text in texts]
        return {"ref_id": 0, "ann_id": 10 * image + place, "image_id": image, "split": split, "sentences": sentences}

    refs = [
        ref(1, 0, "val", "man", "left man"),
        ref(1, 1, "val", "crowd"),
        ref(1, 0, "val", "left man", "the one on the left"),
        ref(1, 7, "val", "nobody"),
        ref(2, 0, "testA", "woman"),
        ref(2, 1, "testB", "right one"),
        ref(3, 0, "val", "lost picture"),
        ref(8, 0, "val", "unknown picture"),
    ]
    write(folder / "instances.json", instances)
    write(folder / name, refs)
    return folder


def test_refcoco(tmp_path: Path) -> None:
    report, samples = run("refcoco", make_refcoco(tmp_path / "data/refcoco+"), tmp_path / "out")
    sample = samples["COCO_train2014_000000000001"]
    assert sample.regions == (
        Region((0.0, 0.0, 0.5, 1.0), ("man", "left man", "the one on the left"), "person"),
        Region((0.5, 0.0, 1.0, 1.0), ("crowd",), "person", crowd=True),
    )
    assert (sample.captions, sample.source, sample.extra) == ((), "refcoco+_val", {"coco_id": 1})
    assert report.skipped == {"image_unreadable": 1, "bad_annotation": 1}
    assert report.mended == {"box_joined": 1, "region_malformed": 1}


@pytest.mark.parametrize(("split", "expected"), [("testB", [("right one",)]), ("test", [("woman",), ("right one",)])])
def test_refcoco_splits(tmp_path: Path, split: str, expected: list[Any]) -> None:
    _, samples = run("refcoco", make_refcoco(tmp_path / "refcoco"), tmp_path / "out", split=split)
    assert [phrases(sample) for sample in samples.values()] == [expected]


def test_refcoco_never_loads_the_pickle(tmp_path: Path) -> None:
    source = make_refcoco(tmp_path / "refcoco", "refs(google).json")
    write(source / "refs(unc).p", b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(FileNotFoundError, match=r"refs\(unc\)\.p: a pickle.*never loaded.*json\.dump\(pickle\.load"):
        convert("refcoco", source, tmp_path / "out", split_by="unc", console=QUIET)
    write(source / "refs(umd).json", [])
    with pytest.raises(ValueError, match=r"refs\(google\)\.json, refs\(umd\)\.json.*--split-by"):
        convert("refcoco", source, tmp_path / "out", console=QUIET)
    with pytest.raises(ValueError, match=r"no reference of split 'dev', but val \(6\), testA \(1\)"):
        convert("refcoco", source, tmp_path / "out", split_by="google", split="dev", console=QUIET)


CAPTION = "a wire hanger with a paper cover that reads we ❤ it"
GRIT: dict[str, Any] = {
    "key": "000000000", "status": "success", "caption": CAPTION, "clip_similarity_vitb32": 0.35,
    "width": WIDTH, "height": HEIGHT, "original_width": 400, "original_height": 200,
    "noun_chunks": [[19, 32, 0.1, 0.1, 0.6, 0.6, 0.9], [0.0, 13.0, 0.0, 0.0, 1.0, 1.0, 0.7]],
    "ref_exps": [[19, 51, 0.1, 0.1, 0.6, 0.6, 0.9], [0, 51, 0.0, 0.0, 1.0, 1.0, 0.7]],
}  # fmt: skip
GRIT_REGIONS = (
    Region((0.1, 0.1, 0.6, 0.6), (CAPTION[19:51], "a paper cover"), score=0.9),
    Region((0.0, 0.0, 1.0, 1.0), (CAPTION, "a wire hanger"), score=0.7),
)


def write_tar(path: Path, samples: dict[str, dict[str, Any]], picture: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, record in samples.items():
            members = {"jpg": picture or jpeg(), "txt": str(record.get("caption")).encode()}
            for extension, data in {**members, "json": json.dumps(record).encode()}.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def test_grit_is_read_as_it_is(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", {"000000000": GRIT, "000000001": {**GRIT, "ref_exps": None, "noun_chunks": None}})
    manifest = load_manifest(tmp_path)
    assert (manifest.samples, manifest.regions) == (2, 2)
    first, second = read_samples(tmp_path).values()
    assert first.regions == GRIT_REGIONS and first.captions == (CAPTION,)
    assert "clip_similarity_vitb32" in first.extra and "ref_exps" not in first.extra
    assert second.regions == () and second.captions == (CAPTION,)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"ref_exps": [[5, 3, 0, 0, 1, 1, 0.5], [0, 999, 0, 0, 1, 1, 0.5], [-3, -1, 0, 0, 1, 1, 0.5]]},
            {"span_malformed": 3},
        ),
        ({"ref_exps": [["0", 3, 0, 0, 1, 1, 0.5], [0.5, 3, 0, 0, 1, 1, 0.5]]}, {"span_malformed": 2}),
        ({"ref_exps": [[0, 6], "x", None, {}]}, {"region_malformed": 4}),
        ({"ref_exps": 5}, {"region_malformed": 1}),
        (
            {"ref_exps": [[0, 6, 0, 0, "x", 1, 0.5], [0, 6, 0, 0, 80, 60, 0.5]]},
            {"box_malformed": 1, "box_in_pixels": 1},
        ),
        ({"ref_exps": [[0, 6, 0.5, 0.5, 0.2, 0.2, 0.5]]}, {"box_inverted": 1}),
        ({"caption": None, "ref_exps": [[0, 6, 0, 0, 1, 1, 0.5]]}, {"span_malformed": 1}),
        ({"original_height": 400, "ref_exps": [[0, 6, 0, 0, 1, 1, 0.5]]}, {"picture_reshaped": 1}),
    ],
)
def test_hostile_grit_entries_are_counted(changed: dict[str, Any], expected: dict[str, int]) -> None:
    record = {**GRIT, "noun_chunks": None, **changed}
    members = {"jpg": jpeg(), "txt": b"a hanger", "json": json.dumps(record).encode()}
    sample, counts = parse_sample(members, "k", "grit")
    assert sample.regions == () and counts == expected


def test_grit_converts_and_leaves_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/00000.tar", {"000000000": GRIT, "sub/7": GRIT, "000000002": {**GRIT, "caption": 3}})
    write_tar(tmp_path / "in/00001.tar", {"000000000": GRIT, "000010001": GRIT}, jpeg((HEIGHT, WIDTH)))
    cut = write_tar(tmp_path / "in/00002.tar", {"000020000": GRIT, "000020001": GRIT})
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 3])
    broken = write_tar(tmp_path / "in/00003.tar", {"000030000": GRIT, "000030001": GRIT})
    write(broken, broken.read_bytes()[:512] + b"x" * 4096)
    report, samples = run("grit", tmp_path / "in", tmp_path / "out")
    assert list(samples)[:2] == ["000000000", "sub_7"] and samples["000000000"].regions == GRIT_REGIONS
    assert report.skipped["orientation_conflict"] == 2 and report.skipped["unreadable_shard"] >= 3
    assert report.given["records"] == report.counts["samples"] + report.skipped.total()
    with pytest.raises(FileNotFoundError, match=r"holds no \.tar.*img2dataset"):
        convert("grit", tmp_path, tmp_path / "b", console=QUIET)


def test_a_box_is_the_same_before_and_after_it_is_written() -> None:
    counts: Counter[str] = Counter()
    assert parse_box([0.1, 0.1, 0.1 + 1e-8, 0.2], counts) is None and counts == {"box_empty": 1}
    box = parse_box([1 / 3, 0.0, 2 / 3, 1.0], counts)
    assert box == parse_box(list(box or ()), counts)


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("coco", {"train": 3}, "format 'coco' takes no train; it takes split, images"),
        ("grit", {"split": "val"}, "format 'grit' takes no split; it takes no option of its own"),
        ("openmoji", {"images": "x"}, "format 'openmoji' takes no images; it takes train"),
    ],
)
def test_options_of_another_format_are_refused(
    tmp_path: Path, format: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(format, tmp_path, tmp_path / "out", console=QUIET, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["{", "[]x", '{"images": [{"file_name": "x"}]}', '{"images": [3]}'])
def test_a_file_that_is_not_the_format_is_refused_by_name(tmp_path: Path, content: str) -> None:
    write(tmp_path / "annotations/instances_val2017.json", content)
    (tmp_path / "val2017").mkdir()
    told = "not JSON, or cut off|a number or a text is needed|an object is needed"
    with pytest.raises(ValueError, match=rf"{tmp_path}.*({told})"):
        convert("coco", tmp_path, tmp_path / "out", console=QUIET)
