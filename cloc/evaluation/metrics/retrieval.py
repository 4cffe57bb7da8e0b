"""Retrieval recall with several correct answers, in chunks that ranks share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cloc.evaluation.metrics.outcome import Outcome, Outcomes, outcome
from cloc.evaluation.reduce import Ranks

CHUNK = 512  # queries at a time: 50 MB of similarities to a gallery of 25,000


def first_hits(
    queries: Tensor, gallery: Tensor, correct: Sequence[Iterable[int]], top: int, ranks: Ranks | None = None
) -> Tensor:
    """Rank of the best-placed correct item of each query.

    Args:
        queries: ``[Q,D]``.
        gallery: ``[G,D]``.
        correct: for each query, the gallery indices that count as a hit.
        top: how far down is looked.
        ranks: processes that share the chunks; None for this one alone.

    Returns:
        ``[Q]`` int64 from 0; ``top`` where no correct item is among the first ``top``, -1 for a query without any.

    Memory is one ``[512,G]`` block of similarities at a time.
    """
    ranks = ranks or Ranks()
    depth = min(top, len(gallery))
    parts = []
    for chunk in ranks.batches(len(queries), CHUNK):
        rows = slice(chunk.start, chunk.stop)
        answers = [sorted(set(correct[i])) for i in chunk]
        found = torch.full((len(chunk),), top)
        if depth:
            order = (queries[rows] @ gallery.T).topk(depth, dim=1).indices.cpu()
            # A hit is a (query, item) pair that is listed; pairs are single numbers, so that one search finds all.
            listed = torch.tensor([q * len(gallery) + item for q, own in enumerate(answers) for item in own])
            pairs = order + torch.arange(len(chunk))[:, None] * len(gallery)
            hit = torch.isin(pairs, listed)
            found = torch.where(hit.any(1), hit.int().argmax(1), top)
        parts.append(torch.where(torch.tensor([bool(own) for own in answers]), found, -1))
    return ranks.join(parts, torch.zeros(0, dtype=torch.int64))


def recall(
    queries: Tensor, gallery: Tensor, correct: Sequence[Iterable[int]], ks: Sequence[int], ranks: Ranks | None = None
) -> dict[int, float]:
    """Share of queries with at least one correct gallery item among the k most similar.

    Args:
        queries: ``[Q,D]``.
        gallery: ``[G,D]``.
        correct: for each query, the gallery indices that count as a hit; a query without any is left out.
        ks: the ranks.
        ranks: processes that share the work.

    Returns:
        k → recall; NaN where no query has a correct item.
    """
    first = first_hits(queries, gallery, correct, max(ks), ranks)
    asked = first[first >= 0]
    return {k: float((asked < k).double().mean()) for k in ks}


def owners(texts: Sequence[Sequence[str]]) -> tuple[list[str], list[set[int]], list[set[int]]]:
    """Distinct texts, who owns each, and what each owner has.

    Args:
        texts: for each item (picture or region) its texts.

    Returns:
        The distinct texts in order of appearance; for each text the items that own it; for each item its text indices.
    """
    index: dict[str, int] = {}
    by_text: list[set[int]] = []
    by_item: list[set[int]] = []
    for item, own in enumerate(texts):
        by_item.append(set())
        for text in own:
            place = index.setdefault(text, len(index))
            if place == len(by_text):
                by_text.append(set())
            by_text[place].add(item)
            by_item[-1].add(place)
    return list(index), by_text, by_item


def retrieval_outcomes(
    items: Tensor,
    texts: Tensor,
    by_text: list[set[int]],
    by_item: list[set[int]],
    group: Sequence[int],
    names: tuple[str, str],
    ks: list[int],
    ranks: Ranks | None = None,
) -> Outcomes:
    """Recall in both directions.

    Args:
        items: ``[I,D]`` pictures or regions.
        texts: ``[T,D]`` distinct texts.
        by_text: items that own each text.
        by_item: texts of each item.
        group: picture of each item; a text that several pictures own is resampled with the first of them.
        names: metric names of (item → text, text → item), without the rank.
        ks: the ranks.
        ranks: processes that share the work.
    """
    of_item = torch.tensor(list(group), dtype=torch.int64)
    of_text = torch.tensor([group[min(own)] if own else -1 for own in by_text], dtype=torch.int64)
    found: Outcomes = {}
    for name, one, other, correct, places in (
        (names[0], items, texts, by_item, of_item),
        (names[1], texts, items, by_text, of_text),
    ):
        first = first_hits(one, other, correct, max(ks), ranks)
        asked = first >= 0
        found |= {f"{name}_R@{k}": _below(first[asked], k, places[asked]) for k in ks}
    return found


def _below(first: Tensor, k: int, group: Tensor) -> Outcome:
    return outcome(first < k, group)
