"""The pictures that an index names, read again: to be drawn, and to find the query in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from cloc.contracts import BadSample
from cloc.data.decode import decode_rgb
from cloc.data.shards.tars import ShardError
from cloc.encoder import Encoder
from cloc.evaluation.embed.inputs import open_source, read_picture
from cloc.evaluation.embed.regions import can_score
from cloc.evaluation.search.finding import Hit
from cloc.evaluation.search.index import Index
from cloc.evaluation.search.queries import Box, Query


@dataclass(frozen=True, slots=True)
class Look:
    """A picture that was found, looked at again.

    Attributes:
        hit: what was found.
        picture: ``[3,H,W]`` uint8; None where it is not there any more.
        missing: why it is None.
        box: where the query was found in it, xyxy in 0..1; None where nothing looked for it.
        fit: how well the box fits, see :meth:`cloc.models.model.Cloc.likeness`; None where the model does not say.
    """

    hit: Hit
    picture: Tensor | None
    missing: str = ""
    box: Box | None = None
    fit: float | None = None


class PictureReader:
    """Reads pictures by their name in an index.

    Args:
        index: opened.
        root: folder of the pictures, or of the shards; None takes where they were.
    """

    def __init__(self, index: Index, root: Path | None = None) -> None:
        self.index = index
        self._read = self._opened(root)

    def read(self, key: str) -> tuple[Tensor | None, str]:
        """A picture ``[3,H,W]`` uint8, or why it cannot be read."""
        try:
            return decode_rgb(self._read(key)), ""
        except BadSample as error:
            return None, str(error)

    def _opened(self, root: Path | None) -> Callable[[str], bytes]:
        made_by = self.index.made_by
        if root is None and made_by is None:
            return _absent("the index does not say where its pictures are; give --images")
        if root is None and made_by is not None:
            root = Path(made_by.folder or made_by.data)
        assert root is not None, "one of both says it"
        if made_by is not None and not made_by.folder:
            return self._of_shards(root)
        return lambda key: _below(root, key)

    def _of_shards(self, root: Path) -> Callable[[str], bytes]:
        try:
            pictures = open_source(root)
        except (OSError, ValueError, ShardError) as error:
            return _absent(f"{error}; say where the shards are by --images")
        if pictures.digest != self.index.data:
            return _absent(f"{root}: other shards than those of the index")
        keys = self.index.tables["images"].key

        def read(key: str) -> bytes:
            rows = np.flatnonzero(keys == key)
            if not len(rows):
                raise BadSample("no_image", f"{key!r} has no row among the pictures")
            return pictures.read(place_of(int(rows[0]), self.index.skipped)).image

        return read


def place_of(row: int, skipped: tuple[int, ...]) -> int:
    """Number of a picture of the data, from its row in the table: pictures that were skipped have none."""
    for place in skipped:  # in order
        if place > row:
            break
        row += 1
    return row


def _below(root: Path, key: str) -> bytes:
    """A file below a folder; the name may be a stranger's."""
    name = PurePosixPath(key)
    if name.is_absolute() or ".." in name.parts:
        raise BadSample("no_image", f"{key!r} leads out of {root}")
    file = root / key
    if not file.is_file():
        raise BadSample("no_image", f"{file} is not there")
    return read_picture(file)


def _absent(reason: str) -> Callable[[str], bytes]:
    def read(key: str) -> bytes:
        raise BadSample("no_image", reason)

    return read


def look(encoder: Encoder, reader: PictureReader, query: Query, hit: Hit) -> Look:
    """Read a picture that was found; where the query is a text and a whole picture was found, find the text in it.

    Args:
        encoder: the model of the index.
        reader: of its pictures.
        query: what was looked for.
        hit: what was found.
    """
    picture, missing = reader.read(hit.key)
    if picture is None or hit.box is not None or not query.text or not encoder.can_ground:
        return Look(hit, picture, missing)
    seen, rows = encoder.see([picture]), query.embedding.unsqueeze(0)
    if not can_score(encoder):
        return Look(hit, picture, box=_box(encoder.grounded(seen, rows)[0]))
    (boxes,), (scores,) = encoder.grounded(seen, rows, return_scores=True)
    return Look(hit, picture, box=_box(boxes), fit=float(scores[0]))


def _box(rows: Tensor) -> Box:
    x0, y0, x1, y1 = rows[0].clamp(0, 1).tolist()
    return x0, y0, x1, y1
