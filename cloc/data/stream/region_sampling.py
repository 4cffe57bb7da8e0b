"""Draws the regions of each picture, a phrase for each region, and the picture's caption.

Runs in the data worker (``order → decode → views → region_sampling → collate``). Every choice is drawn from a generator
that is seeded by (seed, global position), so a batch does not depend on who builds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from cloc.config import DataConfig, from_fields
from cloc.contracts import Region, Sample
from cloc.data.decode import decoder
from cloc.data.stream.wording import Wording, worded
from cloc.data.transforms import PAD_VALUE, View, ViewedPicture, mirror_text, new_views

_LEAST_SCORE = 1e-6  # a region of score 0 is drawn where nothing else is left


@dataclass(slots=True)
class Candidate:
    """One sample with its picture decoded and transformed.

    Attributes:
        sample: as the shards hold it.
        seen: its view.
        rng: of the choices still to be made.
        source: index of the data source.
        picture: ``[3,H,W]`` uint8 as decoded, where regions are cut out of it; else it is let go.
        crops: ``[K,3,size,size]`` uint8, where they are written.
    """

    sample: Sample
    seen: ViewedPicture
    rng: np.random.Generator
    source: int = 0
    picture: Tensor | None = None
    crops: Tensor | None = None


@dataclass(slots=True)
class Item:
    """One sample, ready to be stacked: arrays of one picture and the chosen texts.

    Attributes:
        key: of the sample.
        image: ``[3,size,size]`` uint8.
        content: ``[4]`` the picture's place in the view.
        caption: the drawn caption.
        boxes: K drawn regions in the coordinates of the view, K ≤ M.
        targets: K boxes, each the union of all visible boxes that the region's phrase owns.
        phrases: K drawn phrases.
        shared: K times, whether the phrase owns another box of the picture.
        stats: counters.
        source: index of the data source.
        negatives: K times the hard negative texts of the region; empty where none are asked for.
        cut: numbers of the regions, among those that are no crowd, that are cut out.
    """

    key: str
    image: Tensor
    content: np.ndarray
    caption: str
    boxes: Sequence[Sequence[float]]
    targets: Sequence[Sequence[float]]
    phrases: list[str]
    shared: list[bool]
    stats: Counter[str]
    source: int = 0
    negatives: list[list[str]] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Chooser:
    """Turns samples into :class:`Item`, in two steps: the picture of each, then the choices of all.

    Attributes:
        view: the training view.
        regions: M, at most so many regions of a picture are drawn (CLOC, Table A: 4).
        min_size: boxes with a shorter side than this share of the view are not drawn.
        choice: ``uniform``, or ``score``: without replacement, with chances in proportion to the regions' scores; a
            region without a score counts as 1.
        groups: what becomes of a phrase that owns several boxes ("two dogs"). ``all``: each of them may be drawn.
            ``one``: a text is drawn once a picture, at one of its boxes. ``skip``: not at all.
        negatives: at most so many of a region's hard negatives are drawn.
        crops: of the drawn regions the first so many are also cut out of the decoded picture, each a view of its own.
        wording: of the phrases.
    """

    view: View
    regions: int = 4
    min_size: float = 0.0
    choice: str = "uniform"
    groups: str = "all"
    negatives: int = 0
    crops: int = 0
    wording: Wording = Wording()

    def __call__(
        self,
        sample: Sample,
        rng: np.random.Generator,
        out: Tensor | None = None,
        decode: Callable[[], Tensor] | None = None,
        crops: Tensor | None = None,
    ) -> Candidate:
        """Decode and transform the picture.

        Args:
            sample: to be seen.
            rng: seeded by its global position.
            out: where the view is written, see :class:`View`.
            decode: what :func:`~cloc.data.decode.decoder` made of the sample's picture, if that was called already.
            crops: ``[K,3,size,size]`` uint8, where the views of drawn regions will be written; new ones by default.

        Raises:
            BadSample: it cannot be decoded.
        """
        picture = (decode or decoder(sample.image))()
        return self.candidate(sample, self.view(picture, rng, out), rng, picture, crops)

    def candidate(
        self,
        sample: Sample,
        seen: ViewedPicture,
        rng: np.random.Generator,
        picture: Tensor,
        crops: Tensor | None = None,
    ) -> Candidate:
        """A sample that was decoded and seen; its picture is kept where regions will be cut out of it."""
        if not self.crops:
            return Candidate(sample, seen, rng)
        room = new_views(self.crops, self.view.size) if crops is None else crops
        return Candidate(sample, seen, rng, picture=picture, crops=room)

    def choose(self, candidates: Sequence[Candidate]) -> list[Item]:
        """Draw caption, regions and phrases of each picture of a batch.

        All pictures at once, behind the decoding of all: between two decodings this code would leave the processor's
        cache each time.
        """
        regions = [[self._named(region) for region in one.sample.regions if not region.crowd] for one in candidates]
        counts = [len(picture_regions) for picture_regions in regions]
        boxes = np.array(
            [region.box for picture_regions in regions for region in picture_regions], dtype=np.float32
        ).reshape(-1, 4)
        moved = self.view.move([one.seen for one in candidates], boxes, counts)
        sides = (moved.boxes[:, 2:] - moved.boxes[:, :2]).min(axis=1)
        usable = (moved.visible & (sides > self.min_size) & (sides > 0)).tolist()
        boxes, first, items = moved.boxes.tolist(), 0, []
        for one, picture_regions, content in zip(candidates, regions, moved.content, strict=True):
            part = slice(first, first + len(picture_regions))
            items.append(self._item(one, picture_regions, content, boxes[part], usable[part]))
            first = part.stop
        return items

    def _named(self, region: Region) -> Region:
        """A region with the names of things among its phrases, where they are asked for."""
        return replace(region, phrases=self.wording.phrases(region.phrases)) if self.wording.names else region

    def _item(
        self,
        candidate: Candidate,
        regions: Sequence[Region],
        content: np.ndarray,
        boxes: Sequence[Sequence[float]],
        usable: Sequence[bool],
    ) -> Item:
        sample, rng = candidate.sample, candidate.rng
        kept = [index for index, good in enumerate(usable) if good]
        stats = Counter(regions=len(regions), regions_hidden=len(regions) - len(kept))
        owners = _owners(regions)
        drawn, phrases = self._draw(regions, kept, owners, rng, stats)
        caption = self._caption(sample, regions, rng, stats)
        negatives = [self._negatives(regions[i], rng) for i in drawn] if self.negatives else []
        cut = drawn[: self.crops]
        if candidate.picture is not None:
            _cut_regions(self.view, candidate, [regions[i].box for i in cut])
        shown = mirror_text if candidate.seen.mirrored else str
        templates = self.wording.draw(len(drawn), rng)
        targets = [_union([boxes[i] for i in owners[phrase] if usable[i]]) for phrase in phrases]
        return Item(
            key=sample.key,
            image=candidate.seen.image,
            content=content,
            caption=shown(caption),
            boxes=[boxes[i] for i in drawn],
            targets=targets,
            phrases=[shown(worded(own, phrase)) for own, phrase in zip(templates, phrases, strict=True)],
            shared=[len(owners[phrase]) > 1 for phrase in phrases],
            stats=stats,
            source=candidate.source,
            negatives=[
                [shown(worded(own, text)) for text in texts] for own, texts in zip(templates, negatives, strict=False)
            ],
            cut=cut,
        )

    def _draw(
        self,
        regions: Sequence[Region],
        usable: Sequence[int],
        owners: dict[str, list[int]],
        rng: np.random.Generator,
        stats: Counter[str],
    ) -> tuple[list[int], list[str]]:
        """Up to M regions and one phrase of each."""
        waits = rng.exponential(size=len(usable))
        if self.choice == "score":
            # The first to come of exponential waits is drawn in proportion to their rates (Efraimidis & Spirakis).
            scores = [1.0 if (score := regions[i].score) is None else score for i in usable]
            waits /= np.maximum(scores, _LEAST_SCORE)
        picks = rng.random(len(usable)).tolist()
        drawn, phrases = [], []
        for place in np.argsort(waits).tolist():
            texts = regions[usable[place]].phrases
            if self.groups == "skip":
                texts = [text for text in texts if len(owners[text]) == 1]
            elif self.groups == "one":
                texts = [text for text in texts if text not in phrases]
            if not texts:
                stats["regions_passed_over"] += 1
                continue
            drawn.append(usable[place])
            phrases.append(texts[int(picks[place] * len(texts))])
            if len(drawn) == self.regions:
                break
        return drawn, phrases

    def _negatives(self, region: Region, rng: np.random.Generator) -> list[str]:
        """Up to so many of a region's hard negatives; never a text that names it."""
        texts = [text for text in dict.fromkeys(region.negatives) if text not in region.phrases]
        return [texts[i] for i in rng.permutation(len(texts))[: self.negatives].tolist()]

    @staticmethod
    def _caption(sample: Sample, regions: Sequence[Region], rng: np.random.Generator, stats: Counter[str]) -> str:
        if sample.captions:
            return sample.captions[int(rng.integers(len(sample.captions)))]
        stats["caption_from_phrases"] += 1  # a picture with boxes alone is described by what they hold
        return ", ".join(dict.fromkeys(region.phrases[0] for region in regions))


def make_chooser(config: DataConfig, image_size: int, resize: str = "pad") -> Chooser:
    """The view and the choice that a configuration describes: its keys that are fields of one of the two.

    Args:
        config: the ``data`` group.
        image_size: side of the model's view in pixels.
        resize: the model's own, ``pad`` or ``squash``.
    """
    view = from_fields(View, config, size=image_size, resize=resize)
    return from_fields(Chooser, config, view=view, wording=from_fields(Wording, config))


def _cut_regions(view: View, candidate: Candidate, boxes: Sequence[Sequence[float]]) -> None:
    """Write the views of boxes, of a picture that is then let go; the rows that are left over get one even color."""
    assert candidate.picture is not None and candidate.crops is not None, "kept and given with crops"
    for box, out in zip(boxes, candidate.crops, strict=False):
        view.of_box(candidate.picture, box, candidate.seen, out)
    # Memory is used again: what is left over must not depend on what was there.
    candidate.crops[len(boxes) :].fill_(PAD_VALUE)
    candidate.picture = None


def _union(boxes: Sequence[Sequence[float]]) -> Sequence[float]:
    if len(boxes) == 1:
        return boxes[0]
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return [min(x0), min(y0), max(x1), max(y1)]


def _owners(regions: Sequence[Region]) -> dict[str, list[int]]:
    """For each phrase of a picture, which regions it names."""
    owners: dict[str, list[int]] = {}
    for index, region in enumerate(regions):
        for phrase in dict.fromkeys(region.phrases):
            owners.setdefault(phrase, []).append(index)
    return owners
