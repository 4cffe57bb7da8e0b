"""Retrieval: recall with several correct answers, in chunks that ranks share; of pictures, and of boxes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from cloc.evaluation.metrics.metric import BOXES, IMAGES, Breakdown, Description, KeyFact, Lead, Metric, Shown
from cloc.evaluation.metrics.outcome import Outcome, Outcomes, outcome
from cloc.evaluation.metrics.regions import RegionMetric, pictures_of, regions_of
from cloc.evaluation.model_outputs import Embedded, ModelOutputs
from cloc.evaluation.reduce import Ranks
from cloc.evaluation.sets.eval_set import EvalSet

CHUNK = 512  # queries at a time: 50 MB of similarities to a gallery of 25,000
RECALL = re.compile(r"(\w+)_R@(\d+)")
FAMILIES = {  # direction → (family, protocol), in the order of rows; choices about boxes stand before the last two
    "image_to_text": (
        "Find the caption of an image",
        "Each image ranks all captions of the set. R@K: how often a right caption is among the first K.",
    ),
    "text_to_image": (
        "Find the image of a caption",
        "Each caption ranks all images of the set. R@K: how often the right image is among the first K.",
    ),
    "region_to_text": (
        "Find the phrase of a box",
        "Each box ranks all phrases of the set. R@K: how often a right phrase is among the first K.",
    ),
    "text_to_region": (
        "Find the box of a phrase in the whole set",
        "Each phrase ranks all boxes of all pictures. R@K: how often a box that it describes is among the first K.",
    ),
}
SHOWN = {
    "image_to_text_R@1": Shown(
        Lead(110, "ranks a right caption first for {} of the images"),
        overview=110,
        fact=KeyFact(40, "of images find a caption of theirs at first rank"),
    ),
    "text_to_image_R@1": Shown(
        Lead(100, "ranks the right image first for {} of the captions"),
        overview=120,
        fact=KeyFact(30, "of captions find their image at first rank"),
        curve=True,
    ),
    "region_to_text_R@1": Shown(Lead(60, "ranks a right phrase first for {} of the regions", "for {}")),
    "region_to_text_R@10": Shown(
        Lead(40, "ranks a right phrase among its first ten for {} of the regions", "for {}"),
        overview=50,
        breakdown=Breakdown(20, "Find the phrase of a box, among the first ten", "boxes"),
    ),
    "text_to_region_R@1": Shown(Lead(50, "ranks the right region first for {} of the phrases", "for {}")),
    "text_to_region_R@10": Shown(
        Lead(30, "ranks the right region among its first ten for {} of the phrases", "for {}"),
        overview=60,
        curve_sources=("prompter",),
    ),
}


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


class Retrieval(Metric):
    """Captions of pictures, and pictures of captions; any caption of a picture counts."""

    needs = ("images",)
    pattern = "image_text/DIRECTION_R@K"

    def __init__(self, ks: Sequence[int] = (1, 5, 10)) -> None:
        self.ks = list(ks)

    def applies(self, outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> bool:
        """Where pictures have captions."""
        return len(embedded.images) > 0 and self.asks(data)

    def asks(self, data: EvalSet) -> bool:
        """Where pictures have captions."""
        return any(sample.captions for sample in data.samples)

    def names(self, sources: Collection[str]) -> Collection[str]:
        """Both directions at every K."""
        return [f"image_text/{way}_R@{k}" for way in ("text_to_image", "image_to_text") for k in self.ks]

    def measure(self, outputs: ModelOutputs, data: EvalSet, embedded: Embedded) -> Outcomes:
        """Both directions over all pictures of the set."""
        captions, by_text, by_item = owners([sample.captions for sample in data.samples])
        texts, group = outputs.texts(captions), range(len(data.samples))
        names = ("image_text/image_to_text", "image_text/text_to_image")
        images = embedded.images.to(texts.device)
        return retrieval_outcomes(images, texts, by_text, by_item, group, names, self.ks, outputs.ranks)

    def describe(self, name: str) -> Description | None:
        """A family for each direction, a row for each K."""
        head, _, rest = name.partition("/")
        match = RECALL.fullmatch(rest)
        if head != "image_text" or match is None or match[1] not in ("image_to_text", "text_to_image"):
            return None
        order = list(FAMILIES).index(match[1]), int(match[2])
        return Description(
            name, IMAGES, *FAMILIES[match[1]], f"R@{match[2]}", order=order, shown=SHOWN.get(rest, Shown())
        )


class RegionRetrieval(RegionMetric):
    """Phrases of boxes, and boxes of phrases, over all pictures of the set; any owner of a phrase counts."""

    pattern = "region/SOURCE/DIRECTION_R@K"

    def __init__(self, ks: Sequence[int] = (1, 10)) -> None:
        self.ks = list(ks)

    def measures(self) -> Collection[str]:
        """Both directions at every K."""
        return [f"{way}_R@{k}" for way in ("text_to_region", "region_to_text") for k in self.ks]

    def measure_rows(self, outputs: ModelOutputs, data: EvalSet, rows: Tensor, prefix: str) -> Outcomes:
        """Both directions."""
        phrases, by_text, by_item = owners([region.phrases for region in regions_of(data)])
        group = pictures_of([sample.regions for sample in data.samples]).tolist()
        names = (f"{prefix}region_to_text", f"{prefix}text_to_region")
        return retrieval_outcomes(rows, outputs.texts(phrases), by_text, by_item, group, names, self.ks, outputs.ranks)

    def describe_measure(self, name: str, measure: str, row: str, place: int) -> Description | None:
        """A family for each direction and K."""
        match = RECALL.fullmatch(measure)
        if match is None or match[1] not in ("region_to_text", "text_to_region"):
            return None
        title, protocol = FAMILIES[match[1]]
        order = list(FAMILIES).index(match[1]), int(match[2]), place
        shown = SHOWN.get(measure, Shown())
        return Description(name, BOXES, f"{title}, R@{match[2]}", protocol, row, order=order, shown=shown)
