"""What a run continues from: the newest checkpoint that is whole and fits (between ``folder`` and ``run``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from cloc.config import ConfigError, TrainConfig
from cloc.config.secrets import public_tree
from cloc.engine.checkpoint import CheckpointError, Stored, inspect, read
from cloc.engine.folder import CHECKPOINTS, RunFolder, locked
from cloc.engine.module import Pretrain
from cloc.files import make_folder, remove_parts

# Where a run is and how it is started may change; nothing that it computes does.
FREE = ("run_dir", "resume", "dry_run", "profile", "init_from")
# Paths to the same thing: their content is part of the checkpoint, or was used before the first step.
PLACES = ("tokenizer", "pretrained", "weights", "name")
console = Console()


def begin(folder: RunFolder, config: TrainConfig, module: Pretrain, digest: str, held: ExitStack) -> Stored | None:
    """Take the run folder and find what to continue from. For process 0.

    Args:
        folder: of the run.
        config: validated.
        module: built from it.
        digest: of its data.
        held: keeps the folder's lock until it is closed.

    Returns:
        The checkpoint; None for a new run.

    Raises:
        ConfigError: another process writes the folder, ``resume=false`` although there is a checkpoint, or it does not
            fit the command.
        CheckpointError: all checkpoints are damaged.
    """
    held.enter_context(locked(folder))
    folder.pull()
    stored = newest(folder)
    if stored is None:
        return None
    if not config.resume:
        raise ConfigError(f"resume=false, but {stored.path} exists; choose another run_dir or remove {folder.location}")
    if stored.info["samples_seen"] < config.samples:
        check_fit(stored, config, module, digest, folder)
    return stored


def newest(folder: RunFolder) -> Stored | None:
    """The newest whole checkpoint of a run. Damaged ones are reported and set aside under another name.

    For the process that holds the run's lock.

    Returns:
        None for a run that has not written a checkpoint yet.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    remove_parts(make_folder(folder.local, CHECKPOINTS), "*.ckpt")
    names, damaged = folder.names(), []
    for name in names:
        try:
            stored = inspect(folder.fetch(name))
        except CheckpointError as error:
            damaged.append(name)
            console.print(f"[bold red]{error}[/]")
            continue
        for other in damaged:
            console.print(f"{folder.location}: {other} is now {folder.set_aside(other)}; taking {name}")
        return stored
    if damaged:
        raise CheckpointError(
            f"{folder.location}: all of its checkpoints are damaged ({', '.join(damaged)}); restore one, or remove "
            "them to start anew"
        )
    return None


def check_fit(stored: Stored, config: TrainConfig, module: Pretrain, digest: str, folder: RunFolder) -> None:
    """Compare a checkpoint with the command that continues it; report what differs.

    Args:
        stored: what :func:`newest` found.
        config: of the command, validated.
        module: built by it.
        digest: of its data.
        folder: of the run; its ``versions.json`` knows the data of the run so far.

    Raises:
        ConfigError: the model or the optimizer is another one; names what differs.
    """
    old, new = _flat(public_tree(stored.info["config"])), _flat(module.resolved)  # other credentials are no change
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and key not in FREE]
    lines = [f"{key}: {old.get(key, 'absent')} → {new.get(key, 'absent')}" for key in changed]
    _check_model(stored, module, lines)
    _check_optimizer(stored, config, module, lines)
    if _data_before(folder.local / "versions.json", digest) != digest:
        lines.append(f"the shards of {module.resolved['data']['train']}: other content than before")
    if lines:
        console.print("[bold]not as in the checkpoint[/]; the new values hold from here on:")
        for line in lines:
            console.print(f"  {line}", highlight=False, markup=False)


def _data_before(versions: Path, digest: str) -> str:
    """Digest of the shards that the run has read so far; the present one where nothing is known of it."""
    if not versions.is_file():
        return digest
    try:
        return json.loads(versions.read_bytes())["data"]
    except (ValueError, TypeError, KeyError):
        console.print(f"{versions} cannot be read: whether the shards have changed is not known. It is written anew")
        return digest


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _refuse(stored: Stored, what: str, lines: list[str], prefix: str) -> ConfigError:
    keys = "; ".join(line for line in lines if line.startswith(prefix)) or "its configuration has not changed"
    return ConfigError(f"{stored.path} holds another {what} ({keys}); restore these values, or give another run_dir")


def _check_model(stored: Stored, module: Pretrain, lines: list[str]) -> None:
    if stored.path.is_dir():  # sharded: shapes are compared when the shards are read; the configuration says it sooner
        own = [line for line in lines if line.startswith("model.")]
        if any(line.partition(":")[0].rpartition(".")[2] not in PLACES for line in own):
            raise _refuse(stored, "model", lines, "model.")
        return
    theirs = {name: tuple(value.shape) for name, value in read(stored.path)["state_dict"].items()}
    ours = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    wrong = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
    if wrong:
        name = wrong[0]
        shapes = f"{name}: {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here"
        raise _refuse(stored, f"model: {len(wrong)} weights differ, the first is {shapes}", lines, "model.")


def _check_optimizer(stored: Stored, config: TrainConfig, module: Pretrain, lines: list[str]) -> None:
    """Load its state once for the check: PyTorch knows best what fits."""
    if stored.path.is_dir() or config.trainer.strategy == "fsdp":  # read by the strategy, in its own layout
        return
    try:
        module.configure_optimizers().load_state_dict(read(stored.path)["optimizer_states"][0])
    except (KeyError, ValueError) as error:
        raise _refuse(stored, "optimizer", lines, "optim.") from error
