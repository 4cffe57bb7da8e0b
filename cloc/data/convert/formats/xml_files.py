"""Reads XML of other people's tools, without the entities by which a small file becomes a large one.

The standard library's expat with two handlers of our own: it refuses what ``defusedxml`` refuses, and streams.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

_MAX_DEPTH = 100
_CHUNK = 2**16


class _Parser:
    """Builds elements of what it is fed; refuses entities and depth."""

    def __init__(self, where: Path | str, wanted: str | None = None) -> None:
        self.where, self.wanted = where, wanted
        self.builder = TreeBuilder()
        self.depth, self.root = 0, ""
        self.open: list[Element] = []
        self.found: list[Element] = []
        self.expat = expat.ParserCreate()
        self.expat.buffer_text = True
        self.expat.StartElementHandler = self._start
        self.expat.EndElementHandler = self._end
        self.expat.CharacterDataHandler = self.builder.data
        self.expat.EntityDeclHandler = self._refuse_entity

    def feed(self, data: bytes, last: bool) -> None:
        try:
            self.expat.Parse(data, last)
        except (expat.ExpatError, LookupError) as error:
            raise ValueError(f"{self.where}: not XML, or cut off: {error}") from error

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self.root, self.depth = self.root or tag, self.depth + 1
        if self.depth > _MAX_DEPTH:
            raise ValueError(f"{self.where}: elements nested deeper than {_MAX_DEPTH}")
        self.open.append(self.builder.start(tag, attributes))

    def _end(self, tag: str) -> None:
        self.depth -= 1
        self.builder.end(tag)
        element = self.open.pop()
        if tag == self.wanted:
            self.found.append(element)
            if self.open:
                self.open[-1].remove(element)

    def _refuse_entity(self, name: str, *more: object) -> None:
        raise ValueError(f"{self.where}: declares the entity {name!r}, which is never read; remove it")


def parse_xml(data: bytes, where: Path | str) -> Element:
    """Return the root of a document.

    Args:
        data: the document, in any encoding that it names itself.
        where: what it is of, for the error.

    Raises:
        ValueError: it is no XML, declares an entity or is nested too deep.
    """
    parser = _Parser(where)
    parser.feed(data, True)
    return parser.builder.close()


def xml_items(path: Path, tag: str) -> Iterator[Element]:
    """Yield the elements of one tag, each as soon as it ends; memory holds one at a time.

    Raises:
        ValueError: as :func:`parse_xml`.
    """
    parser = _Parser(path, tag)
    with path.open("rb") as file:
        while True:
            data = file.read(_CHUNK)
            parser.feed(data, not data)
            yield from parser.found
            parser.found.clear()
            if not data:
                return


def root_tag(path: Path) -> str:
    """Return the tag of the document's root, of its first bytes alone; empty where it is no XML."""
    parser = _Parser(path)
    with path.open("rb") as file, contextlib.suppress(ValueError):
        parser.feed(file.read(_CHUNK), False)
    return parser.root
