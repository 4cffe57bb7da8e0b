"""Writes samples as shards of a folder, with their manifest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from webdataset.writer import ShardWriter

from cloc.contracts import Sample
from cloc.data.sample import encode_json
from cloc.data.shards.index import index_folder, write_manifest
from cloc.data.shards.keys import is_safe_key
from cloc.data.shards.manifest import MANIFEST_NAME, Manifest
from cloc.data.shards.tars import ShardError
from cloc.files import create, hidden, make_folder, publish, remove_parts


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
    if not is_safe_key(key):
        what = "dots, slashes and NUL are the tar's own, and UTF-8 holds no lone surrogates"
        raise ShardError(f"key {key!r}: {what}; replace them, for instance with '_'")
    if key in seen:
        raise ShardError(f"key {key!r} comes twice; keys must be unique in a data set")
    seen.add(key)
