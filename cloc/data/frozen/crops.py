"""Files of the token cache with what a frozen part has made of the regions of some pictures, cut out (``data.crops``).

Beside ``blocks``: as many rows a picture as it has regions without crowds, in their order; none for a picture that
cannot be used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from torch import Tensor

from cloc.data.frozen.blocks import MOST_BYTES, MOST_SAMPLES, BlockPlace, OpenFiles, Rows, StoredTensors

LIKELY = 16  # regions of a picture, for the size of files


def pictures_of(rows: Rows) -> int:
    """Pictures whose regions lie in one file."""
    return max(1, min(MOST_SAMPLES, MOST_BYTES // (LIKELY * rows.row_bytes)))


class CropBlock(StoredTensors):
    """A file that is open.

    Args:
        place: of it.
        name: of the tensor that holds the rows.
    """

    def __init__(self, place: BlockPlace, name: str) -> None:
        super().__init__(place, (name, "ends"))
        self.rows, self.ends = self.tensors[name], self.tensors["ends"].numpy()

    def of(self, number: int) -> Tensor:
        """Rows of the regions of one of its pictures."""
        start = int(self.ends[number - 1]) if number else 0
        return self.rows[start : int(self.ends[number])]

    def is_whole(self, place: BlockPlace, rows: Rows) -> bool:
        """Whether shapes and checksum are right. Reads all of it."""
        counts = len(self.ends) == place.count and len(self.rows) == int(self.ends[-1])
        return counts and tuple(self.rows.shape[1:]) == rows.shape and self.rows.dtype == rows.dtype and self.is_sound


def open_whole_crops(place: BlockPlace, rows: Rows) -> CropBlock | None:
    """The content of a file; None where it is not there or not whole."""
    try:
        block = CropBlock(place, rows.name)
        return block if block.is_whole(place, rows) else None
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


class CropBlocks(OpenFiles[CropBlock]):
    """Rows of the regions of a data set.

    Args:
        places: of all files.
        rows: what they hold.
    """

    def __init__(self, places: Sequence[BlockPlace], rows: Rows) -> None:
        super().__init__(places, pictures_of(rows), lambda place: CropBlock(place, rows.name))
        self.rows = rows

    def of(self, places: Tensor, regions: Tensor) -> Tensor:
        """Rows ``[B,K,…]`` of the regions ``[B,K]`` of samples ``[B,3]``; zero where a region is −1."""
        found = torch.zeros(*regions.shape, *self.rows.shape, dtype=self.rows.dtype)
        for row, (source, shard, number) in enumerate(places.tolist()):
            block, own = self.find(source, (shard, number))
            kept = block.of(own)
            for column, region in enumerate(regions[row].tolist()):
                if region >= 0:
                    found[row, column] = kept[region]
        return found
