"""A model that cloc exported, for transformers alone: pictures, texts, boxes in, embeddings and boxes out (Apache-2.0).

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    boxes = model.ground("photo.jpg", ["a brown dog", "a red cup"])  # in 0..1 of the picture

A ``CLIPModel`` with all that one has; the Prompter and the grounding head, which CLIPModel has no place for, come from
``cloc_regions.py`` and ``prompter.safetensors`` beside it. Needs PyTorch, transformers (4.57 or newer), safetensors and
NumPy; Pillow for pictures that are files or PIL images. It makes the view of the model itself, whatever image
processors this transformers has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from .cloc_regions import build

try:
    from PIL import Image, ImageOps

    HAS_PILLOW = True
except ImportError:  # transformers does not bring it; arrays and tensors do without
    HAS_PILLOW = False

PAD_VALUE = 114  # of the padding in training
HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
OUTSIDE = 0.01  # of the picture that a box may reach beyond it by rounding


class ClocModel(CLIPModel):
    """Image tower, text tower, Prompter and grounding head.

    Pictures are PIL images, paths, arrays ``[H,W,3]`` or tensors ``[3,H,W]`` uint8 of any size, one or several in a
    list; or the float ``pixel_values`` ``[B,3,S,S]`` of an image processor, whose boxes are then in 0..1 of that view.
    The methods below give float32 without gradient, as ``cloc.load`` does; to train, call the parts: ``vision_model``,
    ``text_model``, ``regions``.
    """

    _keys_to_ignore_on_load_unexpected = [r"^regions\."]
    _auto_class = "AutoModel"  # save_pretrained copies the code, too

    config_class = CLIPConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.regions: Any = None
        self._place: tuple[str, dict[str, Any]] = ("", {})
        self._tokens: Any = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As of any model of transformers; the region parts follow its device and precision."""
        hub = {name: kwargs[name] for name in HUB if kwargs.get(name) is not None}
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._place = str(pretrained_model_name_or_path), hub
        regions = build()
        if regions is not None:
            regions.load_state_dict(model._region_state())
            model.regions = regions.to(model.device, model.dtype).eval()
        return loaded

    def save_pretrained(self, save_directory: Any, *arguments: Any, **named: Any) -> None:
        """As of any model of transformers; the code, the region parts and the tokenizer are part of it."""
        super().save_pretrained(save_directory, *arguments, **named)
        if self._place[0] and self._file("tokenizer.json") is not None:
            self._tokenizer().save_pretrained(save_directory)

    @property
    def _settings(self) -> Any:
        return self.config

    def _region_state(self) -> dict[str, Tensor]:
        """Weights of the region parts: as they were exported, or as ``save_pretrained`` has put them with the rest."""
        file, prefix = self._file("prompter.safetensors"), ""
        if file is None:
            file, prefix = self._file("model.safetensors"), "regions."
        if file is None:
            raise FileNotFoundError(f"{self._place[0]} has no prompter.safetensors; copy the whole exported folder")
        state = {name.removeprefix(prefix): value for name, value in load_file(file).items() if name.startswith(prefix)}
        return {name: value for name, value in state.items() if name.startswith(("prompter.", "grounding."))}

    def _file(self, name: str) -> Any:
        place, hub = self._place
        return cached_file(place, name, _raise_exceptions_for_missing_entries=False, **hub)

    @torch.no_grad()
    def encode_image(self, pictures: Any) -> Tensor:
        """Embed pictures.

        Args:
            pictures: B, as above.

        Returns:
            ``[B,D]`` of unit norm.
        """
        pixels, _ = self._pixels(pictures)
        pooled = self.vision_model(pixel_values=pixels).pooler_output
        return normalize(self.visual_projection(pooled).float(), dim=-1)

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Embed texts.

        Args:
            texts: T of them; a string is one.

        Returns:
            ``[T,D]`` of unit norm.
        """
        listed = [texts] if isinstance(texts, str) else list(texts)
        if not listed:
            return torch.zeros(0, self._settings.projection_dim, device=self.device)
        pooled = self.text_model(input_ids=self._ids(listed).to(self.device)).pooler_output
        return normalize(self.text_projection(pooled).float(), dim=-1)

    @torch.no_grad()
    def encode_regions(self, pictures: Any, boxes: Any) -> list[Tensor]:
        """Embed boxes.

        Args:
            pictures: B, as above.
            boxes: for each ``[K_i,4]`` xyxy in 0..1 of the picture; for one picture without a list its boxes alone.

        Returns:
            B tensors ``[K_i,D]`` of unit norm, in the space of the texts.

        Raises:
            ValueError: the model has no Prompter, or a box is not in 0..1, inverted or not finite.
        """
        regions = self._region_parts()
        tokens, sizes = self._see(pictures)
        rows = _boxes(boxes, len(sizes), _is_one(pictures))
        found = []
        for own, seen, size in zip(rows, tokens, sizes, strict=True):
            placed = own.to(self.device) if size is None else regions.to_view(own.to(self.device), *size)
            embedded = regions.encode_regions(seen[None], placed[None])[0] if len(own) else None
            found.append(placed.new_zeros(0, self._settings.projection_dim) if embedded is None else embedded)
        return found

    @torch.no_grad()
    def ground(self, pictures: Any, phrases: Any, return_scores: bool = False) -> Any:
        """Find phrases in pictures.

        Args:
            pictures: B, as above.
            phrases: for each T_i texts; a string is looked for in every picture, and strings in a list in the one
                picture.
            return_scores: say how well each box fits its phrase: a box is given for what is not there, too.

        Returns:
            B tensors ``[T_i,4]`` xyxy in 0..1 of the picture; with ``return_scores`` also B tensors ``[T_i]`` in -1..1.

        Raises:
            ValueError: the model has no grounding head, or pictures and lists of phrases are not as many.
        """
        regions = self._region_parts("a grounding head")
        tokens, sizes = self._see(pictures)
        boxes, scores = [], []
        for texts, seen, size in zip(_phrases(phrases, len(sizes)), tokens, sizes, strict=True):
            embedded = self.encode_text(texts)[None]
            found = regions.ground(seen[None], embedded)[0] if texts else embedded.new_zeros(0, 4)
            boxes.append(found if size is None else regions.to_picture(found, *size))
            if return_scores:
                clipped = found if size is None else regions.to_view(boxes[-1], *size)
                likely = regions.likeness(seen[None], embedded, clipped[None])[0] if texts else found.new_zeros(0)
                scores.append(likely)
        return (boxes, scores) if return_scores else boxes

    def _region_parts(self, needed: str = "a Prompter") -> Any:
        has = self.regions is not None and (needed == "a Prompter" or self.regions.grounding is not None)
        if not has:
            raise ValueError(
                f"this model was exported without {needed} (a plain CLIP, or parts that need more than PyTorch); "
                "encode_image and encode_text work. For boxes export a model that was trained with "
                "model.prompter=shared model.grounding=spatial"
            )
        return self.regions

    def _see(self, pictures: Any) -> tuple[Tensor, list[tuple[int, int] | None]]:
        """Patch tokens ``[B,N,C]`` after the last norm, and each picture's width and height."""
        pixels, sizes = self._pixels(pictures)
        seen = self.vision_model(pixel_values=pixels)
        return self.vision_model.post_layernorm(seen.last_hidden_state)[:, 1:], sizes

    def _pixels(self, pictures: Any) -> tuple[Tensor, list[tuple[int, int] | None]]:
        side = self._settings.vision_config.image_size
        if isinstance(pictures, Tensor) and pictures.is_floating_point():
            if pictures.ndim != 4 or tuple(pictures.shape[1:]) != (3, side, side):
                raise ValueError(f"pixel_values has the shape {list(pictures.shape)}; give [B,3,{side},{side}]")
            return pictures.to(self.device, self.dtype), [None] * len(pictures)
        found = [_rgb(picture) for picture in ([pictures] if _is_one(pictures) else pictures)]
        if not found:
            raise ValueError("no picture; give at least one")
        view = self._settings.cloc_view
        views = torch.stack([_view(picture, side, view["resize"]) for picture in found]).to(self.device)
        mean, std = (torch.tensor(view[name], device=self.device).view(3, 1, 1) * 255 for name in ("mean", "std"))
        return ((views.float() - mean) / std).to(self.dtype), [(p.shape[2], p.shape[1]) for p in found]

    def _tokenizer(self) -> Any:
        """The model's own, by its file: the classes that tokenizer_config.json names differ in transformers 4 and 5."""
        if self._tokens is None:
            file = self._file("tokenizer.json")
            if file is None:  # transformers would make an empty one, without a word
                raise FileNotFoundError(f"{self._place[0]} has no tokenizer.json; copy it from the exported folder")
            self._tokens = PreTrainedTokenizerFast(tokenizer_file=file)
        return self._tokens

    def _ids(self, texts: list[str]) -> Tensor:
        """``[T,L]`` token ids, padded to the longest."""
        length = self._settings.text_config.max_position_embeddings
        rows = self._tokenizer()(texts, truncation=True, max_length=length)["input_ids"]
        padding, longest = self._settings.text_config.pad_token_id or 0, max(len(row) for row in rows)
        return torch.tensor([list(row) + [padding] * (longest - len(row)) for row in rows])


def _is_one(pictures: Any) -> bool:
    """Whether this is one picture by itself."""
    if isinstance(pictures, (Tensor, np.ndarray)):
        return pictures.ndim < 4
    return isinstance(pictures, (str, Path)) or hasattr(pictures, "convert")


def _rgb(picture: Any) -> Tensor:
    """A picture of any kind → upright RGB ``[3,H,W]`` uint8; what is transparent becomes white."""
    if isinstance(picture, (str, Path)):
        if not HAS_PILLOW:
            raise ImportError(f"to read {picture}: pip install pillow, or give an array [H,W,3]")
        with Image.open(picture) as opened:
            return _rgb(opened)
    if isinstance(picture, np.ndarray):
        gray_or_transparent = picture.dtype == np.uint8 and (picture.ndim == 2 or picture.shape[-1] == 4)
        if HAS_PILLOW and gray_or_transparent:
            return _rgb(Image.fromarray(picture))
        picture = torch.from_numpy(np.array(picture)).movedim(-1, 0)
    elif hasattr(picture, "convert"):  # of Pillow
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):  # 16 bits, in whatever order of bytes
            picture = picture.convert("I").point(lambda value: value / 257).convert("L")
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
            picture = Image.alpha_composite(ground, picture.convert("RGBA"))
        picture = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    if not isinstance(picture, Tensor):
        raise TypeError(f"a picture is a {type(picture).__name__}; give a PIL image, a path, an array or a tensor")
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
        raise ValueError(f"a picture has the shape {list(picture.shape)} and {picture.dtype}; give [3,H,W] uint8")
    return picture


def _view(picture: Tensor, side: int, resize: str) -> Tensor:
    """The square view ``[3,S,S]`` uint8: the long side resized and the rest filled, or both sides resized."""
    height, width = picture.shape[-2:]
    if resize == "pad":
        scale = side / max(height, width)
        new = max(1, round(height * scale)), max(1, round(width * scale))
    else:
        new = side, side
    if new != (height, width):
        picture = interpolate(picture[None].cpu(), new, mode="bicubic", antialias=True)[0]
    top, left = (side - new[0]) // 2, (side - new[1]) // 2
    view = picture.new_full((3, side, side), PAD_VALUE)
    view[:, top : top + new[0], left : left + new[1]] = picture
    return view


def _boxes(boxes: Any, pictures: int, one: bool) -> list[Tensor]:
    """Boxes of pictures → ``[K,4]`` for each."""
    if isinstance(boxes, (Tensor, np.ndarray)):
        boxes = list(boxes) if boxes.ndim == 3 else [boxes]
    elif one and not (len(boxes) == 1 and len(boxes[0]) and not _is_number(boxes[0][0])):
        boxes = [boxes]
    if len(boxes) != pictures:
        raise ValueError(f"{pictures} pictures but {len(boxes)} lists of boxes; give one list a picture")
    rows = [torch.as_tensor(own, dtype=torch.float32).cpu().reshape(-1, 4) for own in boxes]
    for own in rows:
        inside = torch.isfinite(own).all() and (own >= -OUTSIDE).all() and (own <= 1 + OUTSIDE).all()
        if not inside or (own[:, 2:] <= own[:, :2]).any():
            raise ValueError(f"boxes {own.tolist()[:3]}: give x0, y0, x1, y1 in 0..1 of the picture, x0 < x1, y0 < y1")
    return [own.clamp(0, 1) for own in rows]


def _is_number(value: Any) -> bool:
    return not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0


def _phrases(phrases: Any, pictures: int) -> list[list[str]]:
    """Phrases of pictures → texts for each."""
    if isinstance(phrases, str):
        return [[phrases]] * pictures
    rows = list(phrases)
    if pictures == 1 and all(isinstance(row, str) for row in rows):
        rows = [rows]
    if len(rows) != pictures or any(isinstance(row, str) for row in rows):
        raise ValueError(f"{pictures} pictures but {len(rows)} lists of phrases; give a list of texts for each picture")
    return [list(row) for row in rows]
