"""Grounding metrics: where a phrase was found against the boxes that it owns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou


def grounding_metrics(predicted: Sequence[Tensor], owned: Sequence[Tensor]) -> dict[str, float]:
    """Accuracy at IoU 0.5 and mean IoU over (picture, phrase) pairs.

    Args:
        predicted: for each pair a box ``[4]``.
        owned: for each pair the boxes ``[K,4]`` that the phrase owns in that picture, in the same units.

    Returns:
        ``grounding/any/acc@0.5``: any of its boxes counts; ``grounding/union/acc@0.5``: their union is the target (the
        Flickr30k Entities convention); ``grounding/mIoU``: mean IoU with the best of its boxes. Empty without pairs.
    """
    if not predicted:
        return {}
    best, union = [], []
    for box, boxes in zip(predicted, owned, strict=True):
        whole = torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])
        best.append(box_iou(box[None], boxes).max())
        union.append(box_iou(box[None], whole[None])[0, 0])
    best_iou, union_iou = torch.stack(best), torch.stack(union)
    return {
        "grounding/any/acc@0.5": float((best_iou >= 0.5).double().mean()),
        "grounding/union/acc@0.5": float((union_iou >= 0.5).double().mean()),
        "grounding/mIoU": float(best_iou.double().mean()),
    }
