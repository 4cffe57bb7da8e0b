"""A loaded model ready for use: pictures and texts in, embeddings and boxes out. Serves evaluation, export, labeling.

Pictures are PIL images, ``[3,H,W]`` uint8 tensors, ``[H,W,3]`` arrays or paths, one or many, of any size; a string is
one text (:mod:`cloc.data.inputs`). Boxes are normalized to the *picture*; the encoder maps them to its own padded view
and back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from cloc import __version__
from cloc.checkpoints import find
from cloc.data.inputs import Picture, as_boxes, as_phrases, as_pictures, as_texts, is_picture
from cloc.data.inputs import to_tensor as to_tensor
from cloc.data.preprocess import Preprocess
from cloc.data.tokenizer import Tokenizer
from cloc.data.views import to_picture, to_view
from cloc.models.build import build_model
from cloc.models.foreign.loading import PREFIX, Foreign, is_foreign, load_folder, load_open_clip
from cloc.models.model import Cloc, ImageFeatures
from cloc.models.sanity import SanityError, check_embedded, check_model
from cloc.models.trust.registry import admit
from cloc.models.trust.values import building
from cloc.models.weights.digests import check_archive
from cloc.models.weights.exported import is_exported, read_exported

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
        resize: Any = None if preprocess else model.image.resize  # not every tower of others names one
        self.preprocess = preprocess or Preprocess(resize)

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
        if not pictures:
            raise ValueError("no picture was given; give at least one")
        views, content = zip(*(preprocess(picture, self.image_size) for picture in pictures), strict=True)
        features = self.model.encode_images(torch.stack(views).to(self.device))
        return EncodedPictures(pictures, torch.stack(content).to(self.device), features)

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
    def encode_dense(self, pictures: Picture | Sequence[Picture]) -> tuple[Tensor, tuple[int, int]]:
        """Patch tokens ``[B,N,C]`` after the last norm, and the grid (rows, columns).

        Of views that hold the whole picture: padded, or squeezed where the model wants them so.

        Raises:
            ValueError: no picture, or a model without patch tokens.
        """
        if not getattr(self.model.image, "dense", True):
            raise ValueError(f"{self.name} has no patch tokens: its image tower pools in a way of its own")
        preprocess = self.preprocess if self.preprocess.whole else PAD
        seen = self._see(as_pictures(pictures), preprocess)
        rows, columns = self.model.grid
        return seen.features.tokens, (rows, columns)

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


def load(path: str | Path, device: str = "cpu", averaged: bool = True, trusted: Sequence[type] = ()) -> Encoder:
    """Load a run folder, a checkpoint file, an exported folder, or a model of others.

    What is loaded may come from strangers: it is built from the parts of
    :mod:`cloc.models.trust.registry` alone, no code in it runs, and no network is asked. ``open_clip:ARCHITECTURE:TAG``
    and ``open_clip:hf-hub:REPOSITORY`` download, by the caller's word.

    Args:
        path: ``runs/demo/cloc`` (takes its newest checkpoint), a ``.ckpt`` file, a folder that ``export hf`` or
            ``export open_clip`` wrote, any Hugging Face CLIP or SigLIP folder, any folder of open_clip, or
            ``open_clip:ARCHITECTURE:TAG_OR_FILE``.
        device: where to run.
        averaged: take the moving average of the weights where a checkpoint holds one (``trainer.ema``); False takes the
            trained weights beside it.
        trusted: classes of your own that the file may name besides, such as ``[MyTower]``.

    Raises:
        FileNotFoundError: nothing there, or the run has not written a checkpoint yet.
        ValueError: not a checkpoint of this project, damaged, of another version, without what ``averaged=False`` asks
            for, or one that holds more than tensors and plain containers; a configuration that says more than an
            architecture.
        ConfigError: its configuration names a class that is neither one of ours nor trusted, or what this version does
            not have.
    """
    if str(path).startswith(PREFIX):
        run = Path("runs") / str(path).replace("/", "_")
        with building(str(path).removeprefix(f"{PREFIX}local-dir:")):
            return tried(_foreign(load_open_clip(str(path)), run, device))
    path = Path(path)
    if path.is_dir() and is_exported(path):
        with building(path):
            foreign = is_foreign(path)
            found = _foreign(load_folder(path), path, device) if foreign else _load_exported(path, device, trusted)
            return tried(found)
    file = find(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no checkpoint at {file}; has the run started, is the path right?")
    check_archive(file)
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, UnpicklingError) as error:
        # PyTorch's own message goes on to recommend unpickling without a check.
        reason = "it would run code" if isinstance(error, UnpicklingError) else "it is damaged or no checkpoint"
        raise ValueError(f"{file} cannot be loaded: {reason}; it must be a whole file that cloc has written") from error
    if not isinstance(stored, dict) or "cloc" not in stored:
        raise ValueError(f"{file} was not written by cloc (it has no 'cloc' entry: {str(list(stored)[:5])[:100]})")
    info = stored["cloc"]
    _check_version(file, info["version"])
    key = "state_dict" if averaged else "current_model_state"
    if key not in stored:
        raise ValueError(f"{file} holds one set of weights: the run was trained without an average (trainer.ema=0)")
    run = file.parent.parent
    weights = {name.removeprefix("model."): value for name, value in stored[key].items()}
    source = f"{file}, written by cloc {info['version']}"
    admitted = admit(_beside(info["config"]["model"], run / "text"), source, trusted, file.stat().st_size)
    weights = {name: value for name, value in weights.items() if not name.startswith("loss.")}
    with building(file, f"it was written by cloc {info['version']}, "):
        model = build_model(admitted.config, pretrained=False, known=admitted.known)
        model.load_state_dict(weights)
    info = info | {"code": __version__, "file": str(file), "run": str(run)}
    info["averaged"] = averaged and "current_model_state" in stored  # Lightning's name for what is beside an average
    with building(file):
        return tried(Encoder(model, info, device, name=run.name), tokens=True)


def tried(encoder: Encoder, tokens: bool = False) -> Encoder:
    """The same encoder, after its numbers were looked at and it has embedded a gray picture and a short text.

    A configuration can build a tower that fails, or says NaN, at its first picture only. One picture costs far less
    than it costs to read the weights.

    Args:
        encoder: as loaded.
        tokens: try the text tower by token ids: training has seen that the tokenizer fits.

    Raises:
        SanityError: weights, norms or embeddings that are not finite, or embeddings of another shape than ``[1,D]``.
        Exception: whatever the towers raise; :func:`cloc.models.trust.values.building` makes a line of it.
    """
    check_model(encoder.model)
    side, width = encoder.image_size, encoder.joint_dim
    gray = torch.full((3, side, side), 128, dtype=torch.uint8)
    if tokens:
        with torch.inference_mode():
            text = encoder.model.encode_texts(torch.ones(1, 2, dtype=torch.int64, device=encoder.device))
    else:
        text = encoder.encode_text("a photo")
    for what, rows in (("a picture", encoder.encode_image(gray)), ("a text", text)):
        if rows.shape != (1, width):
            raise SanityError(
                f"{what} is embedded as {list(rows.shape)}, not as [1, {width}]; its configuration describes towers "
                "that do not pool, or of another width"
            )
        check_embedded("as loaded", {what: rows})
    return encoder


def _beside(model: Any, folder: Path) -> Any:
    """A stored model with the tokenizer and the architecture of its text tower that a run folder carries."""
    found = {"tokenizer": "tokenizer_config.json", "name": "config.json"}
    own = {key: str(folder) for key, name in found.items() if (folder / name).is_file()}
    text = model.get("text") if isinstance(model, dict) else None
    return model | {"text": text | own} if own and isinstance(text, dict) else model


def _check_version(file: Path, version: str) -> None:
    """An older checkpoint is tried; a newer one may mean other things by the same names."""
    theirs, ours = (tuple(int(part) for part in re.findall(r"\d+", text)[:2]) for text in (version, __version__))
    if theirs > ours:
        raise ValueError(
            f"{file} was written by cloc {version}, this is {__version__}: pip install -U 'cloc-pretrain>={version}'"
        )


def _foreign(found: Foreign, run: Path, device: str) -> Encoder:
    info = found.info | {"code": __version__, "run": str(run)}
    return Encoder(found.model, info, device, found.name, found.tokenizer, found.preprocess)


def _load_exported(folder: Path, device: str, trusted: Sequence[type]) -> Encoder:
    exported = read_exported(folder)
    admitted = admit(exported.config, folder, trusted, folder)
    model = build_model(admitted.config, pretrained=False, known=admitted.known)
    model.load_state_dict(exported.state)
    info = exported.info | {"config": {"model": exported.config}, "code": __version__, "file": str(folder)}
    return Encoder(model, info | {"run": str(folder)}, device, name=folder.name)
