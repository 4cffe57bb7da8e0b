"""Shards that img2dataset downloaded, with GRIT's regions where their JSON has them.

The stream reads such shards as they are. Converting them checks every picture, drops the unusable ones once and for
all, and writes a manifest.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from webdataset.tariterators import base_plus_ext

from cloc.data.formats.files import need_folder
from cloc.data.records import Keys, Record, Source, TarSlice


def open_grit(source: Path) -> Source:
    """Open a folder of ``.tar`` shards of ``jpg``, ``txt`` and ``json``, as img2dataset writes them.

    Only headers are read while records are listed. What follows damage in a tar cannot be counted: it is one record
    left out as ``unreadable_shard``.

    Args:
        source: the folder.

    Raises:
        FileNotFoundError: there is no ``.tar`` in it.
    """
    paths = tuple(sorted(need_folder(source, "format 'grit' reads a folder of img2dataset's shards").glob("*.tar")))
    if not paths:
        raise FileNotFoundError(
            f"{source}: holds no .tar; download GRIT's pictures with img2dataset --output_format webdataset"
        )
    return Source(source.name, paths, _records(paths))


def _records(paths: tuple[Path, ...]) -> Iterator[Record]:
    keys = Keys()
    for path in paths:
        key, start, end = None, 0, 0
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    name = base_plus_ext(member.name)[0] if member.isreg() else None
                    if name is not None and name != key:
                        if key is not None:
                            yield _record(path, key, start, end, keys)
                        key, start = name, member.offset
                    end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            _refuse_tail(path, end)
        except (tarfile.TarError, EOFError, OSError) as error:
            yield Record(f"{path.name} at byte {end:,}", fault=("unreadable_shard", f"{path}: {error}"))
        if key is not None:
            yield _record(path, key, start, end, keys)


def _refuse_tail(path: Path, end: int) -> None:
    """Refuse what lies behind the last member: tarfile takes a damaged header for the end of the tar."""
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("no tar header")


def _record(path: Path, key: str, start: int, end: int, keys: Keys) -> Record:
    return Record(f"{path.name} key {key}", keys.unique(key), TarSlice(path, start, end))
