"""Says which tars are compressed, and names what lies in a folder that has no plain one.

Stands at the bottom of ``shards``. A sample is read by its offset, which compression does not allow; so such tars are
told, and ``data check --fix`` writes plain copies of those that Python can read.
"""

from __future__ import annotations

from collections.abc import Iterable

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_ENDINGS = {
    (".tar.gz", ".tgz"): "gzip",
    (".tar.bz2", ".tbz2", ".tbz"): "bzip2",
    (".tar.xz", ".txz"): "xz",
    (".tar.zst", ".tzst"): "zstd",
}
_COMMANDS = {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd"}


def kind_of(start: bytes) -> str:
    """Name the compression that a file's first bytes tell; empty for none."""
    return next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "")


def kind_by_name(name: str) -> str:
    """Name the compression that a tar's name tells; empty for none."""
    lower = name.lower()
    return next((kind for endings, kind in _ENDINGS.items() if lower.endswith(endings)), "")


def plain_name(name: str) -> str:
    """Return the name that a compressed tar has once it is unpacked."""
    ending = next((one for endings in _ENDINGS for one in endings if name.lower().endswith(one)), "")
    return f"{name[: len(name) - len(ending)]}.tar" if ending else name


def compressed_tars(names: Iterable[str]) -> list[str]:
    """Return the names of compressed tars, sorted; not of those whose plain tar lies beside them."""
    names = set(names)
    return sorted(
        name for name in names if kind_by_name(name) and plain_name(name) not in names and not name.startswith(".")
    )


def told(kind: str) -> str:
    """Say what is wrong with a compressed tar, and the remedy."""
    return f"it is {kind}-compressed: samples cannot be read by offset; {_COMMANDS[kind]} it"


def told_of_folder(folder: str, names: Iterable[str]) -> str:
    """Say that a folder holds no tar, and what it holds instead."""
    names = sorted(names)
    packed = compressed_tars(names)
    if not packed:
        return f"{folder}: holds no .tar, but {names[:5] or 'nothing'}; name the folder of the shards"
    kind = kind_by_name(packed[0])
    more = f" and {len(packed) - 1:,} more" if len(packed) > 1 else ""
    return (
        f"{folder}: holds no .tar, but {packed[0]}{more}, {kind}-compressed: samples cannot be read by offset; "
        f"{_COMMANDS[kind]} them, or python -m cloc data check FOLDER --fix OUT"
    )
