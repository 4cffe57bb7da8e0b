"""Small batches and features for the tests of the losses, as plain leaves whose gradients can be compared.

The text "tower" is a table of embeddings: token ids are its rows, so that equal texts have equal embeddings on every
rank, as they have in a real model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cloc.contracts import Batch, Features

Text = int | None
Leaves = dict[str, Tensor]


def make_leaves(images: int, regions: int, texts: int = 12, dim: int = 32, seed: int = 0) -> Leaves:
    """Float64 leaves: pictures, regions, predicted boxes, a table of texts, temperatures.

    Texts 4 and 5 are near-duplicates (cosine above 0.9); the others are far apart.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    table = normal(texts, dim)
    table[5] = table[4] + 0.1 * normal(dim)
    leaves = {
        "image": normal(images, dim),
        "region": normal(images, regions, dim),
        "grounded": normal(images, regions, 4) * 0.1 + torch.tensor([0.25, 0.25, 0.75, 0.75], dtype=torch.float64),
        "table": table,
        "scale_global": torch.tensor([2.0], dtype=torch.float64),
        "scale_region": torch.tensor([1.8], dtype=torch.float64),
        "bias_global": torch.tensor([-2.0], dtype=torch.float64),
        "bias_region": torch.tensor([-1.5], dtype=torch.float64),
    }
    return {name: value.requires_grad_() for name, value in leaves.items()}


def make_batch(
    captions: Sequence[int],
    phrases: Sequence[Sequence[Text]],
    regions: int,
    seed: int = 0,
    negatives: Sequence[Sequence[Sequence[int]]] | None = None,
) -> Batch:
    """A batch of texts given as rows of the table; None is a slot without a region.

    Boxes depend on the seed and on the place in the list. A phrase that comes twice in a picture is shared there.
    Hard negatives are lists of texts for each slot of each picture.
    """
    size = len(captions)
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(size, regions, 4, dtype=torch.float64, generator=generator)
    boxes = torch.cat([corners[..., :2] * 0.5, 0.5 + corners[..., 2:] * 0.5], -1)
    valid, shared = torch.zeros(2, size, regions, dtype=torch.bool)
    region_phrase = torch.zeros(size, regions, dtype=torch.int64)
    targets = boxes.clone()
    index: dict[int, int] = {}
    for row, own in enumerate(phrases):
        for slot, text in enumerate(own):
            if text is None:
                continue
            valid[row, slot], shared[row, slot] = True, own.count(text) > 1
            region_phrase[row, slot] = index.setdefault(text, len(index))
            same = boxes[row, [i for i, other in enumerate(own) if other == text]]
            targets[row, slot] = torch.cat([same[:, :2].amin(0), same[:, 2:].amax(0)])
    hard = None if negatives is None else torch.full((size, regions, 2), -1)
    for row, own in enumerate(negatives or []):
        for slot, texts in enumerate(own):
            for place, text in enumerate(texts):
                hard[row, slot, place] = index.setdefault(text, len(index))
    rows = torch.tensor([list(index) or [0]]).T
    return Batch(
        images=torch.zeros(size, 3, 1, 1, dtype=torch.uint8),
        content=torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(size, 4),
        captions=torch.tensor([list(captions)]).T,
        caption_id=text_ids(torch.tensor(list(captions))),
        boxes=boxes,
        target_boxes=targets,
        region_valid=valid,
        phrases=rows,
        phrase_id=text_ids(rows[:, 0]),
        region_phrase=region_phrase,
        phrase_is_shared=shared,
        keys=[str(i) for i in range(size)],
        source=torch.zeros(size, dtype=torch.int64),
        cursor=size,
        negatives=hard,
    )


def taught(batch: Batch, rows: slice = slice(None), texts: int = 12, dim: int = 32) -> Batch:
    """The batch with a teacher's embeddings: of each text the same everywhere, of each picture by its place.

    Args:
        batch: of one process, or of all.
        rows: its pictures' places in the whole.
        texts: rows of the table.
        dim: of the embeddings.
    """
    generator = torch.Generator().manual_seed(9)
    table, pictures = (torch.randn(n, dim, dtype=torch.float64, generator=generator) for n in (texts, 64))
    return replace(
        batch,
        teacher_image=normalize(pictures[rows][: len(batch.images)], dim=-1),
        teacher_text=normalize(table[batch.captions[:, 0]], dim=-1),
        teacher_phrase=normalize(table[batch.phrases[:, 0]], dim=-1),
    )


def text_ids(rows: Tensor) -> Tensor:
    """Hashes in another order than the texts."""
    return (rows + 1) * 2_654_435_761 % 1_000_003


def make_features(leaves: Leaves, batch: Batch, rows: slice = slice(None)) -> Features:
    """What a model would make of the batch; ``rows`` are the batch's rows of the per-picture leaves."""
    return Features(
        image=normalize(leaves["image"][rows], dim=-1),
        text=normalize(leaves["table"][batch.captions[:, 0]], dim=-1),
        region=normalize(leaves["region"][rows], dim=-1),
        phrase=normalize(leaves["table"][batch.phrases[:, 0]], dim=-1),
        grounded=leaves["grounded"][rows],
        scales={name: leaves[f"scale_{name}"].exp().clamp(max=100) for name in ("global", "region")},
        biases={name: leaves[f"bias_{name}"] for name in ("global", "region")},
    )


def gradients(loss: Tensor, leaves: Leaves) -> Leaves:
    """Gradient of every leaf; None where a leaf took no part."""
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, retain_graph=True)
    return dict(zip(leaves, found, strict=True))
