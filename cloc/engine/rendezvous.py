"""Where the processes of a run find each other, whatever devices they will use (below ``process_group``).

One of them, or torchrun's agent, serves a store of keys. A job that is started again may find the store of its former
life, with all that was said in it: so every meeting draws a word of its own, and what is said stands below that word.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins import ClusterEnvironment

from cloc.config import ConfigError
from cloc.launchers import Launch, host_name, launch

TIMEOUT = 1800.0  # seconds; PyTorch's own over Gloo
NOTICE = 30.0  # seconds until it is told who is waited for
_seconds = TIMEOUT


def use_timeout(seconds: float) -> None:
    """Set ``trainer.timeout`` for all that follows."""
    global _seconds
    _seconds = seconds


def timeout() -> timedelta:
    """How long a process waits for another."""
    return timedelta(seconds=_seconds)


def rank_and_world() -> tuple[int, int]:
    """This process's global rank and the number of processes, as the launcher tells them before set-up.

    Raises:
        LaunchError: the launcher is not understood.
    """
    found = launch()
    return (found.rank, found.world) if found else (0, 1)


class Meeting:
    """This process among the others, by way of the store.

    Args:
        found: how this process was started.

    Attributes:
        store: what is said in this meeting, by all of its processes.

    Raises:
        ConfigError: the others do not come within ``trainer.timeout``.
    """

    def __init__(self, found: Launch) -> None:
        self.found, self.turn = found, 0
        root = _open_store(found)
        self.word = _word_of(found, root)
        self.store = dist.PrefixStore(f"cloc/{self.word}", root)

    @cached_property
    def hosts(self) -> list[str]:
        """The machine of every process, by rank, as :func:`cloc.launchers.host_name`."""
        names = self.store.multi_get([f"here/{rank}" for rank in range(self.found.world)])
        return [name.decode() for name in names]

    @property
    def local_rank(self) -> int:
        """Number of this process among those of its machine."""
        rank, told = self.found.rank, self.found.local_rank
        return self.hosts[:rank].count(self.hosts[rank]) if told is None else told

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return len(set(self.hosts)) if self.found.nodes is None else self.found.nodes

    @property
    def node(self) -> int:
        """Number of this process's machine."""
        if self.found.node is not None:
            return self.found.node
        return list(dict.fromkeys(self.hosts)).index(self.hosts[self.found.rank])

    def name(self) -> str:
        """A name below which something is said, the same in all processes, which count alike."""
        self.turn += 1
        return f"turn/{self.turn}"

    def exchange(self, value: Any) -> list[Any]:
        """A value of every process, by rank. Waits for those that are slower.

        Raises:
            ConfigError: one does not come.
        """
        name, (rank, world) = self.name(), (self.found.rank, self.found.world)
        self.store.set(f"{name}/{rank}", json.dumps(value))
        _wait(lambda: self._missing(name), world, "say what they found")
        values = [json.loads(self.store.get(f"{name}/{number}")) for number in range(world)]
        self.store.set(f"{name}/{rank}/read", "")
        if rank == 0:  # the store may be this process's: it must not end while another still reads
            _wait(lambda: self._missing(name, "/read"), world, "read what was said")
        return values

    def _missing(self, name: str, end: str = "") -> list[int]:
        if self.store.check([f"{name}/{number}{end}" for number in range(self.found.world)]):
            return []
        return [number for number in range(self.found.world) if not self.store.check([f"{name}/{number}{end}"])]


def _open_store(found: Launch) -> dist.Store:
    serves = found.rank == 0 and not found.agent
    try:
        return dist.TCPStore(
            found.address,
            found.port,
            found.world,
            is_master=serves,
            timeout=timeout(),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        place = f"{found.address}:{found.port} (MASTER_ADDR, MASTER_PORT)"
        if serves:
            raise ConfigError(
                f"process 0 cannot be reached at {place}: {_short(error)}; give a port that is free"
            ) from error
        raise ConfigError(
            f"process {found.rank} of {found.world}, started by {found.launcher}, does not reach process 0 at {place} "
            f"within trainer.timeout={_seconds:g} seconds; look whether it was started, and at the address"
        ) from error


def _word_of(found: Launch, root: dist.Store) -> str:
    """The meeting's word: drawn by process 0, and given to those that greet it now, not in a former life."""
    rank, world, mine = found.rank, found.world, secrets.token_hex(8)
    if rank:
        root.set(f"cloc/hello/{rank}", mine)
        _wait(lambda: [] if root.check([f"cloc/welcome/{mine}"]) else [0], world, "answer")
        word = root.get(f"cloc/welcome/{mine}").decode()
        root.set(f"cloc/{word}/alive/{rank}", "0")
        root.set(f"cloc/{word}/here/{rank}", host_name())
        return word
    root.set(f"cloc/{mine}/alive/0", "0")
    root.set(f"cloc/{mine}/here/0", host_name())

    def absent() -> list[int]:
        left = [number for number in range(1, world) if not root.check([f"cloc/{mine}/here/{number}"])]
        for number in left:
            if root.check([f"cloc/hello/{number}"]):
                root.set(f"cloc/welcome/{root.get(f'cloc/hello/{number}').decode()}", mine)
        return left

    _wait(absent, world, "come")
    return mine


def _wait(missing: Callable[[], Sequence[int]], world: int, what: str) -> None:
    """Ask until nobody is missing.

    Raises:
        ConfigError: after ``trainer.timeout``, with who is.
    """
    began, pause, told = time.monotonic(), 0.002, False
    while left := _asked(missing):
        waited = time.monotonic() - began
        if waited > _seconds:
            raise ConfigError(
                f"{_listed(left)} of {world} did not {what} within trainer.timeout={_seconds:g} seconds; look at the "
                "output of what is missing, and whether every process was started"
            )
        if waited > NOTICE and not told:
            told = True
            print(f"waiting for {_listed(left)} of {world} to {what}", file=sys.stderr, flush=True)
        time.sleep(pause)
        pause = min(0.2, pause * 1.5)


def _asked(missing: Callable[[], Sequence[int]]) -> Sequence[int]:
    try:
        return missing()
    except (dist.DistError, RuntimeError) as error:
        raise ConfigError(
            f"process 0, or torchrun's agent beside it, has ended ({_short(error)}); look at its output, and run the "
            "same command again"
        ) from error


def _listed(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"process{'es' * (len(ranks) > 1)} {shown}"


def _short(error: BaseException) -> str:
    """The first line of an error of PyTorch's, without what follows of its own code."""
    return " ".join(str(error).split("\n")[0].split())[:160].rstrip(". ")


_met: dict[Launch, Meeting] = {}


def meeting() -> Meeting | None:
    """The meeting that this process is called to; None for a process of its own. Waits for processes that start later.

    Raises:
        ConfigError: the others do not come.
        LaunchError: the launcher is not understood.
    """
    found = launch()
    if found is None or found.world == 1:
        return None
    if found not in _met:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = found.address, str(found.port)
        _met[found] = Meeting(found)
    return _met[found]


class Launched(ClusterEnvironment):
    """What Lightning asks of a launcher, answered as the rest of cloc is."""

    @property
    def creates_processes_externally(self) -> bool:
        """It does."""
        return True

    @property
    def main_address(self) -> str:
        """Of process 0."""
        return self._found.address

    @property
    def main_port(self) -> int:
        """Of process 0."""
        return self._found.port

    @staticmethod
    def detect() -> bool:
        """Whether several processes were started."""
        return rank_and_world()[1] > 1

    def world_size(self) -> int:
        """Number of processes."""
        return self._found.world

    def set_world_size(self, size: int) -> None:
        """The launcher has settled it."""

    def global_rank(self) -> int:
        """Of this process."""
        return self._found.rank

    def set_global_rank(self, rank: int) -> None:
        """The launcher has settled it."""

    def local_rank(self) -> int:
        """Of this process on its machine."""
        return self._meeting.local_rank

    def node_rank(self) -> int:
        """Of its machine."""
        return self._meeting.node

    @property
    def launcher(self) -> str:
        """In words."""
        return self._found.launcher

    @property
    def _found(self) -> Launch:
        found = launch()
        assert found is not None  # made where there is one
        return found

    @property
    def _meeting(self) -> Meeting:
        found = meeting()
        assert found is not None  # likewise
        return found


def cluster() -> Launched | None:
    """Lightning's view of what launched this process; None for a process of its own."""
    return Launched() if Launched.detect() else None


def nodes(asked: Any) -> int:
    """Machines of the job.

    Args:
        asked: ``trainer.num_nodes``; ``auto`` for what the launcher says.
    """
    if asked != "auto":
        return int(asked)
    found = meeting()
    return 1 if found is None else found.nodes
