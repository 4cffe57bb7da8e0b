"""What a frozen text tower, or its frozen part, makes of a text: kept in files, found by the id of its tokens."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cloc.console import progress, progress_console
from cloc.data.frozen.blocks import BlockPlace, Blocks, checksum
from cloc.data.stream.wording import Wording
from cloc.data.tokenizer import pack, text_id
from cloc.engine.frozen.cuts import TextCut
from cloc.engine.frozen.filling import no_room
from cloc.engine.process_group import barrier, rank_and_world
from cloc.files import write_tensors

SEGMENT, TOGETHER = 4096, 128  # texts of a file, of a forward pass
Ids = tuple[int, ...]


class TextTable:
    """Texts and what is kept of them.

    Args:
        ids: ``[K]`` int64, distinct; see :func:`cloc.data.tokenizer.text_id`.
        embeddings: ``[K,D]`` float32, unit norm; of a frozen part ``[K,…]``, as it makes them.
    """

    def __init__(self, ids: Tensor, embeddings: Tensor) -> None:
        self.ids, order = ids.sort()
        self.embeddings = embeddings[order]

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, ids: Tensor) -> Tensor:
        """Embeddings ``[P,D]`` of texts by their ids ``[P]``.

        Raises:
            RuntimeError: a text was not foreseen.
        """
        place = torch.searchsorted(self.ids, ids).clamp(max=max(0, len(self.ids) - 1))
        if not len(self.ids) or not torch.equal(self.ids[place], ids):
            raise RuntimeError("a text of a batch is not in the token cache; please report this")
        return self.embeddings[place]


def texts_of(
    blocks: Blocks, places: Sequence[BlockPlace], wording: Wording, captions: bool, negatives: bool
) -> set[str]:
    """All texts that training may draw from a data set.

    Args:
        blocks: that hold the annotations.
        places: of them.
        wording: of phrases in training.
        captions: those of pictures too.
        negatives: hard ones too.
    """
    found = {""}  # stands in where a batch has no region, or no caption is read
    for place in places:
        for number in range(place.first, place.first + place.count):
            block, row = blocks.find(place.source, (place.shard, number))
            record = block.record(row)
            if "bad" not in record:
                found.update(texts_of_record(record, wording, captions, negatives))
    return found


def texts_of_record(record: Mapping[str, Any], wording: Wording, captions: bool, negatives: bool) -> Iterable[str]:
    """All texts that training may draw from one sample, see :func:`texts_of`."""
    regions = [region for region in record["regions"] if not region["crowd"]]
    for region in regions:
        for phrase in [*wording.phrases(region["phrases"]), *(region["negatives"] if negatives else ())]:
            yield from wording.forms(phrase)
    if captions:
        yield from record["captions"]
        # What region_sampling says of a picture that has none.
        yield ", ".join(dict.fromkeys(region["phrases"][0] for region in regions))


class TextFiles:
    """The files of one text tower: whichever texts each holds, together they are the texts that are known.

    Args:
        folder: of the tower; it is there.
        cut: where the tower is cut.
    """

    def __init__(self, folder: Path, cut: TextCut) -> None:
        self.folder, self.cut, self.tokenizer = folder, cut, cut.tokenizer

    def table(self, texts: Iterable[str]) -> tuple[TextTable, int]:
        """Embeddings of texts; those that no file holds are encoded, a share by each process.

        Returns:
            The table, and how many were encoded by this process.
        """
        encoded = {self.tokenizer.encode(text)[0] for text in texts}
        wanted = {text_id(ids): ids for ids in encoded}
        known = self._known(wanted)
        rank, world = rank_and_world()
        new = sorted((key for key in wanted if key not in known), key=lambda key: (len(wanted[key]), key))
        done = self._encode(new[rank::world], wanted, known)
        if world > 1:
            barrier()
            known |= self._known(wanted)
            done += self._encode([key for key in new if key not in known], wanted, known)
        keys = list(wanted)
        return TextTable(torch.tensor(keys), torch.stack([known[key] for key in keys])), done

    def _known(self, wanted: Mapping[int, Ids]) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        for file in sorted(self.folder.glob("texts-*.safetensors")):
            held = _whole(file)
            if held is not None:
                ids = held["ids"].tolist()
                found |= {key: held["embeddings"][row] for row, key in enumerate(ids) if key in wanted}
        return found

    def _encode(self, new: Sequence[int], wanted: Mapping[int, Ids], known: dict[int, Tensor]) -> int:
        if not new:
            return 0
        with progress(progress_console(), "frozen text tower", len(new), "texts") as bar:
            for start in range(0, len(new), SEGMENT):
                keys = new[start : start + SEGMENT]
                parts = []
                for first in range(0, len(keys), TOGETHER):
                    parts.append(self._forward([wanted[key] for key in keys[first : first + TOGETHER]]))
                    bar.advance(len(parts[-1]))
                embeddings = torch.cat(parts)
                self._write(keys, embeddings)
                known |= dict(zip(keys, embeddings, strict=True))
        return len(new)

    def _forward(self, ids: list[Ids]) -> Tensor:
        return self.cut.made_of(pack(ids, self.tokenizer.pad_id)).cpu()

    def _write(self, keys: Sequence[int], embeddings: Tensor) -> None:
        held = {"ids": torch.tensor(keys), "embeddings": embeddings}
        found = checksum(held)
        file = self.folder / f"texts-{found:08x}-{keys[0]:016x}.safetensors"
        try:
            write_tensors(file, held, {"crc32": str(found)})
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise no_room(self.folder, "the disk is full") from error
            raise


def _whole(file: Path) -> dict[str, Tensor] | None:
    """Content of a file of texts; None where it is damaged: its name holds its checksum."""
    try:
        held = load_file(file)
    except (OSError, SafetensorError):
        return None
    return held if file.name.split("-")[1] == f"{checksum(held):08x}" else None
