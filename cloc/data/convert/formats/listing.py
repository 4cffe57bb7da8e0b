"""What formats of folders share: which pictures lie there, which split is meant, which class a number stands for."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cloc.contracts import BadSample
from cloc.data.boxes import to_float
from cloc.data.convert.formats.plain_text import read_text
from cloc.data.convert.picture_bytes import PICTURE_SUFFIXES
from cloc.data.json_values import parse_json, shown

ALL = "all"
"""In place of a split: all of them."""

_SAME_SPLIT = ({"val", "valid", "validation"}, {"train", "training"}, {"test", "testing"})
_MOST_NAMED = 8
_MOST_WATCHED = 2_000


@dataclass(slots=True)
class PictureFolder:
    """The pictures below a folder.

    Attributes:
        folder: it.
        pictures: their paths by stem, the path below the folder without its extension; in the order of the names.
        others: what else lies there, by extension.
    """

    folder: Path
    pictures: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    others: Counter[str] = field(default_factory=Counter)
    _by_name: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def below(cls, folder: Path) -> PictureFolder:
        """List all files below a folder; those whose name starts with a dot aside."""
        found = cls(folder)
        for path in files_below(folder):
            if path.suffix.lower() in PICTURE_SUFFIXES:
                found.pictures[_stem(path.relative_to(folder).as_posix())].append(path)
                found._by_name[_stem(path.name)].append(path)
            else:
                found.others[path.suffix.lower() or "no extension"] += 1
        return found

    def paths(self) -> Iterator[Path]:
        """Yield all pictures."""
        for paths in self.pictures.values():
            yield from paths

    def of(self, stem: str) -> list[Path]:
        """Return the pictures of a stem: those at that place below the folder, else those of that bare name."""
        stem = unicodedata.normalize("NFC", stem)
        return self.pictures.get(stem) or self.named(stem.rpartition("/")[2])

    def named(self, stem: str) -> list[Path]:
        """Return the pictures of that bare name, without its extension, in whatever folder."""
        return self._by_name.get(unicodedata.normalize("NFC", stem), [])

    def told(self, *known: str) -> tuple[str, ...]:
        """Say which other files lie among the pictures and are not read, but those of known extensions; or nothing."""
        others = {suffix: count for suffix, count in sorted(self.others.items()) if suffix not in known}
        if not others:
            return ()
        kinds = ", ".join(f"{suffix} {count:,}" for suffix, count in others.items())
        return (f"{self.folder}: {sum(others.values()):,} other files among the pictures are not read ({kinds})",)


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in the order of their names; what starts with a dot, and ``__MACOSX``, aside.

    Links are followed, no folder is read twice.
    """
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        stat = os.stat(parent)
        if (stat.st_dev, stat.st_ino) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent, name)


def watched(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Return the files by whose change a source is another one: all of them, or the folders of very many."""
    files = tuple(dict.fromkeys(paths))
    return files if len(files) <= _MOST_WATCHED else tuple(dict.fromkeys(path.parent for path in files))


def has_picture(folder: Path) -> bool:
    """Tell whether a picture lies in a folder itself."""
    return folder.is_dir() and any(path.suffix.lower() in PICTURE_SUFFIXES for path in folder.iterdir())


def picture_stem(name: str) -> str:
    """Return the name of a picture without folders, of any system, and without its extension; for a key."""
    last = name.replace("\\", "/").rpartition("/")[2].partition("?")[0]
    return last.rpartition(".")[0] or last


def _stem(path: str) -> str:
    return unicodedata.normalize("NFC", path.rpartition(".")[0] or path)


def pick_splits(found: Iterable[str], split: str | None, where: Path | str) -> list[str]:
    """Return the splits that are meant.

    Args:
        found: those that there are.
        split: one of them, several with a comma between, ``all``, or None where there is only one.
        where: what has them.

    Raises:
        ValueError: there are several and none is named, or there is no such split.
    """
    names = list(found)
    if split == ALL or (split is None and len(names) == 1):
        return names
    listed = ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")
    if split is None:
        raise ValueError(f"{where}: has the splits {listed}; name one with --split, several with commas, or all")
    picked = []
    for wanted in split.split(","):
        alike = next((group for group in _SAME_SPLIT if wanted in group), {wanted})
        match = [name for name in names if name == wanted] or [name for name in names if name.lower() in alike]
        if not match:
            raise ValueError(f"{where}: no split {wanted!r}, but {listed or 'none at all'}; name one with --split")
        picked.append(match[0])
    return picked


@dataclass(frozen=True, slots=True)
class ClassNames:
    """Names of classes by number.

    Attributes:
        names: they.
        where: what they are from.
    """

    names: Mapping[int, str]
    where: str

    def name(self, value: Any, where: str) -> str:
        """Return the name of a class.

        Args:
            value: its number, also as text or as a float without a fraction.
            where: what has the number.

        Raises:
            BadSample: ``class_without_name``.
        """
        number = class_number(value)
        if number is None or number not in self.names:
            kept = f"{self.where} has {len(self.names):,} names"
            span = f" ({min(self.names)} to {max(self.names)})" if self.names else ""
            detail = (
                f"{where}: class {shown(value)} has no name; {kept}{span}; give the list that belongs to the labels"
            )
            raise BadSample("class_without_name", f"{detail} (--classes FILE)")
        return self.names[number]

    @property
    def categories(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(set(self.names.values())))


def class_number(value: Any) -> int | None:
    """Return the number of a class, given as a number or as text; None for what is none."""
    try:
        number = to_float(float(value)) if isinstance(value, str) else to_float(value)
        return int(number) if number.is_integer() else None
    except (TypeError, ValueError, OverflowError):
        return None


def read_classes(path: Path) -> ClassNames:
    """Read a list of class names: YAML or JSON (a list, names by number, or below ``names``), else a name a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no names, or is no such list.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a list of class names is needed, a name a line (--classes)")
    suffix = path.suffix.lower()
    lines = [line.strip() for line in read_text(path).splitlines()]  # an empty one has a number, as in Darknet
    given: Any = {number: name for number, name in enumerate(lines) if name}
    if suffix in (".yaml", ".yml"):
        given = read_yaml(path)
    elif suffix == ".json":
        given = parse_json(read_text(path))
    return class_names(given, path)


def class_names(given: Any, where: Path) -> ClassNames:
    """Read class names out of a list, an object of names by number, or an object with either below ``names``.

    Raises:
        ValueError: it is neither, or empty.
    """
    if isinstance(given, dict) and "names" in given:
        given = given["names"]
    if isinstance(given, list):
        given = dict(enumerate(given))
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{where}: {shown(given)} is no list of class names; give a list, or names by number")
    names = {class_number(number): name for number, name in given.items()}
    read = next((name for name in names.values() if isinstance(name, bool)), None)
    if read is not None:
        words = "yes, on or true" if read else "no, off or false"
        raise ValueError(f"{where}: YAML reads a class that is called {words} as {read}; put the name into quotes")
    wrong = next((number for number, name in names.items() if number is None or not isinstance(name, str | int)), 0)
    if wrong is None or not isinstance(names.get(wrong, ""), str | int):
        raise ValueError(f"{where}: {shown(given)} has a number without a name; give a text for each class number")
    return ClassNames({number: str(name) for number, name in names.items() if number is not None}, where.name)


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds; only plain values.

    Raises:
        ValueError: it is not YAML.
    """
    try:
        return yaml.load(read_text(path), yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())[:200]}") from error
