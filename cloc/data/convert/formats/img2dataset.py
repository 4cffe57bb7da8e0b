"""Shards that img2dataset downloaded, with GRIT's regions where their JSON has them.

The stream reads such shards as they are. Converting them checks every picture, drops the unusable ones once and for
all, and writes a manifest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cloc.data.convert.formats.files import need_folder
from cloc.data.convert.formats.registry import holds, register
from cloc.data.convert.records import Record, RecordSource, TarSlice
from cloc.data.shards.compressed import compressed_tars, told_of_folder
from cloc.data.shards.index import tar_names
from cloc.data.shards.keys import Keys
from cloc.data.shards.scanning import tell_hidden
from cloc.data.shards.tar_headers import HeaderError, walk_whole
from cloc.data.shards.tars import is_hidden, open_tar, split_name


@register("grit", "a folder of img2dataset's .tar shards", holds("*.tar"))
def open_grit(source: Path) -> RecordSource:
    """Open a folder of ``.tar`` shards of ``jpg``, ``txt`` and ``json``, as img2dataset writes them.

    Only headers are read while records are listed. What follows damage in a tar cannot be counted: it is one record
    left out as ``unreadable_shard``, and so is the sample before it, which may lack members.

    Args:
        source: the folder.

    Raises:
        FileNotFoundError: there is no ``.tar`` in it.
    """
    folder = need_folder(source, "format 'grit' reads a folder of img2dataset's shards")
    paths = tuple(folder / name for name in tar_names(folder))
    if not paths and compressed_tars(os.listdir(folder)):
        raise FileNotFoundError(told_of_folder(str(folder), os.listdir(folder)))
    if not paths:
        raise FileNotFoundError(
            f"{source}: holds no .tar; download GRIT's pictures with img2dataset --output_format webdataset"
        )
    return RecordSource(source.name, paths, _records(paths))


def _records(paths: tuple[Path, ...]) -> Iterator[Record]:
    keys, hidden = Keys(), 0
    for path in paths:
        key, start, end = "", 0, 0
        try:
            file, read, size = open_tar(path)
            with file:
                for member in walk_whole(read, size):
                    member_key, _ = split_name(member)
                    hidden += member.regular and is_hidden(member.name)
                    if member_key and member_key != key:
                        if key:
                            yield _record(path, key, start, end, keys)
                        key, start = member_key, member.offset
                    end = member.end if member_key else end
        except (HeaderError, OSError) as error:
            yield Record(f"{path.name} at byte {end:,}", fault=("unreadable_shard", f"{path}: {error}"))
            if key:
                yield Record(f"{path.name} key {key}", fault=("unreadable_shard", "what follows it is damaged"))
        else:
            if key:
                yield _record(path, key, start, end, keys)
    tell_hidden(str(paths[0].parent), hidden)


def _record(path: Path, key: str, start: int, end: int, keys: Keys) -> Record:
    return Record(f"{path.name} key {key}", keys.unique(key), TarSlice(path, start, end))
