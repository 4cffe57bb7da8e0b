"""Files of the token cache: what a frozen image tower has made of some consecutive samples of one shard.

A block holds of each sample what the tower makes (patch tokens and the pooled embedding, or what its frozen part
passes on), the picture's place in its view and the annotations, as safetensors with a checksum. Its name is made of the
shard's digest, its folder of the tower's and the view's (``cloc.engine.frozen``). So nothing is ever out of date, and
the folder can be deleted at any time.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cloc.config import ConfigError
from cloc.contracts import BadSample, Region, Sample
from cloc.data.shards.manifest import Place
from cloc.data.stream.sources import ShardSources
from cloc.files import write_tensors

FORMAT = 1  # raised when the same tower and data come to mean other blocks
MOST_BYTES, MOST_SAMPLES = 1 << 27, 512  # of a block: what is lost when the filling is stopped
NAMES = ("content", "ends", "records")  # besides what the tower makes


@dataclass(frozen=True, slots=True)
class Rows:
    """One tensor that is kept, a row a picture.

    Attributes:
        name: of the tensor.
        shape: of a row.
        dtype: that is kept.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Of a row."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Shape:
    """What a tower makes of a picture.

    Attributes:
        kept: the tensors.
    """

    kept: tuple[Rows, ...]

    @property
    def sample_bytes(self) -> int:
        """Bytes that a sample takes, without its annotations."""
        return sum(one.row_bytes for one in self.kept)

    @property
    def block(self) -> int:
        """Samples of a block; the last of a shard has fewer."""
        return max(1, min(MOST_SAMPLES, MOST_BYTES // self.sample_bytes))

    def empty(self, count: int) -> dict[str, Tensor]:
        """Rows of so many pictures, all zero."""
        return {one.name: torch.zeros(count, *one.shape, dtype=one.dtype) for one in self.kept}


@dataclass(frozen=True, slots=True)
class BlockPlace:
    """Where a block's samples are.

    Attributes:
        source: number of the data source.
        shard: in its manifest.
        first: number of its first sample in the shard.
        count: of samples.
        file: that holds it.
    """

    source: int
    shard: int
    first: int
    count: int
    file: Path


def places_of(data: ShardSources, folder: Path, block: int) -> list[BlockPlace]:
    """All blocks of a data set, in the order of sources and shards.

    Args:
        data: the data set.
        folder: of the tower and the view.
        block: samples of a block.
    """
    found = []
    for source, part in enumerate(data.parts):
        shards = part.manifest.shards
        for shard, samples in enumerate(shards.column("samples").tolist()):
            name = shards.sha256(shard) or _unknown(part.manifest.location(shard), shards.size(shard))
            for first in range(0, samples, block):
                file = folder / f"{name[:32]}-{first:08d}.safetensors"
                found.append(BlockPlace(source, shard, first, min(block, samples - first), file))
    return found


def _unknown(location: str, size: int) -> str:
    raise ConfigError(
        f"data.token_cache: the manifest holds no SHA-256 of {location} ({size:,} bytes), by which its tokens would be "
        "found again; run `python -m cloc data check` on the folder, or set data.token_cache=null"
    )


def write_block(file: Path, tensors: Mapping[str, Tensor], records: Sequence[str]) -> None:
    """Write a block, whole or not at all.

    Args:
        file: its path; the folder is there.
        tensors: what the tower makes, and ``content``, a row a sample.
        records: of each sample, see :func:`record_of`.
    """
    texts = [record.encode() for record in records]
    held = {
        **tensors,
        "records": torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8),
        "ends": torch.tensor(np.cumsum([len(text) for text in texts]), dtype=torch.int64),
    }
    write_sound(file, held)


def write_sound(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of tensors with its checksum, whole or not at all."""
    write_tensors(file, dict(tensors), {"crc32": str(checksum(tensors)), "format": str(FORMAT)})


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 over the bytes of tensors, in the order of their names."""
    found = 0
    for _, value in sorted(tensors.items()):
        found = zlib.crc32(value.contiguous().flatten().view(torch.uint8).numpy().data, found)
    return found


class StoredTensors:
    """A file of tensors that is open: they are parts of the file, read where they are looked at.

    Args:
        place: of it.
        names: of what it must hold.

    Raises:
        OSError: it is not there.
        SafetensorError: it is no such file.
        KeyError: it lacks a tensor.
    """

    def __init__(self, place: BlockPlace, names: Sequence[str]) -> None:
        with safe_open(place.file, "pt") as stored:
            self.metadata: dict[str, str] = stored.metadata() or {}
            self.tensors: dict[str, Tensor] = {name: stored.get_tensor(name) for name in stored.keys()}
        if missing := sorted(set(names) - self.tensors.keys()):
            raise KeyError(missing[0])

    @property
    def is_sound(self) -> bool:
        """Whether the checksum is right. Reads all of it."""
        return self.metadata.get("crc32") == str(checksum(self.tensors))


class Block(StoredTensors):
    """A block that is open, see :class:`StoredTensors`.

    Args:
        place: of it.
    """

    def __init__(self, place: BlockPlace) -> None:
        super().__init__(place, NAMES)
        self.content = self.tensors["content"]
        self._records, self._ends = self.tensors["records"].numpy(), self.tensors["ends"].numpy()

    def record(self, number: int) -> dict[str, Any]:
        """Annotations of its sample of this number, as :func:`record_of` wrote them."""
        start = int(self._ends[number - 1]) if number else 0
        found: dict[str, Any] = json.loads(self._records[start : int(self._ends[number])].tobytes())
        return found

    def is_whole(self, place: BlockPlace, shape: Shape) -> bool:
        """Whether shapes and checksum are right. Reads all of it."""
        fits = all(self._holds(one, place.count) for one in shape.kept)
        return fits and self.is_sound

    def _holds(self, rows: Rows, count: int) -> bool:
        found = self.tensors[rows.name]
        return tuple(found.shape) == (count, *rows.shape) and found.dtype == rows.dtype


def open_whole(place: BlockPlace, shape: Shape) -> Block | None:
    """The block of a file; None where it is not there or not whole."""
    try:
        block = Block(place)
        return block if block.is_whole(place, shape) else None
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def record_of(sample: Sample, counts: Counter[str]) -> str:
    """A sample's annotations and what was dropped or mended in them, as JSON."""
    regions = [asdict(region) for region in sample.regions]
    kept = {"key": sample.key, "captions": sample.captions, "regions": regions, "source": sample.source}
    return json.dumps({**kept, "width": sample.width, "height": sample.height, "counts": dict(counts)})


def bad_record(error: BadSample) -> str:
    """In the place of a sample that cannot be used."""
    return json.dumps({"bad": error.reason, "detail": error.detail})


def sample_of(record: Mapping[str, Any]) -> tuple[Sample, Counter[str]]:
    """The sample without its picture, and what was dropped or mended in it.

    Raises:
        BadSample: it cannot be used.
    """
    if "bad" in record:
        raise BadSample(record["bad"], record["detail"])
    regions = tuple(_region(one) for one in record["regions"])
    sample = Sample(
        record["key"], b"", "", tuple(record["captions"]), regions, record["width"], record["height"], record["source"]
    )
    return sample, Counter(record["counts"])


def _region(one: Mapping[str, Any]) -> Region:
    texts = {name: tuple(one[name]) for name in ("box", "phrases", "negatives")}
    return Region(**{**one, **texts})


Opened = TypeVar("Opened", bound=StoredTensors)


class OpenFiles(Generic[Opened]):
    """Files of the token cache, to be read from. May be pickled into workers: files open where they are read.

    Args:
        places: of all files.
        block: samples of one.
        read: opens one.
    """

    def __init__(self, places: Sequence[BlockPlace], block: int, read: Callable[[BlockPlace], Opened]) -> None:
        self._block, self._read = block, read
        self._places = {(one.source, one.shard, one.first): one for one in places}
        self._open: dict[BlockPlace, Opened] = {}

    def find(self, source: int, place: Place) -> tuple[Opened, int]:
        """The file that holds a sample, and its number there.

        Raises:
            ConfigError: the file has vanished or changed since the run began.
        """
        shard, number = place
        first = number // self._block * self._block
        where = self._places[source, shard, first]
        if where not in self._open:
            try:
                self._open[where] = self._read(where)
            except (OSError, SafetensorError, KeyError) as error:
                raise ConfigError(
                    f"{where.file}: the token cache has lost this file ({error}); start again, which makes it anew"
                ) from error
        return self._open[where], number - first

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}


class Blocks(OpenFiles[Block]):
    """Blocks of a data set, see :class:`OpenFiles`.

    Args:
        places: of all blocks.
        shape: of what they hold.
    """

    def __init__(self, places: Sequence[BlockPlace], shape: Shape) -> None:
        super().__init__(places, shape.block, Block)
        self.shape = shape

    def rows(self, places: Tensor) -> dict[str, Tensor]:
        """What is kept of samples ``[B,3]`` (source, shard, number), by name, a row each."""
        found = [self.find(source, (shard, number)) for source, shard, number in places.tolist()]
        names = [one.name for one in self.shape.kept]
        return {name: torch.stack([block.tensors[name][row] for block, row in found]) for name in names}
