"""What is exported: a run's newest weights, an average of its checkpoints, a blend with a base model.

Before the first step of an export (``source → matrix → … → verify → card``). The parity proof then compares the export
with exactly these weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cloc.checkpoints import find, list_checkpoints
from cloc.encoder import Encoder
from cloc.export.capabilities import ExportError
from cloc.loading import load
from cloc.models.foreign.base import is_fetched, is_of_others, model_of
from cloc.models.foreign.loading import PREFIX
from cloc.models.weights.averages import average, blend
from cloc.models.weights.pretrained import TOWERS


@dataclass(frozen=True)
class Choice:
    """Which weights of a run are exported.

    Attributes:
        average: mean over so many of the run's newest checkpoints.
        raw: the trained weights, where the checkpoint also holds their moving average (``trainer.ema``).
        base: a model to blend with: ``(1 - alpha) · base + alpha · run`` for each weight that both have (WiSE-FT,
            arXiv 2109.01903, Eq. 1), by whatever name a run may start from; None for what the run has started from.
        alpha: share of the run; None for the run alone.
        unfinished: a run that has not reached its budget may be exported.
        trusted: classes besides ours that the run and the base may name (see :func:`cloc.loading.load`).
    """

    average: int = 1
    raw: bool = False
    base: str | Path | None = None
    alpha: float | None = None
    unfinished: bool = False
    trusted: Sequence[type] = ()


def load_source(run: Path, choice: Choice) -> Encoder:
    """Load what is to be exported; ``info["weights"]`` says in words what it is.

    Args:
        run: run folder, checkpoint, or exported folder.
        choice: of the weights.

    Raises:
        ExportError: a choice that the run does not allow, or a model of another library.
        FileNotFoundError: no checkpoint there.
        ValueError: a checkpoint that cannot be loaded.
    """
    if choice.base is not None and choice.alpha is None:
        raise ExportError("--base goes with --alpha, the share of RUN in the blend")
    if choice.alpha is not None and not 0 <= choice.alpha <= 1:
        raise ExportError(f"--alpha {choice.alpha}: a share in 0..1; 1 is RUN itself, 0 the base")
    if choice.average < 1:
        raise ExportError(f"--average {choice.average}: at least 1 checkpoint")
    encoder = load(run, averaged=not choice.raw, trusted=choice.trusted)
    if "config" not in encoder.info:
        raise ExportError(
            f"{run} is a model of another library; cloc exports what it has trained. Start a run from it "
            "(model.image.pretrained, model.text.pretrained), or use it as --base"
        )
    _check_finished(run, encoder, choice)
    said = ["the trained weights beside their moving average"] if choice.raw else []
    if encoder.info.get("averaged"):
        said = ["the moving average of the weights"]
    state = None
    if choice.average > 1:
        state, names = _averaged(run, choice)
        said = [f"mean of {', '.join(names)}", *said]
    if choice.alpha is not None:
        base = str(choice.base or _start(run, encoder))
        weights = _state(base, encoder, choice.trusted)
        state, apart = blend(weights, state or encoder.model.state_dict(), choice.alpha, base)
        kept = f"; {', '.join(apart)} of the run alone" if apart else ""
        said.append(f"{choice.alpha} of the run and {1 - choice.alpha:.6g} of {_short(base)}{kept}")
    if state is not None:
        encoder.model.load_state_dict(state)
    encoder.info["weights"] = "; ".join(said)
    return encoder


def _check_finished(run: Path, encoder: Encoder, choice: Choice) -> None:
    """A checkpoint that is named may be any; of a run folder, the end is meant."""
    budget, seen = encoder.info["config"].get("samples"), encoder.info.get("samples_seen", 0)
    if run.is_dir() and budget and seen < budget and not choice.unfinished:
        raise ExportError(
            f"{run} has not finished: {seen:,} of {budget:,} samples. Run its training command again, or export it "
            "as it is with --unfinished"
        )


def _averaged(run: Path, choice: Choice) -> tuple[dict[str, Tensor], list[str]]:
    folder = run / "checkpoints" if run.is_dir() else run.parent
    files = [folder / name for name in list_checkpoints(folder) if name != "last.ckpt"]
    if run.is_file():  # those up to the one that was named
        files = [file for file in files if file.name <= find(run).resolve().name]
    if len(files) < choice.average:
        raise ExportError(
            f"--average {choice.average}: {folder} holds {len(files)} checkpoints of their own "
            f"({', '.join(file.name for file in files) or 'none'}); train with a larger trainer.keep_last"
        )
    files = files[: choice.average]
    states = [load(file, averaged=not choice.raw, trusted=choice.trusted).model.state_dict() for file in files]
    return average(states), [file.name for file in files]


def _start(run: Path, encoder: Encoder) -> str:
    """What a run has started from, as its configuration names it.

    Raises:
        ExportError: it has started from nothing, or from something that is no longer there or would be fetched.
    """
    config = encoder.info["config"]
    name = config.get("base") or config.get("init_from")
    if not name:
        raise ExportError(f"--alpha without --base: {run} has started from no other model; give the one to blend with")
    # What a run says is data, maybe a stranger's: nothing is fetched because of it.
    if is_fetched(str(name)) or not _place(str(name)).exists():
        why = "which may be a download" if is_fetched(str(name)) else "which is not there"
        raise ExportError(f"--alpha: {run} has started from {name}, {why}; name the base yourself: --base {name}")
    return str(name)


def _short(base: str) -> str:
    """A base in a card: the last part of a path, which is a machine's own; other names whole."""
    return base if is_fetched(base) else _place(base).name


def _place(base: str) -> Path:
    """Where a base that is not fetched lies: a path, or what stands behind ``open_clip:NAME:``."""
    return Path(base.split(":", 2)[-1] if base.startswith(PREFIX) else base).expanduser()


def _state(base: str, encoder: Encoder, trusted: Sequence[type]) -> dict[str, Tensor]:
    """Weights of the base under our names; of another library's model, those that a run would start with."""
    if not is_of_others(base):
        return load(base, trusted=trusted).model.state_dict()
    apart = [part for part in TOWERS if "folder" not in getattr(getattr(encoder.model, part), "describes", ())]
    if apart:  # what it names is fetched, or is the user's own, and no CLIP has it
        raise ExportError(
            f"--base {base} has another {apart[0]} tower; give the model that the run was fine-tuned from"
        )
    return model_of(base, encoder.info["config"]["model"]).state_dict()
