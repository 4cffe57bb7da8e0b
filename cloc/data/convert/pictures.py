"""Finds the file of a picture by the name that an annotation gives it, whatever machine the annotation was made on.

Stands between ``formats``, which list records, and ``records``, which reads the pictures. A name is looked up below
the folders of a source and never outside of them; what was not found as it is written is counted by how it was found.
"""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from cloc.contracts import BadSample
from cloc.data.convert.picture_bytes import PICTURE_SUFFIXES

MAX_FILES = 2_000_000
"""Files of a folder that are looked through for pictures whose path is another one."""

_DRIVE = re.compile(r"^[A-Za-z]:")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_LOCAL_FILES = "d"  # Label Studio's /data/local-files/?d=PATH

Parts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MissingPicture:
    """A picture that was not found; reading it says why.

    Attributes:
        reason: of the ``BadSample``.
        detail: what was looked for, and where.
    """

    reason: str
    detail: str

    def read(self) -> tuple[str, bytes]:
        """Raise ``BadSample``."""
        raise BadSample(self.reason, self.detail)


class PictureFinder:
    """Looks up pictures by the names that annotations give them, below one folder or several.

    A name is taken as it is written where such a file is there. Else backslashes are separators, and the file is taken
    whose path ends in the longest tail of the name, Unicode form and case aside; then one of another extension; then
    the same with the name as a URL. Of several such files none is taken, nor one of another folder where the folder of
    the name is there.

    Args:
        folders: looked through in turn. A file that is found in none of them by its whole name is looked for by the
            end of its name in the first one, then in the second one, and so on.
        as_written: further folders, in which only files that are found by their whole name are taken.
        outside: take paths that lead out of the folders, where they are there. For sources that may name any file.

    Attributes:
        found: how many names were found, by how; ``as written`` is not counted.
    """

    def __init__(self, *folders: Path, as_written: tuple[Path, ...] = (), outside: bool = False) -> None:
        self.folders = folders
        self.as_written = as_written
        self.outside = outside
        self.found: Counter[str] = Counter()
        self._tops = [(folder, Path(os.path.abspath(folder)).parts) for folder in (*folders, *as_written)]
        self._indexes: dict[Path, _Index] = {}
        self._exact: set[int] = set()
        self._guessed: dict[Path, Parts] = {}

    def find(self, *names: str) -> Path | MissingPicture:
        """Return the file of a picture.

        Args:
            names: its path as the annotation has it: relative to a folder, absolute, of another machine, or a URL; and
                what it may be called besides. All are tried as they are written, then the first is looked for.

        Returns:
            The file, or what says when it is read that there is none (``image_unreadable``), or that it can be several
            (``picture_ambiguous``).
        """
        name = names[0]
        for number, other in enumerate(names):
            path = self._as_written(other)
            if path is not None:
                return self._take(path, _parts(name), "another name that the source has for them" if number else "")
        for spelling in dict.fromkeys(_spellings(name)):
            parts = _parts(spelling)
            for how, search in (("end of the path", _Index.by_name), ("another extension", _Index.by_stem)):
                for folder in self.folders if parts else ():
                    try:
                        matches = search(self._index(folder), parts)
                    except _TooManyFilesError as error:
                        return MissingPicture("image_unreadable", f"{name}: {error}")
                    if matches and self._index(folder).is_elsewhere(matches[0], parts):
                        where = folder / "…" / parts[-2]
                        detail = f"{name}: no such file in {where}, which is there; {folder / matches[0]} is another"
                        return MissingPicture("image_unreadable", detail)
                    if len(matches) > 1:
                        both = " and ".join(str(folder / path) for path in matches[:2])
                        return MissingPicture("picture_ambiguous", f"{name!r} can be {both}; name it by its folder too")
                    if matches:
                        return self._take(folder / matches[0], parts, _how(name, spelling, parts, matches[0], how))
        return self._missing(name)

    def notes(self) -> Iterator[str]:
        """Yield how many names were found otherwise than as they are written, a line each."""
        for how, count in self.found.most_common():
            yield f"{count:,} pictures were found by {how}"

    def _as_written(self, name: str) -> Path | None:
        for folder, top in self._tops:
            path = folder / name
            if os.path.isfile(path) and (self.outside or _is_below(name, path, top)):
                return path
        return None

    def _take(self, path: Path, parts: Parts, how: str = "") -> Path | MissingPicture:
        """One file for one name: what was guessed for one name is not the picture of another."""
        number = hash(path)
        known = self._guessed.get(path)
        if (how and known is None and number in self._exact) or (known is not None and known != parts):
            other = "another name" if known is None else repr("/".join(known))
            detail = f"{'/'.join(parts)!r} and {other} both lead to {path}; name the pictures by their folders too"
            return MissingPicture("picture_ambiguous", detail)
        if how:
            self._guessed[path] = parts
            self.found[how] += 1
        else:
            self._exact.add(number)
        return path

    def _missing(self, name: str) -> MissingPicture:
        where = " or ".join(map(str, self.folders))
        is_there = os.path.isabs(name) and os.path.isfile(name)
        remedy = "it lies outside; name a folder above it with --images" if is_there else "nor one that ends alike"
        return MissingPicture("image_unreadable", f"{name}: no such file below {where}; {remedy}")

    def _index(self, folder: Path) -> _Index:
        if folder not in self._indexes:
            self._indexes[folder] = _Index(folder)
        return self._indexes[folder]


class _TooManyFilesError(Exception):
    """A folder holds more than anybody wants to look through."""


class _Index:
    """All files below a folder, by the name and by the stem in which case and Unicode form do not count."""

    def __init__(self, folder: Path) -> None:
        self._names: dict[str, list[str]] = {}
        self._stems: dict[str, list[str]] | None = None
        self._folders: set[str] = set()
        self._last: set[str] | None = None
        for count, (below, file) in enumerate(_files(folder)):
            if count == MAX_FILES:
                raise _TooManyFilesError(f"{folder} holds more than {MAX_FILES:,} files; name a smaller one (--images)")
            self._names.setdefault(_fold(file), []).append(os.path.join(below, file))
            self._folders.add(below)

    def is_elsewhere(self, path: str, parts: Parts) -> bool:
        """Whether the name's folder is there and holds files, but this one lies in another.

        ``val/1.jpg`` is no ``train/1.jpg`` that was lost.
        """
        own = tuple(map(_fold, path.split(os.sep)))
        if len(parts) < 2 or len(own) < 2 or _fold(parts[-2]) in own[:-1]:
            return False
        if self._last is None:
            self._last = {_fold(os.path.basename(below)) for below in self._folders}
        return _fold(parts[-2]) in self._last

    def by_name(self, parts: Parts) -> list[str]:
        """The paths that share the longest end with ``parts``, relative to the folder."""
        return _closest(self._names.get(_fold(parts[-1]), []), parts)

    def by_stem(self, parts: Parts) -> list[str]:
        """The same of pictures with another extension, or of a name that has none."""
        if self._stems is None:
            self._stems = {}
            for name, paths in self._names.items():
                stem, suffix = os.path.splitext(name)
                if suffix in PICTURE_SUFFIXES:
                    self._stems.setdefault(stem, []).extend(paths)
        stem, suffix = os.path.splitext(parts[-1])
        known = self._stems.get(_fold(parts[-1]), []) or (self._stems.get(_fold(stem), []) if suffix else [])
        return _closest(known, parts, extension=False)


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """Folder (relative, "" for the first) and name of each file below a folder; links are followed, none twice."""
    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        stat = os.stat(here)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(here, folder)
        for file in files:
            if not file.startswith("."):
                yield "" if below == "." else below, file


def _closest(paths: list[str], parts: Parts, extension: bool = True) -> list[str]:
    """Those of the paths that share the longest end with ``parts``; the whole path, then the very letters decide."""
    ranked: dict[tuple[int, bool, int], list[str]] = {}
    for path in paths:
        own = tuple(path.split(os.sep))
        shared, same = _shared_end(own, parts, extension)
        ranked.setdefault((shared, shared == len(own), same), []).append(path)
    return sorted(ranked[max(ranked)]) if ranked else []


def _shared_end(own: Parts, parts: Parts, extension: bool) -> tuple[int, int]:
    """How many parts two paths share at their end, and how many of these letter by letter."""
    first, second = own[::-1], parts[::-1]
    shared, same = 1, int(first[0] == second[0])  # that the names fit is known
    for one, other in zip(first[1:], second[1:], strict=False):
        if _fold(one) != _fold(other):
            break
        shared, same = shared + 1, same + (one == other)
    return shared, same


def _parts(name: str) -> Parts:
    """The parts of a path of any system, without a drive and what leads upward."""
    parts: list[str] = []
    for part in _DRIVE.sub("", name).replace("\\", "/").split("/"):
        if part == "..":
            parts[-1:] = []
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)


def _spellings(name: str) -> Iterator[str]:
    """What a name can be: a URL, a path, or percent-encoded."""
    if _is_url(name):
        with contextlib.suppress(ValueError):
            url = urlsplit(name)
            yield from parse_qs(url.query).get(_LOCAL_FILES, ())
            yield unquote(url.path)
    yield name
    if "%" in name:
        yield unquote(name)


def _is_url(name: str) -> bool:
    return bool(_SCHEME.match(name)) or "?" in name


def _how(name: str, spelling: str, parts: Parts, path: str, how: str) -> str:
    """How a file was found, for the count: the smallest step that leads from the name to it."""
    own = tuple(path.split(os.sep))
    if spelling != name:
        return "the path within a URL" if _is_url(name) else "percent-decoding"
    if own == parts:
        return "backslashes as separators" if "\\" in name else "their path without what leads upward"
    if len(own) != len(parts) or how != "end of the path":
        return f"the {how}" if how == "end of the path" else how
    same = tuple(unicodedata.normalize("NFC", part) for part in own)
    return "another Unicode form" if same == tuple(unicodedata.normalize("NFC", part) for part in parts) else "case"


def _fold(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()


def _is_below(name: str, path: Path, top: Parts) -> bool:
    """Whether a path leads to where its folder is, without following links, which are the user's own."""
    if not os.path.isabs(name) and ".." not in name:
        return True
    return Path(os.path.abspath(path)).parts[: len(top)] == top
