"""Grounding heads: a phrase's state → a box (CLOC, Eq. 3), the last part of the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from cloc.models.positions.fourier import token_centers
from cloc.models.registration import registered


@registered("grounding")
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

    def forward(self, states: Tensor, text: Tensor, local: Tensor, tokens: Tensor) -> Tensor:
        """``[B,K,C]`` → boxes ``[B,K,4]`` xyxy; center and size pass a sigmoid, so that a box is never inverted."""
        boxes: Tensor = box_convert(self.mlp(states).float().sigmoid(), "cxcywh", "xyxy")
        return boxes


@registered("grounding")
class SpatialHead(nn.Module):
    """Finds the phrase's tokens, and lets them say which box they belong to.

    The region loss teaches the Prompter's value path to speak the text's language, so the similarity of a phrase to
    each single token's joint-space embedding says early on where the phrase is. Every token predicts the box of the
    thing that it shows, as an offset from its own place; the answer is their mean, weighted by a softmax over the
    similarities, and corrected by a perceptron on the Prompter's state, which alone would have to read positions out of
    a pooled vector.

    Args:
        width: C of the Prompter's states and of the tokens.
        joint_dim: D of the phrase embedding.
        grid: rows and columns of tokens.
    """

    centers: Tensor

    def __init__(self, width: int, joint_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((1,), 2.5))
        self.token_box = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))
        self.correction = nn.Sequential(nn.Linear(width + 4, width), nn.GELU(), last := nn.Linear(width, 4))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.register_buffer("centers", token_centers(grid), persistent=False)

    def forward(self, states: Tensor, text: Tensor, local: Tensor, tokens: Tensor) -> Tensor:
        """Predict boxes.

        Args:
            states: ``[B,K,C]`` from ``prompter.phrases``.
            text: ``[B,K,D]`` phrase embeddings.
            local: ``[B,N,D]`` unit norm, from ``prompter.local``.
            tokens: ``[B,N,C]`` patch tokens.

        Returns:
            ``[B,K,4]`` xyxy, never inverted.
        """
        own = self.token_box(tokens).float()
        with torch.autocast(tokens.device.type, enabled=False):  # positions need more than bfloat16's 8 bits
            similarity = text.float() @ local.float().transpose(1, 2)
            attention = (similarity * self.log_scale.exp()).softmax(-1)
            proposals = torch.cat([self.centers + 0.5 * own[..., :2].tanh(), own[..., 2:] - 1.0], -1)
            mean = attention @ proposals
        delta = self.correction(torch.cat([states, mean.to(states.dtype)], -1)).float()
        center, size = mean[..., :2] + 0.5 * delta[..., :2].tanh(), (mean[..., 2:] + delta[..., 2:]).sigmoid()
        boxes: Tensor = box_convert(torch.cat([center, size], -1), "cxcywh", "xyxy")
        return boxes
