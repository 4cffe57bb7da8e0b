"""A loaded model ready for use: pictures and texts in, embeddings and boxes out. Serves evaluation, export, labeling.

Pictures are PIL images, ``[3,H,W]`` uint8 tensors, ``[H,W,3]`` arrays or paths, one or many, of any size; a string is
one text (:mod:`cloc.data.inputs`). Boxes are normalized to the *picture*; the encoder maps them to its own padded view
and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cloc.data.inputs import Picture, as_boxes, as_phrases, as_pictures, as_texts, is_picture
from cloc.data.inputs import to_tensor as to_tensor
from cloc.data.preprocess import Preprocess
from cloc.data.tokenizer import Tokenizer
from cloc.data.transforms import to_picture, to_view
from cloc.models import taps
from cloc.models.model import Cloc, ImageFeatures
from cloc.models.protocols import view

SOURCES = ("prompter", "roi_align", "crop", "mask_pool")
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


class Encoder:
    """Model, tokenizer and view of one trained checkpoint.

    Args:
        model: built and with its weights.
        info: ``config``, ``samples_seen``, ``version`` of the checkpoint.
        device: where to run.
        name: a short name for tables.
        tokenizer: None takes the one that the text tower names.
        preprocess: how the model wants its pictures; None takes what its image tower was trained with.
    """

    def __init__(
        self,
        model: Cloc,
        info: dict[str, Any],
        device: str = "cpu",
        name: str = "model",
        tokenizer: Any = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        self.model, self.info, self.device, self.name = model.to(device).eval(), info, torch.device(device), name
        self.tokenizer = tokenizer or Tokenizer.of(model.text)
        self.preprocess = preprocess or Preprocess(view(self._tower).resize)

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
        """Region sources that this model has; crops alone where its patch tokens have no way to the joint space."""
        if self.model.prompter is not None:
            return SOURCES
        return SOURCES[1:] if getattr(self.model.image, "dense", True) else ("crop",)

    @torch.inference_mode()
    def see(self, pictures: Picture | Sequence[Picture]) -> EncodedPictures:
        """Run the image tower once over B pictures.

        Raises:
            ValueError: no picture at all.
            TypeError: what is no picture.
        """
        return self._see(as_pictures(pictures), self.preprocess)

    def _see(self, pictures: list[Tensor], preprocess: Preprocess) -> EncodedPictures:
        views, content = self._views(pictures, preprocess)
        return EncodedPictures(pictures, content, self.model.encode_images(views))

    def _views(self, pictures: list[Tensor], preprocess: Preprocess) -> tuple[Tensor, Tensor]:
        """``[B,3,S,S]`` uint8, and each picture's place in its view ``[B,4]``."""
        if not pictures:
            raise ValueError("no picture was given; give at least one")
        views, content = zip(*(preprocess(picture, self.image_size) for picture in pictures), strict=True)
        return torch.stack(views).to(self.device), torch.stack(content).to(self.device)

    def _whole(self, seen: EncodedPictures) -> EncodedPictures:
        """The pictures in views that hold all of them: a box outside of a center crop has no tokens."""
        if self.preprocess.whole:
            return seen
        if seen.whole is None:
            seen.whole = self._see(seen.pictures, PAD)
        return seen.whole

    def encode_image(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """Embed pictures: ``[B,D]``, unit norm.

        Raises:
            TypeError: what is no picture.
        """
        found = as_pictures(pictures)
        return self.see(found).features.pooled if found else torch.zeros(0, self.joint_dim)

    @torch.inference_mode()
    def encode_text(self, texts: str | Sequence[str], batch_size: int = 512) -> Tensor:
        """Embed texts: ``[T,D]``, unit norm; a string is one text.

        Sorted by length inside: short texts are not padded to long ones.

        Raises:
            TypeError: what is no text.
        """
        texts = as_texts(texts)
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

    @torch.inference_mode()
    def encode_dense(
        self, pictures: Picture | Sequence[Picture], layers: Sequence[int] = (-1,)
    ) -> tuple[Tensor, tuple[int, int]] | list[tuple[Tensor, tuple[int, int]]]:
        """Patch tokens ``[B,N,C]`` and the grid (rows, columns), of the last layer or of any.

        Of views that hold the whole picture: padded, or squeezed where the model wants them so.

        Args:
            pictures: B pictures.
            layers: counted as in :mod:`cloc.models.taps`: -2 is the penultimate one. The last one is taken after the
                last norm, as the model itself uses it; the others are as their block leaves them.

        Returns:
            Tokens and grid; of several layers, a list of these in the order of ``layers``.

        Raises:
            ValueError: no picture, no such layer, or a model without patch tokens.
        """
        if not getattr(self.model.image, "dense", True):
            raise ValueError(f"{self.name} has no patch tokens: its image tower pools in a way of its own")
        preprocess = self.preprocess if self.preprocess.whole else PAD
        found, last = as_pictures(pictures), {-1}
        if inner := sorted(set(layers) - last):
            last.add(taps.depth(self._tower) - 1)
            inner = [layer for layer in inner if layer not in last]
        dense: dict[int, tuple[Tensor, tuple[int, int]]] = {}
        if last & set(layers):
            seen = self._see(found, preprocess)
            rows, columns = self.model.grid
            dense |= dict.fromkeys(last, (seen.features.tokens, (rows, columns)))
        if inner:
            views, _ = self._views(found, preprocess)
            pixels = (views.float() - self.model.get_buffer("mean")) / self.model.get_buffer("std")
            dense |= zip(inner, taps.tokens(self._tower, pixels, inner), strict=True)
        return dense[layers[0]] if len(layers) == 1 else [dense[layer] for layer in layers]

    def encode_regions(
        self, pictures: Picture | Sequence[Picture], boxes: Any, source: str = "prompter"
    ) -> list[Tensor]:
        """Embed boxes.

        Args:
            pictures: B pictures.
            boxes: for each, ``[K_i,4]`` xyxy normalized to the picture (a tensor, an array or nested lists); for a
                picture that is not in a list its boxes alone.
            source: ``prompter``, ``roi_align``, ``mask_pool``, or ``crop`` (cut out and encode as a picture).

        Returns:
            B tensors ``[K_i,D]``, unit norm.

        Raises:
            ValueError: a box is inverted, not finite or not normalized; or the model lacks the source.
            TypeError: what is no picture, or no box.
        """
        found, checked = as_pictures(pictures), as_boxes(boxes, is_picture(pictures))
        if len(found) != len(checked):
            raise ValueError(f"{len(found)} pictures but {len(checked)} lists of boxes; give one list a picture")
        if not found:
            return []
        if source == "crop":  # what is cut out needs no pass over the whole pictures
            return self._crops(found, checked)
        return self.regions(self.see(found), checked, source)

    @torch.inference_mode()
    def regions(self, seen: EncodedPictures, boxes: Sequence[Tensor], source: str = "prompter") -> list[Tensor]:
        """As :meth:`encode_regions`, from pictures already seen."""
        counts = [len(rows) for rows in boxes]
        if source == "crop":
            return self._crops(seen.pictures, boxes)
        if source == "prompter" and self.model.prompter is None:
            raise ValueError(f"{self.name} has no Prompter (a CLIP model): use source roi_align, mask_pool or crop")
        if source in SOURCES and source not in self.sources:
            raise ValueError(f"{self.name} has no patch tokens in the joint space: source={source!r} must be crop")
        seen = self._whole(seen)
        padded = torch.zeros(len(boxes), max([*counts, 1]), 4)
        padded[..., 2:] = 1.0
        for row, own in zip(padded, boxes, strict=True):
            row[: len(own)] = own
        views = to_view(padded.to(self.device), seen.content.unsqueeze(1))
        embedded = self.model.encode_boxes(seen.features, views, source)
        return [row[:count] for row, count in zip(embedded, counts, strict=True)]

    def _crops(self, pictures: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[Tensor]:
        batch_size = min(512, max(16, CROP_PIXELS // self.image_size**2))
        cuts = [cut(picture, box) for picture, rows in zip(pictures, boxes, strict=True) for box in rows.tolist()]
        parts = [self.encode_image(cuts[start : start + batch_size]) for start in range(0, len(cuts), batch_size)]
        rows = torch.cat([torch.zeros(0, self.joint_dim, device=self.device), *parts])
        return list(rows.split([len(own) for own in boxes]))

    def ground(
        self, pictures: Picture | Sequence[Picture], phrases: str | Sequence[str] | Sequence[Sequence[str]]
    ) -> list[Tensor]:
        """Find phrases in pictures.

        Args:
            pictures: B pictures.
            phrases: for each, T_i texts. A string is looked for in every picture; strings need not be in a second list
                where there is one picture.

        Returns:
            B tensors ``[T_i,4]``, xyxy normalized to the picture.

        Raises:
            ValueError: the model has no grounding head, or pictures and lists of phrases are not as many.
            TypeError: what is no picture, or no text.
        """
        found = as_pictures(pictures)
        asked = as_phrases(phrases, len(found), is_picture(pictures))
        if len(found) != len(asked):
            raise ValueError(f"{len(found)} pictures but {len(asked)} lists of phrases; give one list a picture")
        if not found:
            return []
        flat = [text for texts in asked for text in texts]
        embedded = self.encode_text(flat).split([len(texts) for texts in asked])
        return self.grounded(self.see(found), embedded)

    @torch.inference_mode()
    def grounded(self, seen: EncodedPictures, text: Sequence[Tensor]) -> list[Tensor]:
        """As :meth:`ground`, from pictures already seen and phrases already embedded (B tensors ``[T_i,D]``)."""
        counts = [len(rows) for rows in text]
        padded = torch.zeros(len(text), max([*counts, 1]), self.joint_dim, device=self.device)
        for row, own in zip(padded, text, strict=True):
            row[: len(own)] = own
        seen = self._whole(seen)
        boxes = to_picture(self.model.ground(seen.features, padded), seen.content.unsqueeze(1))
        return [row[:count] for row, count in zip(boxes, counts, strict=True)]

    @property
    def can_ground(self) -> bool:
        """Whether :meth:`ground` works."""
        return self.model.grounding is not None


def cut(picture: Tensor, box: Sequence[float]) -> Tensor:
    """Cut a normalized box out of a picture ``[3,H,W]``; at least one pixel."""
    height, width = picture.shape[-2:]
    left, top = min(int(box[0] * width), width - 1), min(int(box[1] * height), height - 1)
    right, bottom = max(left + 1, round(box[2] * width)), max(top + 1, round(box[3] * height))
    return picture[:, top:bottom, left:right]
