"""Tables within documents: what stands between two marks is written from the ledger, and checked against it.

    <!-- tournament: scenes table -->
    <!-- end -->

Behind the study's name stands ``table``, ``table NAME``, ``table NAME SET`` (``-`` for no name), ``search``, ``cost``
or ``fit``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.tournament.cost import cost_table
from benchmarks.tournament.fits import fit_table
from benchmarks.tournament.ledger import LEDGERS
from benchmarks.tournament.results import Results
from benchmarks.tournament.study import read_study
from benchmarks.tournament.table import search_table, table
from cloc.config import ConfigError
from cloc.files import write_file

_MARK = re.compile(r"^<!-- tournament: ", re.MULTILINE)
_MARKED = re.compile(
    r"^(?P<mark><!-- tournament: (?P<study>\S+) (?P<what>[^>]+?) -->\n)"
    r"(?:(?!^<!-- tournament: ).)*?(?P<end><!-- end -->)",
    re.DOTALL | re.MULTILINE,
)
Maker = Callable[[Results, list[str]], str]
MAKERS: dict[str, Maker] = {
    "table": lambda results, more: table(results, *["" if one == "-" else one for one in more])[0],
    "fit": lambda results, more: fit_table(results)[0],
    "cost": lambda results, more: cost_table(results),
    "search": lambda results, more: search_table(results)[0],
}


def made(text: str, where: str, only: str = "", ledger: Path | None = None) -> tuple[str, int]:
    """A document's text with its tables as the ledgers have them, and how many tables these are.

    Args:
        text: Markdown.
        where: the document's name, for errors.
        only: tables of this study alone.
        ledger: of that study; the one of its name unless given.

    Raises:
        ConfigError: a mark that asks for what there is not, or has no end.
    """
    count = 0
    if len(_MARK.findall(text)) != sum(1 for _ in _MARKED.finditer(text)):
        raise ConfigError(f"{where}: a <!-- tournament: STUDY … --> without an <!-- end --> of its own; put it below")

    def fill(found: re.Match[str]) -> str:
        nonlocal count
        if only and Path(found["study"]).stem != only:
            return found[0]
        count += 1
        return f"{found['mark']}\n{_one(found['study'], found['what'].split(), where, ledger)}\n\n{found['end']}"

    return _MARKED.sub(fill, text), count


def write(path: Path, study: str, ledger: Path) -> int:
    """Write the tables of a study into a document; how many there are.

    Raises:
        ConfigError: the document has no mark of this study.
    """
    text, count = made(path.read_text("utf-8"), path.name, study, ledger)
    if not count:
        raise ConfigError(
            f"{path}: no <!-- tournament: {study} table --> … <!-- end -->; put both where it shall stand"
        )
    write_file(path, text)
    return count


def check(path: Path, study: str = "", ledger: Path | None = None) -> int:
    """Compare the tables of a document with the ledgers; how many there are.

    Raises:
        ConfigError: a table is not what its ledger gives.
    """
    text = path.read_text("utf-8")
    wanted, count = made(text, path.name, study, ledger)
    if wanted != text:
        differing = next(
            new for old, new in zip(text.splitlines() + [""], wanted.splitlines(), strict=False) if old != new
        )
        raise ConfigError(f"{path.name}: not what the ledger gives, first at {differing[:90]!r}; write it with --write")
    return count


def _one(name: str, words: list[str], where: str, ledger: Path | None) -> str:
    what, *more = words
    if what not in MAKERS or len(more) > 2:
        raise ConfigError(f"{where}: <!-- tournament: {name} {' '.join(words)} -->: known are {', '.join(MAKERS)}")
    study = read_study(name)
    return MAKERS[what](Results.read(study, ledger or LEDGERS / f"{study.name}.jsonl"), more)
