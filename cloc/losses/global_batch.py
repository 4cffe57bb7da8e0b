"""What a process must know of the others' part of a batch: their texts, and how many of everything there are.

Rows (pictures, regions) stay where they are; texts travel. A text comes once, whoever and however many own it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cloc.contracts import Batch, Features
from cloc.losses.gather import exchange, gather, world_size


@dataclass(slots=True)
class Texts:
    """Distinct texts of the global batch; the same, in the same order, on every process.

    Attributes:
        embedding: ``[K,D]``, with gradient to the process that the first of equal texts lies on.
        id: ``[K]`` hashes, sorted.
        count: ``[K]`` rows of the global batch that own each text, at least 1.
        own: ``[R]`` the text of each row of this process.
    """

    embedding: Tensor
    id: Tensor
    count: Tensor
    own: Tensor


@dataclass(slots=True)
class GlobalBatch:
    """The global batch.

    Attributes:
        captions: their rows are pictures; None where the features hold no captions.
        phrases: their rows are valid regions; None where no loss asks for them.
        pictures: how many there are.
        with_regions: pictures with a valid region.
        regions: valid regions.
        unshared: valid regions whose phrase owns no other box of the picture.
        crops: valid regions that were cut out.
        crop_phrases: their rows are those; None where no loss asks for them.
    """

    captions: Texts | None
    phrases: Texts | None
    pictures: Tensor
    with_regions: Tensor
    regions: Tensor
    unshared: Tensor
    crops: Tensor
    crop_phrases: Texts | None = None


def gather_batch(features: Features, batch: Batch, phrases: bool = True, crops: bool = False) -> GlobalBatch:
    """Gather what the losses need.

    Args:
        features: of this process.
        batch: the batch they were made of.
        phrases: whether phrases are gathered too; the features must hold them.
        crops: whether those of the regions that were cut out are, likewise.
    """
    valid, cut_out = batch.region_valid, batch.crop_valid
    parts: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
    if features.text is not None:
        parts["captions"] = features.text, batch.caption_id, torch.ones_like(batch.caption_id), batch.caption_id
    if phrases:
        parts["phrases"] = _owned_phrases(features, batch, batch.region_phrase[valid])
    if crops:
        parts["crops"] = _owned_phrases(features, batch, batch.region_phrase[:, : cut_out.shape[1]][cut_out])
    counts = [valid.any(1).sum(), valid.sum(), (valid & ~batch.phrase_is_shared).sum(), cut_out.sum()]
    rows = torch.tensor([*(len(ids) for _, ids, _, _ in parts.values()), len(valid)], device=valid.device)
    every = exchange(torch.cat([rows, torch.stack(counts)]))
    sizes = every[:, : len(parts)].tolist() if world_size() > 1 else []
    embeddings = gather([embedding for embedding, _, _, _ in parts.values()], sizes) if parts else ()
    facts = gather([torch.stack([ids, count], 1) for _, ids, count, _ in parts.values()], sizes) if parts else ()
    texts = {
        name: _distinct(embedding, facts, own)
        for (name, (_, _, _, own)), embedding, facts in zip(parts.items(), embeddings, facts, strict=True)
    }
    pictures, with_regions, regions, unshared, crop_count = every.sum(0)[len(parts) :]
    return GlobalBatch(
        captions=texts.get("captions"),
        phrases=texts.get("phrases"),
        pictures=pictures,
        with_regions=with_regions,
        regions=regions,
        unshared=unshared,
        crops=crop_count,
        crop_phrases=texts.get("crops"),
    )


def _owned_phrases(features: Features, batch: Batch, owned: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of this process's phrases those that rows own: embeddings, ids, how many own each; and the id of each row's.

    Args:
        features: of this process.
        batch: they were made of.
        owned: ``[R]`` index of each row's phrase.
    """
    assert features.phrase is not None, "a term that needs phrases"  # its needs
    count = torch.zeros_like(batch.phrase_id).index_add_(0, owned, torch.ones_like(owned))
    used = count > 0  # neither hard negatives nor the text that stands in where there is no region are columns
    return features.phrase[used], batch.phrase_id[used], count[used], batch.phrase_id[owned]


def _distinct(embedding: Tensor, facts: Tensor, own: Tensor) -> Texts:
    ids, inverse = torch.unique(facts[:, 0], return_inverse=True)
    place = torch.arange(len(inverse), device=inverse.device)
    first = torch.full_like(ids, len(place)).scatter_reduce(0, inverse, place, "amin")
    count = torch.zeros_like(ids).index_add_(0, inverse, facts[:, 1])
    return Texts(embedding[first], ids, count, torch.searchsorted(ids, own))


def local_mean(summed: Tensor, count: Tensor) -> Tensor:
    """This process's part of a global mean: averaging gradients over processes gives that of the whole.

    Args:
        summed: scalar over this process's elements.
        count: of elements in the global batch.
    """
    return summed * world_size() / count.clamp(min=1)
