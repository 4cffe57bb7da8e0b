"""A measured model: what it makes of texts and of a set's pictures, computed once, shared by ranks, and kept.

Second step of evaluation (``sets → model_outputs → metrics → suite → report → compare``): embeddings and boxes alone,
no metric.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from rich.console import Console
from torch import Tensor

from cloc.config import EvaluationConfig
from cloc.console import Bar, progress
from cloc.contracts import BadSample
from cloc.data.decode import decode_rgb
from cloc.encoder import EncodedPictures, Encoder
from cloc.evaluation.cache import Cache, digest_of, model_digest
from cloc.evaluation.reduce import Ranks
from cloc.evaluation.sets.eval_set import EvalSet, ImageSet, RelationItem
from cloc.models.sanity import check_embedded

TEXTS = 512  # a forward pass
# What a model can be asked for on a set → the part of ``evaluation.parts`` that it belongs to.
OUTPUTS = {
    "images": "image",
    "classified": "image",
    "regions": "region",
    "grounded": "grounding",
    "relations": "relations",
}

Tensors = dict[str, Tensor]


@dataclass(slots=True)
class Placed:
    """Where a model sees the things of one relation item.

    Attributes:
        boxes: phrase → xyxy box.
        aspect: width over height of the picture.
        common: ``[D]`` embedding of the box around the first candidate's things; None where no candidate needs it.
        texts: ``[C,D]`` embedding of each candidate.
    """

    boxes: dict[str, Sequence[float]]
    aspect: float
    common: Tensor | None = None
    texts: Tensor = field(default_factory=lambda: torch.zeros(0, 0))


@dataclass(slots=True)
class Embedded:
    """Everything that the metrics of one model on one set are computed from; empty where it was not asked for.

    Attributes:
        images: ``[I,D]``.
        regions: source → ``[K,D]``, in the order of the set's regions.
        predicted: ``[P,4]`` grounded box of each (picture, distinct phrase) pair, in the order of the set's phrases.
        scores: ``[P]`` similarity of the Prompter's embedding of that box to the phrase.
        classified: ``[N,D]`` pictures to classify; a row of NaN where one cannot be decoded.
        relation_images: ``[R,D]``.
        placed: where the things of each relation item are; None for a model that does not ground.
    """

    images: Tensor
    regions: dict[str, Tensor] = field(default_factory=dict)
    predicted: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))
    classified: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    relation_images: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    placed: list[Placed | None] | None = None


class ModelOutputs:
    """One model with what it has been asked already.

    Args:
        encoder: the model.
        ranks: processes that share the work.
        cache: where embeddings are kept; None for nowhere.
        console: where progress is told; None for nowhere.
    """

    def __init__(
        self, encoder: Encoder, ranks: Ranks, cache: Cache | None = None, console: Console | None = None
    ) -> None:
        self.encoder, self.ranks, self.console = encoder, ranks, console or Console(quiet=True)
        self.cache = cache or Cache(None, ranks)
        self.model = model_digest(encoder) if self.cache.folder else ""
        self.width = encoder.joint_dim
        self._texts: dict[str, Tensor] = {}

    def texts(self, texts: Sequence[str]) -> Tensor:
        """``[T,D]`` embeddings of unit norm; each distinct text passes through the tower once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            key = (self.model, f"texts-{digest_of(new)}")
            kept = self.cache.read(*key)
            if kept is None:
                kept = {"texts": self._encode(new)}
                self.cache.write(kept, *key)
            check_embedded(self.encoder.name, {"texts": kept["texts"]})
            self._texts |= dict(zip(new, kept["texts"].to(self.encoder.device), strict=True))
        if not texts:
            return torch.zeros(0, self.width, device=self.encoder.device)
        return torch.stack([self._texts[text] for text in texts])

    def _encode(self, texts: list[str]) -> Tensor:
        """In batches of like length, shared by ranks."""
        order = sorted(range(len(texts)), key=lambda i: len(self.encoder.tokenizer.encode(texts[i])[0]))
        batches = self.ranks.batches(len(texts), TEXTS)
        with self._bar("reads texts", batches, "texts") as bar:
            parts = [
                self.encoder.encode_text([texts[order[i]] for i in batch], TEXTS) for batch in bar.each(batches, len)
            ]
        rows = self.ranks.join(parts, torch.zeros(0, self.width))
        return rows[torch.tensor(order).argsort()]

    def embed(self, data: EvalSet, config: EvaluationConfig, needs: Collection[str] = tuple(OUTPUTS)) -> Embedded:
        """Run the model once over the pictures of a set; what the cache holds is not computed again.

        Args:
            data: the set.
            config: parts, sources, batch size.
            needs: of ``OUTPUTS``, what the metrics are made of.
        """
        asked = {name for name, part in OUTPUTS.items() if name in needs and part in config.parts}
        found = Embedded(torch.zeros(0, self.width))
        if data.samples:
            wanted = ["images"] if "images" in asked else []
            if "regions" in asked:
                wanted += [f"region-{source}" for source in config.sources if source in self.encoder.every_source]
            if "grounded" in asked and self.encoder.can_ground:
                wanted.append("grounded")
            self._fill(found, data, wanted, config.batch_size)
        if data.images is not None and "classified" in asked:
            found.classified = self._classified(data.name, data.images, config.batch_size)
        if data.relations and "relations" in asked:
            found.relation_images, found.placed = self._relations(data, config.batch_size)
        return found

    # --- pictures with boxes ------------------------------------------------------------------------------------------

    def _fill(self, found: Embedded, data: EvalSet, wanted: list[str], batch_size: int) -> None:
        parts = self._parts(data, wanted, batch_size)
        found.images = parts.get("images", {}).get("rows", found.images)
        sources = [name.removeprefix("region-") for name in wanted if name.startswith("region-")]
        found.regions = {source: parts[f"region-{source}"]["rows"] for source in sources}
        if "grounded" in parts:
            found.predicted, found.scores = parts["grounded"]["boxes"], parts["grounded"]["scores"]
        for part, tensors in parts.items():
            check_embedded(self.encoder.name, {f"{part} of {data.name}": rows for rows in tensors.values()})

    def _parts(self, data: EvalSet, wanted: list[str], batch_size: int) -> dict[str, Tensors]:
        phrases = digest_of(data.phrases)  # the annotations of the same bytes can be read in a new way
        keys = {part: (self.model, f"{part}-{data.digest}-{phrases}") for part in wanted}
        read = {part: self.cache.read(*key) for part, key in keys.items()}
        parts = {part: tensors for part, tensors in read.items() if tensors is not None}
        missing = [part for part in wanted if part not in parts]
        if missing:
            parts |= self._pass(data, missing, batch_size)
            for part in missing:
                self.cache.write(parts[part], *keys[part])
        return {part: parts[part] for part in wanted}

    def _pass(self, data: EvalSet, wanted: list[str], batch_size: int) -> dict[str, Tensors]:
        """One pass over this rank's share of the pictures, and all ranks' results."""
        boxes, phrases = data.boxes, data.phrases
        texts = dict.fromkeys(text for own in phrases for text in own) if "grounded" in wanted else {}
        self.texts(list(texts))
        rows: dict[str, list[Tensor]] = {part: [] for part in wanted}
        scores: list[Tensor] = []
        batches = self.ranks.batches(len(data.samples), batch_size)
        with self._bar(f"on {data.name}", batches) as bar:
            for batch in bar.each(batches, len):
                seen = self.encoder.see(data.pictures(batch))
                for part in wanted:
                    if part == "images":
                        rows[part].append(seen.features.pooled)
                    elif part == "grounded":
                        own, likeness = self._ground(seen, [phrases[i] for i in batch])
                        rows[part].append(own)
                        scores.append(likeness)
                    else:
                        source = part.removeprefix("region-")
                        rows[part] += self.encoder.regions(seen, [boxes[i] for i in batch], source)
        found: dict[str, Tensors] = {}
        for part in wanted:
            if part == "grounded":
                joined = self.ranks.join(rows[part], torch.zeros(0, 4))
                found[part] = {"boxes": joined, "scores": self.ranks.join(scores, torch.zeros(0))}
            else:
                found[part] = {"rows": self.ranks.join(rows[part], torch.zeros(0, self.width))}
        return found

    def _ground(self, seen: EncodedPictures, phrases: list[list[str]]) -> tuple[Tensor, Tensor]:
        """Boxes of phrases, and how similar the Prompter's embedding of each found box is to its phrase."""
        texts = [self.texts(own) for own in phrases]
        boxes = self.encoder.grounded(seen, texts)
        regions = self.encoder.regions(seen, [own.cpu() for own in boxes], "prompter")
        return torch.cat(boxes), (torch.cat(regions) * torch.cat(texts)).sum(1)

    # --- pictures with a class ----------------------------------------------------------------------------------------

    def _classified(self, name: str, images: ImageSet, batch_size: int) -> Tensor:
        key = (self.model, f"classified-{images.digest}")
        kept = self.cache.read(*key)
        if kept is None:
            batches = self.ranks.batches(len(images.labels), batch_size)
            with self._bar(f"classifies {name}", batches) as bar:
                parts = [self._readable(images, batch) for batch in bar.each(batches, len)]
            kept = {"rows": self.ranks.join(parts, torch.zeros(0, self.width))}
            self.cache.write(kept, *key)
        return kept["rows"]

    def _readable(self, images: ImageSet, batch: range) -> Tensor:
        rows = torch.full((len(batch), self.width), torch.nan)
        pictures = []
        for place, index in enumerate(batch):
            try:
                pictures.append((place, images.read(index)))
            except (OSError, ValueError, BadSample):  # counted where the metric is made: its row stays NaN
                continue
        if pictures:
            embedded = self.encoder.encode_image([picture for _, picture in pictures])
            check_embedded(self.encoder.name, {"pictures to classify": embedded})
            rows[[place for place, _ in pictures]] = embedded.cpu()
        return rows

    # --- relations ----------------------------------------------------------------------------------------------------

    def _relations(self, data: EvalSet, batch_size: int) -> tuple[Tensor, list[Placed | None] | None]:
        items, grounds = data.relations, self.encoder.can_ground
        candidates = [text for item in items for text in item.candidates]
        self.texts([*candidates, *(text for item in items for text in item.things)] if grounds else candidates)
        key = (self.model, f"relations-{data.relation_digest}")
        kept = self.cache.read(*key)
        if kept is None:
            batches = self.ranks.batches(len(items), batch_size)
            parts: dict[str, list[Tensor]] = {"images": [], "boxes": [], "common": [], "aspect": []}
            with self._bar(f"on {data.name}: relations", batches, "items") as bar:
                for batch in bar.each(batches, len):
                    self._relation_batch([items[i] for i in batch], parts)
            shapes = {"images": (0, self.width), "boxes": (0, 4), "common": (0, self.width), "aspect": (0,)}
            kept = {name: self.ranks.join(parts[name], torch.zeros(*shape)) for name, shape in shapes.items()}
            self.cache.write(kept, *key)
        for name in ("images", "boxes", "common"):
            check_embedded(self.encoder.name, {f"relations ({name}) of {data.name}": kept[name]})
        return kept["images"], self._placed(items, kept) if grounds else None

    def _relation_batch(self, items: list[RelationItem], parts: dict[str, list[Tensor]]) -> None:
        pictures = [decode_rgb(item.read()) for item in items]
        seen = self.encoder.see(pictures)
        parts["images"].append(seen.features.pooled)
        parts["aspect"].append(torch.tensor([picture.shape[2] / picture.shape[1] for picture in pictures]))
        if not self.encoder.can_ground:
            return
        phrases = [item.things for item in items]
        found = [boxes.cpu() for boxes in self.encoder.grounded(seen, [self.texts(own) for own in phrases])]
        parts["boxes"] += found
        around = [
            torch.tensor([common_box(item, dict(zip(own, boxes.tolist(), strict=True)))] if item.says_depth else [])
            for item, own, boxes in zip(items, phrases, found, strict=True)
        ]
        parts["common"] += self.encoder.regions(seen, [box.reshape(-1, 4) for box in around], "prompter")

    def _placed(self, items: list[RelationItem], kept: Tensors) -> list[Placed | None]:
        """Hand the flat rows out to the items that they belong to."""
        boxes, common = iter(kept["boxes"].tolist()), iter(kept["common"])
        placed: list[Placed | None] = []
        for item, aspect in zip(items, kept["aspect"].tolist(), strict=True):
            if not item.can_ground:
                placed.append(None)
                continue
            found = Placed({phrase: next(boxes) for phrase in item.things}, aspect)
            if item.says_depth:
                found.common, found.texts = next(common), self.texts(item.candidates).cpu()
            placed.append(found)
        return placed

    # --- progress -----------------------------------------------------------------------------------------------------

    def _bar(self, title: str, batches: list[range], unit: str = "pictures") -> AbstractContextManager[Bar]:
        return progress(self.console, f"{self.encoder.name} {title}", sum(map(len, batches)), unit)


def common_box(item: RelationItem, boxes: dict[str, Sequence[float]]) -> list[float]:
    """The box around all things of a relation item; ``boxes`` gives each thing's, xyxy."""
    corners = torch.tensor([list(boxes[thing]) for thing in item.things])
    return [*corners[:, :2].amin(0).tolist(), *corners[:, 2:].amax(0).tolist()]
