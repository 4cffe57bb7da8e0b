"""Initial weights of a new run from another run, a checkpoint or an export (beside ``run``): fine-tuning."""

from __future__ import annotations

from pathlib import Path

from cloc.config import ConfigError
from cloc.data.tokenizer import Tokenizer
from cloc.encoder import Encoder
from cloc.loading import load
from cloc.models.model import Cloc
from cloc.models.positions.resizing import stretch_positions
from cloc.models.protocols import declared

TOWERS = ("image", "text")
SCALARS = ("log_scales", "biases")
PARTS = (*TOWERS, "prompter", "grounding", *SCALARS)
TABLE = "text.tower.positional_embedding"


def take_weights(model: Cloc, source: str) -> str:
    """Copy the weights of a trained model, part by part.

    Both towers must fit; positions of causal texts are stretched or cut to the model's. The Prompter, the grounding
    head and the temperatures are taken where the source has them, and start fresh where it does not (a CLIP has no
    Prompter).

    Args:
        model: to be trained.
        source: run folder, checkpoint, or exported folder.

    Returns:
        Which parts were taken and which start fresh, in words.

    Raises:
        ConfigError: a part of the source has another architecture, or its texts another tokenizer.
        FileNotFoundError: the source is not there.
    """
    found = load(Path(source).expanduser(), trusted=model.classes)
    _check_words(model, found, source)
    given, own = found.model.state_dict(), model.state_dict()
    taken, fresh, note = [], [], ""
    tables = [state[TABLE] for state in (own, given) if TABLE in state]
    if len(tables) == 2 and declared(model.text).trims and tables[0].shape[1:] == tables[1].shape[1:]:
        before, after = len(given[TABLE]), len(own[TABLE])
        note = f"; positions of texts from {before} to {after}" if before != after else ""
        given[TABLE] = stretch_positions(given[TABLE], after)
    for part in PARTS:
        names = {name for name in own if name.startswith(f"{part}.")}
        theirs = {name for name in given if name.startswith(f"{part}.")}
        if part in SCALARS:  # each loss has its own; those of other losses do not hinder
            theirs &= names
        if names and (theirs or part in TOWERS):
            _check_fit(source, part, {n: own[n].shape for n in names}, {n: given[n].shape for n in theirs})
            taken.append(part)
        elif names:
            fresh.append(part)
    fitting = {name: value for name, value in given.items() if name in own and name.split(".")[0] in taken}
    model.load_state_dict(own | fitting)
    missing = [name for name in own if name not in given]
    fresh += [name for part in SCALARS if part in taken for name in missing if name.startswith(f"{part}.")]
    return f"{', '.join(taken)} from {source}{note}" + (f"; {', '.join(fresh)} fresh" if fresh else "")


def _check_words(model: Cloc, found: Encoder, source: str) -> None:
    """Rows of a table of words mean nothing to a tokenizer that numbers them otherwise, however well they fit."""
    ours, theirs = Tokenizer.of(model.text), found.tokenizer
    both = isinstance(theirs, Tokenizer) and "config" in found.info  # of cloc's own; others have other towers
    if both and {ours.name, theirs.name} != {"open_clip"} and ours.digest != theirs.digest:
        raise ConfigError(
            f"init_from={source}: its text tower was trained with another tokenizer than model.text.tokenizer="
            f"{ours.name!r}; set that to text/ of its run"
        )


def _check_fit(source: str, part: str, own: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]]) -> None:
    names = own.keys() & given.keys() if part in SCALARS else own.keys() | given.keys()
    wrong = sorted(name for name in names if own.get(name) != given.get(name))
    if wrong:
        name = wrong[0]
        shapes = [tuple(shapes[name]) if name in shapes else "absent" for shapes in (own, given)]
        raise ConfigError(
            f"init_from={source}: its model.{part} has another architecture; {len(wrong)} weights differ, the first is "
            f"{name}: {shapes[0]} here, {shapes[1]} there. Give the same model.{part}, or remove init_from"
        )
