"""The work in pieces of whole batches: a piece that is already there is not made again, and ranks share them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from cloc.console import Bar, progress
from cloc.contracts import BadSample, Sample
from cloc.data.decode import decode_rgb
from cloc.encoder import EncodedPictures, Encoder
from cloc.evaluation.embed.inputs import EmbedInput
from cloc.evaluation.embed.regions import Proposal, Proposer
from cloc.evaluation.reduce import Ranks
from cloc.files import write_file
from cloc.models.sanity import check_embedded

BATCH, PIECE = 32, 8  # pictures a forward pass at most, batches a piece
TOGETHER = 2**27  # pixels of the pictures of a forward pass, unless one alone has more: 400 MB
DAMAGES = (OSError, ValueError, EOFError, AttributeError, KeyError, BadZipFile, zlib.error)
"""What reading a damaged ``.npz`` raises."""
_NUMBERS = ("size", "box", "score", "skipped_at")


@dataclass(frozen=True, slots=True)
class Work:
    """What pieces are made of.

    Attributes:
        encoder: the model.
        pictures: the data.
        proposer: makes the regions; None takes those of the data.
        source: of the boxes' embeddings.
    """

    encoder: Encoder
    pictures: EmbedInput
    proposer: Proposer | None
    source: str


def piece_size() -> int:
    """Pictures of a piece."""
    return BATCH * PIECE


def piece_path(pieces: Path, start: int) -> Path:
    """Name of the piece that begins with a picture."""
    return pieces / f"{start:012d}.npz"


def make_pieces(work: Work, pieces: Path, ranks: Ranks) -> None:
    """Make this rank's share of the pieces, those aside that are there."""
    mine = ranks.batches(work.pictures.count, piece_size())
    console = Console(quiet=not ranks.first, stderr=True)
    with progress(console, f"embedding with {work.encoder.name}", sum(map(len, mine)), "pictures") as bar:
        for piece in mine:
            path = piece_path(pieces, piece.start)
            if path.is_file():
                bar.advance(len(piece), worked=0)
            else:
                write_arrays(path, embed_piece(work, bar, piece))


@dataclass(slots=True)
class _Rows:
    """What a piece holds, as it grows."""

    width: int
    columns: dict[str, list[Any]] = field(default_factory=dict)
    image: list[Tensor] = field(default_factory=list)
    region: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = ("key", "size", "region_key", "box", "score", "region_text", "text_key", "text", "text_kind")
        self.columns = {name: [] for name in (*names, "skipped_at", "skipped_key", "skipped_reason")}
        self.image, self.region = [torch.zeros(0, self.width)], [torch.zeros(0, self.width)]

    def add(self, **values: Any) -> None:
        """Append a row to columns."""
        for name, value in values.items():
            self.columns[name].append(value)

    def arrays(self, encoder: Encoder) -> dict[str, np.ndarray]:
        """All columns as arrays, the texts embedded."""
        columns = self.columns
        embedded = encoder.encode_text(columns["text"]).cpu()
        image, region = torch.cat(self.image), torch.cat(self.region)
        for what, rows in (("pictures", image), ("boxes", region), ("texts", embedded)):
            check_embedded(encoder.name, {what: rows})
        found: dict[str, np.ndarray] = {
            "size": np.array(columns["size"], np.int64).reshape(-1, 2),
            "box": np.array(columns["box"], np.float32).reshape(-1, 4),
            "score": np.array(columns["score"], np.float32),
            "skipped_at": np.array(columns["skipped_at"], np.int64),
            "image": image.numpy(),
            "region": region.numpy(),
            "text_embedding": embedded.reshape(-1, self.width).numpy(),
        }
        return found | {name: np.array(columns[name], dtype=np.str_) for name in columns if name not in _NUMBERS}


def embed_piece(work: Work, bar: Bar, piece: range) -> dict[str, np.ndarray]:
    """Embed some of the pictures: the arrays of a piece."""
    rows = _Rows(work.encoder.joint_dim)
    for start in bar.each(range(piece.start, piece.stop, BATCH), lambda start: min(BATCH, piece.stop - start)):
        for group in _groups(work.pictures, range(start, min(start + BATCH, piece.stop)), rows):
            _embed_group(work, group, rows)
    return rows.arrays(work.encoder)


def _groups(pictures: EmbedInput, batch: range, rows: _Rows) -> Iterator[list[tuple[Sample, Tensor]]]:
    """A batch's pictures in groups that memory holds at once; all in one, unless they are large."""
    group: list[tuple[Sample, Tensor]] = []
    pixels = 0
    for index in batch:
        found = _read(pictures, index, rows)
        if found is None:
            continue
        size = found[1].shape[1] * found[1].shape[2]
        if group and pixels + size > TOGETHER:
            yield group
            group, pixels = [], 0
        group.append(found)
        pixels += size
    if group:
        yield group


def _read(pictures: EmbedInput, index: int, rows: _Rows) -> tuple[Sample, Tensor] | None:
    key = pictures.name(index)
    try:
        sample = pictures.read(index)
        key = sample.key
        return sample, decode_rgb(sample.image)
    except BadSample as error:  # judged and told at the end
        rows.add(skipped_at=index, skipped_key=key, skipped_reason=str(error))
        return None


def _embed_group(work: Work, group: list[tuple[Sample, Tensor]], rows: _Rows) -> None:
    seen = work.encoder.see([picture for _, picture in group])
    regions = _regions(work, [sample for sample, _ in group], seen)
    boxes = [torch.tensor([region.box for region in own]).reshape(-1, 4) for own in regions]
    rows.image.append(seen.features.pooled.cpu())
    rows.region += [own.cpu() for own in work.encoder.regions(seen, boxes, work.source)]
    for (sample, picture), own in zip(group, regions, strict=True):
        rows.add(key=sample.key, size=(picture.shape[2], picture.shape[1]))
        for region in own:
            rows.add(region_key=sample.key, box=region.box, score=region.score, region_text=region.phrase)
        texts = [("caption", text) for text in sample.captions]
        texts += [("phrase", text) for region in sample.regions for text in region.phrases]
        for kind, text in dict.fromkeys(texts):
            rows.add(text_key=sample.key, text=text, text_kind=kind)


def _regions(work: Work, samples: list[Sample], seen: EncodedPictures) -> list[list[Proposal]]:
    if work.proposer is not None:
        return work.proposer.propose(seen)
    return [[Proposal(r.box, r.phrases[0], np.nan) for r in sample.regions] for sample in samples]


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as ``.npz``, whole or not at all."""
    store: Callable[..., None] = np.savez  # typed as if any name could be its own option
    write_file(path, lambda file: store(file, **arrays))


def read_piece(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a piece.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except DAMAGES as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and run the same command again") from error
