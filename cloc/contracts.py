"""All that passes between folders: Sample, Batch, Features, LossTerms.

Stands at the root of the flow ``data → models → losses → evaluation → engine``; every folder may import it and it
imports none of them. Shape letters, everywhere in the project: **B** images, **M** regions per image (padded),
**N** patch tokens, **C** tower width, **D** joint width, **P** distinct phrases in the batch, **L** text length,
**W** world size. Boxes are xyxy, normalized to 0..1.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Per(StrEnum):
    """What the rows of a field are; each field of Batch and Features says it."""

    PICTURE = "picture"
    PHRASE = "phrase"
    BATCH = "batch"  # one value for the whole batch


def per_picture(into_phrases: bool = False, **options: Any) -> Any:
    """A field with one row a picture.

    Args:
        into_phrases: its values are indices of the batch's phrases, negative for none.
        options: of :func:`dataclasses.field`.
    """
    return field(metadata={"per": Per.PICTURE, "into_phrases": into_phrases}, **options)


def per_phrase(**options: Any) -> Any:
    """A field with one row a distinct phrase; options are those of :func:`dataclasses.field`."""
    return field(metadata={"per": Per.PHRASE}, **options)


def per_batch(**options: Any) -> Any:
    """A field that belongs to the batch as a whole; options are those of :func:`dataclasses.field`."""
    return field(metadata={"per": Per.BATCH}, **options)


def per(one: Field[Any]) -> Per:
    """What the rows of a field are.

    Raises:
        TypeError: the field does not say it.
    """
    if "per" not in one.metadata:
        raise TypeError(f"{one.name}: declare it by per_picture(), per_phrase() or per_batch() of cloc/contracts.py")
    found: Per = one.metadata["per"]
    return found


class BadSample(ValueError):
    """A sample that cannot be used. ``reason`` is the counter's name, ``detail`` says what was seen."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Region:
    """One annotated box of a picture.

    Attributes:
        box: xyxy, normalized to 0..1 of the upright picture.
        phrases: texts that name the box; at least one.
        category: class name, where the source has a closed set of classes.
        score: confidence of a pseudo-label in 0..1.
        negatives: hard negative texts of this region.
        crowd: the box covers a group that the source marked as a crowd.
    """

    box: tuple[float, float, float, float]
    phrases: tuple[str, ...]
    category: str | None = None
    score: float | None = None
    negatives: tuple[str, ...] = ()
    crowd: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture as the shards hold it: encoded bytes and annotations.

    Attributes:
        key: unique name within its data set.
        image: encoded file of one of ``decode.FORMATS``.
        extension: file name extension of ``image``, without the dot.
        captions: texts of the whole picture; may be empty.
        regions: annotated boxes; may be empty.
        width: width of the upright picture in pixels; 0 where the source does not say.
        height: height of the upright picture in pixels; 0 where the source does not say.
        source: name of the data set the sample came from.
        extra: whatever else the sample's JSON holds (for instance a ``relation`` test item).
    """

    key: str
    image: bytes
    extension: str
    captions: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    width: int = 0
    height: int = 0
    source: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Batch:
    """One batch of one rank, built whole in the data worker.

    Attributes:
        images: ``[B,3,H,W]`` uint8.
        content: ``[B,4]`` the picture inside the padding.
        captions: ``[B,L]`` int64 token ids, trimmed to the longest of the batch.
        caption_id: ``[B]`` int64 hash of the caption's tokens; equal captions have equal ids.
        boxes: ``[B,M,4]`` in the coordinates of the padded view.
        target_boxes: ``[B,M,4]`` the union of all boxes of the picture that the region's phrase owns.
        region_valid: ``[B,M]`` bool.
        phrases: ``[P,L]`` int64 token ids of the distinct phrases, trimmed; P ≥ 1 even without regions.
        phrase_id: ``[P]`` int64 hash of the phrase's tokens, equal across ranks.
        region_phrase: ``[B,M]`` int64 index into ``phrases``.
        phrase_is_shared: ``[B,M]`` bool, the phrase owns another box of the same picture.
        keys: B sample keys.
        source: ``[B]`` int64 index of the data source.
        cursor: global position of the first sample *after* this global batch; what a checkpoint stores.
        stats: counters of the data worker (skips by reason, truncated texts, …).
        negatives: ``[B,M,K]`` int64 index into ``phrases`` of each region's hard negatives, −1 for none; None where
            ``data.negatives`` is 0.
        crops: ``[B,K,3,H,W]`` uint8, views of the picture's first K regions, cut out at the picture's own resolution;
            crop k is that of region k and there where ``region_valid[:, k]``. None where ``data.crops`` is 0.
        places: ``[B,3]`` int64 of what frozen towers have made of each sample (source, shard, number in it); None where
            pictures are read. ``images`` then holds none: ``[B,3,0,0]``.
        tokens: ``[B,N,C]`` patch tokens of a frozen image tower, from the token cache; None where it runs.
        pooled: ``[B,D]`` unit norm, likewise.
        caption_embeddings: ``[B,D]`` unit norm of a frozen text tower; None where it runs, or no loss reads captions.
        phrase_embeddings: ``[P,D]`` likewise.
        image_states: ``[B,…]`` what the frozen part of an image tower has made of each picture, from the token cache;
            None where the whole tower runs, or the whole is frozen.
        crop_places: ``[B,K]`` int64, which of a sample's regions (without crowds) each crop is, −1 for none; None where
            pictures are read, or ``data.crops`` is 0.
        crop_states: ``[B,K,…]`` as ``image_states`` of those.
        caption_states: ``[B,…]`` likewise of each caption, by the text tower.
        phrase_states: ``[P,…]`` of each distinct phrase.
        teacher_image: ``[B,D]`` a frozen teacher's embedding of each picture, unit norm; the engine puts it and what
            follows there where a term asks for a teacher, else None.
        teacher_text: ``[B,D]`` of each caption.
        teacher_phrase: ``[P,D]`` of each distinct phrase; None also where phrases are not read.
    """

    images: Tensor = per_picture()
    content: Tensor = per_picture()
    captions: Tensor = per_picture()
    caption_id: Tensor = per_picture()
    boxes: Tensor = per_picture()
    target_boxes: Tensor = per_picture()
    region_valid: Tensor = per_picture()
    phrases: Tensor = per_phrase()
    phrase_id: Tensor = per_phrase()
    region_phrase: Tensor = per_picture(into_phrases=True)
    phrase_is_shared: Tensor = per_picture()
    keys: list[str] = per_picture()
    source: Tensor = per_picture()
    cursor: int = per_batch()
    stats: dict[str, float] = per_batch(default_factory=dict)
    negatives: Tensor | None = per_picture(into_phrases=True, default=None)
    crops: Tensor | None = per_picture(default=None)
    places: Tensor | None = per_picture(default=None)
    tokens: Tensor | None = per_picture(default=None)
    pooled: Tensor | None = per_picture(default=None)
    caption_embeddings: Tensor | None = per_picture(default=None)
    phrase_embeddings: Tensor | None = per_phrase(default=None)
    image_states: Tensor | None = per_picture(default=None)
    crop_places: Tensor | None = per_picture(default=None)
    crop_states: Tensor | None = per_picture(default=None)
    caption_states: Tensor | None = per_picture(default=None)
    phrase_states: Tensor | None = per_phrase(default=None)
    teacher_image: Tensor | None = per_picture(default=None)
    teacher_text: Tensor | None = per_picture(default=None)
    teacher_phrase: Tensor | None = per_phrase(default=None)

    def __getstate__(self) -> dict[str, Any]:
        """Pickled, all but pixels travels by value.

        PyTorch shares every tensor through a file descriptor of its own, which is handed over through a socket: for
        the dozen small ones that took a data worker longer than reading two photographs.
        """
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        small = {
            name: value.numpy()
            for name, value in state.items()
            if name not in PIXELS and isinstance(value, Tensor) and _by_value(value)
        }
        return state | small

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, torch.from_numpy(value) if isinstance(value, np.ndarray) else value)

    @property
    def has_crops(self) -> bool:
        """Whether regions are cut out, or what a frozen part makes of that is at hand."""
        return self.crops is not None or self.crop_states is not None

    @property
    def crop_valid(self) -> Tensor:
        """``[B,K]`` bool, which crops there are; K = 0 for a batch without."""
        crops = self.crop_states if self.crops is None else self.crops
        return self.region_valid[:, : 0 if crops is None else crops.shape[1]]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with every tensor on ``device``."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value
            for f in fields(self)
            for value in [getattr(self, f.name)]
        }
        return Batch(**moved)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, for asynchronous copies (called by the DataLoader)."""
        pinned: dict[str, Any] = {
            f.name: value.pin_memory() if isinstance(value, Tensor) else value
            for f in fields(self)
            for value in [getattr(self, f.name)]
        }
        return Batch(**pinned)


PIXELS = ("images", "crops")
"""Fields of a batch that are too large to travel by value."""


def _by_value(value: Tensor) -> bool:
    """Whether NumPy can carry a tensor."""
    return value.device.type == "cpu" and value.dtype != torch.bfloat16 and not value.requires_grad


@dataclass(slots=True)
class Features:
    """What a model makes of a batch. Embeddings have unit norm and are float32.

    Attributes:
        image: ``[B,D]`` pooled image embedding.
        text: ``[B,D]`` caption embedding; None where no loss reads captions and frozen towers' outputs are at hand.
        region: ``[B,M,D]`` Prompter embedding of each box, or None for a model without Prompter.
        phrase: ``[P,D]`` embedding of each distinct phrase, or None.
        crop: ``[B,K,D]`` embedding of each crop of the batch, zero where there is none; None for a batch without crops.
        grounded: ``[B,M,4]`` xyxy box predicted from each region's phrase, or None for a model without grounding.
        scales: inverse temperature of each contrastive loss, each ``[1]``, already exponentiated and clamped.
        biases: added to the logits of each contrastive loss, each ``[1]``; none without ``model.logit_bias``.
    """

    image: Tensor = per_picture()
    text: Tensor | None = per_picture()
    region: Tensor | None = per_picture()
    phrase: Tensor | None = per_phrase()
    grounded: Tensor | None = per_picture()
    scales: dict[str, Tensor] = per_batch()
    biases: dict[str, Tensor] = per_batch(default_factory=dict)
    crop: Tensor | None = per_picture(default=None)


@dataclass(slots=True)
class LossTerms:
    """A loss with its parts.

    Attributes:
        total: scalar to back-propagate.
        terms: unweighted named terms (detached scalars).
        stats: what else is worth logging (filtered share, λ, count of valid regions, …); detached scalars.
    """

    total: Tensor
    terms: dict[str, Tensor]
    stats: dict[str, Tensor]
