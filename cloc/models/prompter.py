"""The Prompter: patch tokens and a box (or a phrase) → an embedding (CLOC, Sec. 3.3).

Stands behind the towers (``image, text → prompter → grounding``). The image tower runs once; any number of prompts is
answered from its tokens. Three kinds with one interface: ``PaperPrompter``, ``SharedPrompter`` and ``RoiAlign``.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from cloc.config.domains import ConfigError, Heads, Interval
from cloc.models.positions.fourier import fourier, grid_positions
from cloc.models.region_pooling import roi_tokens, token_overlap
from cloc.models.registration import registered

Ratio = Annotated[float, Interval(0, 64, open_low=True)]
OUTSIDE = 0.02  # overlap that a token outside the box is treated as having: attention can still reach it


class BoxPrompt(nn.Module):
    """Box → prompt token: encoding of its corners, center and size, then a two-layer perceptron."""

    def __init__(self, width: int, dim: int = 32) -> None:
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(8 * dim, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, boxes: Tensor) -> Tensor:
        """``[B,K,4]`` → ``[B,K,C]``."""
        center_size = torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)
        encoded = torch.cat([fourier(boxes, self.dim), fourier(center_size, self.dim)], -1)
        prompts: Tensor = self.mlp(encoded.to(next(self.parameters()).dtype))
        return prompts


@registered("prompter")
class SharedPrompter(nn.Module):
    """Box and phrase prompts cross-attend to keys and values that are computed once an image.

    Costs one projection of the N tokens an image and one attention row a prompt, where :class:`PaperPrompter` runs a
    whole encoder layer over N+1 tokens for each prompt. A box prompt starts out attending to the tokens that it covers:
    each head adds a learned multiple of the log of the overlap to its logits, and is free to unlearn it.

    Args:
        width: C of the tokens.
        joint_dim: D.
        grid: rows and columns of tokens.
        heads: of the cross-attention.
        mlp_ratio: hidden width of the perceptron over C.
    """

    supports_phrases = True
    positions: Tensor

    def __init__(
        self, width: int, joint_dim: int, grid: tuple[int, int], heads: Heads = 4, mlp_ratio: Ratio = 2.0
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(
                f"model.prompter.heads={heads} does not divide the tower's width {width}; give another number, or set "
                "model.image.adapter_depth=1 for blocks of model.image.adapter_width upon a TimmTower"
            )
        if not 0 < mlp_ratio < math.inf:
            raise ValueError(f"model.prompter.mlp_ratio={mlp_ratio}: must be above 0")
        self.heads, self.grid = heads, grid
        self.box_prompt = BoxPrompt(width)
        self.phrase_prompt = nn.Linear(joint_dim, width)
        self.register_buffer("positions", grid_positions(grid, width), persistent=False)
        self.norm_prompt, self.norm_tokens = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.focus = nn.Parameter(torch.full((heads, 1, 1), 2.0))
        self.norm_mlp = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last := nn.Linear(hidden, width))
        nn.init.zeros_(last.weight)
        self.norm_out = nn.LayerNorm(width)
        self.proj = nn.Linear(width, joint_dim, bias=False)
        nn.init.normal_(self.proj.weight, std=width**-0.5)

    def refuses(self, format: str) -> list[str]:
        """No format: it needs PyTorch alone."""
        return []

    def memory(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B,heads,N,C/heads]`` of the patch tokens ``[B,N,C]``; once an image."""
        tokens = self.norm_tokens(tokens)
        return self._split(self.key(tokens + self.positions)), self._split(self.value(tokens))

    def boxes(self, memory: tuple[Tensor, Tensor], boxes: Tensor) -> Tensor:
        """Region embeddings ``[B,K,D]`` of ``[B,K,4]`` boxes."""
        covered = token_overlap(boxes, self.grid)
        bias = self.focus * (covered / covered.amax(-1, keepdim=True).clamp(min=1e-9) + OUTSIDE).log().unsqueeze(1)
        regions: Tensor = self.proj(self._attend(self.box_prompt(boxes), memory, bias))
        return regions

    def phrases(self, memory: tuple[Tensor, Tensor], text: Tensor) -> Tensor:
        """States ``[B,K,C]`` of phrase embeddings ``[B,K,D]``, for the grounding head."""
        return self._attend(self.phrase_prompt(text.to(self.phrase_prompt.weight.dtype)), memory)

    def local(self, memory: tuple[Tensor, Tensor]) -> Tensor:
        """Joint-space embedding ``[B,N,D]`` of each patch token, as a prompt that attends to it alone would read it."""
        embedded: Tensor = self.proj(self._finish(self.out(memory[1].transpose(1, 2).flatten(2))))
        return embedded

    def _attend(self, prompt: Tensor, memory: tuple[Tensor, Tensor], bias: Tensor | None = None) -> Tensor:
        keys, values = memory
        query = self._split(self.query(self.norm_prompt(prompt)))
        # Plain attention: there are far fewer prompts than tokens, and on CPU it is the faster form.
        logits = (query @ keys.transpose(-2, -1) * query.shape[-1] ** -0.5).float()
        weights = (logits if bias is None else logits + bias).softmax(-1).to(values.dtype)
        return self._finish(prompt + self.out((weights @ values).transpose(1, 2).flatten(2)))

    def _finish(self, state: Tensor) -> Tensor:
        finished: Tensor = self.norm_out(state + self.mlp(self.norm_mlp(state)))
        return finished

    def _split(self, states: Tensor) -> Tensor:
        heads: Tensor = states.unflatten(-1, (self.heads, -1))
        return heads.transpose(1, 2)


@registered("prompter")
class PaperPrompter(nn.Module):
    """One single-head encoder layer over [prompt, patch tokens] for each prompt, then an average (CLOC, App. B.1).

    Where the paper is silent: two corner tokens are prepended for a box and one for a phrase, the layer is pre-norm
    with an expansion of 4, and the average covers prompt and patch tokens (docs/method.md).

    Args:
        width: C of the tokens.
        joint_dim: D.
        grid: rows and columns of tokens.
    """

    supports_phrases = True

    def __init__(self, width: int, joint_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.width = width
        self.corner = nn.Linear(width, width)
        self.phrase_prompt = nn.Linear(joint_dim, width)
        self.layer = nn.TransformerEncoderLayer(
            width, 1, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm_out = nn.LayerNorm(width)
        self.proj = nn.Linear(width, joint_dim, bias=False)
        nn.init.normal_(self.proj.weight, std=width**-0.5)

    def refuses(self, format: str) -> list[str]:
        """No format: it needs PyTorch alone."""
        return []

    def memory(self, tokens: Tensor) -> Tensor:
        """The patch tokens themselves: nothing can be shared between prompts."""
        return tokens

    def boxes(self, memory: Tensor, boxes: Tensor) -> Tensor:
        """Region embeddings ``[B,K,D]`` of ``[B,K,4]`` boxes."""
        corners = fourier(boxes, self.width // 2).unflatten(-1, (2, self.width)).to(self.corner.weight.dtype)
        regions: Tensor = self.proj(self._encode(self.corner(corners), memory))
        return regions

    def phrases(self, memory: Tensor, text: Tensor) -> Tensor:
        """States ``[B,K,C]`` of phrase embeddings ``[B,K,D]``, for the grounding head."""
        return self._encode(self.phrase_prompt(text.to(self.phrase_prompt.weight.dtype)).unsqueeze(2), memory)

    def local(self, memory: Tensor) -> Tensor:
        """Joint-space embedding ``[B,N,D]`` of each patch token, without a prompt."""
        embedded: Tensor = self.proj(self.norm_out(memory))
        return embedded

    def _encode(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        images, count = prompts.shape[:2]
        repeated = tokens.unsqueeze(1).expand(-1, count, -1, -1)
        states = self.layer(torch.cat([prompts.to(tokens.dtype), repeated], 2).flatten(0, 1))
        averaged: Tensor = self.norm_out(states.mean(1)).unflatten(0, (images, count))
        return averaged


@registered("prompter")
class RoiAlign(nn.Module):
    """The ablation "- Prompter" (CLOC, Table 2 rows 4, 9, 14): RoI-Align of the token map and a projection.

    Args:
        width: C of the tokens.
        joint_dim: D.
        grid: rows and columns of tokens.
    """

    supports_phrases = False

    def __init__(self, width: int, joint_dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.proj = nn.Linear(width, joint_dim, bias=False)
        nn.init.normal_(self.proj.weight, std=width**-0.5)

    def refuses(self, format: str) -> list[str]:
        """The module that needs PyTorch alone; see :class:`cloc.models.protocols.Declares`."""
        return ["its Prompter is RoiAlign, which needs torchvision"] if format == "regions" else []

    def memory(self, tokens: Tensor) -> Tensor:
        """The patch tokens themselves."""
        return tokens

    def boxes(self, memory: Tensor, boxes: Tensor) -> Tensor:
        """Region embeddings ``[B,K,D]`` of ``[B,K,4]`` boxes."""
        regions: Tensor = self.proj(roi_tokens(memory, self.grid, boxes))
        return regions
