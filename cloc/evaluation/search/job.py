"""The work of ``search``: open the index, embed what is asked, find, look, tell."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from torch import Tensor

from cloc.console import print_line, progress, progress_console, working
from cloc.data.inspect.show import check_ending
from cloc.encoder import Encoder
from cloc.evaluation.search.finding import KINDS, Finder
from cloc.evaluation.search.index import Index
from cloc.evaluation.search.pictures import Look, PictureReader, look
from cloc.evaluation.search.queries import Box, Query, check_asked, embed_queries, quoted
from cloc.evaluation.search.results import Found, print_found, to_json, write_sheet
from cloc.files import write_file
from cloc.usage import opening, print_next

MOST = 1_000  # pictures of a query
_SIDE = 1_440  # of pictures that are kept to be drawn, in pixels: of larger ones every so many-th pixel is kept


@dataclass(frozen=True, slots=True)
class Options:
    """How to search.

    Attributes:
        kind: ``images``, ``regions``, or ``both``: what the index has.
        count: pictures of a query at most.
        min_score: pictures with a lower cosine are left out.
        graph: ask the graphs of usearch rather than compare with all rows.
        out: sheets (``.png``) and pages (``.html``) to write.
        json: file for all that was found, ``-`` for standard output in place of the table; None for none.
        images: where the pictures are now; None for where they were.
        model: where the model is now; empty for where it was.
        device: ``auto`` or PyTorch's name.
        trusted: classes besides ours that the model may name.

    Raises:
        ValueError: an unknown kind, a count out of range, or another ending of a file.
    """

    kind: str = "both"
    count: int = 10
    min_score: float = -1.0
    graph: bool = False
    out: tuple[Path, ...] = ()
    json: Path | None = None
    images: Path | None = None
    model: str = ""
    device: str = "auto"
    trusted: tuple[type, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, "both"):
            raise ValueError(f"--kind {self.kind!r}: give images, regions or both")
        if not 1 <= self.count <= MOST:
            raise ValueError(f"--count {self.count}: must be in 1..{MOST:,}")
        if self.images is not None and not self.images.is_dir():
            raise FileNotFoundError(f"--images {self.images}: no such folder")
        for file in self.out:
            check_ending(file)
        if self.json is not None and (self.json.is_dir() or not self.json.absolute().parent.is_dir()):
            raise ValueError(f"--json {self.json}: no file can be written there; make its folder")


def search(
    folder: Path,
    texts: Sequence[str] = (),
    pictures: Sequence[Path] = (),
    boxes: Sequence[Box] = (),
    options: Options | None = None,
) -> list[Found]:
    """Search an index that ``embed`` wrote, and tell what was found.

    Args:
        folder: the index.
        texts: to look for.
        pictures: to look for others like them.
        boxes: of the one picture, xyxy in 0..1: what is in them is looked for in its place.
        options: how.

    Returns:
        What each query found, by kind; empty lists where nothing reaches ``min_score``.

    Raises:
        FileNotFoundError: no index, model or picture.
        ValueError: a damaged index, or of another model; nothing to look through.
        ImportError: a graph is asked for, and usearch is not installed.
    """
    options = options or Options()
    check_asked(texts, pictures, boxes)
    index = Index.open(folder)
    kinds = _kinds(index, options.kind)
    finder = Finder(index, options.graph)
    with working(progress_console(), "loading the model"):
        encoder = index.load_model(options.model, options.device, options.trusted)
    _check_width(index, encoder)
    queries = embed_queries(encoder, texts, pictures, boxes, index.source)
    found = _look_at(encoder, PictureReader(index, options.images), finder, queries, kinds, options)
    _tell(found, index, encoder, options)
    return found


def _kinds(index: Index, kind: str) -> list[str]:
    """What is looked through; of ``both`` what has rows, boxes first: small things are found by them."""
    asked = [*reversed(KINDS)] if kind == "both" else [kind]
    kinds = [one for one in asked if len(index.tables[one].key)]
    if not kinds:
        remedy = "embed a folder that has pictures"
        if kind == "regions":
            remedy = "embed with --phrases or --grid, or data that has boxes; or search by --kind images"
        raise ValueError(f"{index.folder}: holds no {'pictures' if kind != 'regions' else 'regions'}; {remedy}")
    return kinds


def _check_width(index: Index, encoder: Encoder) -> None:
    width = index.tables["images"].embedding.shape[1]
    if width != encoder.joint_dim:
        raise ValueError(
            f"{index.folder}: its rows are {width} wide, {encoder.name} makes {encoder.joint_dim}; its files are mixed"
        )


def _look_at(
    encoder: Encoder,
    reader: PictureReader,
    finder: Finder,
    queries: Sequence[Query],
    kinds: Sequence[str],
    options: Options,
) -> list[Found]:
    hits = [
        (query, kind, finder.find(query, kind, options.count, options.min_score))
        for query, kind in _each(queries, kinds)
    ]
    total = sum(len(own) for _, _, own in hits)
    with progress(progress_console(), "looking at what was found", total, "pictures") as bar:
        return [
            Found(query, kind, [_small(look(encoder, reader, query, hit)) for hit in bar.each(own)])
            if own
            else Found(query, kind, [], finder.find(query, kind, 1)[0].score)
            for query, kind, own in hits
        ]


def _each(queries: Sequence[Query], kinds: Sequence[str]) -> Iterator[tuple[Query, str]]:
    return ((query, kind) for query in queries for kind in kinds)


def _small(seen: Look) -> Look:
    """The same with a picture that need not be large: hundreds may be held."""
    if seen.picture is None:
        return seen
    step = max(1, max(seen.picture.shape[1:]) // _SIDE)
    small: Tensor = seen.picture[:, ::step, ::step].contiguous()
    return replace(seen, picture=small)


def _tell(found: Sequence[Found], index: Index, encoder: Encoder, options: Options) -> None:
    """Print, write, and name what comes next."""
    to_stdout = options.json == Path("-")
    if options.json is not None:
        text = json.dumps(to_json(found, index.folder, encoder.name), ensure_ascii=False, indent=1)
        if to_stdout:
            print(text)
        else:
            write_file(options.json, text + "\n")
    if not to_stdout:
        for one in found:
            if one.looks:
                print_found(one, Console())
    _tell_lacking(found, options)
    drawn = any(look.picture is not None for one in found for look in one.looks)
    for file in options.out if drawn else ():
        write_sheet(file, str(index.folder), found)
        if not to_stdout:
            print_line(Console(), f"wrote {file}")
    if not to_stdout:
        print_next(*(opening(file) for file in (options.out if drawn else ())))


def _tell_lacking(found: Sequence[Found], options: Options) -> None:
    """Say which queries found nothing, and how many pictures are not where they were."""
    console = Console(stderr=True)
    for one in found:
        if not one.looks:
            least = f"no {one.kind} of a score of {options.min_score:g} or more, the nearest has {one.nearest:.3f}"
            print_line(console, f"{quoted(one.query)}: {least}; lower --min-score, or try other words")
    looks = [look for one in found for look in one.looks]
    lacking = [look for look in looks if look.missing]
    if lacking:
        remedy = "give the folder they are in now by --images" if options.images is None else "is this their folder?"
        print_line(console, f"{len(lacking)} of {len(looks)} pictures cannot be shown: {lacking[0].missing}; {remedy}")
