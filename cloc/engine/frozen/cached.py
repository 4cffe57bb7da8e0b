"""What a run does with the token cache: finds its folder, fills it, and puts what is kept into batches."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cloc.config import ConfigError, TrainConfig
from cloc.contracts import Batch
from cloc.data.frozen.blocks import FORMAT, BlockPlace, Blocks, Shape, places_of
from cloc.data.frozen.crops import CropBlocks, pictures_of
from cloc.data.frozen.stream import FrozenStream
from cloc.data.stream.sources import ShardSources
from cloc.engine.frozen.crops import CropFiller
from cloc.engine.frozen.cuts import Cut, ImageCut, TextCut
from cloc.engine.frozen.filling import Filler, check_bound
from cloc.engine.frozen.texts import TextFiles, TextTable, texts_of
from cloc.engine.machine import precision_of
from cloc.files import make_folder
from cloc.models.model import Cloc
from cloc.models.weights.digests import add_weights
from cloc.usage import clock


class FrozenTowers:
    """A run whose steps take from the token cache what its frozen towers, or the frozen parts of its towers, make.

    Args:
        config: of the run; its data's names the cache.
        nodes: ``model`` of the resolved configuration.
        model: of the run.
        data: of the run.
        threads: that decode while the cache is filled.

    Attributes:
        notes: what is kept and how much room it takes, in words.

    Raises:
        ConfigError: it has no room for the data, or nothing of the image tower is frozen.
    """

    def __init__(
        self, config: TrainConfig, nodes: Mapping[str, Any], model: Cloc, data: ShardSources, threads: int
    ) -> None:
        self.config, self.data, self.threads = config.data, data, threads
        precision = precision_of(config.trainer.precision, config.trainer.accelerator)
        self.image = ImageCut(model, nodes["image"], config.data, precision)
        self.image.check_crops(config.data.crops)
        self.text = TextCut(model, nodes["text"], precision)
        self.notes = [f"token cache: {check_bound(config.data, data, self.image.shape())} in {config.data.token_cache}"]
        self.notes += [f"token cache: {said}" for said in self._says()]
        self.reads_captions = False
        self.blocks: Blocks | None = None
        self.crops: CropBlocks | None = None
        self.table: TextTable | None = None

    def _says(self) -> Iterator[str]:
        """What is not kept, in words."""
        if self.image.part is not None:
            yield "of each picture what the frozen part of its tower makes, in the precision of the run"
        if getattr(self.image.model.image, "memory", None) is not None:
            yield "model.image.remember is of no use beside it: no picture passes the backbone in a step"
        if not self.text.is_kept:
            yield "the text tower is trained, and encodes its texts at each step"

    def prepare(self, stream: FrozenStream) -> str:
        """Fill the cache, once the weights are those of the run, and let the stream read from it.

        Returns:
            What was done, in words.

        Raises:
            ConfigError: there is no room for it.
        """
        start, root = time.perf_counter(), Path(str(self.config.token_cache)).expanduser()
        shape = self.image.shape()  # again: on another device the same part may give another precision
        digest = cut_digest(self.image, FORMAT, self.image.view_facts, str(shape.kept[0].dtype))
        places = places_of(self.data, _folder(root, f"image-{digest}"), shape.block)
        arguments = (self.image, self.data, stream.chooser.view, shape, self.config, self.threads)
        pictures, damaged = Filler(*arguments).fill(places)
        self.blocks = stream.blocks = Blocks(places, shape)
        self.reads_captions = stream.captions
        texts = self._keep_texts(root, places, stream) if self.text.is_kept else 0
        if self.config.crops:
            damaged += self._keep_crops(_folder(root, f"crops-{digest}"), shape, arguments)
        said = f"token cache: {pictures:,} pictures and {texts:,} texts encoded, the rest was there"
        again = f", {damaged} damaged files made anew" if damaged else ""
        return f"{said}{again} ({clock(time.perf_counter() - start)})"

    def _keep_crops(self, folder: Path, shape: Shape, arguments: tuple[Any, ...]) -> int:
        """Fill the part with the regions' crops; returns how many files had been damaged."""
        rows = shape.kept[0]
        places = places_of(self.data, folder, pictures_of(rows))
        _, damaged = CropFiller(*arguments, regions=self.data.regions / max(1, self.data.samples)).fill(places)
        self.crops = CropBlocks(places, rows)
        return damaged

    def _keep_texts(self, root: Path, places: Sequence[BlockPlace], stream: FrozenStream) -> int:
        """Fill the table of texts; returns how many were encoded by this process."""
        assert self.blocks is not None, "made before"
        digest = cut_digest(self.text, FORMAT, self.text.tokenizer.digest)
        files = TextFiles(_folder(root, f"text-{digest}"), self.text)
        wanted = texts_of(self.blocks, places, stream.chooser.wording, stream.captions, bool(self.config.negatives))
        self.table, encoded = files.table(wanted)
        return encoded

    def attach(self, batch: Batch) -> Batch:
        """Put into a batch what the towers make of its samples and texts."""
        assert self.blocks is not None and batch.places is not None, "prepared before"
        self.image.put(batch, self.blocks.rows(batch.places))
        if self.crops is not None and batch.crop_places is not None:
            batch.crop_states = self.image.as_made(self.crops.of(batch.places, batch.crop_places))
        if self.table is not None:
            self.text.put(batch, self.table.of, self.reads_captions)
        return batch


class FrozenBatches:
    """Batches of a loader, each with what frozen towers make of it.

    Args:
        loader: gives them, without.
        towers: whose outputs are attached.
    """

    def __init__(self, loader: Any, towers: FrozenTowers) -> None:
        self.loader, self.towers = loader, towers

    def __iter__(self) -> Iterator[Batch]:
        batches: Iterable[Batch] = self.loader
        for batch in batches:
            yield self.towers.attach(batch)

    def interrupt(self) -> None:
        """See :meth:`cloc.data.stream.workers.Readers.interrupt`."""
        self.loader.interrupt()


def _folder(root: Path, name: str) -> Path:
    try:
        return make_folder(root, name)
    except OSError as error:
        raise ConfigError(f"data.token_cache={root}: {error}; name a folder that can be written") from error


def cut_digest(cut: Cut, *facts: Any) -> str:
    """Sixteen hex digits that change with what is made up to a cut: weights, class, arguments, and some facts."""
    digest = hashlib.sha256()
    add_weights(digest, cut.module, lambda name, value: f"{name} {value.dtype} {tuple(value.shape)}")
    digest.update(json.dumps([*cut.facts, *facts], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
