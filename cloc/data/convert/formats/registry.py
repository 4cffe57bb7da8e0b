"""The list of formats: each module of this folder puts its own there, with all that a user is told of it.

Stands below the formats and ``conversion``. The command line, its help, the check of options and the guess of a format
read this list alone.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloc.data.convert.formats.peek import entries, peek_json, peek_text
from cloc.data.convert.records import RecordSource
from cloc.data.jobs.resumable_jobs import Task
from cloc.data.shards.manifest import Manifest

_SHOWN_ENDS, _SHOWN_TEXT = 4, 20  # suffixes, folders or keys, and letters, of what a message says a source shows


@dataclass(frozen=True, slots=True)
class DrawnSource:
    """A data set that is made, not read.

    Attributes:
        name: of the set, for people.
        tasks: given the samples of a shard, the tasks that make the shards.
        total: number of samples.
        categories: all class names.
        finish: called with the target and its manifests when all shards are in place, for what lies beside them.
    """

    name: str
    tasks: Callable[[int], Iterable[Task]]
    total: int
    categories: tuple[str, ...]
    finish: Callable[[Path, list[Manifest]], None]


@dataclass(frozen=True, slots=True)
class Option:
    """An option of one or several formats.

    Attributes:
        name: of the keyword.
        type: of its value, without None.
        help: which formats take it, their defaults, and what it means to each.
    """

    name: str
    type: Any
    help: str


@dataclass(frozen=True, slots=True)
class Format:
    """A format that ``data convert`` takes.

    Attributes:
        name: what the user calls it.
        open: takes the source's path (nothing, where it draws) and the options by keyword; the docstring's ``Args``
            are their help.
        reads: what the source is.
        recognizes: tells whether a path is such a source.
        draws: it has no source, and ``open`` returns a :class:`DrawnSource`.
    """

    name: str
    open: Callable[..., RecordSource | DrawnSource]
    reads: str
    recognizes: Callable[[Path], bool]
    draws: bool = False

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """Options by name, with type and default."""
        parameters = inspect.signature(self.open, eval_str=True).parameters
        return {name: one for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}

    def check_options(self, names: Iterable[str]) -> None:
        """Refuse options that it does not take.

        Raises:
            ValueError: there is one; says which it takes.
        """
        for name in names:
            if name not in self.options:
                known = ", ".join(self.options) or "no option of its own"
                raise ValueError(f"format {self.name!r} takes no {name}; it takes {known}")


FORMATS: dict[str, Format] = {}
"""All formats by name, in the order of their names."""


def register(
    name: str, reads: str, recognizes: Callable[[Path], bool] = lambda source: False, *, draws: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put the decorated function into the list; arguments as in :class:`Format`."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        FORMATS[name] = Format(name, function, reads, recognizes, draws)
        for other in sorted(FORMATS):
            FORMATS[other] = FORMATS.pop(other)
        return function

    return add


def holds(*patterns: str) -> Callable[[Path], bool]:
    """What recognizes a folder in which something matches one of the patterns of ``Path.glob``."""
    return lambda source: source.is_dir() and any(any(source.glob(pattern)) for pattern in patterns)


def find_format(name: str) -> Format:
    """Return a format by name.

    Raises:
        ValueError: there is none; names those that there are.
    """
    if name not in FORMATS:
        raise ValueError(f"format {name!r} is unknown; the formats are {', '.join(FORMATS)}")
    return FORMATS[name]


def guess_format(source: Path) -> Format:
    """Return the format that a source is of, by the names of its files and what these begin with.

    Raises:
        FileNotFoundError: there is no source.
        ValueError: it may be of none of them, or of several.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such source")
    fitting = [one for one in FORMATS.values() if one.recognizes(source)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " or ".join(one.name for one in fitting)
        raise ValueError(f"{source}: may be {names}; name the format instead of auto")
    known = ", ".join(one.name for one in FORMATS.values() if not one.draws)
    remedy = "name the format instead of auto, or the file or folder of the annotations (data convert --help)"
    said = f"{source}: of no format that is known by its files ({_seen(source)}){_file_in(source)}"
    raise ValueError(f"{said}; looked for {known}; {remedy}")


def _file_in(source: Path) -> str:
    """A file at the top of a folder that is a source by itself, as a remedy; empty where there is none or several."""
    inside = sorted(path for path in source.glob("*") if path.is_file()) if source.is_dir() else []
    read = [path for path in inside if any(one.recognizes(path) for one in FORMATS.values())]
    return f"; give the file itself: {read[0]}" if len(read) == 1 else ""


def _seen(source: Path) -> str:
    """What a source shows: what a file begins with, or how many files of a folder end in what."""
    if source.is_dir():
        found = Counter(path.suffix.lower() or path.name for path in entries(source, ""))
        files = [f"{count:,} {suffix[:_SHOWN_TEXT]}" for suffix, count in found.most_common(_SHOWN_ENDS)]
        folders = [
            path.name[:_SHOWN_TEXT] for path in itertools.islice(filter(Path.is_dir, source.iterdir()), _SHOWN_ENDS)
        ]
        return ", ".join([*files, *([f"folders {', '.join(sorted(folders))}"] if folders else [])]) or "nothing in it"
    shown = peek_json(source) if source.suffix.lower() in (".json", ".jsonl") else None
    if shown is None:
        return f"a file that begins {peek_text(source)[:_SHOWN_TEXT]!r}"
    names = sorted(shown.item()) if shown.is_list else shown.keys
    listed = ", ".join(name[:_SHOWN_TEXT] for name in names[:_SHOWN_ENDS]) or "no key"
    return f"JSON, a list of objects with {listed}" if shown.is_list else f"JSON with {listed}"


def all_options() -> list[Option]:
    """Options of all formats, those of one name joined."""
    texts: dict[str, dict[str, list[str]]] = {}  # by option and by what it means, which formats
    types: dict[str, Any] = {}
    for one in FORMATS.values():
        meanings = _argument_texts(one.open)
        for name, parameter in one.options.items():
            default = _shown(parameter.default)
            texts.setdefault(name, {}).setdefault(meanings[name], []).append(one.name + default)
            types[name] = _without_none(parameter.annotation)
    return [
        Option(name, types[name], " ".join(f"{', '.join(formats)}: {text}" for text, formats in texts[name].items()))
        for name in sorted(texts)
    ]


def _argument_texts(function: Callable[..., Any]) -> dict[str, str]:
    """The ``Args`` of a docstring, by name."""
    _, _, section = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    section, _, _ = section.partition("\n\n")
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.replace("``", "").split()) for name, text in found}


def _shown(default: Any) -> str:
    if default is None or default is False:
        return ""
    return f" ({' '.join(map(str, default)) if isinstance(default, tuple) else default})"


def _without_none(annotation: Any) -> Any:
    """``str | None`` → ``str``."""
    kinds = [kind for kind in getattr(annotation, "__args__", ()) if kind is not type(None)]
    return kinds[0] if type(None) in getattr(annotation, "__args__", ()) else annotation
