"""What a run does with the token cache: finds its folder, fills it, and puts what is kept into batches."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from cloc.config import ConfigError, DataConfig
from cloc.contracts import Batch
from cloc.data.frozen.blocks import FORMAT, Blocks, Shape, places_of
from cloc.data.frozen.stream import FrozenStream
from cloc.data.stream.sources import ShardSources
from cloc.data.tokenizer import Tokenizer
from cloc.engine.frozen.filling import Filler, check_bound, shape_of
from cloc.engine.frozen.texts import TextFiles, TextTable, texts_of
from cloc.files import make_folder
from cloc.models.model import Cloc
from cloc.models.protocols import as_module, view
from cloc.models.weights.digests import add_weights
from cloc.usage import clock

PLACES = ("pretrained", "tokenizer")  # of a tower's node: where something lies says nothing of what it is


class FrozenTowers:
    """A run whose steps take from the token cache what its frozen towers make.

    Args:
        config: the data's; names the cache.
        nodes: ``model`` of the resolved configuration.
        model: with frozen towers.
        data: of the run.
        threads: that decode while the cache is filled.

    Attributes:
        note: how much room it takes, in words.

    Raises:
        ConfigError: it has no room for the data.
    """

    def __init__(
        self, config: DataConfig, nodes: Mapping[str, Any], model: Cloc, data: ShardSources, threads: int
    ) -> None:
        self.config, self.nodes, self.model, self.data, self.threads = config, nodes, model, data, threads
        self.shape: Shape = shape_of(model, config)
        self.note = f"token cache: {check_bound(config, data, self.shape)} in {config.token_cache}"
        self.reads_captions = False
        self.blocks: Blocks | None = None
        self.table: TextTable | None = None

    def prepare(self, stream: FrozenStream) -> str:
        """Fill the cache, once the weights are those of the run, and let the stream read from it.

        Returns:
            What was done, in words.

        Raises:
            ConfigError: there is no room for it.
        """
        start, root = time.perf_counter(), Path(str(self.config.token_cache)).expanduser()
        seen = view(self.model.image)
        facts = [FORMAT, repr((seen.size, tuple(seen.mean), tuple(seen.std), seen.resize)), str(self.shape.dtype)]
        folder = _folder(root, f"image-{tower_digest(self.model.image, self.nodes['image'], *facts)}")
        places = places_of(self.data, folder, self.shape)
        filler = Filler(self.model, self.data, stream.chooser.view, self.shape, self.config, self.threads)
        pictures, damaged = filler.fill(places)
        self.blocks = stream.blocks = Blocks(places, self.shape)
        self.reads_captions = stream.captions
        words = Tokenizer.of(self.model.text)
        digest = tower_digest(self.model.text, self.nodes["text"], FORMAT, words.digest)
        files = TextFiles(_folder(root, f"text-{digest}"), self.model, words)
        self.table, texts = files.table(texts_of(self.blocks, places, stream.captions, bool(self.config.negatives)))
        said = f"token cache: {pictures:,} pictures and {texts:,} texts encoded, the rest was there"
        again = f", {damaged} damaged files made anew" if damaged else ""
        return f"{said}{again} ({clock(time.perf_counter() - start)})"

    def attach(self, batch: Batch) -> Batch:
        """Put into a batch what the towers make of its samples and texts."""
        assert self.blocks is not None and self.table is not None and batch.places is not None, "prepared before"
        batch.tokens, batch.pooled = self.blocks.rows(batch.places)
        batch.phrase_embeddings = self.table.of(batch.phrase_id)
        if self.reads_captions:
            batch.caption_embeddings = self.table.of(batch.caption_id)
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


def tower_digest(tower: Any, node: Mapping[str, Any], *facts: Any) -> str:
    """Sixteen hex digits that change with what a tower makes: its weights, its class, its arguments, and some facts."""
    module: nn.Module = as_module(tower)
    digest = hashlib.sha256()
    add_weights(digest, module, lambda name, value: f"{name} {value.dtype} {tuple(value.shape)}")
    kept = {key: value for key, value in node.items() if key not in PLACES}
    digest.update(json.dumps([kept, *facts], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
