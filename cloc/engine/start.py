"""What can be known before a run begins: devices, precision, loggers, the run folder (beside ``machine``).

A dry run looks at the same, so that what it passes is trained.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from cloc.config import ConfigError, RunConfig, TrainerConfig
from cloc.config.domains import indices
from cloc.engine.durable.run_folder import RunFolder
from cloc.engine.loggers import check_logger
from cloc.engine.machine import precision_of
from cloc.engine.process_group import nodes, rank_and_world


def check_machine(config: RunConfig, world: int) -> None:
    """Refuse what this machine cannot train; a run that is finished needs nothing of it.

    Args:
        config: validated.
        world: number of processes.

    Raises:
        ConfigError: names the key.
    """
    check_devices(config.trainer, world)
    check_precision(config.trainer)
    check_logger(config.logger)


def accelerator_of(name: str) -> str:
    """The kind of device that ``trainer.accelerator`` means here: ``cpu``, ``cuda``, ``mps`` or ``tpu``.

    Raises:
        ConfigError: there is none of it.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "gpu":
        kind = "mps" if torch.backends.mps.is_available() and not torch.cuda.is_available() else "cuda"
    else:
        kind = name
    if not _is_there(kind):
        what = {"cuda": "no GPU", "mps": "no GPU of Apple", "tpu": "no TPU (package torch_xla)"}[kind]
        raise ConfigError(f"trainer.accelerator={name}: there is {what} that PyTorch can use; give auto or cpu")
    return kind


def _is_there(kind: str) -> bool:
    if kind == "tpu":
        from lightning.pytorch.accelerators import XLAAccelerator

        return bool(XLAAccelerator.is_available())
    return kind == "cpu" or (torch.cuda if kind == "cuda" else torch.backends.mps).is_available()


def device_count(options: TrainerConfig) -> int:
    """Processes a node that ``trainer.devices`` asks for here.

    Raises:
        ConfigError: fewer devices are there.
    """
    kind, asked = accelerator_of(options.accelerator), options.devices
    if isinstance(asked, str) and "," in asked:
        asked = indices(asked)
    elif isinstance(asked, str):
        asked = -1 if asked == "auto" else int(asked)
    if kind not in ("cuda", "mps"):  # any number of processes
        if isinstance(asked, list):
            raise ConfigError(f"trainer.devices={options.devices}: {kind} has no indices; give a number of processes")
        return 1 if asked == -1 else int(asked)
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if asked == -1:
        return count
    wanted = max(asked) + 1 if isinstance(asked, list) else int(asked)
    if wanted > count:
        raise ConfigError(f"trainer.devices={options.devices}: there {'is' if count == 1 else 'are'} {count} here")
    return len(asked) if isinstance(asked, list) else wanted


def planned_world(config: RunConfig) -> int:
    """Number of processes: those that were started, or those that a dry run of one process plans for."""
    options = config.trainer
    started = rank_and_world()[1]
    if not config.dry_run or started > 1:
        return started
    try:
        return device_count(options) * nodes(options.num_nodes)
    except ConfigError:  # told by `check_machine`, unless the run is finished and needs no device
        return 1


def planned(config: RunConfig, world: int) -> str:
    """Say what a dry run plans for that nobody started."""
    count = nodes(config.trainer.num_nodes)
    where = f" on each of {count} nodes" if count > 1 else ""
    return f"{world}, {world // count}{where}, planned by one: cores, memory and rates are those of this machine"


def launcher_of(config: RunConfig) -> list[str]:
    """What starts the processes of a run that was planned, to stand before ``train.py``."""
    world, count = planned_world(config), nodes(config.trainer.num_nodes)
    if world == 1:
        return ["python"]
    several = [f"--nnodes={count}", "--rdzv-backend=c10d", "--rdzv-endpoint=HOST:29500"] if count > 1 else []
    return ["torchrun", *several, f"--nproc-per-node={world // count}"]


def check_devices(options: TrainerConfig, world: int) -> None:
    """Refuse devices that are not there, or whose processes were not launched.

    Raises:
        ConfigError: says how to launch them.
    """
    if accelerator_of(options.accelerator) == "tpu":
        return
    count = nodes(options.num_nodes)
    asked = device_count(options) * count
    if asked != world:
        given = f" × trainer.num_nodes={count}" * (count > 1)
        raise ConfigError(
            f"trainer.devices={options.devices}{given} asks for {asked} processes, {world} were launched: "
            f"{_launched_right(device_count(options), count, world)}"
        )


def _launched_right(devices: int, count: int, world: int) -> str:
    """The remedy where W processes were launched, and not D on each of N nodes."""
    met = f"--nnodes={count} --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 " * (count > 1)
    start = f"start them with `torchrun {met}--nproc-per-node={devices} train.py …` or by srun"
    fitting = f"give trainer.devices={world // count}, or " * (world > devices * count and world % count == 0)
    return fitting + start


def check_precision(options: TrainerConfig) -> None:
    """Refuse a precision that Lightning would quietly replace.

    Raises:
        ConfigError: says which to give.
    """
    name, kind = precision_of(options.precision, options.accelerator), accelerator_of(options.accelerator)
    if name in ("16-mixed", "16") and kind not in ("cuda", "mps"):
        raise ConfigError(f"trainer.precision={name}: float16 needs a GPU; give bf16-mixed, 32-true or auto")


def check_folder(folder: RunFolder) -> None:
    """Refuse a run folder that cannot be made; makes none.

    Raises:
        OSError: a file is in its way, or nobody may write there.
    """
    if folder.is_remote:
        return
    path = Path(os.path.abspath(folder.local))
    there = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not there.is_dir():
        raise NotADirectoryError(f"run_dir={folder.location}: {there} is no folder; give another run_dir")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"run_dir={folder.location}: {there} cannot be written; give another run_dir")
