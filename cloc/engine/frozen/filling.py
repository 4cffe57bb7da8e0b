"""Fills the token cache: a frozen image tower sees every picture of a data set once.

Files are checked whole when a run begins; what is missing or damaged is made anew. Each appears under its name whole or
not at all, so runs may share a folder and be stopped at any time.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cloc.config import ConfigError, DataConfig
from cloc.console import progress, progress_console
from cloc.contracts import BadSample, Sample
from cloc.data.decode import decoder
from cloc.data.frozen.blocks import BlockPlace, Shape, bad_record, open_whole, record_of, write_block
from cloc.data.shards.reader import ShardReader
from cloc.data.stream.sources import ShardSources
from cloc.data.transforms import View
from cloc.engine.process_group import barrier, rank_and_world

TOGETHER = 32  # pictures of a forward pass
GIB = 2**30


def check_bound(config: DataConfig, data: ShardSources, shape: Shape) -> str:
    """Refuse a data set whose tokens, those of its regions' crops among them, are more than the cache may hold.

    Returns:
        How much they take, in words.

    Raises:
        ConfigError: they do not fit.
    """
    needed = data.samples * shape.sample_bytes
    said = f"{data.samples:,} samples × {shape.sample_bytes / 1024:,.0f} KiB = {needed / GIB:,.2f} GiB"
    if config.crops:
        of_crops = data.regions * shape.sample_bytes
        needed += of_crops
        said += f" and {data.regions:,} crops = {of_crops / GIB:,.2f} GiB"
    if needed > config.token_cache_bytes:
        halved = any(one.dtype.itemsize > 2 and len(one.shape) > 1 for one in shape.kept)
        smaller = ", data.token_precision=float16" if halved else ""
        raise ConfigError(
            f"data.token_cache={config.token_cache}: {said}, more than data.token_cache_bytes="
            f"{config.token_cache_bytes} ({config.token_cache_bytes / GIB:,.2f} GiB); give more{smaller}, fewer "
            "samples, or data.token_cache=null, which encodes the pictures at each step"
        )
    return said


class Makes(Protocol):
    """What makes the rows that are kept: see :class:`cloc.engine.frozen.cuts.ImageCut`."""

    def made_of(self, pictures: Tensor) -> dict[str, Tensor]:
        """Views ``[B,3,S,S]`` uint8 → rows by name."""


class Filler:
    """Makes the blocks of a data set that are missing.

    Args:
        cut: where the image tower is cut; on its device, in evaluation mode.
        data: the data set.
        view: how the tower sees a picture; draws nothing.
        shape: of what is kept.
        config: the data's.
        threads: that decode.
    """

    label = "frozen tower"

    def __init__(
        self, cut: Makes, data: ShardSources, view: View, shape: Shape, config: DataConfig, threads: int
    ) -> None:
        self.cut, self.view, self.shape, self.config = cut, view, shape, config
        self.readers = [ShardReader(part.manifest, cache=data.cache) for part in data.parts]
        self.threads = max(1, threads)

    def fill(self, places: Sequence[BlockPlace]) -> tuple[int, int]:
        """Make what is missing: a share of it each process, then what it does not see of the others'.

        Returns:
            How many samples were encoded by this process, and how many blocks had been damaged.

        Raises:
            ConfigError: there is no room, or a token is too large for the cache's precision.
            OSError: a shard cannot be read, or the cache not be written.
        """
        rank, world = rank_and_world()
        missing = self._missing(places)
        damaged = [place for place in missing if place.file.exists()]
        self._check_room(missing)
        if world > 1:
            barrier()  # all have looked before any writes: their shares are of the same list
        done = self._make(missing[rank::world])
        if world > 1:
            barrier()
            done += self._make(self._still_missing(missing, damaged))
        return done, len(damaged)

    def is_whole(self, place: BlockPlace) -> bool:
        """Whether a file is there, and as it was written."""
        return open_whole(place, self.shape) is not None

    def write(self, place: BlockPlace, pool: ThreadPoolExecutor, bar: Any) -> None:
        """Make and write one file."""
        tensors, records = self._encode(place, pool, bar)
        write_block(place.file, tensors, records)

    @property
    def sample_bytes(self) -> float:
        """Bytes that a sample takes, about."""
        return self.shape.sample_bytes

    def _missing(self, places: Sequence[BlockPlace]) -> list[BlockPlace]:
        with progress(progress_console(), "checking the token cache", len(places), "files") as bar:
            return [place for place in bar.each(places) if not self.is_whole(place)]

    def _still_missing(self, missing: Sequence[BlockPlace], damaged: Sequence[BlockPlace]) -> list[BlockPlace]:
        """What others should have made, but have made on another machine: a damaged file is still there then."""
        looked_into = set(damaged)
        return [
            place for place in missing if not place.file.exists() or (place in looked_into and not self.is_whole(place))
        ]

    def _check_room(self, missing: Sequence[BlockPlace]) -> None:
        if not missing:
            return
        root = Path(str(self.config.token_cache)).expanduser()
        needed = sum(place.count for place in missing) * self.sample_bytes
        held = sum(map(_size, root.rglob("*.safetensors")))
        replaced = sum(_size(place.file) for place in missing)
        if held - replaced + needed > self.config.token_cache_bytes:
            raise ConfigError(
                f"data.token_cache={root} holds {held / GIB:,.2f} GiB, {needed / GIB:,.2f} more are needed, and "
                f"data.token_cache_bytes allows {self.config.token_cache_bytes / GIB:,.2f}; delete folders of other "
                "towers there, or give more"
            )
        free = shutil.disk_usage(missing[0].file.parent).free
        if needed > free:
            raise no_room(root, f"{needed / GIB:,.2f} GiB are needed and {free / GIB:,.2f} free")

    def _make(self, places: Sequence[BlockPlace]) -> int:
        total = sum(place.count for place in places)
        if not total:
            return 0
        with (
            ThreadPoolExecutor(self.threads) as pool,
            progress(progress_console(), self.label, total, "pictures") as bar,
        ):
            for place in places:
                try:
                    self.write(place, pool, bar)
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise no_room(place.file.parent, "the disk is full") from error
                    raise
        return total

    def _encode(self, place: BlockPlace, pool: ThreadPoolExecutor, bar: Any) -> tuple[dict[str, Tensor], list[str]]:
        """Tensors and records of a block."""
        count = place.count
        kept, content = self.shape.empty(count), torch.zeros(count, 4)
        records: list[str] = []
        for start in range(0, count, TOGETHER):
            numbers = range(start, min(start + TOGETHER, count))
            read = [self._read(place, number, pool) for number in numbers]
            rows, pictures = [], []
            for number, (record, seen) in zip(numbers, read, strict=True):
                try:
                    picture = None if seen is None else seen.result()
                except BadSample as error:
                    record, picture = bad_record(error), None
                records.append(record)
                if picture is not None:
                    rows.append(number)
                    pictures.append(picture[0])
                    content[number] = torch.from_numpy(picture[1])
            if rows:
                for name, made in self.forward(torch.stack(pictures), place).items():
                    kept[name][rows] = made
            bar.advance(len(numbers))
        return {**kept, "content": content}, records

    def _read(self, place: BlockPlace, number: int, pool: ThreadPoolExecutor) -> tuple[str, Future[Any] | None]:
        try:
            sample, counts = self.readers[place.source].read_sample((place.shard, place.first + number), views=True)
        except BadSample as error:
            return bad_record(error), None
        return record_of(sample, counts), pool.submit(self._view, sample)

    def _view(self, sample: Sample) -> tuple[Tensor, np.ndarray]:
        seen = self.view(decoder(sample.image)(), np.random.default_rng(0))  # which is not asked: no view draws here
        return seen.image, seen.content

    def forward(self, pictures: Tensor, place: BlockPlace) -> dict[str, Tensor]:
        """What is kept of views ``[B,3,S,S]`` uint8, by name.

        Raises:
            ConfigError: the precision that is kept cannot hold it.
        """
        made = self.cut.made_of(pictures)
        kept = {one.name: made[one.name].to(one.dtype).cpu() for one in self.shape.kept}
        for name, value in kept.items():
            if not value.isfinite().all():
                raise ConfigError(
                    f"data.token_precision={self.config.token_precision}: {place.file.name}: the tower makes tokens up "
                    f"to {float(made[name].abs().max()):.3g}, which it cannot hold; give float32, or "
                    "data.token_cache=null"
                )
        return kept


def _size(file: Path) -> int:
    """Bytes of a file; 0 for one that is not there (any more: another run may have replaced it)."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def no_room(folder: Path, why: str) -> ConfigError:
    """The error of a disk that is or would be full."""
    return ConfigError(
        f"data.token_cache={folder}: no room, {why}; free some (what is whole there is taken up again), name another "
        "folder, or set data.token_cache=null"
    )
