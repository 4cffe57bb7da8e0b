"""Checkpoints; the reference is ``zipfile``'s checksums and PyTorch's restricted reader."""

from __future__ import annotations

import copy
import io
import random
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cloc
from cloc.config import ConfigError
from cloc.models.build import build_model

from . import mutate
from .configurations import compose
from .kinds import Case, Kind, Unreadable

SMALL = (
    "model.joint_dim=16",
    "model.image.options={depth: 1, embed_dim: 32, num_heads: 2}",
    "+model.text.options={width: 32, heads: 2, layers: 1, vocab_size: 64}",
)
TARGETS = (
    "cloc.engine.durable.run_folder.RunFolder", "cloc.data.tokenizer.Tokenizer", "cloc.data.shards.cache.ShardCache",
    "os.system", "builtins.eval", "subprocess.Popen", "cloc.evaluation.cache.Cache", "torch.nn.Linear", "", None, 3,
)  # fmt: skip
STRINGS = (
    "http://127.0.0.1:9/x.json", "reference::http://127.0.0.1:9/refs.json", "hf-hub:someone/something",
    "local-dir:/etc", "someone/something", "../../etc/passwd", "/etc/passwd", "ViT-B-16", "open_clip:ViT-B-16:openai",
)  # fmt: skip


class _Stranger:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code of a checkpoint ran",))


@dataclass(frozen=True)
class Prepared:
    """A small whole checkpoint: what it holds, and its bytes."""

    stored: dict[str, Any]
    data: bytes


def prepare(folder: Path) -> Prepared:
    """The checkpoint of a small untrained model."""
    config = compose(*SMALL)
    torch.manual_seed(0)
    model = build_model(config["model"])
    stored = {
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "cloc": {"version": cloc.__version__, "config": config, "cursor": 64, "samples_seen": 64, "counters": {}},
        "global_step": 1,
    }
    return Prepared(stored, _saved(stored))


def make(rng: random.Random, folder: Path, prepared: Prepared) -> Case:
    """A checkpoint whose bytes are damaged, or a whole one that holds something odd."""
    data, chance = prepared.data, rng.random()
    if chance < 0.1:
        what = "as it is"
    elif chance < 0.5:
        what, data = mutate.damage(data, rng)
    else:
        stored = copy.deepcopy(prepared.stored)
        what = _change(stored, rng)
        data = _saved(stored)
    path = folder / "x.ckpt"
    path.write_bytes(data)
    refusals = (ValueError, FileNotFoundError, ConfigError)
    return Case(what, lambda: _read(path), lambda: _reference(data), refusals, data, same=_same)


def _change(stored: dict[str, Any], rng: random.Random) -> str:
    oddity = rng.random()
    if oddity < 0.15:
        stored[rng.choice(("state_dict", "hyper", "cloc"))] = _Stranger()
        return "holds an object of a class"
    if oddity < 0.35:
        name = rng.choice(list(stored["state_dict"]))
        value = stored["state_dict"][name]
        new = rng.choice((value[:0], value.reshape(-1), value.to(torch.int8), "a text", None))
        stored["state_dict"][name] = new
        return f"{name} is another"
    if oddity < 0.4:
        name = rng.choice(("tokenizer.json", "tokenizer_config.json", "config.json", *STRINGS))
        content = torch.tensor(list(rng.randbytes(9)), dtype=rng.choice((torch.uint8, torch.uint8, torch.int64)))
        stored["text_files"] = rng.choice(({name: content}, {name: content[None]}, {name: "{}"}, [name], name))
        return f"carries {name}"
    model = stored["cloc"]["config"]["model"]
    if oddity < 0.55:
        part, target = rng.choice(("image", "text", "prompter", "grounding")), rng.choice(TARGETS)
        model[part] = {"_target_": target} | rng.choice(({}, {"location": STRINGS[1]}, {"command": "true"}))
        return f"{part} is {target}"
    if oddity < 0.75:
        part, key = rng.choice(("image", "text")), rng.choice(("name", "pretrained", "tokenizer", "options"))
        value: Any = rng.choice(STRINGS)
        if key == "options":
            value = rng.choice(({"checkpoint_path": value}, {"timm_model_name": value}, ["timm_model_name"], value))
        model[part][key] = value
        return f"{part}.{key}={value}"
    return mutate.edit(stored["cloc"] if oddity < 0.9 else model, rng)


def _saved(stored: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(stored, buffer)
    return buffer.getvalue()


def _read(path: Path) -> dict[str, Tensor]:
    return cloc.load(str(path)).model.state_dict()


def _reference(data: bytes) -> dict[str, Tensor]:
    try:
        damaged = zipfile.ZipFile(io.BytesIO(data)).testzip()
        if damaged:
            raise Unreadable(f"{damaged}: its checksum does not fit")
        state = torch.load(io.BytesIO(data), weights_only=True)["state_dict"]
        return {name.removeprefix("model."): value for name, value in state.items()}
    except Unreadable:
        raise
    except Exception as error:  # noqa: BLE001  (the restricted reader raises nearly all there are)
        raise Unreadable(f"{type(error).__name__} {error}"[:120].partition("\n")[0]) from error


def _same(found: dict[str, Tensor], expected: dict[str, Any]) -> bool:
    """Bit by bit, but for the type of numbers, which is the model's."""
    if set(found) != set(expected):
        return False
    return all(torch.equal(value, torch.as_tensor(expected[name]).to(value.dtype)) for name, value in found.items())


CHECKPOINTS = Kind("checkpoint", 0.07, prepare, make)
