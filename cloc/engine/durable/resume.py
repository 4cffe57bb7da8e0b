"""What a run continues from: the newest checkpoint that is whole and fits (between ``folder`` and ``run``)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from enum import Enum
from inspect import signature
from pathlib import Path
from typing import Any

from rich.console import Console

from cloc.config import ConfigError, DataConfig, TrainConfig, resolve
from cloc.config.secrets import public_tree
from cloc.data.tokenizer import Tokenizer
from cloc.engine.agreement import flat, is_within
from cloc.engine.durable.checkpoint_file import CheckpointError, Stored, inspect, read
from cloc.engine.durable.run_folder import CHECKPOINTS, RunFolder, locked
from cloc.engine.module import Pretrain
from cloc.engine.nonfinite import not_finite, trained_values
from cloc.engine.optim import optim_config, rearranged
from cloc.files import make_folder, remove_parts


class After(Enum):
    """What becomes of a key whose value is not that of the checkpoint which a run continues from."""

    HOLDS = "the new value holds from the next step on"
    START = "it served to begin the run: no effect, and that is told"
    REFUSED = "it cannot change"
    FITS = "refused where it gives a parameter another optimizer, else it holds"
    PART = "refused, but for what only acts while training and for paths to the same thing"
    COMMAND = "says where a run is and how it is started: nothing that it computes"


def _keys(group: str, names: str) -> list[str]:
    return [f"{group}.{name}" for name in names.split()]


# Every leaf of `TrainConfig`; a group whose keys are free stands for all of them.
AFTER: dict[str, After] = {
    **dict.fromkeys(("run_dir", "resume", "dry_run", "profile"), After.COMMAND),
    **dict.fromkeys(("init_from", "evaluation.at_start"), After.START),
    # The order of the samples and the first weights come from it; half of it could not change.
    **dict.fromkeys(("seed", "model.joint_dim", "model.logit_bias"), After.REFUSED),
    **dict.fromkeys(_keys("model", "image text prompter grounding"), After.PART),
    **dict.fromkeys(_keys("optim", "name muon_projections"), After.FITS),
    **dict.fromkeys(("name", "samples", "batch_size", "objective", "loss", "logger", "datasets"), After.HOLDS),
    **dict.fromkeys((f"data.{field.name}" for field in fields(DataConfig)), After.HOLDS),
    **dict.fromkeys(_keys("optim", "lr muon_lr weight_decay muon_weight_decay betas warmup final"), After.HOLDS),
    **dict.fromkeys(_keys("optim", "clip_grad tower_rate layer_decay"), After.HOLDS),
    **dict.fromkeys(_keys("trainer", "accelerator devices num_nodes strategy precision threads"), After.HOLDS),
    **dict.fromkeys(_keys("trainer", "log_every checkpoint_every checkpoint_minutes keep_last"), After.HOLDS),
    **dict.fromkeys(_keys("trainer", "max_skipped_steps compile checkpoint_activations accumulate ema"), After.HOLDS),
    **dict.fromkeys(_keys("evaluation", "every data limit best parts metrics"), After.HOLDS),
    **dict.fromkeys(_keys("evaluation", "sources batch_size bootstrap"), After.HOLDS),
}
IN_TRAINING = re.compile(r"drop|^remember$")  # of a part: its weights mean the same with it as without
console = Console(soft_wrap=True)  # a message is a line, however long its paths are


def after(key: str, text: str = "") -> After:
    """What becomes of a key of the configuration, by the table above.

    Args:
        key: of a leaf, with dots.
        text: ``model.text._target_``; the name of a Hugging Face tower is the path to its weights.

    Raises:
        KeyError: the table does not know it.
    """
    group = next((known for known in AFTER if is_within(key, (known,))), None)
    if group is None:
        raise KeyError(f"{key}: not in the table of what may change when a run is resumed")
    if AFTER[group] is not After.PART:
        return AFTER[group]
    leaf = key.rpartition(".")[2]
    if IN_TRAINING.search(leaf):
        return After.HOLDS
    path = leaf in ("pretrained", "tokenizer") or (key == "model.text.name" and text.endswith("HuggingFaceText"))
    return After.START if path else After.REFUSED


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
    stored = newest(folder, [name for name, _ in trained_values(module)])
    if stored is None:
        return None
    if not config.resume:
        raise ConfigError(f"resume=false, but {stored.path} exists; choose another run_dir or remove {folder.location}")
    if stored.info["samples_seen"] < config.samples:
        check_fit(stored, config, module, digest, folder)
    return stored


def newest(folder: RunFolder, trained: Sequence[str]) -> Stored | None:
    """The newest checkpoint of a run that is whole and whose weights are finite.

    Others are reported and set aside under another name. For the process that holds the run's lock.

    Args:
        folder: of the run.
        trained: names of the weights to look at.

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
            _check_finite(stored, trained)
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


def _check_finite(stored: Stored, trained: Sequence[str]) -> None:
    if stored.path.is_dir():  # sharded: read by the strategy
        return
    content = read(stored.path)
    for weights in (content["state_dict"], content.get("current_model_state", {})):
        broken = not_finite((name, weights[name]) for name in trained if name in weights)
        if broken:
            raise CheckpointError(f"{stored.path} holds weights that are not finite, the first in {broken}")


def check_fit(stored: Stored, config: TrainConfig, module: Pretrain, digest: str, folder: RunFolder) -> None:
    """Compare a checkpoint with the command that continues it; report what differs.

    Args:
        stored: what :func:`newest` found.
        config: of the command, validated.
        module: built by it.
        digest: of its data.
        folder: of the run; its ``versions.json`` knows the data of the run so far.

    Raises:
        ConfigError: something differs that cannot change: the model, its tokenizer, the optimizer, the seed. Names it.
    """
    lines = changes(stored.info["config"], module.resolved)
    what = {key: after(key, module.resolved["model"]["text"]["_target_"]) for key in lines}
    _check_model(stored, module, lines)
    for key in lines:
        if what[key] is After.REFUSED:
            raise _refuse(stored, "model" if key.startswith("model.") else key, lines, key)
    _check_optimizer(stored, config, module, lines)
    _check_tokenizer(module, folder, lines)
    holding = [line for key, line in lines.items() if what[key] in (After.HOLDS, After.FITS)]
    holding += _other_data(module, digest, folder)
    _tell("not as in the checkpoint[/]; the new values hold from here on:", holding)
    idle = [line for key, line in lines.items() if what[key] is After.START]
    _tell("of no effect here[/]; the checkpoint's weights go on, whatever a run began with:", idle)


def tell_other_settings(stored: Stored, module: Pretrain, digest: str, folder: RunFolder) -> None:
    """Say what of a finished run is not as its command has it by now; nothing is trained by these values.

    Args:
        stored: its last checkpoint.
        module: built by the command.
        digest: of the command's data.
        folder: of the run.
    """
    lines = changes(stored.info["config"], module.resolved)
    lines.pop("samples", None)  # told with the samples that it has seen
    other = [*lines.values(), *_other_data(module, digest, folder)]
    title = f"it was trained with other settings[/] than this command has, and {folder.location} stays as it is; to "
    _tell(f"{title}train with these, give another name= or run_dir=:", other)


def _other_data(module: Pretrain, digest: str, folder: RunFolder) -> list[str]:
    if _data_before(folder.local / "versions.json", digest) == digest:
        return []
    return [f"the shards of {module.resolved['data']['train']}: other content than before"]


def _tell(title: str, lines: list[str]) -> None:
    if lines:
        console.print(f"[bold]{title}")
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


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Keys whose values differ between two configurations, each with a line that says how.

    A key that one of them lacks has its default: that of the schema, or of the class that a node names. Other
    credentials are no change.
    """
    defaults = _defaults(now)
    old, new = (defaults | flat(public_tree(config)) for config in (before, now))
    # A checkpoint of another version may hold keys that nothing here reads.
    known = [key for key in sorted({*old, *new}) if key in new or any(is_within(key, (group,)) for group in AFTER)]
    changed = [key for key in known if old.get(key) != new.get(key)]
    return {
        key: f"{key}: {old.get(key, 'absent')} → {new.get(key, 'absent')}"
        for key in changed
        if after(key) is not After.COMMAND
    }


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of the schema, and of the classes that a command names; no class is imported because a checkpoint names it."""
    found = flat(asdict(TrainConfig()))
    for part in ("image", "text", "prompter", "grounding"):
        node = config["model"].get(part)
        if node:
            takes = signature(resolve(node, f"model.{part}")[0]).parameters.values()
            found |= {f"model.{part}.{one.name}": one.default for one in takes if one.default is not one.empty}
    return found


def _refuse(stored: Stored, what: str, lines: Mapping[str, str], prefix: str) -> ConfigError:
    keys = "; ".join(line for key, line in lines.items() if key.startswith(prefix)) or "its configuration is the same"
    return ConfigError(
        f"{stored.path} holds another {what} ({keys}); restore these values, or give another run_dir, with init_from "
        "to begin with these weights"
    )


def _check_model(stored: Stored, module: Pretrain, lines: Mapping[str, str]) -> None:
    if stored.path.is_dir():  # sharded: shapes are compared when the shards are read; the configuration says it sooner
        return
    theirs = {name: tuple(value.shape) for name, value in read(stored.path)["state_dict"].items()}
    ours = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    wrong = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
    if wrong:
        name = wrong[0]
        shapes = f"{name}: {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here"
        raise _refuse(stored, f"model: {len(wrong)} weights differ, the first is {shapes}", lines, "model.")


def _check_optimizer(stored: Stored, config: TrainConfig, module: Pretrain, lines: Mapping[str, str]) -> None:
    """Load its state once for the check: PyTorch knows best what fits."""
    fits = [key for key in lines if AFTER.get(key) is After.FITS]
    if stored.path.is_dir():  # read by the strategy, in its own layout
        if fits:
            raise _refuse(stored, "optimizer", lines, "optim.")
        return
    try:
        before = optim_config(stored.info["config"])
        state = rearranged(read(stored.path)["optimizer_states"][0], module.model, before, config.optim)
        if config.trainer.strategy != "fsdp":  # whose optimizer is too large for one process
            module.configure_optimizers().load_state_dict(state)
    except (KeyError, ValueError) as error:
        raise _refuse(stored, f"optimizer: {error}", lines, "optim.") from error


def _check_tokenizer(module: Pretrain, folder: RunFolder, lines: Mapping[str, str]) -> None:
    """A tokenizer may lie elsewhere, but a token must stay the same word."""
    kept, given = folder.local / "text", module.model.text.tokenizer
    moved = [lines[key] for key in ("model.text.tokenizer", "model.text.name") if key in lines]
    if not moved:
        return
    same = given != "open_clip" and kept.is_dir() and Tokenizer(str(kept)).digest == Tokenizer(given).digest
    if not same:
        raise ConfigError(
            f"{folder.location} was trained with another tokenizer ({'; '.join(moved)}); restore it, or give another "
            "run_dir"
        )
