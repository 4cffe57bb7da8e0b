"""Retrieval recall with several correct answers, in chunks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

CHUNK = 1024


def recall(
    queries: Tensor, gallery: Tensor, correct: Sequence[Iterable[int]], ks: Sequence[int], device: str | None = None
) -> dict[int, float]:
    """Share of queries with at least one correct gallery item among the k most similar.

    Args:
        queries: ``[Q,D]``.
        gallery: ``[G,D]``.
        correct: for each query, the gallery indices that count as a hit; a query without any is left out.
        ks: the ranks.
        device: where to compute; None where the tensors are.

    Returns:
        k → recall; NaN where no query has a correct item.

    Memory is one ``[1024,G]`` block of similarities at a time.
    """
    hits, counted = dict.fromkeys(ks, 0), 0
    top = min(max(ks), len(gallery)) if len(gallery) else 0
    for start in range(0, len(queries) if top else 0, CHUNK):
        block = (queries[start : start + CHUNK] @ gallery.T).topk(top, dim=1).indices.cpu().tolist()
        for offset, ranked in enumerate(block):
            answers = set(correct[start + offset])
            if not answers:
                continue
            counted += 1
            first = next((rank for rank, item in enumerate(ranked) if item in answers), top)
            for k in ks:
                hits[k] += first < k
    return {k: hits[k] / counted if counted else float("nan") for k in ks}


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


def retrieval_metrics(
    items: Tensor,
    texts: Tensor,
    by_text: list[set[int]],
    by_item: list[set[int]],
    names: tuple[str, str],
    ks: list[int],
) -> dict[str, float]:
    """Recall in both directions.

    Args:
        items: ``[I,D]`` pictures or regions.
        texts: ``[T,D]`` distinct texts.
        by_text: items that own each text.
        by_item: texts of each item.
        names: metric names of (item → text, text → item), without the rank.
        ks: the ranks.
    """
    values = {f"{names[0]}_R@{k}": v for k, v in recall(items, texts, by_item, ks).items()}
    values |= {f"{names[1]}_R@{k}": v for k, v in recall(texts, items, by_text, ks).items()}
    return {name: value for name, value in values.items() if value == value}


def classify(items: Tensor, classes: Tensor, truth: Tensor) -> tuple[dict[str, float], Tensor]:
    """Nearest class text of each item.

    Args:
        items: ``[K,D]``.
        classes: ``[Y,D]``.
        truth: ``[K]`` class index.

    Returns:
        ``top1`` (share of items) and ``mAcc`` (mean over the classes that occur), and the predictions ``[K]``.
    """
    predicted = (items @ classes.T).argmax(1)
    right = (predicted == truth).double()
    count = torch.bincount(truth, minlength=len(classes))
    per_class = torch.bincount(truth, weights=right, minlength=len(classes))[count > 0] / count[count > 0]
    return {"top1": float(right.mean()), "mAcc": float(per_class.mean())}, predicted
