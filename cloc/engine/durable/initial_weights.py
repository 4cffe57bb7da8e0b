"""Initial weights of a new run from another model (beside ``run``): fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cloc.config import ConfigError
from cloc.data.tokenizer import Tokenizer
from cloc.loading import load
from cloc.models.foreign.base import is_of_others, model_of
from cloc.models.model import Cloc
from cloc.models.positions.resizing import stretch_positions
from cloc.models.protocols import declared

TOWERS = ("image", "text")
SCALARS = ("log_scales", "biases")
PARTS = (*TOWERS, "prompter", "grounding", *SCALARS)
TABLE = "text.tower.positional_embedding"


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        model: its weights; of another library's model both towers and the temperature.
        name: as it was given, with its key, for messages.
        tokenizer: of its texts, where cloc has trained it; None where the configuration follows the model.
    """

    model: Cloc
    name: str
    tokenizer: Tokenizer | None


def open_start(base: str | None, init_from: str | None, model: Mapping[str, Any], trusted: Sequence[type]) -> Start:
    """Open the model that a run starts from; one of both names is given.

    Args:
        base: whatever ``base`` may name.
        init_from: run folder, checkpoint, or exported folder.
        model: ``model`` of the run's configuration.
        trusted: classes of the run's own model, which its start may name too.

    Raises:
        ConfigError: it cannot be the start of this model.
        FileNotFoundError: it is not there.
    """
    if base is not None and is_of_others(base):
        return Start(model_of(base, model), f"base={base}", None)
    name = base if base is not None else init_from
    assert name is not None  # what the caller has seen
    size = model["image"].get("image_size") if base is not None else None
    found = load(Path(name).expanduser(), trusted=trusted, image_size=size)
    own = isinstance(found.tokenizer, Tokenizer) and "config" in found.info  # of cloc's; others have other towers
    return Start(found.model, f"{'init_from' if base is None else 'base'}={name}", found.tokenizer if own else None)


def take_weights(model: Cloc, source: str) -> str:
    """Copy the weights of a model that cloc has trained; see :func:`copy_weights`.

    Args:
        model: to be trained.
        source: run folder, checkpoint, or exported folder.

    Raises:
        FileNotFoundError: the source is not there.
    """
    return copy_weights(model, open_start(None, source, {}, model.classes))


def copy_weights(model: Cloc, start: Start) -> str:
    """Copy the weights of a start, part by part.

    Both towers must fit; positions of causal texts are stretched or cut to the model's, positions of pictures resized.
    The Prompter, the grounding head and the temperatures are taken where the source has them, and start fresh where it
    does not (a CLIP has no Prompter).

    Args:
        model: to be trained.
        start: has the weights.

    Returns:
        Which parts were taken and which start fresh, in words.

    Raises:
        ConfigError: a part of the source has another architecture, or its texts another tokenizer.
    """
    _check_words(model, start)
    given, own = start.model.state_dict(), model.state_dict()
    note = _fit_texts(model, given, own)
    taken, fresh = [], []
    for part in PARTS:
        names = {name for name in own if name.startswith(f"{part}.")}
        theirs = {name for name in given if name.startswith(f"{part}.")}
        if part in SCALARS:  # each loss has its own; those of other losses do not hinder
            theirs &= names
        if names and (theirs or part in TOWERS):
            _check_fit(start.name, part, {n: own[n].shape for n in names}, {n: given[n].shape for n in theirs})
            taken.append(part)
        elif names:
            fresh.append(part)
    fitting = {name: value for name, value in given.items() if name in own and name.split(".")[0] in taken}
    model.load_state_dict(own | fitting)
    missing = [name for name in own if name not in given]
    fresh += [name for part in SCALARS if part in taken for name in missing if name.startswith(f"{part}.")]
    source = start.name.partition("=")[2]
    return f"{', '.join(taken)} from {source}{note}" + (f"; {', '.join(fresh)} fresh" if fresh else "")


def _fit_texts(model: Cloc, given: dict[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Bring positions of texts to the model's length; says so."""
    tables = [state[TABLE] for state in (own, given) if TABLE in state]
    if len(tables) < 2 or not declared(model.text).trims or tables[0].shape[1:] != tables[1].shape[1:]:
        return ""
    before, after = len(given[TABLE]), len(own[TABLE])
    given[TABLE] = stretch_positions(given[TABLE], after)
    return f"; positions of texts from {before} to {after}" if before != after else ""


def _check_words(model: Cloc, start: Start) -> None:
    """Rows of a table of words mean nothing to a tokenizer that numbers them otherwise, however well they fit."""
    ours, theirs = Tokenizer.of(model.text), start.tokenizer
    if theirs is not None and {ours.name, theirs.name} != {"open_clip"} and ours.digest != theirs.digest:
        raise ConfigError(
            f"{start.name}: its text tower was trained with another tokenizer than model.text.tokenizer="
            f"{ours.name!r}; set that to text/ of its run"
        )


def _check_fit(source: str, part: str, own: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]]) -> None:
    names = own.keys() & given.keys() if part in SCALARS else own.keys() | given.keys()
    wrong = sorted(name for name in names if own.get(name) != given.get(name))
    if wrong:
        name = wrong[0]
        shapes = [tuple(shapes[name]) if name in shapes else "absent" for shapes in (own, given)]
        key = source.partition("=")[0]
        raise ConfigError(
            f"{source}: its model.{part} has another architecture; {len(wrong)} weights differ, the first is "
            f"{name}: {shapes[0]} here, {shapes[1]} there. Give the same model.{part}, or remove {key}"
        )
