"""The work of ``embed``: read, embed in pieces, join. Beside ``suite``: no metric.

Ranks share the pieces, and a piece that is there is not made again, so that an interrupted run goes on where it
stopped. The rows are in the order of the data.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cloc.console import print_line
from cloc.encoder import Encoder
from cloc.evaluation.cache import model_digest
from cloc.evaluation.embed.inputs import EmbedInput, open_source, told_others
from cloc.evaluation.embed.pieces import Work, make_pieces, piece_size
from cloc.evaluation.embed.plan import PIECES, PLAN, MadeBy, claim
from cloc.evaluation.embed.regions import Proposer, RegionChoice
from cloc.evaluation.embed.tables import (
    FORMATS,
    INDEXES,
    SKIPPED,
    join,
    need_arrow,
    need_usearch,
    tables_of,
    write_skipped,
    write_tables,
)
from cloc.evaluation.reduce import Ranks, jointly
from cloc.loading import load
from cloc.models.devices import AUTO, DType, find_device, measuring_dtype
from cloc.usage import print_next

DATA_REGIONS = RegionChoice()
_SHOWN = 5  # skipped pictures that are named; the file has all


def embed(
    run: str,
    data: Path,
    out: Path,
    kind: str = "npz",
    source: str = "",
    device: str = "auto",
    images: Path | None = None,
    trusted: Sequence[type] = (),
    precision: DType = AUTO,
    regions: RegionChoice = DATA_REGIONS,
    index: str = "exact",
    max_skip_share: float = 0.1,
) -> dict[str, int]:
    """Embed pictures, their boxes and their texts, on the processes that a launcher started.

    Args:
        run: the model, as :func:`cloc.loading.load` takes it.
        data: folder of shards, folder of pictures (read with those below it), or a COCO annotation file.
        out: folder of the results. ``images.EXT`` (key, width, height, embedding), ``regions.EXT`` (key, box, text,
            embedding; with ``regions`` a score before it) and ``texts.EXT`` (key, text, kind, embedding);
            ``skipped.json``: what was left out.
        kind: ``npz`` or ``parquet`` (needs pyarrow).
        source: of the boxes' embeddings; empty takes the Prompter, or RoI-Align for a model without, or crops.
        device: ``auto`` or PyTorch's name.
        images: folder of the pictures that a COCO file names; None for its own.
        trusted: classes besides ours that the model may name (see :func:`cloc.loading.load`).
        precision: of the weights, see :func:`cloc.models.devices.measuring_dtype`; the embeddings are float32.
        regions: found by phrases or cells of a grid, in place of the data's own.
        index: ``exact``, or ``usearch``: also ``images.usearch`` and ``regions.usearch``, whose keys are row numbers.
        max_skip_share: share of the pictures that may be unreadable, 0..1.

    Returns:
        Rows of each file, and ``skipped``.

    Raises:
        ValueError: an unknown format, source, index or data; an ``out`` that holds something else; no picture; too
            many that cannot be read; phrases, and a model that does not ground.
        FileNotFoundError: no such model or data.
        ImportError: Parquet without pyarrow, or an index without usearch.
    """
    if kind not in FORMATS:
        raise ValueError(f"format {kind!r}: give one of {FORMATS}")
    if index not in INDEXES:
        raise ValueError(f"index {index!r}: give one of {INDEXES}")
    if not 0 <= max_skip_share <= 1:
        raise ValueError(f"max_skip_share={max_skip_share}: must be in 0..1")
    if kind == "parquet":
        need_arrow()
    if index == "usearch":
        need_usearch()

    def work(ranks: Ranks, own: str) -> dict[str, int]:
        place = find_device(own)
        pictures = open_source(data, images)
        encoder = load(run, place, trusted=trusted, dtype=measuring_dtype(precision, place))
        named = str(encoder.dtype).removeprefix("torch.")
        made_by = MadeBy.now(run, named, data, pictures.folder)
        _embed(encoder, pictures, regions, source or encoder.sources[0], out, made_by, ranks)
        counts = _finish(out, pictures, kind, index, regions.asked, max_skip_share) if ranks.first else {}
        return ranks.collect(counts)[0]

    return jointly(work, device)


def _embed(
    encoder: Encoder,
    pictures: EmbedInput,
    regions: RegionChoice,
    source: str,
    out: Path,
    made_by: MadeBy,
    ranks: Ranks,
) -> None:
    """Make all pieces, of all ranks."""
    if source not in encoder.every_source:
        raise ValueError(f"source {source!r}: {encoder.name} has {', '.join(encoder.every_source)}")
    work = Work(encoder, pictures, Proposer(encoder, regions) if regions.asked else None, source)
    plan = {"model": model_digest(encoder), "data": pictures.digest, "source": source, "piece": piece_size()}
    if ranks.first:
        claim(out, plan | regions.plan(), made_by)
    ranks.all(True)  # no rank writes before the folder is claimed
    if not (out / PLAN).is_file():
        raise FileNotFoundError(
            f"{out}: process 0 has made it, process {ranks.rank} does not see it; name a folder of all"
        )
    make_pieces(work, out / PIECES, ranks)
    ranks.all(True)  # all pieces are there


def _finish(
    out: Path, pictures: EmbedInput, kind: str, index: str, scored: bool, max_skip_share: float
) -> dict[str, int]:
    """Join the pieces, judge what is left out, write the tables and tell it."""
    joined = join(out / PIECES, pictures.count)
    skipped = write_skipped(out, joined, pictures.count)
    _tell_skipped(out, pictures, skipped)
    if len(skipped) > max_skip_share * pictures.count:
        raise ValueError(
            f"{len(skipped):,} of {pictures.count:,} pictures cannot be read, more than max_skip_share="
            f"{max_skip_share} (the first: {skipped[0][0]}: {skipped[0][1]}); mend or remove them, or raise it; "
            f"all are in {out / SKIPPED}, and what was embedded is kept"
        )
    tables = tables_of(joined, scored)
    write_tables(out, tables, kind, index)
    counts = {name: len(table["key"]) for name, table in tables.items()} | {"skipped": len(skipped)}
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    print_line(Console(), f"wrote {told}: {out}")
    print_next(shlex.join(["python", "-m", "cloc", "search", str(out), "a brown dog"]), _look_at(out, kind))
    return counts


def _tell_skipped(out: Path, pictures: EmbedInput, skipped: Sequence[tuple[str, str]]) -> None:
    """Name what was left out, as far as it is read; all of it is in a file."""
    console = Console(stderr=True)
    if pictures.others:
        print_line(console, f"passed over beside the pictures: {told_others(pictures.others)}")
    for name, reason in skipped[:_SHOWN]:
        print_line(console, f"skipped {name}: {reason}")
    if len(skipped) > _SHOWN:
        print_line(console, f"and {len(skipped) - _SHOWN:,} more: {out / SKIPPED}")


def _look_at(out: Path, kind: str) -> str:
    """The command that reads the pictures' embeddings."""
    file = json.dumps(str(out / f"images.{kind}"), ensure_ascii=False)
    read = f"import pandas; print(pandas.read_parquet({file}))"
    if kind == "npz":
        read = f'import numpy; rows = numpy.load({file}); print(rows["key"][:5], rows["embedding"].shape)'
    return shlex.join(["python", "-c", read])
