"""Towers of others behind our interface: any open_clip model, any Hugging Face CLIP or SigLIP.

Beside ``image.py`` and ``text.py``, built by ``foreign_load.py``: they put other models on trial next to ours. A patch
token is brought into the joint space as the model's own pooling head would bring a picture of that one token; where a
model has no such way, its image tower is not ``dense`` and boxes can be cropped only.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from cloc.data.inputs import as_texts
from cloc.data.tokenizer import shorten
from cloc.models.positions.fourier import covered_share
from cloc.models.text import ClipText
from cloc.models.timm_backbone import trunk_stride


def pooled_of(seen: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The embedding that a tower of open_clip returns, alone or before its tokens (CoCa's towers return both)."""
    return seen[0] if isinstance(seen, tuple) else seen


class FixedTokenizer:
    """A tokenizer whose texts are all padded to one length, for towers whose result depends on the padding.

    Threads may share it: they wait for each other, since transformers' tokenizers are told by each call how to pad.

    Args:
        function: texts → ``[T,L]`` token ids; must be one that can be pickled.
        context_length: L.
    """

    def __init__(self, function: Any, context_length: int = 77) -> None:
        self.function, self.context_length = function, context_length
        self._alone = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self.function, "context_length": self.context_length}

    def __setstate__(self, state: dict[str, Any]) -> None:
        FixedTokenizer.__init__(self, **state)

    def encode(self, text: str) -> tuple[tuple[int, ...], bool]:
        """Token ids of a text, padding included."""
        return tuple(self([text])[0].tolist()), False

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """``[T,L]`` int64; a string is one text."""
        shortened = [shorten(text, self.context_length) for text in as_texts(texts)]
        with self._alone:
            rows: Tensor = self.function(shortened)
        return rows


class ForeignImage(nn.Module):
    """What all foreign image towers share.

    Args:
        tower: the foreign module.
        image_size: side of the view.
        joint_dim: D.
        mean: of the pixels, per channel, in 0..1.
        std: as ``mean``.
        projection: into the joint space, where it is not part of the tower.

    Attributes:
        dense: whether patch tokens can be brought into the joint space.
        grid: rows and columns of tokens.
        covered: share of the view's side under tokens, see :mod:`cloc.models.positions.fourier`.
        width: C.
    """

    dense = True

    def __init__(
        self,
        tower: nn.Module,
        image_size: int,
        joint_dim: int,
        mean: Sequence[float],
        std: Sequence[float],
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.tower: Any = tower.eval()  # each library's have attributes of their own
        self.projection = projection
        self.image_size, self.joint_dim = image_size, joint_dim
        self.mean, self.std = tuple(mean), tuple(std)
        self.grid, self.width = (0, 0), 0
        if self.dense:
            with torch.no_grad():
                tokens = self(torch.zeros(1, 3, image_size, image_size))[1]
            side = round(tokens.shape[1] ** 0.5)
            self.dense = side * side == tokens.shape[1]
            self.grid, self.width = (side, side), tokens.shape[2]
        self.covered = covered_share(self.grid[0], self.stride, image_size)

    @property
    def stride(self) -> int:
        """Pixels from a token to the next; 0 where it is not known."""
        return 0

    @property
    def prefix_tokens(self) -> int:
        """Class and register tokens before the patch tokens."""
        return 0

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """``[...,C]`` → ``[...,D]``; a tower that is not ``dense`` has no way to."""
        raise NotImplementedError(f"{type(self).__name__}: its patch tokens cannot be projected; crop the boxes")


class OpenClipImage(ForeignImage):
    """A visual tower of open_clip whose patch tokens cannot be projected: crops only."""

    dense = False

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``[B,3,H,W]`` → ``[B,D]`` and no token ``[B,0,0]``."""
        return pooled_of(self.tower(images)), images.new_zeros(len(images), 0, 0)


class OpenClipViT(ForeignImage):
    """open_clip's own ViT."""

    @property
    def prefix_tokens(self) -> int:
        """The class token."""
        return 1

    @property
    def stride(self) -> int:
        """The side of a patch."""
        return int(self.tower.patch_size[0])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``[B,3,H,W]`` → ``[B,D]`` and patch tokens ``[B,N,C]`` after the last norm."""
        self.tower.output_tokens = True
        pooled, tokens = self.tower(images)
        return pooled, self.tower.ln_post(tokens) if self.tower.final_ln_after_pool else tokens

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """``[...,C]`` → ``[...,D]``."""
        projected: Tensor = tokens @ self.tower.proj
        return projected


class OpenClipTimm(ForeignImage):
    """A timm trunk in open_clip, with the pooling head that it came with (SigLIP, ConvNeXt, EVA, …)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.no_grad():
            maps = self.tower.trunk.forward_features(torch.zeros(1, 3, self.image_size, self.image_size))
        self.sequence = maps.ndim == 3
        self.channels_last = maps.shape[-1] == self.tower.trunk.num_features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``[B,3,H,W]`` → ``[B,D]`` and patch tokens ``[B,N,C]``."""
        maps = self.tower.trunk.forward_features(images)
        pooled = self.tower.head(self.tower.trunk.forward_head(maps))
        if maps.ndim == 3:
            return pooled, maps[:, self.prefix_tokens :]
        last = maps.shape[-1] == self.tower.trunk.num_features
        return pooled, maps.flatten(1, 2) if last else maps.flatten(2).transpose(1, 2)

    @property
    def stride(self) -> int:
        """As the trunk says."""
        return trunk_stride(self.tower.trunk)

    @property
    def prefix_tokens(self) -> int:
        """As the trunk says."""
        return int(getattr(self.tower.trunk, "num_prefix_tokens", 0))

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """``[...,C]`` → ``[...,D]``: each token through the head as a picture of that one token."""
        rows, trunk = tokens.flatten(0, -2), self.tower.trunk
        if (
            self.sequence
        ):  # as often as there are prefix tokens and once more: whatever the head pools, it is this token
            rows = rows.unsqueeze(1).expand(-1, self.prefix_tokens + 1, -1)
        else:
            rows = rows[:, None, None] if self.channels_last else rows[..., None, None]
        projected: Tensor = self.tower.head(trunk.forward_head(rows)).unflatten(0, tokens.shape[:-1])
        return projected


class TrimmedText(ClipText):
    """A causal text transformer of open_clip that is already built: trimmed as ours is.

    Args:
        tower: open_clip's ``TextTransformer``.
        joint_dim: D.
    """

    def __init__(self, tower: Any, joint_dim: int) -> None:
        nn.Module.__init__(self)
        self.tower = tower.eval()
        self.tokenizer, self.context_length, self.joint_dim = "open_clip", tower.context_length, joint_dim
        self.vocab_size = tower.vocab_size


class PaddedText(nn.Module):
    """Any other text tower, fed as its model feeds it.

    Args:
        tower: a module with ``encode(tokens)`` given apart.
        encode: ``[T,L]`` token ids → ``[T,D]``; uses ``tower``.
        context_length: L.
        joint_dim: D.
    """

    def __init__(self, tower: nn.Module, encode: Any, context_length: int, joint_dim: int) -> None:
        super().__init__()
        self.tower, self.encode = tower.eval(), encode
        self.tokenizer, self.context_length, self.joint_dim = "its own", context_length, joint_dim

    def forward(self, tokens: Tensor) -> Tensor:
        """``[T,L]`` → ``[T,D]``."""
        return pooled_of(self.encode(self.tower, tokens))


class HuggingFaceImage(ForeignImage):
    """The vision half of a CLIPModel or SiglipModel; ``projection`` is CLIP's, SigLIP has none."""

    @property
    def prefix_tokens(self) -> int:
        """CLIP's class token; SigLIP has none."""
        return 0 if self.projection is None else 1

    @property
    def stride(self) -> int:
        """The side of a patch."""
        return int(self.tower.config.patch_size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``[B,3,H,W]`` → ``[B,D]`` and patch tokens ``[B,N,C]`` after the last norm."""
        seen = self.tower(pixel_values=images)
        if self.projection is None:
            return seen.pooler_output, seen.last_hidden_state
        return self.projection(seen.pooler_output), self.tower.post_layernorm(
            seen.last_hidden_state[:, self.prefix_tokens :]
        )

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """``[...,C]`` → ``[...,D]``."""
        if self.projection is not None:
            projected: Tensor = self.projection(tokens)
        else:
            projected = self.tower.head(tokens.flatten(0, -2).unsqueeze(1)).unflatten(0, tokens.shape[:-1])
        return projected


class HuggingFaceJointText(nn.Module):
    """The text half of a CLIPModel or SiglipModel.

    No attention mask is given: CLIP is causal and pools at the end of text, SigLIP was trained to see its padding.

    Args:
        tower: ``text_model``.
        projection: CLIP's; None for SigLIP.
        context_length: L.
        joint_dim: D.
    """

    def __init__(self, tower: nn.Module, projection: nn.Module | None, context_length: int, joint_dim: int) -> None:
        super().__init__()
        self.tower, self.projection = tower.eval(), projection
        self.tokenizer, self.context_length, self.joint_dim = "its own", context_length, joint_dim

    def forward(self, tokens: Tensor) -> Tensor:
        """``[T,L]`` → ``[T,D]``."""
        pooled: Tensor = self.tower(input_ids=tokens).pooler_output
        if self.projection is not None:
            pooled = self.projection(pooled)
        return pooled
