"""Sources of other people's tools: pyarrow and pandas; where they are installed datasets, supervision, datumaro."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data.convert.test_doors import compare
from tests.kit.miniatures import CLASSES, HEIGHT, PIXELS, TEXTS, WIDTH, Miniature, as_regions, objects, pictures, shares
from tests.kit.sources import jpeg, write

FIRST = {name: texts[:1] for name, texts in TEXTS.items()}


def rows(*, paths: bool = True) -> list[dict[str, Any]]:
    """Rows as Hugging Face's hub has them: a picture's bytes, a caption, a dict of lists."""
    names = {name: {"bytes": jpeg((WIDTH, HEIGHT)), "path": f"{name}.jpg" if paths else None} for name in PIXELS}
    return [{"image": names[name], "caption": TEXTS[name][0], "objects": objects(name)} for name in PIXELS]


def schema_metadata() -> dict[bytes, bytes]:
    """What datasets leaves in a schema: the names of classes."""
    label = {"feature": {"names": list(CLASSES), "_type": "ClassLabel"}, "_type": "List"}
    box = {"feature": {"feature": {"dtype": "int64", "_type": "Value"}, "length": 4, "_type": "List"}, "_type": "List"}
    features = {"image": {"_type": "Image"}, "objects": {"bbox": box, "categories": label}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def write_parquet(path: Path, given: list[dict[str, Any]], **options: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist(given).replace_schema_metadata(schema_metadata())
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, **options)
    return path


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_parquet(tmp_path / f"in/data/{split}-00000-of-00001.parquet", rows(), row_group_size=1)
    compare(Miniature(tmp_path / "in", {"split": "val"}, captions=FIRST), tmp_path / "out")
    with pytest.raises(ValueError, match="has the splits train, validation; name one with --split"):
        compare(Miniature(tmp_path / "in"), tmp_path / "other")


def test_one_parquet_file_with_bytes_that_have_no_name(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "in/set.parquet", rows(paths=False))
    regions = {str(place): given for place, given in enumerate(as_regions().values())}
    captions = {str(place): given for place, given in enumerate(FIRST.values())}
    compare(Miniature(source, {}, regions, captions), tmp_path / "out")


def test_parquet_of_pandas_with_paths(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pictures(tmp_path / "in")
    given = [
        {"file_name": f"{name}.jpg", "caption": text, "box": list(shares(box)), "phrase": label}
        for name, boxes in PIXELS.items()
        for label, box in boxes
        for text in TEXTS[name][:1]
    ]
    source = tmp_path / "in/set.parquet"
    pandas.DataFrame(given).to_parquet(source)
    options = {"boxes": "xyxy_normalized", "label_column": "phrase"}
    captions = {name: FIRST[name] * len(boxes) for name, boxes in PIXELS.items()}
    compare(Miniature(source, options, as_regions(category=False), captions), tmp_path / "out")


def test_csv_of_pandas_and_a_metadata_file(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pictures(tmp_path / "in")
    given = [
        {"file_name": f"{name}.jpg", "text": TEXTS[name][0], "objects": json.dumps(objects(name))} for name in PIXELS
    ]
    pandas.DataFrame(given).to_csv(tmp_path / "in/metadata.csv", index=False)
    classes = write(tmp_path / "names.json", {"0": "dog", "1": "red bus"})
    compare(Miniature(tmp_path / "in", {"classes": classes}, captions=FIRST), tmp_path / "out")


WITH_DATASETS = """
import json, pathlib, sys
import datasets
out, rows = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
labels = datasets.List(datasets.ClassLabel(names=["dog", "red bus"]))
boxes = datasets.List(datasets.List(datasets.Value("float32"), length=4))
features = {"image": datasets.Image(), "caption": datasets.Value("string")}
features |= {"objects": {"bbox": boxes, "categories": labels}}
made = datasets.Dataset.from_list(rows, features=datasets.Features(features))
made.save_to_disk(str(out / "saved"))
datasets.DatasetDict({"train": made, "test": made}).save_to_disk(str(out / "several"))
(out / "hub/data").mkdir(parents=True)
made.to_parquet(str(out / "hub/data/train-00000-of-00001.parquet"))
"""


@pytest.mark.slow
def test_datasets_save_to_disk_and_to_parquet(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    pictures(tmp_path / "pictures")
    given = [row | {"image": str(tmp_path / f"pictures/{name}.jpg")} for name, row in zip(PIXELS, rows(), strict=True)]
    arguments = [sys.executable, "-c", WITH_DATASETS, str(tmp_path), json.dumps(given)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HOME": str(tmp_path / "cache")}
    subprocess.run(arguments, check=True, env=environment)
    compare(Miniature(tmp_path / "saved", captions=FIRST), tmp_path / "out")
    compare(Miniature(tmp_path / "several", {"split": "test"}, captions=FIRST), tmp_path / "out2")
    compare(Miniature(tmp_path / "hub", captions=FIRST), tmp_path / "out3")


@pytest.mark.slow
def test_supervision_writes_yolo_and_voc(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    numpy = pytest.importorskip("numpy")
    pictures(tmp_path / "pictures")
    paths = {name: str(tmp_path / f"pictures/{name}.jpg") for name in PIXELS}
    found = {
        paths[name]: supervision.Detections(
            xyxy=numpy.array([box for _, box in boxes], float),
            class_id=numpy.array([CLASSES.index(label) for label, _ in boxes]),
        )
        for name, boxes in PIXELS.items()
    }
    made = supervision.DetectionDataset(classes=list(CLASSES), images=list(paths.values()), annotations=found)
    yolo, voc = tmp_path / "yolo", tmp_path / "voc"
    made.as_yolo(str(yolo / "images"), str(yolo / "labels"), str(yolo / "data.yaml"))
    compare(Miniature(yolo), tmp_path / "out")
    made.as_pascal_voc(str(voc / "JPEGImages"), str(voc / "Annotations"))
    compare(Miniature(voc), tmp_path / "out2")


DATUMARO = {
    "yolo": {"split": "train"},
    "yolo_ultralytics": {"split": "train"},
    "voc": {"split": "train", "boxes": "xyxy_pixels"},
    "open_images": {"split": "train"},
    "cvat": {},
    "coco": {"split": "train"},
}


@pytest.mark.slow
@pytest.mark.parametrize("format", DATUMARO)
def test_datumaro_writes(format: str, tmp_path: Path) -> None:
    pytest.importorskip("datumaro")
    from datumaro.components.annotation import Bbox
    from datumaro.components.dataset import Dataset
    from datumaro.components.dataset_base import DatasetItem
    from datumaro.components.media import Image

    items = [
        DatasetItem(
            id=name,
            subset=subset,
            media=Image.from_bytes(jpeg((WIDTH, HEIGHT))),
            annotations=[
                Bbox(x0, y0, x1 - x0, y1 - y0, label=CLASSES.index(label)) for label, (x0, y0, x1, y1) in boxes
            ],
        )
        for name, boxes in PIXELS.items()
        for subset in (("train", "val") if format == "yolo_ultralytics" else ("train",))
    ]
    made = Dataset.from_iterable(items, categories=list(CLASSES), media_type=Image)
    made.export(str(tmp_path / "in"), format, save_media=True)
    compare(Miniature(tmp_path / "in", DATUMARO[format]), tmp_path / "out")
