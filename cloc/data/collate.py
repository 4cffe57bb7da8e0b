"""Samples → Batch: which caption and which regions, de-duplicated and trimmed text.

Runs in the data worker (``order → decode → views → collate → stream``). Every choice is drawn from a generator that is
seeded by (seed, global position), so a batch does not depend on who builds it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cloc.contracts import Batch, Region, Sample
from cloc.data.decode import decode_rgb
from cloc.data.text import Tokenizer, pack, text_id
from cloc.data.views import View


@dataclass(slots=True)
class Item:
    """One sample, ready to be stacked: tensors of one picture and the chosen texts."""

    key: str
    image: Tensor
    content: Tensor
    caption: str
    boxes: Tensor
    targets: Tensor
    phrases: list[str]
    shared: list[bool]
    stats: Counter[str]


@dataclass(frozen=True, slots=True)
class Chooser:
    """Turns a sample into an :class:`Item` at a position.

    Attributes:
        view: the training view.
        regions: M, at most so many regions of a picture are drawn (CLOC, Table A: 4).
        min_size: boxes with a shorter side than this share of the view are not drawn.
    """

    view: View
    regions: int = 4
    min_size: float = 0.0

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Item:
        """Decode, transform and choose.

        Raises:
            BadSample: the picture cannot be decoded.
        """
        stats: Counter[str] = Counter()
        regions = [region for region in sample.regions if not region.crowd]
        boxes = torch.tensor([region.box for region in regions], dtype=torch.float32).reshape(-1, 4)
        image, content, boxes, visible = self.view(decode_rgb(sample.image), boxes, rng)
        sides = (boxes[:, 2:] - boxes[:, :2]).amin(-1)
        usable = torch.nonzero(visible & (sides > self.min_size) & (sides > 0)).flatten().tolist()
        stats["regions"] = len(regions)
        stats["regions_hidden"] = len(regions) - len(usable)
        drawn = [usable[i] for i in rng.permutation(len(usable))[: self.regions]]
        phrases = [str(rng.choice(regions[i].phrases)) for i in drawn]
        owners = [[j for j in usable if phrase in regions[j].phrases] for phrase in phrases]
        targets = [torch.cat([boxes[own, :2].amin(0), boxes[own, 2:].amax(0)]) for own in owners]
        return Item(
            key=sample.key,
            image=image,
            content=content,
            caption=self._caption(sample, regions, rng, stats),
            boxes=boxes[drawn],
            targets=torch.stack(targets) if targets else boxes[:0],
            phrases=phrases,
            shared=[_count(phrase, regions) > 1 for phrase in phrases],
            stats=stats,
        )

    @staticmethod
    def _caption(sample: Sample, regions: list[Region], rng: np.random.Generator, stats: Counter[str]) -> str:
        if sample.captions:
            return sample.captions[int(rng.integers(len(sample.captions)))]
        stats["caption_from_phrases"] += 1  # a picture with boxes alone is described by what they hold
        return ", ".join(dict.fromkeys(region.phrases[0] for region in regions))


def _count(phrase: str, regions: list[Region]) -> int:
    return sum(phrase in region.phrases for region in regions)


def collate(items: list[Item], tokenizer: Tokenizer, regions: int, cursor: int, stats: Counter[str]) -> Batch:
    """Stack items to a batch of one rank.

    Args:
        items: B items.
        tokenizer: of the model's text tower.
        regions: M, the padded number of regions per image.
        cursor: global position after the global batch that these items belong to.
        stats: counters of reading; the items' own and the texts' are added.
    """
    size, stats = len(items), Counter(stats)
    captions = []
    for item in items:
        ids, truncated = tokenizer.encode(item.caption)
        captions.append(ids)
        stats["captions_truncated"] += truncated
        stats.update(item.stats)
    index: dict[tuple[int, ...], int] = {}
    boxes, targets = torch.zeros(size, regions, 4), torch.zeros(size, regions, 4)
    valid = torch.zeros(size, regions, dtype=torch.bool)
    shared, phrase_of = torch.zeros_like(valid), torch.zeros(size, regions, dtype=torch.int64)
    for row, item in enumerate(items):
        count = len(item.phrases)
        boxes[row, :count], targets[row, :count], valid[row, :count] = item.boxes, item.targets, True
        shared[row, :count] = torch.tensor(item.shared, dtype=torch.bool)
        for column, phrase in enumerate(item.phrases):
            ids, truncated = tokenizer.encode(phrase)
            stats["phrases_truncated"] += truncated
            phrase_of[row, column] = index.setdefault(ids, len(index))
    stats["regions_drawn"] = int(valid.sum())
    stats["phrases_distinct"] = len(index)
    # Without any region one empty phrase stands in, with no region pointing at it: every parameter takes part.
    phrases = list(index) or [tokenizer.encode("")[0]]
    return Batch(
        images=torch.stack([item.image for item in items]),
        content=torch.stack([item.content for item in items]),
        captions=pack(captions, tokenizer.pad_id),
        caption_id=torch.tensor([text_id(ids) for ids in captions]),
        boxes=boxes,
        target_boxes=targets,
        region_valid=valid,
        phrases=pack(phrases, tokenizer.pad_id),
        phrase_id=torch.tensor([text_id(ids) for ids in phrases]),
        region_phrase=phrase_of,
        phrase_is_shared=shared,
        keys=[item.key for item in items],
        source=torch.zeros(size, dtype=torch.int64),
        cursor=cursor,
        stats=dict(stats),
    )
