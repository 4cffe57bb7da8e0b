"""What the path of a set names: folders, and shards in them; braces expand, URLs may carry a query.

Stands above ``stores`` at the start of ``data → models → losses → evaluation → engine``; ``opening`` asks it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence

from braceexpand import braceexpand

from cloc.config.secrets import public
from cloc.data.shards.compressed import kind_by_name, told
from cloc.data.shards.retries import store_of
from cloc.data.shards.stores import is_remote, split_query
from cloc.data.shards.tars import ShardError

MAX_NAMES = 1_000_000
"""Shards that braces may name."""

_HOST = 3  # parts of a URL up to its host or bucket
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d{1,18}|[^\W\d_])\.\.(-?\d{1,18}|[^\W\d_])(?:\.\.(-?\d{1,18}))?")


def folders_of(path: str) -> dict[str, list[str]]:
    """The folders that a path names, each with the names of its shards; no name for all that it holds.

    Raises:
        ShardError: it names a compressed tar.
    """
    wanted: dict[str, list[str]] = {}
    for entry in expand(path):
        place, query = split_query(entry)
        kind = kind_by_name(place)
        if kind and not os.path.isdir(place):
            raise ShardError(f"{entry}: {told(kind)}")
        parent, _, name = place.rpartition("/") if place.endswith(".tar") else (place.rstrip("/"), "", "")
        wanted.setdefault((parent or ".") + query, []).extend([name] if name else [])
    return wanted


def urls_of(path: str) -> list[str]:
    """The remote folders that a path names, in their order; none where it is local."""
    return list(folders_of(path)) if is_remote(path) else []


def remote_root(urls: Sequence[str]) -> str:
    """The URL that the shards of some remote folders are named from; empty without one."""
    if len(urls) < 2:
        return "".join(urls)
    root, query, _ = shared_root(urls)
    return root + query


def shared_root(urls: Sequence[str]) -> tuple[str, str, list[str]]:
    """What several folders share: their root and their query; and what stands before the names of each."""
    bare, queries = zip(*(split_query(url) for url in urls), strict=True)
    if len(set(queries)) > 1:
        raise ShardError("a pattern mixes folders with other queries; make them sources of their own in data.train")
    places = [url.split("/") for url in bare]
    shared = len(os.path.commonprefix(places))
    if is_remote(urls[0]) and shared < _HOST:
        stores = ", ".join(dict.fromkeys(store_of(url) for url in urls))
        raise ShardError(f"a pattern names several stores ({stores}); make them sources of their own in data.train")
    befores = ["".join(f"{name}/" for name in place[shared:]) for place in places]
    return "/".join(places[0][:shared]), queries[0], befores


def expand(path: str) -> list[str]:
    """The paths that a path with braces stands for."""
    if count_paths(path) > MAX_NAMES:  # counted first: ranges are written out before the first path comes
        raise ShardError(f"{path}: the braces name more than {MAX_NAMES:,} shards; name their folder, or fewer")
    try:
        return list(dict.fromkeys(braceexpand(path)))
    except ValueError as error:  # also of braces without a partner
        message = f"{path}: {public(str(error))}; a pattern looks like shard-{{000000..000009}}.tar"
        raise ShardError(message) from None  # its text holds the path


def count_paths(text: str) -> int:
    """How many paths braces stand for: from the innermost outwards, each pair leaves its number between NULs."""
    while found := _INNERMOST.search(text):
        inside = found[1]
        span = _RANGE.fullmatch(inside)
        if span:
            first, last = (int(end) if end.lstrip("-").isdecimal() else ord(end) for end in span.group(1, 2))
            count = abs(last - first) // max(1, abs(int(span[3] or 1))) + 1
        else:
            count = sum(count_paths(part) for part in inside.split(","))
        text = f"{text[: found.start()]}\0{count}\0{text[found.end() :]}"
    return math.prod(int(count) for count in text.split("\0")[1::2])
