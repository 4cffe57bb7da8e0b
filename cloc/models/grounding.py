"""Grounding heads: a phrase's state → a box (CLOC, Eq. 3), the last part of the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from cloc.models.positions import token_centers


class MlpHead(nn.Module):
    """The paper's head: a two-layer GELU perceptron, four outputs (CLOC, Table A).

    Args:
        width: C of the Prompter's states.
        joint_dim: D of the phrase embedding (unused; the interface of the heads is one).
        grid: rows and columns of tokens (unused).
    """

    def __init__(self, width: int, joint_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))

    def forward(self, states: Tensor, text: Tensor, local: Tensor) -> Tensor:
        """``[B,K,C]`` → boxes ``[B,K,4]`` xyxy; center and size pass a sigmoid, so that a box is never inverted."""
        return box_convert(self.mlp(states).float().sigmoid(), "cxcywh", "xyxy")


class SpatialHead(nn.Module):
    """Reads where the phrase is from its similarity to each patch token's own joint-space embedding.

    The region loss teaches the Prompter's value path to speak the text's language, so similarities between a phrase and
    single tokens mean something early on. A soft-argmax over them gives the center, its spread a first guess of the
    size; a perceptron on the Prompter's state corrects both. A bare perceptron has to learn to read positions out of a
    pooled vector, which takes far longer (docs/results.md).

    Args:
        width: C of the Prompter's states.
        joint_dim: D of the phrase embedding.
        grid: rows and columns of tokens.
    """

    def __init__(self, width: int, joint_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((1,), 2.5))
        self.mlp = nn.Sequential(nn.Linear(width + 4, width), nn.GELU(), nn.Linear(width, 4))
        nn.init.zeros_(self.mlp[2].weight)
        nn.init.zeros_(self.mlp[2].bias)
        self.register_buffer("centers", token_centers(grid), persistent=False)

    def forward(self, states: Tensor, text: Tensor, local: Tensor) -> Tensor:
        """Predict boxes.

        Args:
            states: ``[B,K,C]`` from ``prompter.phrases``.
            text: ``[B,K,D]`` phrase embeddings.
            local: ``[B,N,D]`` unit norm, from ``prompter.local``.

        Returns:
            ``[B,K,4]`` xyxy, never inverted.
        """
        similarity = text.float() @ local.float().transpose(1, 2)
        attention = (similarity * self.log_scale.exp()).softmax(-1)
        center = attention @ self.centers
        spread = (attention @ self.centers.square() - center.square()).clamp(min=1e-6).sqrt()
        delta = self.mlp(torch.cat([states, center.to(states.dtype), spread.to(states.dtype)], -1)).float()
        size = (spread * 3.0).clamp(1e-3, 0.999).logit().add(delta[..., 2:]).sigmoid()
        return box_convert(torch.cat([center + 0.5 * delta[..., :2].tanh(), size], -1), "cxcywh", "xyxy")
