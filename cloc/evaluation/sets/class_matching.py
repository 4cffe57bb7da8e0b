"""Which folder or label is which class of a list: joined by what they say, never by order (beside ``class_names``).

A folder that is missing, or one more (an editor's ``.ipynb_checkpoints``), would shift every class behind it, and the
result would still look like a number.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from cloc.config import ConfigError
from cloc.evaluation.sets.class_names import SYNSET, ClassList, plain

NUMBERED = re.compile(r"\d+[\s._-]+(?=\D)")  # 001.Black_footed_Albatross


def names_of(folders: Sequence[str], key: str) -> list[str]:
    """Class names of folders for which no list was given: their own.

    Raises:
        ConfigError: synsets, which no text tower has read.
    """
    if folders and all(SYNSET.fullmatch(name) for name in folders):
        raise ConfigError(
            f"{key}: the folders are called by synset ({folders[0]}, …), which says nothing to a text tower; set "
            "classes=imagenet, or a file of lines such as 'n01440764 tench'"
        )
    return [name.replace("_", " ") for name in folders]


def match_folders(folders: Sequence[str], classes: ClassList, key: str) -> list[int]:
    """Number of the class of each folder: by synset, by name, or by number.

    Raises:
        ConfigError: a folder that is no class of the list, or may be several.
    """
    if folders and all(name in classes.synsets for name in folders):
        return [classes.synsets.index(name) for name in folders]
    places = _places(classes.names)
    named = [places.get(plain(name), places.get(plain(NUMBERED.sub("", name, count=1)), [])) for name in folders]
    if all(named):
        unclear = [name for name, found in zip(folders, named, strict=True) if len(found) > 1]
        if unclear:
            raise ConfigError(
                f"{key}: the folder {unclear[0]!r} may be any of classes {named[folders.index(unclear[0])]}, all of "
                "that name; call the folders by synset or number"
            )
        return _distinct(folders, [found[0] for found in named], key)
    if all(name.isascii() and name.isdigit() for name in folders):
        return _numbered(folders, len(classes.names), key)
    strangers = [name for name, found in zip(folders, named, strict=True) if not found]
    close = difflib.get_close_matches(plain(strangers[0]), list(places), 1)
    hint = f"; {strangers[0]!r} looks like {close[0]!r}" if close else ""
    raise ConfigError(
        f"{key}: {len(strangers)} of {len(folders)} folders are no class of the {len(classes.names)} in the list, by "
        f"name, number or synset: {', '.join(strangers[:5])}{hint}; rename or remove them, or leave classes out to "
        "take the folders' own names"
    )


def _places(names: Sequence[str]) -> dict[str, list[int]]:
    """Name as it is compared → numbers of the classes; of "tench, Tinca tinca" also the first of the names."""
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        for own in {plain(name), plain(name.partition(",")[0])}:
            found.setdefault(own, []).append(number)
    return found


def _numbered(folders: Sequence[str], count: int, key: str) -> list[int]:
    numbers = [int(name) for name in folders]
    low, high = min(numbers), max(numbers)
    first = 1 if low >= 1 and high == count else 0
    if high - first >= count:
        raise ConfigError(f"{key}: folders {low} to {high} for {count} classes; give the list that they count")
    if low >= 1 and high < count:
        raise ConfigError(
            f"{key}: folders {low} to {high} for {count} classes may be counted from 0 or from 1; make an empty folder "
            f"'0', or '{count}', to say which"
        )
    return _distinct(folders, [number - first for number in numbers], key)


def _distinct(folders: Sequence[str], numbers: list[int], key: str) -> list[int]:
    twice = [folder for folder, number in zip(folders, numbers, strict=True) if numbers.count(number) > 1]
    if twice:
        raise ConfigError(f"{key}: the folders {', '.join(twice[:2])} are the same class; join them")
    return numbers


def match_labels(own: Sequence[str], classes: ClassList, key: str) -> list[int]:
    """Where labels are numbers: class number in the list of each label, whose name in the set is ``own[label]``.

    Names that both sides know decide; where they know none in common, the list is in the order of the numbers.

    Raises:
        ConfigError: some names are in the list, at other numbers, and some are not.
    """
    places = _places(classes.names)
    found = [places.get(plain(name), []) for name in own]
    if all(found):
        return [number if number in some else some[0] for number, some in enumerate(found)]
    moved = [name for number, (name, some) in enumerate(zip(own, found, strict=True)) if some and number not in some]
    if moved:
        missing = next(name for name, some in zip(own, found, strict=True) if not some)
        raise ConfigError(
            f"{key}: the list has {moved[0]!r} at another number than the set, and lacks {missing!r}; give all names "
            "of the set, or other words for them in the order of its numbers"
        )
    return list(range(len(own)))
