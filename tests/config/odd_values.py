"""Odd values for every key of a configuration, and what becomes of them: ``python -m tests.config.odd_values``.

Each value goes the way of ``train.py`` (or ``eval.py``): it is refused in a line before anything is trained, or a dry
run passes it, and a tiny run of one step is trained with it. Anything else is a fault. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import huggingface_hub.constants
import torch
from omegaconf import OmegaConf

from cloc.command import is_users, line_of
from cloc.config import EvalConfig, TrainConfig, check_keys, find_class, validate
from cloc.engine import run
from tests.kit.resuming import configure, make_squares

CLASSES = ("refused", "trained", "traceback", "accepted_then_refused")
FAULTS = CLASSES[2:]
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 2**63, math.nan, "", "8", "a name, with spaces", "µ日本" * 900, "/dev/null/there"),
    *("two\n\0\ud800", "???", "${nowhere.there}", [1, "x"], {"a": 1}),
)
# What takes long or starts processes: passed by the dry run alone.
LONG = {"trainer.compile", "profile", "data.workers", "trainer.threads", "dry_run"}
# Known once the model has been measured, or asked of a hub: a line, but not of the dry run.
LATER = {"model.image.pretrained"}


@dataclass(frozen=True)
class Outcome:
    """What became of one value: one of :data:`CLASSES`, and the line or the place that says why."""

    key: str
    value: Any
    outcome: str
    detail: str = ""


def base(squares: Path, folder: Path) -> dict[str, Any]:
    """A run of one step that is measured at its end, as plain containers."""
    more = (
        "evaluation.every=8",
        "evaluation.data=[squares]",
        "evaluation.limit=4",
        "samples=8",
        "model.image.name=vit_tiny_patch16_224",
    )
    found: Any = OmegaConf.to_container(configure(squares, folder, *more))
    found["datasets"] = {"squares": {"shards": str(squares / "train"), "description": "Squares"}}
    return found


def places(config: dict[str, Any], schema: type, path: str = "") -> Iterator[str]:
    """Every key: of the schema, of the nodes and their parts' arguments, of the entries."""
    hints = get_type_hints(schema)
    for field in fields(schema):
        key, hint, value = f"{path}{field.name}", hints[field.name], config.get(field.name)
        yield key
        if is_dataclass(hint):
            yield from places(value or {}, hint, f"{key}.")
        elif isinstance(value, dict) and len(get_args(hint)) == 2 and is_dataclass(get_args(hint)[1]):
            for name, entry in value.items():
                yield f"{key}.{name}"
                yield from places(entry, get_args(hint)[1], f"{key}.{name}.")
        elif isinstance(value, dict):
            yield from _inside(value, key)
        elif isinstance(value, list):
            yield from (f"{key}[{index}]" for index in range(min(1, len(value))))


def _inside(node: dict[str, Any], path: str) -> Iterator[str]:
    """Keys of a node, and the arguments that it leaves to the part."""
    taken = signature(find_class(node["_target_"], path)).parameters if "_target_" in node else {}
    # The context gives these.
    names = [name.rstrip("_") for name in taken if name not in ("joint_dim", "width", "grid")]
    for name in dict.fromkeys([*node, *names]):
        yield f"{path}.{name}"
        if isinstance(node.get(name), dict):
            yield from _inside(node[name], f"{path}.{name}")


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A configuration with one value changed; the first one stays as it is."""
    name, _, index = key.partition("[")
    *above, last = name.split(".")
    made = owner = dict(config)
    for one in above:
        owner[one] = owner = dict(owner.get(one) or {})
    owner[last] = [value] if index else value
    return made


def try_train(config: dict[str, Any], key: str, value: Any, folder: Path, step: bool = True) -> Outcome:
    """What becomes of a value on the way of ``train.py``."""
    made = changed(config | {"run_dir": str(folder)}, key, value)
    passed = False
    try:
        check_keys(made, TrainConfig)
        run.train(OmegaConf.create(made | ({} if key == "dry_run" else {"dry_run": True})))
        passed = True
        if step and key not in LONG | LATER:
            run.train(OmegaConf.create(made))
    except Exception as error:  # noqa: BLE001  (whatever it is, it is judged)
        return Outcome(key, value, "accepted_then_refused", line_of(error)) if passed else _judged(key, value, error)
    return Outcome(key, value, "trained")


def try_eval(config: dict[str, Any], key: str, value: Any) -> Outcome:
    """What becomes of a value on the way of ``eval.py``, up to its start."""
    try:
        validate(changed(config, key, value), EvalConfig)
    except Exception as error:  # noqa: BLE001  (as above)
        return _judged(key, value, error)
    return Outcome(key, value, "trained")


def _judged(key: str, value: Any, error: Exception) -> Outcome:
    line = line_of(error)
    if is_users(error) and "\n" not in line and len(line) < 700:
        return Outcome(key, value, "refused", line)
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame else "?"
    return Outcome(key, value, "traceback", f"{place} {line[:200]}")


@contextlib.contextmanager
def _within(folder: Path) -> Iterator[None]:
    """Relative paths among the values lead nowhere else."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def sweep(folder: Path, every: int = 1, trained: int = 1) -> Iterator[Outcome]:
    """Try the values, one after another.

    Args:
        folder: to work in.
        every: only each so many of them.
        trained: train with each so many of those that a dry run passes; 0 for none.
    """
    squares = make_squares(folder / "squares", 16)
    config, number, passed = base(squares, folder / "run"), 0, 0
    trial = {"checkpoint": "x", "data": ["squares"], "evaluation": config["evaluation"], "datasets": config["datasets"]}
    for key in places(config, TrainConfig):
        for value in ODD:
            number += 1
            if number % every == 0:
                with _within(folder):
                    step = trained > 0 and passed % trained == 0
                    found = try_train(config, key, value, folder / f"run{number}", step)
                passed += found.outcome != "refused"
                yield found
    own = [key for key in places(trial, EvalConfig) if not key.startswith(("evaluation.", "datasets."))]
    for key in own:  # those of both were tried above
        for value in ODD:
            number += 1
            if number % every == 0:
                yield try_eval(trial, key, value)


def main() -> None:
    """Try the values and print what became of them, by group of keys."""
    parser = argparse.ArgumentParser("python -m tests.config.odd_values", description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="try each so many of the values alone")
    parser.add_argument("--trained", type=int, default=1, help="train with each so many that a dry run passes; 0: none")
    parser.add_argument("--all", action="store_true", help="print every outcome, not the faults alone")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # names of a hub are asked of nobody
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for found in sweep(Path(folder), asked.every, asked.trained):
            counts.setdefault(found.key.partition(".")[0].partition("[")[0], Counter())[found.outcome] += 1
            if found.outcome in FAULTS or asked.all:
                print(ascii(f"{found.outcome}: {found.key}={found.value!r:.60}: {found.detail:.300}")[1:-1], flush=True)
    total = sum(counts.values(), Counter())
    for group, own in sorted(counts.items()):
        print(f"{group:12}", *(f"{own[name]:6} {name}" for name in CLASSES))
    print(json.dumps({"values": sum(total.values())} | {name: total[name] for name in CLASSES}))


if __name__ == "__main__":
    main()
