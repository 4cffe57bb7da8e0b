"""A loaded model ready for use: pictures and texts in, embeddings and boxes out. Serves evaluation, export, labeling.

Pictures are PIL images, ``[3,H,W]`` uint8 tensors, ``[H,W,3]`` arrays or paths, one or many, of any size; a string is
one text (:mod:`cloc.data.inputs`). Boxes are normalized to the *picture*; the encoder maps them to its own padded view
and back.

What comes out are ordinary tensors without gradient, float32 on the model's device whatever its precision: a probe can
be trained on them, and they can be changed in place. (Tensors made in ``torch.inference_mode()`` can do neither.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, overload

import torch
from torch import Tensor, nn

from cloc.data.inputs import Phrases, Pictures, as_boxes, as_phrases, as_pictures, as_texts, is_picture
from cloc.data.inputs import to_tensor as to_tensor
from cloc.data.preprocess import Preprocess
from cloc.data.tokenizer import Tokenizer
from cloc.data.transforms import blank_outside, cut, to_picture, to_view
from cloc.models import taps
from cloc.models.devices import Device, DType, Placed, find_device, find_dtype, split_target
from cloc.models.model import Cloc, ImageFeatures
from cloc.models.protocols import view

Dense = tuple[Tensor, tuple[int, int]]  # patch tokens and their grid
SOURCES = ("prompter", "roi_align", "crop", "mask_pool")
# What becomes a picture of its own, a pass of the tower for each box. `native` is not in SOURCES: it is asked for by
# name alone.
AS_PICTURES = {"crop": cut, "native": blank_outside}
PAD = Preprocess()
CROP_PIXELS = 4_000_000  # of the views of one forward pass of crops: 80 at 224 px, 500 at 64 px (at most)


@dataclass(slots=True)
class EncodedPictures:
    """Pictures after one pass of the image tower; any number of prompts is answered from it.

    Attributes:
        pictures: B tensors ``[3,H,W]``.
        content: ``[B,4]`` each picture's place in its view.
        features: of the views.
        whole: the same of padded views, made when boxes are asked for and the model's own view cuts pictures off.
    """

    pictures: list[Tensor]
    content: Tensor
    features: ImageFeatures
    whole: EncodedPictures | None = field(default=None, repr=False)


class Encoder(Placed):
    """Model, tokenizer and view of one trained checkpoint.

    Threads may share it, and it can be pickled and copied.

    Args:
        model: built and with its weights.
        info: ``config``, ``samples_seen``, ``version`` of the checkpoint.
        device: where to run, see :func:`cloc.models.devices.find_device`.
        name: a short name for tables.
        tokenizer: None takes the one that the text tower names.
        preprocess: how the model wants its pictures; None takes what its image tower was trained with.
    """

    def __init__(
        self,
        model: Cloc,
        info: dict[str, Any],
        device: Device = "cpu",
        name: str = "model",
        tokenizer: Any = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        self.model, self.info, self.name = model.to(find_device(device)).eval(), info, name
        self.tokenizer = tokenizer or Tokenizer.of(model.text)
        self.preprocess = preprocess or Preprocess(view(self._tower).resize)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model's weights; what it returns is float32."""
        return self.model.dtype

    def to(self, device: Device | torch.dtype | None = None, dtype: DType | None = None) -> Self:
        """As :meth:`cloc.models.devices.Placed.to`."""
        where, precision = split_target(device, dtype)
        place = self.device if where is None else find_device(where)
        self.model.to(place, self.dtype if precision is None else find_dtype(precision, place))
        return self

    @property
    def _tower(self) -> nn.Module:
        """The image tower, as what its layers are read of: its protocol does not say that it is a module."""
        tower = self.model.image
        assert isinstance(tower, nn.Module), "a model holds modules"
        return tower

    @property
    def image_size(self) -> int:
        """Side of the model's square view in pixels."""
        size: Any = self.model.image.image_size
        return int(size)

    @property
    def joint_dim(self) -> int:
        """D, width of the joint space."""
        width: Any = self.model.image.joint_dim
        return int(width)

    @property
    def sources(self) -> tuple[str, ...]:
        """Region sources to compare by default; crops alone where its patch tokens have no way to the joint space."""
        if self.model.prompter is not None:
            return SOURCES
        return SOURCES[1:] if getattr(self.model.image, "dense", True) else ("crop",)

    @property
    def every_source(self) -> tuple[str, ...]:
        """All region sources that this model has: ``native``, which costs as much as crops, is asked for by name."""
        return (*self.sources, *(name for name in AS_PICTURES if name not in self.sources))

    @torch.no_grad()
    def see(self, pictures: Pictures) -> EncodedPictures:
        """Run the image tower once over B pictures, for :meth:`regions` and :meth:`grounded`.

        Raises:
            TypeError: what is no picture.
        """
        return self._see(as_pictures(pictures), self.preprocess)

    def _see(self, pictures: list[Tensor], preprocess: Preprocess) -> EncodedPictures:
        views, content = self._views(pictures, preprocess)
        seen = self.model.encode_images(views)
        if not pictures:
            content, seen = content[:0], ImageFeatures(seen.pooled[:0], seen.tokens[:0])
        return EncodedPictures(pictures, content, seen)

    def _views(self, pictures: list[Tensor], preprocess: Preprocess) -> tuple[Tensor, Tensor]:
        """``[B,3,S,S]`` uint8, and each picture's place in its view ``[B,4]``; without pictures a gray one, B = 1.

        Not every tower takes an empty batch. Of the gray one the callers keep no row, but shapes and device.
        """
        shown = pictures or [torch.full((3, self.image_size, self.image_size), 128, dtype=torch.uint8)]
        views, content = zip(*(preprocess(picture, self.image_size) for picture in shown), strict=True)
        return torch.stack(views).to(self.device), torch.stack(content).to(self.device)

    def _whole(self, seen: EncodedPictures) -> EncodedPictures:
        """The pictures in views that hold all of them: a box outside of a center crop has no tokens."""
        if self.preprocess.whole:
            return seen
        if seen.whole is None:
            seen.whole = self._see(seen.pictures, PAD)
        return seen.whole

    def encode_image(self, pictures: Pictures) -> Tensor:
        """Embed pictures: ``[B,D]``, unit norm.

        Raises:
            TypeError: what is no picture.
        """
        found = as_pictures(pictures)
        return self.see(found).features.pooled if found else torch.zeros(0, self.joint_dim, device=self.device)

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str], batch_size: int = 512) -> Tensor:
        """Embed texts: ``[T,D]``, unit norm; a string is one text.

        Args:
            texts: T texts.
            batch_size: of a forward pass. Sorted by length inside: short texts are not padded to long ones.

        Raises:
            TypeError: what is no text.
            ValueError: a batch of less than one text.
        """
        texts = as_texts(texts)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if not texts:
            return torch.zeros(0, self.joint_dim, device=self.device)
        order = sorted(range(len(texts)), key=lambda i: len(self.tokenizer.encode(texts[i])[0]))
        parts = [
            self.model.encode_texts(
                self.tokenizer([texts[i] for i in order[start : start + batch_size]]).to(self.device)
            )
            for start in range(0, len(order), batch_size)
        ]
        embedded = torch.cat(parts)
        return embedded[torch.tensor(order, device=self.device).argsort()]

    @torch.no_grad()
    def encode_dense(self, pictures: Pictures, layers: int | Sequence[int] = (-1,)) -> Dense | list[Dense]:
        """Patch tokens ``[B,N,C]`` and the grid (rows, columns), of the last layer or of any.

        Of views that hold the whole picture: padded, or squeezed where the model wants them so.

        Args:
            pictures: B pictures.
            layers: one or several, counted as in :mod:`cloc.models.taps`: -2 is the penultimate one. The last one is
                taken after the last norm, as the model itself uses it; the others are as their block leaves them.

        Returns:
            Tokens and grid; of several layers, a list of these in the order of ``layers``.

        Raises:
            ValueError: no such layer, or a model without patch tokens.
        """
        layers = (layers,) if isinstance(layers, int) else layers
        if not getattr(self.model.image, "dense", True):
            raise ValueError(f"{self.name} has no patch tokens: its image tower pools in a way of its own")
        preprocess = self.preprocess if self.preprocess.whole else PAD
        found, last = as_pictures(pictures), {-1}
        if inner := sorted(set(layers) - last):
            last.add(taps.depth(self._tower) - 1)
            inner = [layer for layer in inner if layer not in last]
        dense: dict[int, Dense] = {}
        if last & set(layers):
            seen = self._see(found, preprocess)
            rows, columns = self.model.grid
            dense |= dict.fromkeys(last, (seen.features.tokens, (rows, columns)))
        if inner:
            views, _ = self._views(found, preprocess)
            dense |= zip(inner, taps.tokens(self._tower, self.model.pixels(views), inner), strict=True)
        asked = [(_own(tokens[: len(found)]), grid) for tokens, grid in (dense[layer] for layer in layers)]
        return asked[0] if len(asked) == 1 else asked

    def encode_regions(self, pictures: Pictures, boxes: Any, source: str = "prompter") -> list[Tensor]:
        """Embed boxes.

        Args:
            pictures: B pictures.
            boxes: for each, ``[K_i,4]`` xyxy normalized to the picture (a tensor, an array or nested lists); for a
                picture that is not in a list its boxes alone.
            source: ``prompter``, ``roi_align``, ``mask_pool``, ``crop`` (cut out and encode as a picture) or ``native``
                (blank all around the box and encode as a picture: a thing keeps its place and its size).

        Returns:
            B tensors ``[K_i,D]``, unit norm.

        Raises:
            ValueError: a box is inverted, not finite or not normalized; or the model lacks the source.
            TypeError: what is no picture, or no box.
        """
        found, checked = as_pictures(pictures), as_boxes(boxes, is_picture(pictures))
        _check_counts(len(found), checked, "boxes")
        if not found:
            return []
        if source in AS_PICTURES:  # what is cut out needs no pass over the whole pictures
            return self._as_pictures(found, checked, source)
        return self.regions(self.see(found), checked, source)

    @torch.no_grad()
    def regions(self, seen: EncodedPictures, boxes: Any, source: str = "prompter") -> list[Tensor]:
        """As :meth:`encode_regions`, from pictures already seen.

        Boxes that were found may be without area: shapes are checked here, values are not.
        """
        rows = as_boxes(boxes, len(seen.pictures) == 1, check=False)
        _check_counts(len(seen.pictures), rows, "boxes")
        if source in AS_PICTURES:
            return self._as_pictures(seen.pictures, rows, source)
        if source == "prompter" and self.model.prompter is None:
            raise ValueError(
                f"{self.name} has no Prompter (a CLIP model): use source roi_align, mask_pool, crop or native"
            )
        if source in SOURCES and source not in self.sources:
            raise ValueError(
                f"{self.name} has no patch tokens in the joint space: source={source!r} must be crop or native"
            )
        if not rows:
            return []
        seen, counts = self._whole(seen), [len(own) for own in rows]
        padded = torch.zeros(len(rows), max([*counts, 1]), 4)
        padded[..., 2:] = 1.0
        for row, own in zip(padded, rows, strict=True):
            row[: len(own)] = own
        views = to_view(padded.to(self.device), seen.content.unsqueeze(1))
        embedded = self.model.encode_boxes(seen.features, views, source)
        return [_own(row[:count]) for row, count in zip(embedded, counts, strict=True)]

    @torch.no_grad()
    def _as_pictures(self, pictures: Sequence[Tensor], boxes: Sequence[Tensor], source: str) -> list[Tensor]:
        # What is blanked keeps its place: a view that cuts pictures off would not show a thing at their border.
        preprocess = self.preprocess if source == "crop" or self.preprocess.whole else PAD
        batch_size = min(512, max(16, CROP_PIXELS // self.image_size**2))
        every = [(picture, box) for picture, rows in zip(pictures, boxes, strict=True) for box in rows.tolist()]
        parts = [torch.zeros(0, self.joint_dim, device=self.device)]
        for start in range(0, len(every), batch_size):
            # A picture with its surroundings blanked is as large as it was: no more than one at a time.
            shown = (AS_PICTURES[source](*one) for one in every[start : start + batch_size])
            views = torch.stack([preprocess(one, self.image_size)[0] for one in shown])
            parts.append(self.model.encode_images(views.to(self.device)).pooled)
        rows = torch.cat(parts)
        return [_own(own) for own in rows.split([len(own) for own in boxes])]

    @overload
    def ground(self, pictures: Pictures, phrases: Phrases, return_scores: Literal[False] = False) -> list[Tensor]: ...
    @overload
    def ground(
        self, pictures: Pictures, phrases: Phrases, return_scores: Literal[True]
    ) -> tuple[list[Tensor], list[Tensor]]: ...

    def ground(
        self,
        pictures: Pictures,
        phrases: Phrases,
        return_scores: bool = False,
    ) -> list[Tensor] | tuple[list[Tensor], list[Tensor]]:
        """Find phrases in pictures.

        Args:
            pictures: B pictures.
            phrases: for each, T_i texts. A string is looked for in every picture; strings need not be in a second list
                where there is one picture.
            return_scores: say how well each box fits its phrase. A box is given for every phrase, also for one that is
                not in the picture; the score tells.

        Returns:
            B tensors ``[T_i,4]``, xyxy normalized to the picture; and with ``return_scores`` B tensors ``[T_i]`` in
            -1..1, see :meth:`cloc.models.model.Cloc.likeness`. Where to cut is a matter of the model: from 0.5 on in
            the demo's.

        Raises:
            ValueError: the model has no grounding head, or pictures and lists of phrases are not as many.
            TypeError: what is no picture, or no text.
        """
        found = as_pictures(pictures)
        asked = as_phrases(phrases, len(found), is_picture(pictures))
        _check_counts(len(found), asked, "phrases")
        if not found:
            return ([], []) if return_scores else []
        flat = [text for texts in asked for text in texts]
        embedded = self.encode_text(flat).split([len(texts) for texts in asked])
        seen = self.see(found)
        return self.grounded(seen, embedded, return_scores=True) if return_scores else self.grounded(seen, embedded)

    @overload
    def grounded(
        self, seen: EncodedPictures, text: Tensor | Sequence[Tensor], return_scores: Literal[False] = False
    ) -> list[Tensor]: ...
    @overload
    def grounded(
        self, seen: EncodedPictures, text: Tensor | Sequence[Tensor], return_scores: Literal[True]
    ) -> tuple[list[Tensor], list[Tensor]]: ...

    @torch.no_grad()
    def grounded(
        self, seen: EncodedPictures, text: Tensor | Sequence[Tensor], return_scores: bool = False
    ) -> list[Tensor] | tuple[list[Tensor], list[Tensor]]:
        """As :meth:`ground`, from pictures already seen and phrases already embedded.

        Args:
            seen: B pictures.
            text: B tensors ``[T_i,D]`` of unit norm; of one picture also its alone.
            return_scores: as there.
        """
        rows_of = [text] if isinstance(text, Tensor) and text.ndim == 2 else list(text)
        asked = [rows.to(self.device).float() for rows in rows_of]
        _check_counts(len(seen.pictures), asked, "phrases")
        if not asked:
            return ([], []) if return_scores else []
        whole, counts = self._whole(seen), [len(rows) for rows in asked]
        padded = torch.zeros(len(asked), max([*counts, 1]), self.joint_dim, device=self.device)
        for row, own in zip(padded, asked, strict=True):
            row[: len(own)] = own
        found = to_picture(self.model.ground(whole.features, padded), whole.content.unsqueeze(1))
        boxes = [_own(row[:count]) for row, count in zip(found, counts, strict=True)]
        if not return_scores:
            return boxes
        scores = self.model.likeness(whole.features, padded, to_view(found, whole.content.unsqueeze(1)))
        return boxes, [_own(row[:count]) for row, count in zip(scores, counts, strict=True)]

    @property
    def can_ground(self) -> bool:
        """Whether :meth:`ground` works."""
        return self.model.grounding is not None


def _own(rows: Tensor) -> Tensor:
    """Float32 in memory of its own: a view that was made without gradient cannot be changed in place with one."""
    rows = rows.float()
    return rows.clone() if rows._is_view() else rows


def _check_counts(pictures: int, lists: Sequence[Any], name: str) -> None:
    if pictures != len(lists):
        raise ValueError(f"{pictures} pictures but {len(lists)} lists of {name}; give one list a picture")
