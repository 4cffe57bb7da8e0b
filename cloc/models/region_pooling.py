"""Tokens inside boxes, pooled without a learned part: RoI-Align and masks (below the Prompters and ``model``)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align


def roi_tokens(tokens: Tensor, grid: tuple[int, int], boxes: Tensor) -> Tensor:
    """Average of the token map inside each box by RoI-Align (1×1 bin, aligned).

    Args:
        tokens: ``[B,N,C]``.
        grid: rows and columns of tokens.
        boxes: ``[B,K,4]`` xyxy in 0..1 of the view.

    Returns:
        ``[B,K,C]``.
    """
    maps = tokens.float().transpose(1, 2).unflatten(2, grid)
    scale = boxes.new_tensor([grid[1], grid[0], grid[1], grid[0]])
    pooled = roi_align(maps, list((boxes * scale).float().unbind(0)), output_size=1, aligned=True)
    found: Tensor = pooled.flatten(1).unflatten(0, boxes.shape[:2]).to(tokens.dtype)
    return found


def mask_tokens(tokens: Tensor, grid: tuple[int, int], boxes: Tensor) -> Tensor:
    """Mean of the patch tokens weighted by their overlap with each box.

    Arguments and result as :func:`roi_tokens`.
    """
    weights = token_overlap(boxes, grid)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)
    return weights.to(tokens.dtype) @ tokens


def token_overlap(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Area shared by each box ``[B,K,4]`` and each token's cell: ``[B,K,N]``, in units of the view's area."""
    rows = _overlap(boxes[..., 1], boxes[..., 3], grid[0])
    columns = _overlap(boxes[..., 0], boxes[..., 2], grid[1])
    return (rows.unsqueeze(-1) * columns.unsqueeze(-2)).flatten(-2)


def _overlap(low: Tensor, high: Tensor, cells: int) -> Tensor:
    edges = torch.arange(cells + 1, device=low.device) / cells
    return (torch.minimum(high.unsqueeze(-1), edges[1:]) - torch.maximum(low.unsqueeze(-1), edges[:-1])).clamp(min=0)
