"""How many reading processes a training process takes: the cores of a host, dealt over its processes.

Stands beside ``start``. The one place where ``data.workers=auto`` becomes a number, and where it is known how many
processes share a host.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cloc.config import TrainConfig
from cloc.config.domains import AUTO
from cloc.engine.process_group import exchange, rank_and_world
from cloc.engine.start import accelerator_of
from cloc.launchers import host_name

MOST = 16
"""Readers that ``auto`` gives a process at most: each holds batches; a dry run tells of a step that needs more."""
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class HostShare:
    """What a training process has of its host.

    Attributes:
        cores: that are its own, a share where several processes may use one core.
        host_cores: that all training processes of this host may use together.
        processes: training processes of this host.
    """

    cores: float
    host_cores: int
    processes: int


_planned = 1


def share_with(processes: int) -> None:
    """Set how many processes of this host a process that is alone plans for; 1 where it plans for itself."""
    global _planned
    _planned = processes


def host_share() -> HostShare:
    """What this process has of its host. In a job the first call is made by all processes, at the same place."""
    return _host_share(_planned)


@cache
def _host_share(planned: int) -> HostShare:
    mine = {"host": host_name(), "cores": hex(sum(1 << core for core in usable_cores())), "quota": cpu_quota()}
    return deal(mine, exchange(mine) if rank_and_world()[1] > 1 else [mine] * planned)


def deal(mine: dict[str, Any], everyone: list[dict[str, Any]]) -> HostShare:
    """Deal the cores of a host.

    A launcher may bind each process to cores of its own (SLURM) or leave all cores to all (torchrun): a core counts
    for each process by how many may use it. A quota (a container's) is that of all processes of the host together.

    Args:
        mine: ``host``, ``cores`` (a mask in hexadecimal digits) and ``quota`` (in cores, or None) of this process.
        everyone: the same of all processes.
    """
    masks = [int(one["cores"], 16) for one in everyone if one["host"] == mine["host"]]
    own = int(mine["cores"], 16)
    users = [sum(mask >> core & 1 for mask in masks) for core in range(own.bit_length()) if own >> core & 1]
    together, all_cores = len(masks), 0
    for mask in masks:
        all_cores |= mask
    quota = math.inf if mine["quota"] is None else float(mine["quota"])
    share = min(sum(1 / count for count in users), quota / together)
    return HostShare(share, max(1, min(all_cores.bit_count(), math.floor(min(quota, 2**20)))), together)


def readers(config: TrainConfig) -> int:
    """Reading processes of this training process; see ``data.workers``.

    For ``auto`` its cores less those that it computes on: one beside a GPU, ``trainer.threads`` on CPUs (where that is
    0, PyTorch computes on all, and one reader is enough to stay ahead of it).
    """
    if config.data.workers != AUTO:
        return int(config.data.workers)
    threads = 1 if accelerator_of(config.trainer.accelerator) != "cpu" else config.trainer.threads
    return min(MOST, max(1, math.floor(host_share().cores + 1e-6) - threads)) if threads else 1


def usable_cores() -> set[int]:
    """Cores that this process may run on; all of the machine on systems that do not bind processes."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def cpu_quota() -> float | None:
    """Cores' worth of time that the control groups of this process allow; None without a limit."""
    found = []
    with suppress(OSError):
        for line in (PROC / "self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                found += [_quota(place, "cpu.max") for place in _upwards(CGROUPS, path)]
            elif "cpu" in controllers.split(","):
                for root in (CGROUPS / controllers, CGROUPS / "cpu"):
                    found += [_quota(place, "cpu.cfs_quota_us", "cpu.cfs_period_us") for place in _upwards(root, path)]
    return min((one for one in found if one is not None), default=None)


def _upwards(root: Path, path: str) -> list[Path]:
    """The folder of a control group and of those above it: in a container the path may be the host's."""
    inside = Path(path.lstrip("/"))
    return [root / one for one in (inside, *inside.parents)]


def _quota(folder: Path, *names: str) -> float | None:
    """Quota over period; both stand in one file (version 2) or in two (version 1)."""
    try:
        words = " ".join((folder / name).read_text(encoding="utf-8") for name in names).split()
        quota, period = int(words[0]), int(words[1])
    except (OSError, ValueError, IndexError):  # no such group here; `max` for no limit
        return None
    return quota / period if quota > 0 and period > 0 else None
