"""Ranks share the work of evaluation: who takes which part, and how the parts come together.

The only place of ``evaluation`` with collectives. Work is shared in whole batches, so that every number is computed
from the same batch whatever the number of ranks: results are equal to the last digit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cloc.command import line_of
from cloc.config import ConfigError
from cloc.config.secrets import public
from cloc.data.stream.order import rank_share
from cloc.launchers import Launch, host_name, launch

T = TypeVar("T")
PATIENCE = timedelta(hours=12)  # one rank may write and read long while the others wait
LAST_WORD = timedelta(seconds=5)  # to say, and to hear, why a rank has left
CAUSE, HEARD = "cloc/cause", "cloc/heard"


class LeftAlone(RuntimeError):
    """Another rank has left, by an error of its own or by a kill: what it knows cannot be had."""


class Ranks:
    """This process among those that evaluate together; alone where none were started."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def batches(self, count: int, batch_size: int) -> list[range]:
        """This rank's share of ``count`` items, in whole batches, in order."""
        starts = range(0, count, batch_size)
        mine = rank_share(len(starts), self.rank, self.size)
        return [range(starts[i], min(starts[i] + batch_size, count)) for i in mine]

    def join(self, parts: Sequence[Tensor], empty: Tensor) -> Tensor:
        """Concatenate the parts of all ranks, in the order of ranks.

        Args:
            parts: ``[K_i,...]`` of this rank; may be none.
            empty: ``[0,...]``: shape of the rest and type, for a rank without a part.

        Returns:
            On every rank, where ``empty`` is.

        Raises:
            LeftAlone: another rank has left.
        """
        own = torch.cat([empty, *(part.to(empty.device, empty.dtype) for part in parts)])
        if self.size == 1:
            return own
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        own = own.to(device).contiguous()
        lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.size)]
        with self._listening():
            dist.all_gather(lengths, torch.tensor([len(own)], device=device))
        longest = int(max(lengths))
        padded = torch.cat([own, own.new_zeros(longest - len(own), *own.shape[1:])])
        found = [torch.empty_like(padded) for _ in range(self.size)]
        with self._listening():
            dist.all_gather(found, padded)
        return torch.cat([rows[: int(n)] for rows, n in zip(found, lengths, strict=True)]).to(empty.device)

    def collect(self, value: T) -> list[T]:
        """A small object of every rank, on every rank.

        Raises:
            LeftAlone: another rank has left.
        """
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with self._listening():
            dist.all_gather_object(found, value)
        return found

    def all(self, flag: bool) -> bool:
        """Whether the flag is set on every rank: they take the same way."""
        return all(self.collect(flag))

    @contextmanager
    def _listening(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # PyTorch's for a connection that is closed, or silent for too long
            said = str(error).splitlines()[0][:200]
            raise LeftAlone(f"process {self.rank} of {self.size}: another one has left ({said})") from error


def jointly(work: Callable[[Ranks, str], T], device: str) -> T:
    """Do a work that ranks share, on the processes that a launcher started; a plain process is alone.

    Processes that are connected already stay so, and keep the device that is named.

    Args:
        work: takes the ranks and this process's device.
        device: ``auto`` or PyTorch's name, as it was given to all.

    Returns:
        This process's result, when all have theirs.

    Raises:
        LaunchError: a launcher's environment is not understood (:mod:`cloc.launchers`).
        ConfigError: processes would share a GPU; or another one failed: says which, and why. The one that failed
            raises its own error.
        LeftAlone: another process was killed.
    """
    found = None if Ranks().size > 1 else launch()
    if found is None or found.world == 1:
        return work(Ranks(), device)
    store = _connect(found)
    try:
        ranks = Ranks()
        result = work(ranks, own_device(device, found, ranks))
        ranks.all(True)
    except LeftAlone as error:
        _leave()
        cause = ""
        with suppress(RuntimeError):  # a process that was killed says nothing
            store.wait([CAUSE], LAST_WORD)
            cause = store.get(CAUSE).decode()
        _await_others(store, found)
        if cause:
            raise ConfigError(cause) from error
        raise
    except Exception as error:
        with suppress(RuntimeError):  # process 0 may be gone, and the store with it
            store.set(CAUSE, public(f"process {found.rank} of {found.world} cannot go on: {line_of(error)}"))
        _leave()
        _await_others(store, found)
        raise
    _leave()
    return result


def _connect(found: Launch) -> dist.Store:
    """Meet the others and connect, over Gloo also between GPUs: what is gathered is read on the CPU.

    Raises:
        ConfigError: they do not meet.
    """
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = found.address, str(found.port)
    try:
        store: dist.Store = next(dist.rendezvous("env://", found.rank, found.world))[0]
        own = dist.PrefixStore("cloc/evaluation", store)
        dist.init_process_group("gloo", store=own, rank=found.rank, world_size=found.world, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:  # PyTorch's for a port that is taken, a host that is none
        said = " ".join(str(error).splitlines()[0].split())[:160].rstrip(". ")
        raise ConfigError(
            f"process {found.rank} of {found.world}, started by {found.launcher}, does not meet the others at "
            f"{found.address}:{found.port} (MASTER_ADDR, MASTER_PORT): {said}; start all of them, at a free port"
        ) from error
    return own


def _leave() -> None:
    """Leave the others without waiting for them: what they wait for raises :class:`LeftAlone` there at once."""
    with suppress(RuntimeError):  # the connection may be what has failed
        dist.destroy_process_group()


def _await_others(store: dist.Store, found: Launch) -> None:
    """Where the store is process 0's own, it must not end before the others have said and heard the last."""
    with suppress(RuntimeError):  # process 0 may be gone, and the store with it
        if found.agent or found.rank:
            store.add(HEARD, 1)
            return
        end = time.monotonic() + LAST_WORD.total_seconds()
        while store.add(HEARD, 0) < found.world - 1 and time.monotonic() < end:
            time.sleep(0.05)


def own_device(name: str, found: Launch, ranks: Ranks) -> str:
    """The device of one of several processes: of the GPUs that it sees the one of its number on its host.

    Args:
        name: ``auto`` or PyTorch's name.
        found: how this process was started.
        ranks: all of them.

    Returns:
        ``cuda:N`` where ``auto`` or ``cuda`` finds GPUs, else ``name``.

    Raises:
        ConfigError: fewer GPUs than processes, or one that all of them name.
    """
    if name.startswith("cuda:"):
        raise ConfigError(f"device={name}: {found.world} processes would share this GPU; give auto, cuda or cpu")
    host, count = host_name(), torch.cuda.device_count() if name in ("auto", "cuda") else 0
    before = ranks.collect(host)[: found.rank]
    local_rank = before.count(host) if found.local_rank is None else found.local_rank
    index = local_rank % max(1, count)  # a launcher that gives each process one GPU shows it no other
    gpu = f"{host} {torch.cuda.get_device_properties(index).uuid}" if count else ""
    gpus = ranks.collect(gpu)
    sharing = [str(rank) for rank, other in enumerate(gpus) if gpu and other == gpu]
    if len(sharing) > 1:  # each would be slower than one alone, and have a part of its memory
        raise ConfigError(
            f"processes {', '.join(sharing)} would share a GPU of {gpu.split()[0]}: start one process a GPU, or give "
            "device=cpu"
        )
    if not gpu:
        return name
    torch.cuda.set_device(index)
    return f"cuda:{index}"
