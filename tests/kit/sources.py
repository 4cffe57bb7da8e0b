"""Small sources of other people's formats, and shards member by member; and what is read back of them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from cloc.contracts import Sample
from cloc.data.shards.index import load_manifest
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.samples import each_sample

WIDTH, HEIGHT = 600, 400


def jpeg(size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 50, 50)).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path: Path, content: Any) -> Path:
    """Bytes as they are, text as UTF-8, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes | str):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_members(folder: Path, samples: Mapping[str, Mapping[str, Any]]) -> Path:
    """A folder with ``x.tar`` of members by key and extension; what is no bytes as ``write`` has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "x.tar", "w") as tar:
        for key, members in samples.items():
            for extension, content in members.items():
                text = content if isinstance(content, bytes | str) else json.dumps(content)
                data = text.encode() if isinstance(text, str) else text
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


def read_samples(folder: Path) -> dict[str, Sample]:
    """Samples of a folder of shards by key; all must be usable."""
    return {stored.key: stored.need() for stored in each_sample(ShardReader(load_manifest(folder)), source="")}


def image(number: Any, file: str, **more: Any) -> dict[str, Any]:
    """COCO's object of a picture."""
    return {"id": number, "file_name": file, "width": WIDTH, "height": HEIGHT, **more}


def box(number: Any, picture: Any, **more: Any) -> dict[str, Any]:
    """COCO's annotation with a box over the left half of a picture."""
    own = {"id": number, "image_id": picture, "category_id": 1, "bbox": [0, 0, WIDTH / 2, HEIGHT], "iscrowd": 0}
    return own | more


def write_coco(
    folder: Path,
    images: list[Any],
    annotations: list[Any],
    categories: list[Any] | None = None,
    name: str = "instances_val2017",
) -> Path:
    """One annotation file of COCO's layout, with every picture that it names."""
    categories = [{"id": 1, "name": "bus"}] if categories is None else categories
    write(folder / f"annotations/{name}.json", {"images": images, "annotations": annotations, "categories": categories})
    for item in images:
        write(folder / "val2017" / item["file_name"], jpeg())
    return folder
