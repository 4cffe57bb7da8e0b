"""What is named → an ``Encoder``: a run, a checkpoint, an export, or a model of others (``cloc.load``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from cloc import __version__
from cloc.checkpoints import FOLDER, find
from cloc.data.inputs import to_tensor as to_tensor
from cloc.encoder import Encoder
from cloc.models.build import build_trained
from cloc.models.devices import Device, DType, find_device, find_dtype
from cloc.models.foreign.loading import PREFIX, Foreign, is_foreign, load_folder, load_open_clip
from cloc.models.sanity import SanityError, check_embedded, check_model, check_weights
from cloc.models.trust.registry import admit
from cloc.models.trust.text_files import text_files
from cloc.models.trust.values import building
from cloc.models.weights.digests import check_archive
from cloc.models.weights.exported import is_exported, read_exported


def load(
    path: str | Path,
    device: Device = "cpu",
    averaged: bool = True,
    trusted: Sequence[type] = (),
    image_size: int | None = None,
    dtype: DType = "float32",
) -> Encoder:
    """Load a run folder, a checkpoint file, an exported folder, or a model of others.

    What is loaded may come from strangers: it is built from the parts of
    :mod:`cloc.models.trust.registry` alone, no code in it runs, and no network is asked. ``open_clip:ARCHITECTURE:TAG``
    and ``open_clip:hf-hub:REPOSITORY`` download, by the caller's word.

    Args:
        path: ``runs/demo/cloc`` (takes its newest checkpoint), a ``.ckpt`` file, a folder that ``export hf`` or
            ``export open_clip`` wrote, any Hugging Face CLIP or SigLIP folder, any folder of open_clip, or
            ``open_clip:ARCHITECTURE:TAG_OR_FILE``.
        device: where to run: ``auto`` (a CUDA GPU where there is one, else the CPU) or PyTorch's name.
        averaged: take the moving average of the weights where a checkpoint holds one (``trainer.ema``); False takes the
            trained weights beside it.
        trusted: classes of your own that the file may name besides, such as ``[MyTower]``.
        image_size: side of other views than the model was trained with, in pixels; tables of positions are resized.
        dtype: precision of the weights in use: ``float32``, ``bfloat16``, ``float16``, PyTorch's own, or ``auto``
            (bfloat16 where the device computes it, else float32). What the model returns is float32 in any case.

    Raises:
        FileNotFoundError: nothing there, or the run has not written a checkpoint yet.
        ValueError: not a checkpoint of this project, damaged, of another version, without what ``averaged=False`` asks
            for, or one that holds more than tensors and plain containers; a configuration that says more than an
            architecture; a device that is not here, or a precision that is not one of these.
        SanityError: weights or embeddings that are not finite, maybe in this precision alone.
        ConfigError: its configuration names a class that is neither one of ours nor trusted, or what this version does
            not have; or ``image_size`` is one that its tower cannot take.
    """
    if image_size is not None and not (isinstance(image_size, int) and image_size > 0):
        raise ValueError(f"image_size={image_size}: must be a whole number of pixels above 0")
    place = find_device(device)
    precision = find_dtype(dtype, place)
    return _in_precision(_open(path, place, averaged, trusted, image_size), precision)


def _open(
    path: str | Path, device: torch.device, averaged: bool, trusted: Sequence[type], image_size: int | None
) -> Encoder:
    if str(path).startswith(PREFIX):
        run = Path("runs") / str(path).replace("/", "_")
        with building(str(path).removeprefix(f"{PREFIX}local-dir:")):
            return tried(_foreign(load_open_clip(str(path), image_size), run, device))
    path = Path(path)
    if path.is_dir() and is_exported(path):
        with building(path):
            if is_foreign(path):
                return tried(_foreign(load_folder(path, image_size), path, device))
            return tried(_load_exported(path, device, trusted, image_size))
    file = find(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no checkpoint at {file}; has the run started, is the path right?")
    stored = _read_checkpoint(file)
    info, key = stored["cloc"], "state_dict" if averaged else "current_model_state"
    if key not in stored:
        raise ValueError(f"{file} holds one set of weights: the run was trained without an average (trainer.ema=0)")
    # One that was copied out of its run folder stands for itself.
    run = file.parent.parent if file.parent.name == FOLDER else file.with_suffix("")
    weights = {name.removeprefix("model."): value for name, value in stored[key].items()}
    weights = {name: value for name, value in weights.items() if not name.startswith("loss.")}
    source = f"{file}, written by cloc {info['version']}"
    with text_files(stored, file) as text:
        admitted = admit(text.model(info["config"]["model"]), source, trusted, file.stat().st_size)
        with building(file, f"it was written by cloc {info['version']}, "):
            model, config = build_trained(admitted, weights, file, image_size)
    text.give(model.text)
    info = info | {"code": __version__, "file": str(file), "run": str(run)}
    info["config"] = info["config"] | {"model": info["config"]["model"] | config}
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
    _try(encoder, tokens)
    return encoder


def _try(encoder: Encoder, tokens: bool) -> None:
    side, width = encoder.model.image.image_size, encoder.model.image.joint_dim
    gray = torch.full((3, side, side), 128, dtype=torch.uint8)
    if tokens:
        with torch.no_grad():
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


def _in_precision(encoder: Encoder, dtype: torch.dtype) -> Encoder:
    """The same encoder in a precision that its numbers fit into, as far as one picture and its weights can tell."""
    if dtype == encoder.dtype:
        return encoder
    encoder.to(dtype=dtype)
    try:
        check_weights(encoder.model.state_dict())
        _try(encoder, tokens=True)
    except SanityError as error:
        name = str(dtype).removeprefix("torch.")
        raise SanityError(
            f"{encoder.name} in dtype={name!r}: its numbers do not fit ({error}); load it with 'bfloat16' or 'float32'"
        ) from error
    return encoder


def _read_checkpoint(file: Path) -> dict[str, Any]:
    """What a file holds, once it is known to be a whole checkpoint of ours, and of no later version."""
    check_archive(file)
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, UnpicklingError) as error:
        # PyTorch's own message goes on to recommend unpickling without a check.
        reason = "it would run code" if isinstance(error, UnpicklingError) else "it is damaged or no checkpoint"
        raise ValueError(f"{file} cannot be loaded: {reason}; it must be a whole file that cloc has written") from error
    if not isinstance(stored, dict) or "cloc" not in stored:
        raise ValueError(f"{file} was not written by cloc (it has no 'cloc' entry: {str(list(stored)[:5])[:100]})")
    _check_version(file, stored["cloc"]["version"])
    return stored


def _check_version(file: Path, version: str) -> None:
    """An older checkpoint is tried; a newer one may mean other things by the same names."""
    theirs, ours = (tuple(int(part) for part in re.findall(r"\d+", text)[:2]) for text in (version, __version__))
    if theirs > ours:
        raise ValueError(
            f"{file} was written by cloc {version}, this is {__version__}: pip install -U 'cloc-pretrain>={version}'"
        )


def _foreign(found: Foreign, run: Path, device: torch.device) -> Encoder:
    info = found.info | {"code": __version__, "run": str(run)}
    return Encoder(found.model, info, device, found.name, found.tokenizer, found.preprocess)


def _load_exported(folder: Path, device: torch.device, trusted: Sequence[type], image_size: int | None) -> Encoder:
    exported = read_exported(folder)
    admitted = admit(exported.config, folder, trusted, folder)
    model, changed = build_trained(admitted, exported.state, folder, image_size)
    info = exported.info | {"config": {"model": exported.config | changed}, "code": __version__, "file": str(folder)}
    return Encoder(model, info | {"run": str(folder)}, device, name=folder.name)
