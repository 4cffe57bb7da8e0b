"""Fills the part of the token cache that holds crops: a frozen part sees every region of a data set once, cut out."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cloc.contracts import BadSample, Sample
from cloc.data.decode import decoder
from cloc.data.frozen.blocks import BlockPlace, write_sound
from cloc.data.frozen.crops import open_whole_crops
from cloc.data.transforms import ViewedPicture, new_views
from cloc.engine.frozen.filling import TOGETHER, Filler

AT_ONCE = 8  # pictures whose regions are cut out and encoded together
UNCHANGED = ViewedPicture(torch.empty(0), np.zeros(4, np.float32), False)


class CropFiller(Filler):
    """Makes the files of crops that are missing, see :class:`cloc.engine.frozen.filling.Filler`.

    Args:
        arguments: of :class:`Filler`; the shape has one tensor.
        regions: of a picture, on average.
    """

    label = "frozen tower, regions cut out"

    def __init__(self, *arguments: Any, regions: float) -> None:
        super().__init__(*arguments)
        self.rows, self.regions = self.shape.kept[0], regions

    @property
    def sample_bytes(self) -> float:
        """Bytes that a sample takes on average."""
        return self.regions * self.rows.row_bytes

    def is_whole(self, place: BlockPlace) -> bool:
        """Whether a file is there, and as it was written."""
        return open_whole_crops(place, self.rows) is not None

    def write(self, place: BlockPlace, pool: ThreadPoolExecutor, bar: Any) -> None:
        """Make and write one file."""
        kept: list[Tensor] = [torch.empty(0, *self.rows.shape, dtype=self.rows.dtype)]
        counts: list[int] = []
        for start in range(0, place.count, AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, place.count))
            read = [self._cut(place, number, pool) for number in numbers]
            views = [_result(one) for one in read]
            counts += [len(one) for one in views]
            every = [one for one in views if len(one)]
            parts = torch.cat(every).split(TOGETHER) if every else ()
            kept += [self.forward(part, place)[self.rows.name] for part in parts]
            bar.advance(len(numbers))
        ends = torch.tensor(np.cumsum(counts), dtype=torch.int64)
        write_sound(place.file, {self.rows.name: torch.cat(kept), "ends": ends})

    def _cut(self, place: BlockPlace, number: int, pool: ThreadPoolExecutor) -> Future[Tensor] | None:
        try:
            sample, _ = self.readers[place.source].read_sample((place.shard, place.first + number), views=True)
        except BadSample:
            return None
        return pool.submit(self._views, sample)

    def _views(self, sample: Sample) -> Tensor:
        boxes = [region.box for region in sample.regions if not region.crowd]
        views = new_views(len(boxes), self.view.size)
        picture = decoder(sample.image)()
        for box, out in zip(boxes, views, strict=True):
            self.view.of_box(picture, box, UNCHANGED, out)
        return views


def _result(read: Future[Tensor] | None) -> Tensor:
    """Views of a picture's regions; none of a picture that cannot be used, which the other cache counts."""
    try:
        return torch.empty(0) if read is None else read.result()
    except BadSample:
        return torch.empty(0)
