"""What a run continues from: the newest checkpoint that is whole and fits (between ``run_folder`` and ``run``)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from cloc.checkpoints import FOLDER as CHECKPOINTS
from cloc.config import ConfigError, RunConfig
from cloc.config.secrets import public_tree
from cloc.engine.agreement import content_digest, flat, is_within
from cloc.engine.durable.checkpoint_file import CheckpointError, Stored, inspect, read
from cloc.engine.durable.run_folder import RunFolder, locked
from cloc.engine.durable.settings import After
from cloc.engine.nonfinite import not_finite, trained_values
from cloc.engine.task import Task
from cloc.files import make_folder, remove_parts

SHOWN = 6  # differences in a message
console = Console(soft_wrap=True)  # a message is a line, however long its paths are


def begin(folder: RunFolder, config: RunConfig, task: Task, digest: str, held: ExitStack) -> Stored | None:
    """Take the run folder and find what to continue from. For process 0.

    Args:
        folder: of the run.
        config: validated.
        task: built from it.
        digest: of its data.
        held: keeps the folder's lock until it is closed.

    Returns:
        The checkpoint; None for a new run.

    Raises:
        ConfigError: another process writes the folder, ``resume=false`` although there is a checkpoint, it does not fit
            the command, or it ends a run that the command would train with other settings.
        CheckpointError: all checkpoints are damaged.
    """
    held.enter_context(locked(folder))
    folder.pull()
    stored = newest(folder, [name for name, _ in trained_values(task)])
    if stored is None:
        return None
    compare(stored, config, task, digest, folder)
    return stored


def compare(stored: Stored, config: RunConfig, task: Task, digest: str, folder: RunFolder) -> None:
    """Hold a command to the checkpoint that lies in its run folder, and tell what differs; writes nothing.

    Args:
        stored: the checkpoint.
        config: of the command, validated.
        task: built from it.
        digest: of its data.
        folder: of the run.

    Raises:
        ConfigError: see :func:`begin`.
    """
    if not config.resume:
        raise ConfigError(f"resume=false, but {stored.path} exists; choose another run_dir or remove {folder.location}")
    if is_finished(stored, config):
        for line in check_finished(stored, type(task), task.resolved, digest, folder, task.data_name):
            console.print(line, highlight=False, markup=False)
    else:
        check_fit(stored, task, digest, folder)


def is_finished(stored: Stored, config: RunConfig) -> bool:
    """Whether a checkpoint has seen all samples of the budget: the command has nothing to train."""
    seen: int = stored.info["samples_seen"]
    return seen >= config.samples


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


def check_fit(stored: Stored, task: Task, digest: str, folder: RunFolder) -> None:
    """Compare a checkpoint with the command that continues it; report what differs.

    Args:
        stored: what :func:`newest` found.
        task: built by the command.
        digest: of its data.
        folder: of the run; its ``versions.json`` knows the data of the run so far.

    Raises:
        ConfigError: something differs that cannot change: the model, its tokenizer, the optimizer, the seed. Names it.
    """
    lines = changes(type(task), stored.info["config"], task.resolved)
    what = {key: task.after(key, task.resolved) for key in lines}
    refused = [key for key in lines if what[key] is After.REFUSED]
    for key in refused:
        if not key.startswith("model."):
            raise _refuse(stored, key, lines, key)
    _check_model(stored, task, lines)  # shapes say more of it than keys
    if refused:
        raise _refuse(stored, "model", lines, refused[0])
    _check_optimizer(stored, task, lines, [key for key in lines if what[key] is After.FITS])
    task.check_resume(folder, lines)
    holding = [line for key, line in lines.items() if what[key] in (After.HOLDS, After.HOW, After.FITS)]
    if _data_before(folder.local / "versions.json", digest) != digest:
        holding.append(f"{task.data_name}: other content than before")
    _tell("not as in the checkpoint[/]; the new values hold from here on:", holding)
    idle = [line for key, line in lines.items() if what[key] is After.START]
    _tell("of no effect here[/]; the checkpoint's weights go on, whatever a run began with:", idle)


def check_finished(
    stored: Stored,
    kind: type[Task],
    resolved: Mapping[str, Any],
    digest: str,
    folder: RunFolder,
    data_name: str = "the data",
) -> list[str]:
    """Compare a finished run with a command that would train it: the same one may come again, another trial may not.

    Args:
        stored: its last checkpoint.
        kind: the task.
        resolved: the command's configuration, whole.
        digest: of the command's data.
        folder: of the run.
        data_name: what the task reads, in words.

    Returns:
        What to say: that the run is at its end, and keys whose values are others without a meaning for the weights.

    Raises:
        ConfigError: with the command's settings it would have learned something else; names them. Doing nothing, with
            exit code 0, would pass for a trial of these settings.
    """
    pairs = _differing(kind, stored.info["config"], resolved)
    pairs.pop("samples", None)  # told with the samples that it has seen
    other_data = _data_before(folder.local / "versions.json", digest) != digest
    lines = {key: _line(key, *values) for key, values in pairs.items()}
    others = [lines[key] for key, values in pairs.items() if _learns(kind, key, values, resolved, other_data)]
    seen, where = stored.info["samples_seen"], folder.location
    if others:
        more = f"; {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise ConfigError(
            f"{where} holds a finished run of {seen} samples with other settings ({'; '.join(others[:SHOWN])}{more}); "
            f"set name or run_dir for each trial, or remove {where} to start anew"
        )
    idle = [*lines.values(), *([f"{data_name}: other content than before"] if other_data else [])]
    said = [f"{where}: already trained on {seen} samples (samples={resolved['samples']}); remove it to start anew"]
    if idle:
        said.append("of no effect, for nothing is left to train:")
        said += [f"  {line}" for line in idle]
    return said


def _learns(kind: type[Task], key: str, values: tuple[Any, Any], resolved: Mapping[str, Any], other_data: bool) -> bool:
    """Whether a run with the second value of a key would have learned something else than with the first one."""
    what = kind.after(key, resolved)
    if key == "data.train" or (key.startswith("data.train.") and key.endswith(".path")):  # the same shards elsewhere
        return other_data
    if what is After.START:
        return not key.startswith("evaluation.") and not _is_moved(*values)
    return what is not After.HOW


def _is_moved(old: Any, new: Any) -> bool:
    """Whether two paths lead to the same, as far as can be told: a scratch folder of an earlier life is gone."""
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    before = Path(old).expanduser()
    if not before.exists():
        return before.is_absolute()
    return content_digest(old) == content_digest(new)


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
        before: str = json.loads(versions.read_bytes())["data"]
    except (ValueError, TypeError, KeyError):
        console.print(f"{versions} cannot be read: whether the shards have changed is not known. It is written anew")
        return digest
    return before


def changes(task: type[Task], before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Keys whose values differ between two configurations of a task, each with a line that says how.

    A key that one of them lacks has its default: that of the schema, or of the class that a node names. Other
    credentials are no change.
    """
    return {key: _line(key, *values) for key, values in _differing(task, before, now).items()}


def _line(key: str, old: Any, new: Any) -> str:
    return f"{key}: {old} → {new}"


def _differing(task: type[Task], before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, each with both; ``absent`` for one that a configuration lacks."""
    defaults = task.defaults(now)
    old, new = (defaults | flat(public_tree(config)) for config in (task.completed(before, now), now))
    # A checkpoint of another version may hold keys that nothing here reads.
    known = [
        key for key in sorted({*old, *new}) if key in new or any(is_within(key, (group,)) for group in task.table())
    ]
    return {
        key: (old.get(key, "absent"), new.get(key, "absent"))
        for key in known
        if old.get(key) != new.get(key)
        and not (key in old and key in new and _as_typed(task, key, old[key]) == new[key])
        and task.after(key, now) is not After.COMMAND
    }


def _as_typed(task: type[Task], key: str, value: Any) -> Any:
    """A value as the task's schema makes it: checkpoints of earlier versions hold "8" where the environment said so."""
    typed = OmegaConf.structured(task.schema)
    try:
        OmegaConf.update(typed, key, value)
        found = OmegaConf.select(typed, key)
    except OmegaConfBaseException:  # of another version's schema
        return value
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


def _refuse(stored: Stored, what: str, lines: Mapping[str, str], prefix: str) -> ConfigError:
    keys = "; ".join(line for key, line in lines.items() if key.startswith(prefix)) or "its configuration is the same"
    return ConfigError(
        f"{stored.path} holds another {what} ({keys}); restore these values, or give another run_dir, with init_from "
        "to begin with these weights"
    )


def _check_model(stored: Stored, task: Task, lines: Mapping[str, str]) -> None:
    if stored.path.is_dir():  # sharded: shapes are compared when the shards are read; the configuration says it sooner
        return
    theirs = {name: tuple(value.shape) for name, value in read(stored.path)["state_dict"].items()}
    ours = {name: tuple(value.shape) for name, value in task.state_dict().items()}
    wrong = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
    if wrong:
        name = wrong[0]
        shapes = f"{name}: {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here"
        raise _refuse(stored, f"model: {len(wrong)} weights differ, the first is {shapes}", lines, "model.")


def _check_optimizer(stored: Stored, task: Task, lines: Mapping[str, str], fits: Sequence[str]) -> None:
    """Load its state once for the check: PyTorch knows best what fits."""
    if stored.path.is_dir():  # read by the strategy, in its own layout
        if fits:
            raise _refuse(stored, "optimizer", lines, "optim.")
        return
    try:
        state = task.regroup(read(stored.path)["optimizer_states"][0], stored.info["config"])
        if task.config.trainer.strategy != "fsdp":  # whose optimizer is too large for one process
            task.configure_optimizers().load_state_dict(state)
    except (KeyError, ValueError) as error:
        raise _refuse(stored, f"optimizer: {error}", lines, "optim.") from error
