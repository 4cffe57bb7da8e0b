"""The whole model: Batch → Features. It never computes a loss.

Composes the towers, the Prompter and the grounding head. A model without Prompter is a plain CLIP: the baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.profiler import record_function

from cloc.contracts import Batch, Features
from cloc.models.frozen import FrozenPart, frozen_part
from cloc.models.positions.fourier import onto_grid, onto_view
from cloc.models.protocols import GroundingHead, ImageTower, Prompter, TextTower, as_module, declared, view
from cloc.models.region_pooling import mask_tokens, roi_tokens
from cloc.models.sanity import check_pixels
from cloc.models.temperature import inverse_temperatures, new_log_scales


@dataclass(slots=True)
class ImageFeatures:
    """An encoded picture: what every prompt is answered from.

    Attributes:
        pooled: ``[B,D]`` unit norm.
        tokens: ``[B,N,C]`` after the last norm.
    """

    pooled: Tensor
    tokens: Tensor


class Cloc(nn.Module):
    """Image tower, text tower, and optionally Prompter and grounding head.

    Args:
        image: a tower, as ``protocols.py`` says; ours are in ``image.py``.
        text: a tower; ours are in ``text.py``.
        prompter: a Prompter, or None for CLIP.
        grounding: a head, or None; needs a Prompter that takes phrases.
        logit_bias: start of a learned bias of the logits of each contrastive loss; None for no bias. With one, inverse
            temperatures start at 10 and not at 1/0.07: SigLIP's values and CLIP's.
        frozen_towers: keep both towers, and what scales their logits, as they are. They stay in evaluation mode.
        crop_scale: learn a temperature (and bias) for crops of regions beside that of pictures.

    Raises:
        ValueError: a grounding head without such a Prompter.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        prompter: Prompter | None = None,
        grounding: GroundingHead | None = None,
        logit_bias: float | None = None,
        frozen_towers: bool = False,
        crop_scale: bool = False,
    ) -> None:
        super().__init__()
        if grounding is not None and not getattr(prompter, "supports_phrases", False):
            raise ValueError(
                f"model.grounding needs a Prompter that takes phrases, model.prompter is {type(prompter).__name__}; "
                "set model.grounding=null or model.prompter=shared"
            )
        self.image, self.text, self.prompter, self.grounding = image, text, prompter, grounding
        if grounding is None and prompter is not None and hasattr(prompter, "phrase_prompt"):
            # Never asked for a phrase; distributed training would wait for its gradient.
            declared(prompter).phrase_prompt.requires_grad_(False)
        names = ["global", *["region"] * (prompter is not None), *["crops"] * crop_scale]
        self.log_scales = new_log_scales(names, logit_bias is not None)
        biases = {} if logit_bias is None else dict.fromkeys(names, float(logit_bias))
        self.biases = nn.ParameterDict({n: nn.Parameter(torch.full((1,), value)) for n, value in biases.items()})
        seen = view(image)
        check_pixels(seen.mean, seen.std)
        self.register_buffer("mean", _in_bytes(seen.mean), persistent=False)
        self.register_buffer("std", _in_bytes(seen.std), persistent=False)
        self.frozen_towers = frozen_towers
        if frozen_towers:
            self._freeze()

    def _freeze(self) -> None:
        for part in (self.image, self.text):
            as_module(part).requires_grad_(False).eval()
        for scalars in (self.log_scales, self.biases):
            if "global" in scalars:
                scalars["global"].requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As usual, but frozen towers stay in evaluation mode."""
        super().train(mode)
        if self.frozen_towers:
            as_module(self.image).eval()
            as_module(self.text).eval()
        return self

    @property
    def classes(self) -> list[type]:
        """Classes of the parts: what a file of a model of the same making may name."""
        return [type(part) for part in (self.image, self.text, self.prompter, self.grounding) if part is not None]

    @property
    def dtype(self) -> torch.dtype:
        """Precision that the weights were brought to."""
        return next((value.dtype for value in self.parameters() if value.is_floating_point()), self.mean.dtype)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patch tokens."""
        return self.image.grid

    @property
    def covered(self) -> float:
        """Share of the view's side under patch tokens, see :mod:`cloc.models.positions.fourier`."""
        share: float = getattr(self.image, "covered", 1.0)
        return share

    def forward(self, batch: Batch) -> Features:
        """Encode a whole batch; the tower runs once an image, each distinct phrase once a step.

        What a batch brings of frozen towers is taken from it.
        """
        image, crop = self._seen(batch)
        region = grounded = None
        text, phrase = self._read(batch)
        if self.prompter is not None and phrase is not None:
            with record_function("prompter"):
                memory = self.prompter.memory(image.tokens)
                region = normalize(self.prompter.boxes(memory, self._onto_grid(batch.boxes)).float(), dim=-1)
                if self.grounding is not None:
                    own = phrase[batch.region_phrase]
                    grounded = self._ground(self.prompter, self.grounding, memory, own, image.tokens)
        biases = {name: value.clone() for name, value in self.biases.items()}
        return Features(image.pooled, text, region, phrase, grounded, self.scales(), biases, crop)

    def _seen(self, batch: Batch) -> tuple[ImageFeatures, Tensor | None]:
        """The pictures encoded, and ``[B,K,D]`` of their crops where there are any.

        Both in one pass: a row does not depend on the others (but by batch norm that is trained). One pass, whatever
        regions there are, is also what sharded weights need: each process gathers them as often.
        """
        if batch.tokens is not None and batch.pooled is not None:
            return ImageFeatures(batch.pooled, batch.tokens.to(self.dtype)), None
        given, crops = batch.images, batch.crops
        encode: Callable[[Tensor], ImageFeatures] = self.encode_images
        if batch.image_states is not None:
            given, crops, encode = batch.image_states, batch.crop_states, self._encode_image_states
        if crops is None:
            return encode(given), None
        count, valid = len(given), batch.crop_valid
        seen = encode(torch.cat([given, crops[valid]]))
        crop = seen.pooled.new_zeros(*valid.shape, seen.pooled.shape[-1])
        crop[valid] = seen.pooled[count:]
        return ImageFeatures(seen.pooled[:count], seen.tokens[:count]), crop

    def _read(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Embeddings of a batch's captions, and of its phrases where a Prompter or crops want them."""
        if batch.phrase_embeddings is not None:
            return batch.caption_embeddings, batch.phrase_embeddings
        given, encode = (batch.captions, batch.phrases), self.encode_texts
        if batch.caption_states is not None and batch.phrase_states is not None:
            given, encode = (batch.caption_states, batch.phrase_states), self._encode_text_states
        if not self.reads_phrases(batch):
            return encode(given[0]), None
        text, phrase = encode(*given).split([len(rows) for rows in given])
        return text, phrase

    def reads_phrases(self, batch: Batch) -> bool:
        """Whether the phrases of a batch are embedded."""
        return self.prompter is not None or batch.has_crops

    def scales(self) -> dict[str, Tensor]:
        """Inverse temperatures, exponentiated and clamped at 100."""
        return inverse_temperatures(self.log_scales)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As usual, but the pixels' statistics stay float32, which lower precisions would round for good.

        And what timm's LeViT and its kin have kept of their biases in another precision is forgotten.
        """
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # PyTorch leaves it without types
        for name, values in (("mean", view(self.image).mean), ("std", view(self.image).std)):
            if (rounded := self.get_buffer(name)).dtype.itemsize < 4:
                setattr(self, name, _in_bytes(values).to(rounded.device))
        for module in self.modules():
            if isinstance(kept := getattr(module, "attention_bias_cache", None), dict):
                kept.clear()
        return self

    def pixels(self, images: Tensor) -> Tensor:
        """``[B,3,H,W]`` uint8 views → normalized, in the precision that the model's weights were brought to."""
        return ((images.float() - self.mean) / self.std).to(self.dtype)

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """``[B,3,H,W]`` uint8 views → features; normalized here, on the device."""
        with record_function("image tower"):
            return _of_unit_norm(*self.image(self.pixels(images)))

    def encode_texts(self, *groups: Tensor) -> Tensor:
        """Groups of ``[T,L]`` token ids → ``[T,D]`` of unit norm, of all groups in their order."""
        with record_function("text tower"):
            return normalize(self.text(*groups).float(), dim=-1)

    def _encode_image_states(self, states: Tensor) -> ImageFeatures:
        """As :meth:`encode_images`, of what the frozen part of the tower has made of the pictures."""
        with record_function("image tower"):
            return _of_unit_norm(*_frozen(self.image).rest(states))

    def _encode_text_states(self, *groups: Tensor) -> Tensor:
        """As :meth:`encode_texts`, of what the frozen part of the tower has made of the texts."""
        with record_function("text tower"):
            return normalize(_frozen(self.text).rest(torch.cat(groups)).float(), dim=-1)

    def encode_boxes(self, image: ImageFeatures, boxes: Tensor, source: str = "prompter") -> Tensor:
        """Embed boxes of encoded pictures.

        Args:
            image: B encoded pictures.
            boxes: ``[B,K,4]`` xyxy in 0..1 of the view.
            source: ``prompter``, ``roi_align`` or ``mask_pool``; the latter two project pooled patch tokens as the
                global embedding is projected and work for every model.

        Returns:
            ``[B,K,D]`` of unit norm.

        Raises:
            ValueError: unknown source, or ``prompter`` for a model without one.
        """
        if source == "prompter":
            if self.prompter is None:
                raise ValueError(
                    "source='prompter': this model has no Prompter; use roi_align, mask_pool, crop or native"
                )
            memory = self.prompter.memory(image.tokens)
            return normalize(self.prompter.boxes(memory, self._onto_grid(boxes)).float(), dim=-1)
        pool = {"roi_align": roi_tokens, "mask_pool": mask_tokens}.get(source)
        if pool is None:
            raise ValueError(f"source={source!r}: give prompter, roi_align, mask_pool, crop or native")
        pooled = pool(image.tokens, self.grid, self._onto_grid(boxes))
        return normalize(self.image.project_tokens(pooled).float(), dim=-1)

    def ground(self, image: ImageFeatures, text: Tensor) -> Tensor:
        """Boxes ``[B,K,4]`` of the view for phrase embeddings ``[B,K,D]``.

        Raises:
            ValueError: the model has no grounding head.
        """
        if self.prompter is None or self.grounding is None:
            raise ValueError("this model has no grounding head; train one with model.grounding and loss.grounding > 0")
        memory = self.prompter.memory(image.tokens)
        return self._ground(self.prompter, self.grounding, memory, text, image.tokens).clamp(0, 1)

    def likeness(self, image: ImageFeatures, text: Tensor, boxes: Tensor) -> Tensor:
        """How well boxes fit phrases, so that a phrase which is not in the picture is known by a low number.

        The mean of two cosines to the phrase: of the box, as the Prompter reads it, and of the best single token of the
        picture. Either alone tells what is not there less well (docs/benchmarks.md#absent).

        Args:
            image: B encoded pictures.
            text: ``[B,K,D]`` phrases, unit norm.
            boxes: ``[B,K,4]`` of the view, one for each phrase.

        Returns:
            ``[B,K]`` in -1..1.

        Raises:
            ValueError: a model whose Prompter takes no phrases.
        """
        if self.prompter is None or not self.prompter.supports_phrases:
            raise ValueError("this model has no Prompter that takes phrases; train one with model.prompter=shared")
        memory = self.prompter.memory(image.tokens)
        region = normalize(self.prompter.boxes(memory, self._onto_grid(boxes)).float(), dim=-1)
        local = normalize(self.prompter.local(memory).float(), dim=-1)
        best = (text.float() @ local.transpose(1, 2)).amax(-1)
        return ((region * text.float()).sum(-1) + best) / 2

    def _ground(self, prompter: Prompter, head: GroundingHead, memory: Any, text: Tensor, tokens: Tensor) -> Tensor:
        local = normalize(prompter.local(memory).float(), dim=-1)
        return onto_view(head(prompter.phrases(memory, text), text, local, tokens), self.covered)

    def _onto_grid(self, boxes: Tensor) -> Tensor:
        return onto_grid(boxes, self.covered, self.grid[0])


def _of_unit_norm(pooled: Tensor, tokens: Tensor) -> ImageFeatures:
    return ImageFeatures(normalize(pooled.float(), dim=-1), tokens)


def _frozen(tower: ImageTower | TextTower) -> FrozenPart:
    part = frozen_part(tower)
    assert part is not None, "asked before"  # what its part makes is kept for a tower that has one
    return part


def _in_bytes(values: Sequence[float]) -> Tensor:
    """``[3,1,1]`` float32: of a channel's values in 0..1, those of 0..255."""
    return torch.tensor(values, dtype=torch.float32).view(3, 1, 1) * 255
