"""The Prompter: patch tokens and a box (or a phrase) → an embedding (CLOC, Sec. 3.3).

Stands behind the towers (``image, text → prompter → grounding``). The image tower runs once; any number of prompts is
answered from its tokens. Three kinds with one interface: ``PaperPrompter``, ``SharedPrompter`` and ``RoiAlign``.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from cloc.config.domains import ConfigError, Finite, Heads, Interval, OneOf
from cloc.models.positions.fourier import fourier, grid_positions
from cloc.models.region_pooling import roi_tokens, token_overlap
from cloc.models.registration import registered

Ratio = Annotated[float, Interval(0, 64, open_low=True)]
Average = Annotated[str, OneOf("all", "prompt", "tokens")]
Positions = Annotated[str, OneOf("none", "fixed", "learned")]
Hidden = Annotated[int, Interval(0, 2**16)]
BoxTokens = Annotated[int, Interval(1, 2)]
Norm = Annotated[str, OneOf("pre", "post")]
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
        focus: start of the learned multiple; None reads boxes without that term.
    """

    supports_phrases = True
    positions: Tensor

    def __init__(
        self,
        width: int,
        joint_dim: int,
        grid: tuple[int, int],
        heads: Heads = 4,
        mlp_ratio: Ratio = 2.0,
        focus: Finite | None = 2.0,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(
                f"model.prompter.heads={heads} does not divide the tower's width {width}; give another number, or set "
                "model.image.adapter_depth=1 for blocks of model.image.adapter_width upon a TimmTower"
            )
        if not 0 < mlp_ratio < math.inf:
            raise ValueError(f"model.prompter.mlp_ratio={mlp_ratio}: must be above 0")
        if focus is not None and not math.isfinite(focus):
            raise ValueError(f"model.prompter.focus={focus}: must be a finite number, or null for none")
        self.heads, self.grid = heads, grid
        self.box_prompt = BoxPrompt(width)
        self.phrase_prompt = nn.Linear(joint_dim, width)
        self.register_buffer("positions", grid_positions(grid, width), persistent=False)
        self.norm_prompt, self.norm_tokens = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.focus = None if focus is None else nn.Parameter(torch.full((heads, 1, 1), float(focus)))
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
        regions: Tensor = self.proj(self._attend(self.box_prompt(boxes), memory, self._prior(boxes)))
        return regions

    def phrases(self, memory: tuple[Tensor, Tensor], text: Tensor) -> Tensor:
        """States ``[B,K,C]`` of phrase embeddings ``[B,K,D]``, for the grounding head."""
        return self._attend(self.phrase_prompt(text.to(self.phrase_prompt.weight.dtype)), memory)

    def local(self, memory: tuple[Tensor, Tensor]) -> Tensor:
        """Joint-space embedding ``[B,N,D]`` of each patch token, as a prompt that attends to it alone would read it."""
        embedded: Tensor = self.proj(self._finish(self.out(memory[1].transpose(1, 2).flatten(2))))
        return embedded

    def _prior(self, boxes: Tensor) -> Tensor | None:
        """What the logits ``[B,heads,K,N]`` of the tokens inside and outside of each box start with."""
        if self.focus is None:
            return None
        covered = token_overlap(boxes, self.grid)
        return self.focus * (covered / covered.amax(-1, keepdim=True).clamp(min=1e-9) + OUTSIDE).log().unsqueeze(1)

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

    A box's corners are prepended, and one token for a phrase. What the paper does not say is an argument, see
    docs/method.md.

    Args:
        width: C of the tokens.
        joint_dim: D.
        grid: rows and columns of tokens.
        average: outputs of the layer that are averaged: ``all``, ``prompt`` (those of the prompt's own tokens) or
            ``tokens`` (those of the patch tokens).
        positions: what is added to the patch tokens before the layer: ``none``, ``fixed`` (their encoded centers, in
            the code of the corners) or ``learned`` (a table that starts as these).
        norm: where the layer has its norms: ``pre`` or ``post``.
        mlp_ratio: hidden width of the layer's perceptron over C.
        box_tokens: 2, one for each corner, neither of which knows the other one before the layer; or 1, both corners'
            codes side by side through the linear layer.
    """

    supports_phrases = True
    choices = {
        "average": ("all", "prompt", "tokens"),
        "positions": ("none", "fixed", "learned"),
        "norm": ("pre", "post"),
    }
    positions: Tensor | None

    def __init__(
        self,
        width: int,
        joint_dim: int,
        grid: tuple[int, int],
        average: Average = "all",
        positions: Positions = "none",
        norm: Norm = "pre",
        mlp_ratio: Ratio = 4.0,
        box_tokens: BoxTokens = 2,
    ) -> None:
        super().__init__()
        if box_tokens not in (1, 2):
            raise ValueError(f"model.prompter.box_tokens={box_tokens}: give 1 or 2")
        self._check(average=average, positions=positions, norm=norm)
        if not 0 < mlp_ratio < math.inf:
            raise ValueError(f"model.prompter.mlp_ratio={mlp_ratio}: must be above 0")
        self.width, self.average, self.box_tokens = width, average, box_tokens
        self.corner = nn.Linear(2 * width // box_tokens, width)
        self.phrase_prompt = nn.Linear(joint_dim, width)
        self.layer = nn.TransformerEncoderLayer(
            width, 1, int(mlp_ratio * width), 0.0, activation="gelu", batch_first=True, norm_first=norm == "pre"
        )
        self.norm_out = nn.LayerNorm(width)
        self.proj = nn.Linear(width, joint_dim, bias=False)
        nn.init.normal_(self.proj.weight, std=width**-0.5)
        if positions == "learned":
            self.positions = nn.Parameter(grid_positions(grid, width).unsqueeze(0))
        else:
            centers = grid_positions(grid, width).unsqueeze(0) if positions == "fixed" else None
            self.register_buffer("positions", centers, persistent=False)

    def _check(self, **chosen: str) -> None:
        for name, value in chosen.items():
            if value not in self.choices[name]:
                known = ", ".join(self.choices[name])
                raise ValueError(f"model.prompter.{name}={value!r}: give one of {known}")

    def refuses(self, format: str) -> list[str]:
        """No format: it needs PyTorch alone."""
        return []

    def memory(self, tokens: Tensor) -> Tensor:
        """The patch tokens themselves: nothing can be shared between prompts."""
        return tokens

    def boxes(self, memory: Tensor, boxes: Tensor) -> Tensor:
        """Region embeddings ``[B,K,D]`` of ``[B,K,4]`` boxes."""
        corners = fourier(boxes, self.width // 2).unflatten(-1, (self.box_tokens, -1)).to(self.corner.weight.dtype)
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
        if self.positions is not None:
            tokens = tokens + self.positions.to(tokens.dtype)
        prompts = prompts.to(tokens.dtype)
        states = self._asked(prompts, tokens) if self.average == "prompt" else self._all(prompts, tokens)
        averaged: Tensor = self.norm_out(states.mean(2))
        return averaged

    def _all(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """Outputs of prompts ``[B,K,P,C]`` and patch tokens, or of these alone, by a whole layer for each prompt."""
        repeated = tokens.unsqueeze(1).expand(-1, prompts.shape[1], -1, -1)
        states = self.layer(torch.cat([prompts, repeated], 2).flatten(0, 1))
        if self.average == "tokens":
            states = states[:, prompts.shape[2] :]
        outputs: Tensor = states.unflatten(0, prompts.shape[:2])
        return outputs

    def _asked(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        """Outputs ``[B,K,P,C]`` of the prompts' own tokens, as :meth:`_all` would have them.

        Patch tokens answer every prompt with the same keys and values, so they are computed once an image.
        """
        layer, pre = self.layer, self.layer.norm_first
        attended = self._attend(layer.norm1(prompts), layer.norm1(tokens)) if pre else self._attend(prompts, tokens)
        states = prompts + attended if pre else layer.norm1(prompts + attended)
        forward = layer.linear2(layer.activation(layer.linear1(layer.norm2(states) if pre else states)))
        outputs: Tensor = states + forward if pre else layer.norm2(states + forward)
        return outputs

    def _attend(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        attention, own = self.layer.self_attn, prompts.shape[1:3]
        query, key, value = nn.functional.linear(prompts, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        weight, bias = attention.in_proj_weight[self.width :], attention.in_proj_bias[self.width :]
        keys, values = nn.functional.linear(tokens, weight, bias).chunk(2, -1)
        seen = (query.flatten(1, 2) @ keys.transpose(1, 2)).unflatten(1, own)
        logits = torch.cat([query @ key.transpose(2, 3), seen], -1) * self.width**-0.5
        near, far = logits.softmax(-1).to(value.dtype).split([own[1], keys.shape[1]], -1)
        mixed = near @ value + (far.flatten(1, 2) @ values).unflatten(1, own)
        attended: Tensor = attention.out_proj(mixed)
        return attended


@registered("prompter")
class RoiAlign(nn.Module):
    """The ablation "- Prompter" (CLOC, Table 2 rows 4, 9, 14): RoI-Align of the token map and a projection.

    Args:
        width: C of the tokens.
        joint_dim: D.
        grid: rows and columns of tokens.
        hidden: width of a residual perceptron over the pooled token, before the projection; 0 for none (the paper).
    """

    supports_phrases = False

    def __init__(self, width: int, joint_dim: int, grid: tuple[int, int], hidden: Hidden = 0) -> None:
        super().__init__()
        if hidden < 0:
            raise ValueError(f"model.prompter.hidden={hidden}: must be at least 0")
        self.grid = grid
        self.proj = nn.Linear(width, joint_dim, bias=False)
        nn.init.normal_(self.proj.weight, std=width**-0.5)
        self.mlp: nn.Sequential | None = None
        if hidden:
            wide, last = nn.Linear(width, hidden), nn.Linear(hidden, width)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # it starts as the head without
            self.mlp = nn.Sequential(nn.LayerNorm(width), wide, nn.GELU(), last)

    def refuses(self, format: str) -> list[str]:
        """The module that needs PyTorch alone; see :class:`cloc.models.protocols.Declares`."""
        return ["its Prompter is RoiAlign, which needs torchvision"] if format == "regions" else []

    def memory(self, tokens: Tensor) -> Tensor:
        """The patch tokens themselves."""
        return tokens

    def boxes(self, memory: Tensor, boxes: Tensor) -> Tensor:
        """Region embeddings ``[B,K,D]`` of ``[B,K,4]`` boxes."""
        return self.embed(roi_tokens(memory, self.grid, boxes))

    def embed(self, pooled: Tensor) -> Tensor:
        """Joint-space embeddings ``[B,K,D]`` of pooled tokens ``[B,K,C]``."""
        regions: Tensor = self.proj(pooled if self.mlp is None else pooled + self.mlp(pooled))
        return regions
