"""Regions cut out as further pictures: their pixels are those that are read as crops; without them nothing changes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cloc.commands.shared import train_on
from cloc.contracts import Batch, Region, Sample
from cloc.data.decode import decode_rgb
from cloc.data.preprocess import Preprocess
from cloc.data.shards.index import load_manifest
from cloc.data.shards.writer import write_shards
from cloc.data.stream.batches import Stream, make_loader
from cloc.data.stream.region_sampling import Chooser
from cloc.data.transforms import PAD_VALUE, View, new_views
from cloc.encoder import Encoder
from tests.engine.test_accumulation import tiny
from tests.kit.streams import TOKENIZER

SIZE, K, M = 32, 2, 3
WIDTH, HEIGHT = 150, 90
# The second box begins where float32 and float64 round to different pixels; the last is thinner than a pixel.
BOXES = [(0.1, 0.2, 0.55, 0.9), (0.32, 0.3, 0.9, 1.0), (0.5, 0.5, 0.501, 0.8)]
PICTURES = 6


def noise(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT // 5, WIDTH // 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures much larger than the view, with 0 to 3 boxes, each named by its number; in shards of 3."""
    folder = tmp_path_factory.mktemp("noise")
    samples = []
    for number in range(PICTURES):
        regions = tuple(Region(box, (f"thing {place}",)) for place, box in enumerate(BOXES[: number % 4]))
        samples.append(Sample(f"s{number}", noise(number), "png", (f"picture {number}",), regions))
    write_shards(samples, folder, samples_per_shard=3)
    return folder


def stream(folder: Path, crops: int = K, batch_size: int = PICTURES, **view: Any) -> Stream:
    chooser = Chooser(View(SIZE, **view), regions=M, crops=crops)
    return Stream(load_manifest(folder), TOKENIZER, chooser, batch_size, 3)


class Watched(Encoder):
    """An encoder that keeps the views which its image tower gets."""

    def __init__(self, resize: str) -> None:
        super().__init__(tiny().eval(), {}, tokenizer=TOKENIZER, preprocess=Preprocess(resize))
        self.views: list[Tensor] = []
        self.model.encode_images = self._encode_images

    def _encode_images(self, images: Tensor) -> Any:
        self.views.append(images)
        return type(self.model).encode_images(self.model, images)


def cut_out(batch: Batch) -> Iterator[tuple[int, int, Tensor]]:
    """Of each crop that there is: its picture, which box it is of, its pixels."""
    for row, place in batch.crop_valid.nonzero().tolist():
        words = batch.phrases[batch.region_phrase[row, place]]
        box = next(
            i for i in range(M) if torch.equal(TOKENIZER([f"thing {i}"])[0], words[: len(TOKENIZER([f"thing {i}"])[0])])
        )
        yield row, box, batch.crops[row, place]


@pytest.mark.parametrize("resize", ["pad", "squash"])
def test_crops_are_what_the_source_crop_reads(resize: str, shards: Path) -> None:
    encoder, seen = Watched(resize), set()
    for position in range(0, 3 * PICTURES, PICTURES):
        batch = stream(shards, resize=resize).batch_at(position)
        assert batch.crops.shape == (PICTURES, K, 3, SIZE, SIZE) and batch.crops.dtype == torch.uint8
        assert int(batch.crop_valid.sum()) == 6  # of 0, 1, 2, 3, 0 and 1 boxes
        for row, box, pixels in cut_out(batch):
            encoder.views.clear()
            encoder.encode_regions(decode_rgb(noise(int(batch.keys[row][1:]))), [BOXES[box]], "crop")
            assert torch.equal(encoder.views[0][0], pixels)
            seen.add(box)
    assert seen == {0, 1, 2} and int(0.32 * WIDTH) != int(float(np.float32(0.32)) * WIDTH)


def test_they_are_of_the_first_drawn_regions_and_even_elsewhere(shards: Path) -> None:
    """Written into memory that holds something else."""
    room = torch.full((PICTURES * (1 + K), 3, SIZE, SIZE), 7, dtype=torch.uint8)
    batch, again = stream(shards).batch_at(0, room), stream(shards).batch_at(0)
    assert batch.crops.data_ptr() == room[PICTURES:].data_ptr()
    assert torch.equal(batch.crops, again.crops) and torch.equal(batch.images, again.images)
    assert (batch.crops[~batch.crop_valid] == PAD_VALUE).all()
    assert torch.equal(batch.crop_valid, batch.region_valid[:, :K])
    assert torch.equal(stream(shards, crops=1).batch_at(0).crops, batch.crops[:, :1])


@pytest.mark.parametrize("view", [{}, {"flip": 0.5, "jitter": (0.4, 0.4, 0.4, 0.1), "crop": 0.5}])
def test_nothing_else_of_a_batch_changes(view: dict[str, Any], shards: Path) -> None:
    with_crops, without = stream(shards, **view).batch_at(6), stream(shards, crops=0, **view).batch_at(6)
    assert without.crops is None and without.crop_valid.shape == (PICTURES, 0)
    for name in ("images", "boxes", "captions", "region_valid", "region_phrase", "phrases", "content", "target_boxes"):
        assert torch.equal(getattr(with_crops, name), getattr(without, name)), name
    assert with_crops.keys == without.keys


def test_they_are_mirrored_and_colored_as_their_picture(shards: Path) -> None:
    view, image, found = View(SIZE), decode_rgb(noise(1)), []
    for seen in (view(image, np.random.default_rng(0)), View(SIZE, flip=1.0)(image, np.random.default_rng(0))):
        view.of_box(image, BOXES[0], seen, out := new_views(1, SIZE)[0])
        found.append(out)
    assert seen.mirrored and torch.equal(found[1], found[0].flip(-1)) and not torch.equal(found[1], found[0])
    one = replace(stream(shards).chooser, view=View(SIZE, jitter=(0.9, 0.0, 0.0, 0.0)))
    sample = Sample("a", noise(1), "png", ("a",), (Region((0.0, 0.0, 1.0, 1.0), ("all",)),))
    candidate = one(sample, np.random.default_rng(0))
    assert candidate.seen.jitter and candidate.picture is not None
    one.choose([candidate])
    assert torch.equal(candidate.crops[0], candidate.seen.image)  # the whole picture as a box is its view
    assert candidate.picture is None  # let go


def test_without_crops_no_decoded_picture_is_held(shards: Path) -> None:
    chooser = stream(shards, crops=0).chooser
    candidate = chooser(Sample("a", noise(1), "png", ("a",)), np.random.default_rng(0))
    assert candidate.picture is None and candidate.crops is None and candidate.seen.jitter == ()


def test_the_command_that_trains_on_them_weighs_them() -> None:
    assert train_on("shards", "crops=2").endswith("data.crops=2 loss.crops=1 dry_run=true")
    assert "loss.crops" not in train_on("shards", "data.crops=0", "crop=0.5")


@pytest.mark.slow
def test_reading_processes_bring_the_same_crops(shards: Path) -> None:
    loader = make_loader(stream(shards), 2)
    try:
        found = list(islice(iter(loader), 6))  # more than are under way: buffers are used again
    finally:
        loader.end()
    for number, batch in enumerate(found):
        want = stream(shards).batch_at(number * PICTURES)
        assert torch.equal(batch.crops, want.crops) and torch.equal(batch.images, want.images)
        assert batch.keys == want.keys
