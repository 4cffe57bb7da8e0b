"""Pieces → one file for each kind of row, as ``.npz`` or Parquet, and an index of usearch where it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cloc.evaluation.embed.pieces import piece_path, piece_size, read_piece, write_arrays
from cloc.files import open_file, write_file, write_json

FORMATS = ("npz", "parquet")
INDEXES = ("exact", "usearch")
INDEXED = ("images", "regions")
SKIPPED, GRAPHS = "skipped.json", "graphs.json"


def join(pieces: Path, count: int) -> dict[str, np.ndarray]:
    """All columns of all pieces, in the order of the data. The pieces stay, for a run that goes on.

    Raises:
        ValueError: a piece is damaged.
    """
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, count, piece_size()):
        for name, rows in read_piece(piece_path(pieces, start)).items():
            found.setdefault(name, []).append(rows)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def tables_of(joined: Mapping[str, np.ndarray], scored: bool) -> dict[str, dict[str, np.ndarray]]:
    """Columns by table: ``images``, ``regions`` (with scores where the regions were found) and ``texts``."""
    size = joined["size"]
    score = {"score": joined["score"]} if scored else {}
    return {
        "images": {"key": joined["key"], "width": size[:, 0], "height": size[:, 1], "embedding": joined["image"]},
        "regions": {
            "key": joined["region_key"],
            "box": joined["box"],
            "text": joined["region_text"],
            **score,
            "embedding": joined["region"],
        },
        "texts": {
            "key": joined["text_key"],
            "text": joined["text"],
            "kind": joined["text_kind"],
            "embedding": joined["text_embedding"],
        },
    }


def write_tables(out: Path, tables: Mapping[str, dict[str, np.ndarray]], kind: str, index: str) -> None:
    """Write each table; where asked also its graph, and the digests of graphs: a damaged one would end the process."""
    graphs = {}
    for name, table in tables.items():
        if kind == "parquet":
            _write_parquet(out / f"{name}.parquet", table)
        else:
            write_arrays(out / f"{name}.npz", table)
        if index == "usearch" and name in INDEXED:
            graphs[name] = _write_usearch(out / f"{name}.usearch", table["embedding"])
    if graphs:
        write_json(out / GRAPHS, graphs)


def write_skipped(out: Path, joined: Mapping[str, np.ndarray], count: int) -> list[tuple[str, str]]:
    """Write which pictures are left out, and return their names with the reason.

    Args:
        out: folder of the results.
        joined: columns of all pieces.
        count: of all pictures.
    """
    names, reasons = joined["skipped_key"].tolist(), joined["skipped_reason"].tolist()
    places = joined["skipped_at"].tolist()
    rows = [dict(zip(("at", "key", "reason"), row, strict=True)) for row in zip(places, names, reasons, strict=True)]
    write_json(out / SKIPPED, {"count": count, "skipped": rows})
    return list(zip(names, reasons, strict=True))


def need_arrow() -> Any:
    """The module of pyarrow, with its Parquet.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow: pip install 'cloc-pretrain[parquet]', or take npz") from error
    return pyarrow


def need_usearch() -> Any:
    """The module of usearch's index.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import usearch.index
    except ImportError as error:
        raise ImportError("an index of usearch needs it: pip install 'cloc-pretrain[search]', or take exact") from error
    return usearch.index


def _write_parquet(path: Path, table: dict[str, np.ndarray]) -> None:
    arrow = need_arrow()
    columns = {}
    for name, values in table.items():
        if values.ndim == 2:
            flat = arrow.array(np.ascontiguousarray(values).reshape(-1))
            columns[name] = arrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
        else:
            columns[name] = arrow.array(values.tolist() if values.dtype.kind == "U" else values)
    write_file(path, lambda file: arrow.parquet.write_table(arrow.table(columns), file))


def _write_usearch(path: Path, embedding: np.ndarray) -> str:
    """A graph of the rows, whose keys are their numbers; distances are 1 - cosine, numbers float32 as in the table.

    Returns:
        SHA-256 of the file.
    """
    library = need_usearch()
    index = library.Index(ndim=embedding.shape[1], metric=library.MetricKind.Cos, dtype="f32")
    if len(embedding):
        index.add(np.arange(len(embedding), dtype=np.uint64), embedding)
    write_file(path, bytes(index.save()))
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
