"""Stacks the items of one rank to a Batch with distinct, trimmed texts.

Runs in the data worker, last (``order → decode → views → region_sampling → collate``).
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from cloc.contracts import Batch
from cloc.data.stream.region_sampling import Item
from cloc.data.tokenizer import Tokenizer, pack, text_id


def collate(
    items: list[Item],
    tokenizer: Tokenizer,
    regions: int,
    cursor: int,
    stats: Counter[str],
    negatives: int = 0,
    images: Tensor | None = None,
    crops: Tensor | None = None,
) -> Batch:
    """Stack items to a batch of one rank.

    Args:
        items: B items.
        tokenizer: of the model's text tower.
        regions: M, the padded number of regions per image.
        cursor: global position after the global batch that these items belong to.
        stats: counters of reading; the items' own and the texts' are added.
        negatives: K, the padded number of hard negatives per region.
        images: ``[B,3,size,size]``, the items' pictures, where they already lie together.
        crops: ``[B,K,3,size,size]``, views of the items' first K regions, where they are cut out.
    """
    size, totals = len(items), Counter(stats)
    captions = []
    index: dict[tuple[int, ...], int] = {}
    boxes, targets = np.zeros((2, size, regions, 4), dtype=np.float32)
    valid, shared = np.zeros((2, size, regions), dtype=np.bool_)
    phrase_of = np.zeros((size, regions), dtype=np.int64)
    for row, item in enumerate(items):
        ids, truncated = tokenizer.encode(item.caption)
        captions.append(ids)
        totals["captions_truncated"] += truncated
        for name, count in item.stats.items():
            totals[name] += count
        if drawn := len(item.phrases):
            boxes[row, :drawn], targets[row, :drawn] = item.boxes, item.targets
            valid[row, :drawn], shared[row, :drawn] = True, item.shared
        for column, phrase in enumerate(item.phrases):
            ids, truncated = tokenizer.encode(phrase)
            totals["phrases_truncated"] += truncated
            phrase_of[row, column] = index.setdefault(ids, len(index))
    totals["regions_drawn"] = int(valid.sum())
    totals["phrases_distinct"] = len(index)
    hard = _hard_negatives(items, tokenizer, index, (size, regions, negatives), totals) if negatives else None
    # Without any region one empty phrase stands in, with no region pointing at it: every parameter takes part.
    phrases = list(index) or [tokenizer.encode("")[0]]
    return Batch(
        images=torch.stack([item.image for item in items]) if images is None else images,
        content=torch.from_numpy(np.stack([item.content for item in items])),
        captions=pack(captions, tokenizer.pad_id),
        caption_id=torch.tensor([text_id(ids) for ids in captions]),
        boxes=torch.from_numpy(boxes),
        target_boxes=torch.from_numpy(targets),
        region_valid=torch.from_numpy(valid),
        phrases=pack(phrases, tokenizer.pad_id),
        phrase_id=torch.tensor([text_id(ids) for ids in phrases]),
        region_phrase=torch.from_numpy(phrase_of),
        phrase_is_shared=torch.from_numpy(shared),
        keys=[item.key for item in items],
        source=torch.tensor([item.source for item in items], dtype=torch.int64),
        cursor=cursor,
        stats=dict(totals),
        negatives=hard,
        crops=crops,
    )


def _hard_negatives(
    items: list[Item],
    tokenizer: Tokenizer,
    index: dict[tuple[int, ...], int],
    shape: tuple[int, int, int],
    totals: Counter[str],
) -> Tensor:
    """Places ``[B,M,K]`` of the hard negatives among the distinct phrases, which they join; −1 for none."""
    places = np.full(shape, -1, dtype=np.int64)
    for row, item in enumerate(items):
        for column, texts in enumerate(item.negatives):
            for slot, text in enumerate(texts):
                ids, truncated = tokenizer.encode(text)
                totals["negatives_truncated"] += truncated
                places[row, column, slot] = index.setdefault(ids, len(index))
    totals["negatives_drawn"] = int((places >= 0).sum())
    return torch.from_numpy(places)
