"""Manifests beside whole shards; the reference reads the shards themselves with ``tarfile``."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from cloc.contracts import BadSample
from cloc.data.shards.index import index_folder, load_manifest, write_manifest
from cloc.data.shards.manifest import MANIFEST_NAME
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.tars import ShardError

from . import mutate
from .kinds import Case, Kind
from .tars import Members, build, read_all, reference


@dataclass(frozen=True)
class Prepared:
    """A folder of whole shards, the text of its manifest, and what the shards hold."""

    folder: Path
    text: str
    samples: Members


def prepare(folder: Path) -> Prepared:
    """Two shards with a manifest."""
    rng, samples = random.Random(0), {}
    for name in ("a", "b"):
        (folder / f"{name}.tar").write_bytes(build(rng, name)[1])
        samples |= reference(folder / f"{name}.tar")
    path = write_manifest(index_folder(folder))
    return Prepared(folder, path.read_text(encoding="utf-8"), samples)


def make(rng: random.Random, folder: Path, prepared: Prepared) -> Case:
    """The folder with a manifest that is changed in a value, damaged in its bytes, or no file."""
    for shard in prepared.folder.glob("*.tar"):
        shutil.copy(shard, folder)
    path, refusals = folder / MANIFEST_NAME, (ShardError, BadSample, FileNotFoundError)
    if rng.random() < 0.02:
        os.mkfifo(path)
        return Case("a FIFO", lambda: _read(folder), lambda: prepared.samples, refusals)
    record = json.loads(prepared.text)
    what = _change(record, rng) if rng.random() < 0.85 else "as it is"
    data = mutate.encode(record, rng)
    if rng.random() < 0.3:
        what, data = mutate.damage(data, rng)
    path.write_bytes(data)
    return Case(what, lambda: _read(folder), lambda: prepared.samples, refusals, data)


def _change(record: dict, rng: random.Random) -> str:
    oddity = rng.random()
    if oddity < 0.25:  # an offset less: two samples become one
        shard = rng.choice(record["shards"])
        if len(shard["offsets"]) > 2:
            del shard["offsets"][rng.randrange(1, len(shard["offsets"]) - 1)]
            shard["samples"] -= 1
            return "an offset less"
    if oddity < 0.45:
        offsets = rng.choice(record["shards"])["offsets"]
        place = rng.randrange(len(offsets))
        offsets[place] += rng.choice((-512, 512, 1, -1, 1024))
        return f"offsets[{place}] moved"
    if oddity < 0.55:
        record["shards"].append(dict(rng.choice(record["shards"])))
        return "a shard twice"
    return mutate.edit(record, rng)


def _read(folder: Path) -> Members:
    return read_all(ShardReader(load_manifest(folder)))


MANIFESTS = Kind("manifest", 0.10, prepare, make)
