"""The rows of an index that are nearest to a query: all of them compared, or by a graph of usearch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cloc.evaluation.embed.tables import GRAPHS, need_usearch
from cloc.evaluation.search.index import AGAIN, Index, Table
from cloc.evaluation.search.queries import Box, Query
from cloc.files import open_file, read_file

KINDS = ("images", "regions")
_AHEAD = 8  # rows that a graph is asked for at first, for each picture that is wanted


@dataclass(frozen=True, slots=True)
class Hit:
    """A picture that was found.

    Attributes:
        row: of the table.
        key: the picture's name.
        score: cosine to the query.
        box: xyxy in 0..1, of a region.
        text: the region's phrase; empty where it has none.
        fit: how well the region fits that phrase; None where nothing says it.
    """

    row: int
    key: str
    score: float
    box: Box | None = None
    text: str = ""
    fit: float | None = None


class Finder:
    """Finds rows of an index.

    Args:
        index: opened.
        graph: ask the graphs of usearch rather than compare with all rows. Code that is not safe against planted files
            reads them: only of an index of one's own.

    Raises:
        ImportError: usearch is not installed.
        FileNotFoundError: there is no graph.
        ValueError: a graph is damaged, or of other rows.
    """

    def __init__(self, index: Index, graph: bool = False) -> None:
        self.index = index
        self.graphs = {kind: _open_graph(index, kind) for kind in KINDS} if graph else {}

    def find(self, query: Query, kind: str, count: int, min_score: float = -1.0) -> list[Hit]:
        """The pictures that are nearest to a query, each once, by its best row.

        Args:
            query: what is looked for.
            kind: ``images`` or ``regions``.
            count: of pictures at most.
            min_score: pictures with a lower cosine are left out.

        Returns:
            The best first; equal ones in the order of the index.
        """
        table = self.index.tables[kind]
        found: dict[str, Hit] = {}
        for row, score in self._ranked(query, kind, count):
            if score < min_score or len(found) == count:
                break
            key = str(table.key[row])
            if key not in found:
                found[key] = _hit(table, row, key, score)
        return list(found.values())

    def _ranked(self, query: Query, kind: str, count: int) -> Iterator[tuple[int, float]]:
        """Rows and cosines, the best first."""
        table = self.index.tables[kind]
        if not len(table.key):
            return iter(())
        if kind in self.graphs:
            return _by_graph(self.graphs[kind], query, count)
        return _by_product(table, query)


def _by_product(table: Table, query: Query) -> Iterator[tuple[int, float]]:
    scores = torch.from_numpy(table.embedding).float() @ query.embedding.float()
    order = torch.argsort(scores, descending=True, stable=True)
    return ((row, float(scores[row])) for row in order.numpy())


def _by_graph(graph: Any, query: Query, count: int) -> Iterator[tuple[int, float]]:
    """More rows each time, until the caller has enough: several may be of one picture."""
    vector, asked, seen = query.embedding.numpy(), min(len(graph), count * _AHEAD), set[int]()
    while True:
        found = graph.search(vector, asked)
        for row, distance in zip(found.keys.tolist(), found.distances.tolist(), strict=True):
            if row not in seen:
                yield row, 1 - distance
        seen.update(found.keys.tolist())
        if asked == len(graph):
            return
        asked = min(len(graph), asked * 4)


def _hit(table: Table, row: int, key: str, score: float) -> Hit:
    if table.box is None:
        return Hit(int(row), key, score)
    x0, y0, x1, y1 = table.box[row].tolist()
    text = "" if table.text is None else str(table.text[row])
    fit = math.nan if table.score is None else float(table.score[row])
    return Hit(int(row), key, score, (x0, y0, x1, y1), text, None if math.isnan(fit) else fit)


def _open_graph(index: Index, kind: str) -> Any:
    """The graph beside a table, mapped and not read.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of other rows.
    """
    file, table = index.folder / f"{kind}.usearch", index.tables[kind]
    library = need_usearch()
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; {AGAIN} with --index usearch, or search without --graph")
    try:
        told = json.loads(read_file(index.folder / GRAPHS))[kind]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{index.folder / GRAPHS} is damaged ({error}); {AGAIN} with --index usearch") from error
    with open_file(file) as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != told:  # a flipped bit would end the process
            raise ValueError(f"{file} is damaged; {AGAIN} with --index usearch, or search without --graph")
    graph = library.Index.restore(str(file), view=True)
    if graph is None or len(graph) != len(table.key) or graph.ndim != table.embedding.shape[1]:
        raise ValueError(f"{file} is of other rows than {kind}; {AGAIN} with --index usearch")
    return graph
