"""The module that ``export regions`` writes into a file of its own, together with the parts of the model that it uses.

Beside ``regions``. Nothing here or there may need more than PyTorch: the file is dropped into other people's code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cloc.models.positions.fourier import onto_grid, onto_view


class RegionSampler(nn.Module):
    """Embeddings of boxes, and boxes of phrases, from the patch tokens of the image tower that this was trained with.

    Args:
        prompter: answers box and phrase prompts.
        grounding: turns an answer into a box; None where the model has none.
        image_size: side of the tower's view in pixels.
        resize: how pictures became square in training: ``pad`` or ``squash``.
        grid: rows and columns of tokens.
        covered: share of the view's side that the tokens cover.
    """

    def __init__(
        self,
        prompter: nn.Module,
        grounding: nn.Module | None,
        image_size: int,
        resize: str,
        grid: tuple[int, int],
        covered: float = 1.0,
    ) -> None:
        super().__init__()
        self.prompter: Any = prompter  # its methods are none of nn.Module's
        self.grounding = grounding
        self.image_size, self.resize, self.grid, self.covered = image_size, resize, grid, covered

    @classmethod
    def load(cls, folder: str | Path) -> RegionSampler:
        """Build the module that is described in this file, with the weights of ``regions.pt`` in the folder."""
        module = build()
        module.load_state_dict(torch.load(Path(folder) / "regions.pt", map_location="cpu", weights_only=True))
        return module.eval()

    def encode_regions(self, tokens: Tensor, boxes: Tensor) -> Tensor:
        """Embed boxes.

        Args:
            tokens: ``[B,N,C]`` patch tokens after the tower's last norm, without class token, in reading order.
            boxes: ``[B,K,4]`` xyxy in 0..1 of the tower's view; see :meth:`to_view`.

        Returns:
            ``[B,K,D]`` of unit norm, in the space of the text embeddings.
        """
        boxes = onto_grid(boxes, self.covered, self.grid[0])
        return normalize(self.prompter.boxes(self.prompter.memory(tokens), boxes).float(), dim=-1)

    def ground(self, tokens: Tensor, phrases: Tensor) -> Tensor:
        """Find phrases.

        Args:
            tokens: as for :meth:`encode_regions`.
            phrases: ``[B,K,D]`` text embeddings of unit norm.

        Returns:
            boxes ``[B,K,4]`` xyxy in 0..1 of the view.

        Raises:
            ValueError: the model has no grounding head.
        """
        if self.grounding is None:
            raise ValueError("this model has no grounding head")
        memory = self.prompter.memory(tokens)
        local = normalize(self.prompter.local(memory).float(), dim=-1)
        boxes = self.grounding(self.prompter.phrases(memory, phrases), phrases, local, tokens)
        return onto_view(boxes, self.covered).clamp(0, 1)

    def likeness(self, tokens: Tensor, phrases: Tensor, boxes: Tensor) -> Tensor:
        """How well boxes fit phrases: the mean of two cosines to the phrase, of its box and of the best single token.

        Args:
            tokens: as for :meth:`encode_regions`.
            phrases: ``[B,K,D]`` text embeddings of unit norm.
            boxes: ``[B,K,4]`` of the view, one for each phrase.

        Returns:
            ``[B,K]`` in -1..1; low where the phrase is not in the picture.
        """
        local = normalize(self.prompter.local(self.prompter.memory(tokens)).float(), dim=-1)
        best = (phrases.float() @ local.transpose(1, 2)).amax(-1)
        return ((self.encode_regions(tokens, boxes) * phrases.float()).sum(-1) + best) / 2

    def to_view(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """Boxes ``[...,4]`` in 0..1 of a picture of that many pixels → of its square view."""
        scale, shift = self._place(boxes, width, height)
        return boxes * scale + shift

    def to_picture(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """Boxes of the view → of the picture, clipped to it."""
        scale, shift = self._place(boxes, width, height)
        return ((boxes - shift) / scale).clamp(0, 1)

    def _place(self, like: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
        """Size and origin of the picture in its view: whole pixels, as the picture was resized and padded."""
        if self.resize == "squash":
            return like.new_ones(4), like.new_zeros(4)
        view = self.image_size
        scale = view / max(width, height)
        sides = [max(1, round(side * scale)) for side in (width, height)]
        origin = [(view - side) // 2 for side in sides]
        return like.new_tensor(sides * 2) / view, like.new_tensor(origin * 2) / view


def build() -> RegionSampler:
    """Defined anew in the written file, for the model at hand.

    Raises:
        NotImplementedError: always, here.
    """
    raise NotImplementedError("written by cloc.export.regions")
