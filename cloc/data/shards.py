"""Shards on disk: write them, index them, read any one sample of them.

Stands at the start of ``data → models → losses → evaluation → engine``. A manifest beside plain webdataset tars says
where each sample's bytes are; so the set has a known length, any sample can be read alone, and the order of training
can be a pure function of (seed, pass). Nothing here unpickles or runs what a shard holds.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from webdataset.writer import ShardWriter

from cloc.config.secrets import public
from cloc.contracts import BadSample, Sample
from cloc.data.manifest import (
    MANIFEST_NAME,
    MANIFEST_VERSION,
    Manifest,
    check_file,
    parse_manifest,
    read_manifest_text,
    remedy_for,
)
from cloc.data.remote import ShardCache
from cloc.data.schema import MAX_MEMBER_BYTES, encode_json
from cloc.data.stores import read_range, read_ranges
from cloc.data.tars import ShardError, ShardInfo, ShardReadError, index_shard, read_sample_members, scan_shard
from cloc.files import create, hidden, make_folder, open_file, publish, remove_parts, write_file

__all__ = [
    "MANIFEST_NAME",
    "Manifest",
    "ShardError",
    "ShardInfo",
    "ShardReadError",
    "ShardReader",
    "index_folder",
    "index_shard",
    "check_file",
    "load_manifest",
    "parse_manifest",
    "read_manifest_text",
    "read_sample_members",
    "write_manifest",
    "write_shards",
]

MAX_SAMPLE_BYTES = 4 * MAX_MEMBER_BYTES
"""Largest sample, all members together, that is read into memory."""
RETRY_SECONDS = 300.0
"""A remote shard that could not be fetched is not asked for again before."""

_SAFE_KEY = re.compile(r"[^./\\\x00\ud800-\udfff]+")
_LOG = logging.getLogger(__name__)


class ShardReader:
    """Reads the bytes of any sample. May be pickled into workers: files open where they are read.

    Args:
        manifest: the index.
        max_open: number of local files held open; the one used longest ago closes first.
        cache: for remote shards; those that it does not hold are read by ranges.
    """

    def __init__(self, manifest: Manifest, max_open: int = 128, cache: ShardCache | None = None) -> None:
        self.manifest, self.max_open, self.cache = manifest, max_open, cache or ShardCache()
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()
        self._lost: dict[int, tuple[float, str]] = {}
        self._loaded: dict[tuple[int, int], bytes | None] = {}

    def read(self, shard_index: int, sample_index: int) -> bytes:
        """Return the tar bytes of one sample, headers included, as ``read_sample_members`` takes them.

        Raises:
            ShardReadError: the shard is gone, or shorter than its manifest says.
            BadSample: ``giant_member``: it is too large to be read at all.
        """
        shard, where = self.manifest.shards[shard_index], self.manifest.location(shard_index)
        start, stop = shard.offsets[sample_index], shard.offsets[sample_index + 1]
        if stop - start > MAX_SAMPLE_BYTES:
            detail = f"sample {sample_index} has {stop - start:,} bytes, the limit is {MAX_SAMPLE_BYTES:,}"
            raise BadSample("giant_member", f"{public(where)}: {detail}")
        if not self.manifest.remote:
            data = os.pread(self._file(shard_index).fileno(), stop - start, start)
        else:
            data = self._loaded.pop((shard_index, sample_index), None) or self._read_remote(
                shard_index, where, start, stop
            )
        if len(data) != stop - start:
            message = f"{where}: sample {sample_index} should span bytes {start} to {stop}, only {len(data)} are there"
            raise ShardReadError(f"{message}; restore the shard, or rebuild the index: python -m cloc data check")
        return data

    def prefetch(self, shard_index: int) -> None:
        """Bring a remote shard into the cache, where it fits.

        Raises:
            ShardReadError: it cannot be fetched.
        """
        shard = self.manifest.shards[shard_index]
        if self.manifest.remote and self._cached(shard_index):
            self.cache.fetch(self.manifest.location(shard_index), shard.bytes, shard.sha256)

    def load(self, places: Iterable[tuple[int, int]]) -> None:
        """Ask for samples (shard, index) of uncached remote shards at once; the next ``read`` of each is answered.

        What fails here is asked for again, alone, when it is read.
        """
        shards = self.manifest.shards
        wanted = [(shard, index) for shard, index in places if self.manifest.remote and not self._cached(shard)]
        spans = [(self.manifest.location(shard), *shards[shard].offsets[index : index + 2]) for shard, index in wanted]
        self._loaded = dict(zip(wanted, read_ranges(spans, self.cache.access) if spans else [], strict=True))

    def _cached(self, shard_index: int) -> bool:
        return self.manifest.shards[shard_index].bytes <= self.cache.limit

    def close(self) -> None:
        """Close every file; a later ``read`` opens them again."""
        while self._files:
            self._files.popitem()[1].close()

    def _read_remote(self, shard_index: int, url: str, start: int, stop: int) -> bytes:
        until, reason = self._lost.get(shard_index, (0.0, ""))
        if time.monotonic() < until:
            raise ShardReadError(reason)
        shard = self.manifest.shards[shard_index]
        try:
            if not self._cached(shard_index):
                return read_range(url, start, stop, self.cache.access)
            # Opened anew each time: the cache may remove a shard, and an open file would keep its room.
            with self.cache.open(url, shard.bytes, shard.sha256) as file:
                return os.pread(file.fileno(), stop - start, start)
        except ShardReadError as error:
            self._lost[shard_index] = time.monotonic() + RETRY_SECONDS, str(error)
            raise

    def _file(self, shard_index: int) -> BinaryIO:
        if shard_index in self._files:
            self._files.move_to_end(shard_index)
            return self._files[shard_index]
        path = self.manifest.folder / self.manifest.shards[shard_index].name
        try:
            file = open_file(path)
        except OSError as error:
            raise ShardReadError(f"{path}: the shard has vanished or cannot be opened ({error}); restore it") from error
        self._files[shard_index] = file
        if len(self._files) > self.max_open:
            self._files.popitem(last=False)[1].close()
        return file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict(), "_lost": {}, "_loaded": {}}


def load_manifest(folder: Path | str) -> Manifest:
    """Read the folder's manifest, or index its shards where it has none.

    Raises:
        FileNotFoundError: there is no such folder, or no shard in it.
        ShardError: the manifest is damaged or does not fit the files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of shards; make one: python -m cloc data convert")
    path = folder / MANIFEST_NAME
    if path.exists():
        return _read_manifest(path)
    _LOG.warning("%s has no %s: indexing every shard; save the index: python -m cloc data check", folder, MANIFEST_NAME)
    return index_folder(folder)


def _read_manifest(path: Path) -> Manifest:
    manifest = parse_manifest(read_manifest_text(path), str(path), path.parent)
    for shard in manifest.shards:
        check_file(path.parent / shard.name, shard)
    known = {shard.name for shard in manifest.shards}
    others = [found for found in sorted(path.parent.glob("*.tar")) if found.name not in known]
    if others:
        raise ShardError(f"{others[0]}: {path.name} beside it says nothing of this shard; {remedy_for(path.parent)}")
    return manifest


def index_folder(folder: Path, categories: Sequence[str] | None = None) -> Manifest:
    """Index every ``*.tar`` of a folder.

    Args:
        folder: where the shards are.
        categories: names to record instead of those that occur.

    Raises:
        FileNotFoundError: there is no ``.tar`` in the folder.
        ShardError: as ``index_shard``.
    """
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        inside = sorted(path.name for path in folder.iterdir())[:5]
        raise FileNotFoundError(f"{folder}: holds no .tar, but {inside or 'nothing'}; name the folder of the shards")
    scans = [scan_shard(path) for path in paths]
    seen = set(categories) if categories is not None else set().union(*(found for _, found in scans))
    return Manifest(folder, tuple(info for info, _ in scans), tuple(sorted(seen)))


def write_manifest(manifest: Manifest) -> Path:
    """Write ``manifest.json`` into the manifest's folder, whole or not at all, and return its path."""
    path = manifest.folder / MANIFEST_NAME
    shards = [asdict(shard) for shard in manifest.shards]
    record = {"version": MANIFEST_VERSION, "categories": list(manifest.categories), "shards": shards}
    write_file(path, json.dumps(record, ensure_ascii=False, separators=(",", ":")))
    return path


def write_shards(
    samples: Iterable[Sample],
    out: Path | str,
    *,
    samples_per_shard: int = 1000,
    categories: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write samples as shards with a manifest. The same samples make the same bytes.

    Args:
        samples: read once.
        out: folder to write; made where it is missing.
        samples_per_shard: samples of every shard but the last.
        categories: names to record instead of those that occur.
        overwrite: remove the shards and the manifest that ``out`` already holds.

    Raises:
        ShardError: ``out`` is not empty, there are no samples, or a key is unsafe or comes twice.
        BadSample: ``bad_text``: a text holds lone surrogates.
    """
    out = make_folder(Path(out))
    if any(out.iterdir()) and not overwrite:
        raise ShardError(f"{out}: the folder is not empty; name another one, or pass overwrite (--overwrite)")
    (out / MANIFEST_NAME).unlink(missing_ok=True)  # first: what follows leaves no manifest that fits
    _remove_tars(out)
    try:
        written = _write_tars(samples, out, samples_per_shard)
    except BaseException:  # half a data set must not pass for a whole one, even after Ctrl-C
        _remove_tars(out)
        raise
    if not written:
        raise ShardError(f"{out}: there was no sample to write; check the source")
    manifest = index_folder(out, categories)
    write_manifest(manifest)
    return manifest


def _write_tars(samples: Iterable[Sample], out: Path, samples_per_shard: int) -> int:
    """Write ``shard-000000.tar`` … and return the number of samples. Unfinished shards have hidden names."""
    opened: list[tuple[BinaryIO, Path]] = []
    keys: set[str] = set()

    def open_part(name: str) -> BinaryIO:
        part = hidden(out / name)
        opened.append((create(part), part))
        return opened[-1][0]

    def finish(name: str) -> None:
        file, part = opened.pop()
        file.close()
        publish(part, out / name)

    options = {"mtime": 0, "user": "", "group": "", "encoder": False, "compress": False}
    writer: ShardWriter | None = None
    try:
        for sample in samples:
            _check_key(sample.key, keys)
            if writer is None:  # ShardWriter opens its first file at once; without samples there shall be none
                writer = ShardWriter(
                    "shard-%06d.tar", samples_per_shard, post=finish, verbose=0, opener=open_part, **options
                )
            writer.write({"__key__": sample.key, sample.extension: sample.image, "json": encode_json(sample)})
    except BaseException:
        if writer is not None:
            writer.post = None  # what is not whole gets no name
        raise
    finally:
        if writer is not None:
            writer.close()
    return len(keys)


def _remove_tars(out: Path) -> None:
    remove_parts(out, "shard-*.tar")
    for path in out.glob("*.tar"):
        path.unlink()


def _check_key(key: str, seen: set[str]) -> None:
    if not _SAFE_KEY.fullmatch(key):
        what = "dots, slashes and NUL are the tar's own, and UTF-8 holds no lone surrogates"
        raise ShardError(f"key {key!r}: {what}; replace them, for instance with '_'")
    if key in seen:
        raise ShardError(f"key {key!r} comes twice; keys must be unique in a data set")
    seen.add(key)
