"""Manifests of both versions beside whole shards, with their offsets; the reference reads the shards themselves."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloc.contracts import BadSample
from cloc.data.shards.index import index_folder, load_manifest, write_manifest
from cloc.data.shards.manifest import MANIFEST_NAME
from cloc.data.shards.offsets import HEADER_BYTES, OFFSETS_NAME, digest_of, write_numbers
from cloc.data.shards.reader import ShardReader
from cloc.data.shards.tars import ShardError

from . import mutate
from .kinds import Case, Kind
from .tars import Members, build, read_all, reference


@dataclass(frozen=True)
class Prepared:
    """A folder of whole shards, its manifest as text of both versions, its offsets, and what the shards hold."""

    folder: Path
    text: str
    old_text: str
    offsets: bytes
    samples: Members


def prepare(folder: Path) -> Prepared:
    """Two shards with a manifest."""
    rng, samples = random.Random(0), {}
    for name in ("a", "b"):
        (folder / f"{name}.tar").write_bytes(build(rng, name)[1])
        samples |= reference(folder / f"{name}.tar")
    manifest = index_folder(folder)
    text, offsets = write_manifest(manifest).read_text(encoding="utf-8"), (folder / OFFSETS_NAME).read_bytes()
    old = {"version": 1, "categories": list(manifest.categories)}
    old |= {"shards": [shard.to_json() for shard in manifest.shards]}
    return Prepared(folder, text, json.dumps(old), offsets, samples)


def make(rng: random.Random, folder: Path, prepared: Prepared) -> Case:
    """The folder with a manifest or offsets that are changed in a value, damaged in their bytes, or no file."""
    for shard in prepared.folder.glob("*.tar"):
        shutil.copy(shard, folder)
    path, refusals = folder / MANIFEST_NAME, (ShardError, BadSample, FileNotFoundError)
    if rng.random() < 0.02:
        os.mkfifo(path)
        return Case("a FIFO", lambda: _read(folder), lambda: prepared.samples, refusals)
    old = rng.random() < 0.4
    record = json.loads(prepared.old_text if old else prepared.text)
    if not old and rng.random() < 0.5:
        return _with_offsets(rng, folder, prepared, record)
    (folder / OFFSETS_NAME).write_bytes(prepared.offsets)
    what = _change(record, rng) if rng.random() < 0.85 else "as it is"
    data = mutate.encode(record, rng)
    if rng.random() < 0.3:
        what, data = mutate.damage(data, rng)
    path.write_bytes(data)
    return Case(what, lambda: _read(folder), lambda: prepared.samples, refusals, data)


def _with_offsets(rng: random.Random, folder: Path, prepared: Prepared, record: dict) -> Case:
    """Offsets that are damaged, absent or no file; or others, with checksums and a header that fit them."""
    offsets, data, refusals = folder / OFFSETS_NAME, prepared.offsets, (ShardError, BadSample, FileNotFoundError)
    oddity = rng.random()
    if oddity < 0.02:
        os.mkfifo(offsets)
        what = "offsets are a FIFO"
    elif oddity < 0.05:
        what = "no offsets"
    else:
        what, data = _forged(rng, record, data) if oddity < 0.5 else mutate.damage(data, rng)
        offsets.write_bytes(data)
    (folder / MANIFEST_NAME).write_text(json.dumps(record), encoding="utf-8")
    return Case(f"offsets: {what}", lambda: _read(folder), lambda: prepared.samples, refusals, data)


def _forged(rng: random.Random, record: dict, data: bytes) -> tuple[str, bytes]:
    """A number that is another, and everything that vouches for it made anew."""
    numbers = np.frombuffer(data, "<u8", offset=HEADER_BYTES).copy()
    place = rng.randrange(len(numbers))
    numbers[place] = rng.choice([int(numbers[place]) ^ 512, int(numbers[place]) + 1, 0, 2**63, 2**64 - 1])
    first = 0
    for shard in record["shards"]:
        own = numbers[first : first + shard["samples"] + 1]
        shard["offsets_crc32"], first = zlib.crc32(own.tobytes()), first + len(own)
    columns = (np.array([shard[key] for shard in record["shards"]]) for key in ("samples", "offsets_crc32"))
    file = io.BytesIO()
    write_numbers(file, len(numbers), digest_of(*columns), [numbers])
    return f"number {place} is another, with its checksum", file.getvalue()


def _change(record: dict, rng: random.Random) -> str:
    oddity = rng.random()
    old = record["version"] == 1
    if old and oddity < 0.25:  # an offset less: two samples become one
        shard = rng.choice(record["shards"])
        if len(shard["offsets"]) > 2:
            del shard["offsets"][rng.randrange(1, len(shard["offsets"]) - 1)]
            shard["samples"] -= 1
            return "an offset less"
    if old and oddity < 0.45:
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
