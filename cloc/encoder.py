"""A loaded model ready for use: pictures and texts in, embeddings and boxes out. Serves evaluation, export, labeling.

Pictures are PIL images or ``[3,H,W]`` uint8 tensors of any size. Boxes are normalized to the *picture*; the encoder
maps them to its own padded view and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cloc import __version__
from cloc.data.decode import pillow_rgb
from cloc.data.text import Tokenizer
from cloc.data.views import resize_pad, to_picture, to_view
from cloc.models.build import build_model
from cloc.models.exported import is_exported, read_exported
from cloc.models.model import Cloc, ImageFeatures

Picture = Image.Image | Tensor
SOURCES = ("prompter", "roi_align", "crop", "mask_pool")


@dataclass(slots=True)
class Seen:
    """Pictures after one pass of the image tower; any number of prompts is answered from it."""

    pictures: list[Tensor]
    content: Tensor
    features: ImageFeatures


class Encoder:
    """Model, tokenizer and view of one trained checkpoint.

    Args:
        model: built and with its weights.
        info: ``config``, ``samples_seen``, ``version`` of the checkpoint.
        device: where to run.
        name: a short name for tables.
    """

    def __init__(self, model: Cloc, info: dict[str, Any], device: str = "cpu", name: str = "model") -> None:
        self.model, self.info, self.device, self.name = model.to(device).eval(), info, torch.device(device), name
        self.tokenizer = Tokenizer(model.text.tokenizer, model.text.context_length)

    @property
    def sources(self) -> tuple[str, ...]:
        """Region sources that this model has."""
        return SOURCES if self.model.prompter is not None else SOURCES[1:]

    @torch.inference_mode()
    def see(self, pictures: Sequence[Picture]) -> Seen:
        """Run the image tower once over B pictures.

        Raises:
            ValueError: no picture at all.
        """
        if not pictures:
            raise ValueError("no picture was given; give at least one")
        tensors = [to_tensor(picture) for picture in pictures]
        views, content = zip(*(resize_pad(picture, self.model.image.image_size) for picture in tensors), strict=True)
        features = self.model.encode_images(torch.stack(views).to(self.device))
        return Seen(tensors, torch.stack(content).to(self.device), features)

    def encode_image(self, pictures: Sequence[Picture]) -> Tensor:
        """Embed pictures: ``[B,D]``, unit norm."""
        return self.see(pictures).features.pooled if pictures else torch.zeros(0, self.model.image.joint_dim)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], batch_size: int = 512) -> Tensor:
        """Embed texts: ``[T,D]``, unit norm. Sorted by length inside: short texts are not padded to long ones."""
        if not texts:
            return torch.zeros(0, self.model.image.joint_dim, device=self.device)
        order = sorted(range(len(texts)), key=lambda i: len(self.tokenizer.encode(texts[i])[0]))
        parts = [
            self.model.encode_texts(
                self.tokenizer([texts[i] for i in order[start : start + batch_size]]).to(self.device)
            )
            for start in range(0, len(order), batch_size)
        ]
        embedded = torch.cat(parts)
        return embedded[torch.tensor(order, device=self.device).argsort()]

    def encode_dense(self, pictures: Sequence[Picture]) -> tuple[Tensor, tuple[int, int]]:
        """Patch tokens ``[B,N,C]`` of the padded views after the last norm, and the grid (rows, columns)."""
        return self.see(pictures).features.tokens, tuple(self.model.grid)

    def encode_regions(
        self, pictures: Sequence[Picture], boxes: Sequence[Any], source: str = "prompter"
    ) -> list[Tensor]:
        """Embed boxes.

        Args:
            pictures: B pictures.
            boxes: for each, ``[K_i,4]`` xyxy normalized to the picture (a tensor or nested lists).
            source: ``prompter``, ``roi_align``, ``mask_pool``, or ``crop`` (cut out and encode as a picture).

        Returns:
            B tensors ``[K_i,D]``, unit norm.

        Raises:
            ValueError: a box is inverted, not finite or not normalized; or the model lacks the source.
        """
        if len(pictures) != len(boxes):
            raise ValueError(f"{len(pictures)} pictures but {len(boxes)} lists of boxes; give one list a picture")
        checked = [check_boxes(rows, f"boxes[{i}]") for i, rows in enumerate(boxes)]
        return self.regions(self.see(pictures), checked, source) if pictures else []

    @torch.inference_mode()
    def regions(self, seen: Seen, boxes: Sequence[Tensor], source: str = "prompter") -> list[Tensor]:
        """As :meth:`encode_regions`, from pictures already seen."""
        counts = [len(rows) for rows in boxes]
        if source == "crop":
            return list(self._crops(seen.pictures, boxes).split(counts))
        if source == "prompter" and self.model.prompter is None:
            raise ValueError(f"{self.name} has no Prompter (a CLIP model): use source roi_align, mask_pool or crop")
        padded = torch.zeros(len(boxes), max([*counts, 1]), 4)
        padded[..., 2:] = 1.0
        for row, own in zip(padded, boxes, strict=True):
            row[: len(own)] = own
        views = to_view(padded.to(self.device), seen.content.unsqueeze(1))
        embedded = self.model.encode_boxes(seen.features, views, source)
        return [row[:count] for row, count in zip(embedded, counts, strict=True)]

    def _crops(self, pictures: Sequence[Tensor], boxes: Sequence[Tensor], batch_size: int = 64) -> Tensor:
        cuts = [cut(picture, box) for picture, rows in zip(pictures, boxes, strict=True) for box in rows.tolist()]
        parts = [self.encode_image(cuts[start : start + batch_size]) for start in range(0, len(cuts), batch_size)]
        return torch.cat(parts) if parts else torch.zeros(0, self.model.image.joint_dim, device=self.device)

    def ground(self, pictures: Sequence[Picture], phrases: Sequence[Sequence[str]]) -> list[Tensor]:
        """Find phrases in pictures.

        Args:
            pictures: B pictures.
            phrases: for each, T_i texts.

        Returns:
            B tensors ``[T_i,4]``, xyxy normalized to the picture.

        Raises:
            ValueError: the model has no grounding head.
        """
        if len(pictures) != len(phrases):
            raise ValueError(f"{len(pictures)} pictures but {len(phrases)} lists of phrases; give one list a picture")
        if not pictures:
            return []
        flat = [text for texts in phrases for text in texts]
        embedded = self.encode_text(flat).split([len(texts) for texts in phrases])
        return self.grounded(self.see(pictures), embedded)

    @torch.inference_mode()
    def grounded(self, seen: Seen, text: Sequence[Tensor]) -> list[Tensor]:
        """As :meth:`ground`, from pictures already seen and phrases already embedded (B tensors ``[T_i,D]``)."""
        counts = [len(rows) for rows in text]
        padded = torch.zeros(len(text), max([*counts, 1]), self.model.image.joint_dim, device=self.device)
        for row, own in zip(padded, text, strict=True):
            row[: len(own)] = own
        boxes = to_picture(self.model.ground(seen.features, padded), seen.content.unsqueeze(1))
        return [row[:count] for row, count in zip(boxes, counts, strict=True)]

    @property
    def can_ground(self) -> bool:
        """Whether :meth:`ground` works."""
        return self.model.grounding is not None


def to_tensor(picture: Picture) -> Tensor:
    """Any picture → upright RGB ``[3,H,W]`` uint8.

    Raises:
        TypeError: neither a PIL image nor a uint8 tensor ``[3,H,W]``.
    """
    if isinstance(picture, Tensor):
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
            raise TypeError(f"a picture tensor must be [3,H,W] uint8, got {tuple(picture.shape)} {picture.dtype}")
        return picture
    if not isinstance(picture, Image.Image):
        raise TypeError(f"a picture must be a PIL image or a tensor, got {type(picture).__name__}")
    return pillow_rgb(picture)


def check_boxes(boxes: Any, name: str) -> Tensor:
    """Validate ``[K,4]`` normalized xyxy boxes."""
    rows = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4).cpu()
    if not torch.isfinite(rows).all() or (rows < -0.01).any() or (rows > 1.01).any():
        raise ValueError(
            f"{name}={rows.tolist()[:3]}…: boxes must be finite and normalized to 0..1 of the picture, xyxy"
        )
    if (rows[:, 2:] <= rows[:, :2]).any():
        raise ValueError(f"{name}: a box has no area or is inverted; give x0 < x1 and y0 < y1")
    return rows.clamp(0, 1)


def cut(picture: Tensor, box: Sequence[float]) -> Tensor:
    """Cut a normalized box out of a picture ``[3,H,W]``; at least one pixel."""
    height, width = picture.shape[-2:]
    left, top = min(int(box[0] * width), width - 1), min(int(box[1] * height), height - 1)
    right, bottom = max(left + 1, round(box[2] * width)), max(top + 1, round(box[3] * height))
    return picture[:, top:bottom, left:right]


def load(path: str | Path, device: str = "cpu") -> Encoder:
    """Load a run folder, a checkpoint file, or a folder that ``export hf`` or ``export open_clip`` wrote.

    Args:
        path: ``runs/demo/cloc`` (takes its newest checkpoint), a ``.ckpt`` file, or an exported folder.
        device: where to run.

    Raises:
        FileNotFoundError: nothing there, or the run has not written a checkpoint yet.
        ValueError: not a checkpoint of this project, damaged, or one that holds more than tensors and plain containers.
        ConfigError: its configuration names what this version does not have.
    """
    path = Path(path)
    if path.is_dir() and is_exported(path):
        return _load_exported(path, device)
    file = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no checkpoint at {file}; has the run started, is the path right?")
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, UnpicklingError) as error:
        # PyTorch's own message goes on to recommend unpickling without a check.
        reason = "it would run code" if isinstance(error, UnpicklingError) else "it is damaged or no checkpoint"
        raise ValueError(f"{file} cannot be loaded: {reason}; it must be a whole file that cloc has written") from error
    if not isinstance(stored, dict) or "cloc" not in stored:
        raise ValueError(f"{file} was not written by cloc (it has no 'cloc' entry: {str(list(stored)[:5])[:100]})")
    info = stored["cloc"]
    run = file.parent.parent
    config = {key: value for key, value in info["config"]["model"].items()}
    if (run / "text" / "tokenizer_config.json").is_file():  # a run folder carries its own tokenizer and architecture
        config["text"] = config["text"] | {"tokenizer": str(run / "text")}
    if (run / "text" / "config.json").is_file():
        config["text"] = config["text"] | {"name": str(run / "text")}
    model = build_model(config, pretrained=False)
    weights = {name.removeprefix("model."): value for name, value in stored["state_dict"].items()}
    try:
        model.load_state_dict({name: value for name, value in weights.items() if not name.startswith("loss.")})
    except RuntimeError as error:
        raise ValueError(
            f"{file}: its weights do not fit the model of its configuration; it was written by cloc {info['version']}, "
            f"this is {__version__}. {str(error).splitlines()[1].strip() if chr(10) in str(error) else error}"
        ) from error
    info = info | {"code": __version__, "file": str(file), "run": str(run)}
    return Encoder(model, info, device, name=run.name)


def _load_exported(folder: Path, device: str) -> Encoder:
    exported = read_exported(folder)
    model = build_model(exported.config, pretrained=False)
    model.load_state_dict(exported.state)
    info = exported.info | {"config": {"model": exported.config}, "code": __version__, "file": str(folder)}
    return Encoder(model, info | {"run": str(folder)}, device, name=folder.name)
