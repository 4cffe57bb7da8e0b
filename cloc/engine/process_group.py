"""Collectives of the engine: what the processes of a run tell each other, and how they join and part.

Two groups of processes. The main one moves tensors: NCCL between GPUs, else Gloo. The control group is Gloo on any
machine: flags and small objects go over it, so that no decision waits for a GPU's queue, and one is heard while NCCL
waits.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from cloc.config import ConfigError
from cloc.config.secrets import public
from cloc.engine.liveness import unwatch, watch
from cloc.engine.rendezvous import cluster, meeting, nodes, rank_and_world, timeout
from cloc.files import create, hidden, make_folder, publish
from cloc.models.weights.digests import DamageError, check_archive

__all__ = [
    "agree",
    "any_process",
    "backend_for",
    "barrier",
    "broadcast",
    "cluster",
    "connect",
    "decide",
    "disconnect",
    "exchange",
    "gather_objects",
    "limit",
    "nodes",
    "rank_and_world",
    "share_file",
    "timeout",
    "together",
]

T = TypeVar("T")
CHUNK = 64 * 2**20  # bytes of a checkpoint sent at once
LAST = timedelta(seconds=60)  # more than `trainer.timeout` for NCCL, which ends the process without a word
_control: dist.ProcessGroup | None = None


def exchange(value: Any) -> list[Any]:
    """A small value of every process, by rank, before :func:`connect`. Waits for processes that start later.

    Args:
        value: what JSON can hold.

    Raises:
        ConfigError: one does not come within ``trainer.timeout``.
    """
    met = meeting()
    if met is None:
        return [value]
    watch(met)
    return met.exchange(value)


def together(action: Callable[[], T]) -> T:
    """Let every process do the same for itself; where one cannot, none goes on.

    Returns:
        This process's result.

    Raises:
        ConfigError: another process failed; says which, and why. The process that failed raises its own error.
    """
    result, error = None, None
    try:
        result = action()
    except Exception as raised:  # noqa: BLE001  (raised again below)
        error = raised
    errors = exchange(None if error is None else public(f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    for number, text in enumerate(errors):
        if text is not None:
            raise ConfigError(f"process {number} cannot go on: {text}")
    return cast(T, result)  # without an error there is one, and T may be None itself


def connect(accelerator: str) -> None:
    """Join the other processes; Lightning takes the connection as it finds it.

    Before anything is built, so that processes can agree on what they are about to do.

    Args:
        accelerator: ``trainer.accelerator``.
    """
    global _control
    met = None if dist.is_initialized() else meeting()
    if met is None:
        return
    watch(met)
    backend, (rank, world) = backend_for(accelerator), rank_and_world()
    own, device = dist.PrefixStore(met.name(), met.store), None
    if backend == "nccl":
        device = torch.device("cuda", met.local_rank)
        torch.cuda.set_device(device)
    patience = timeout() + (LAST if device else timedelta())
    dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=patience, device_id=device)
    group = dist.new_group(backend="gloo", timeout=timeout())
    assert isinstance(group, dist.ProcessGroup)  # every process is in it
    _control = group


def backend_for(accelerator: str) -> str:
    """What processes talk by on this machine: NCCL between GPUs, else Gloo."""
    return "nccl" if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda") else "gloo"


def disconnect() -> None:
    """Part from the other processes together: one that ends while another still talks to it may abort."""
    global _control
    if dist.is_initialized():
        barrier()
        unwatch()
        barrier()  # the store may be another's, who must not end while this one still looks into it
        dist.destroy_process_group()
        _control = None


def _is_alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def barrier() -> None:
    """Wait until all processes have come here; what a GPU has still to do is not waited for."""
    if not _is_alone():
        dist.barrier(group=_control)


def any_process(*flags: bool) -> list[bool]:
    """Which of a few flags are set in at least one process."""
    if _is_alone():
        return list(flags)
    if _control is None:  # whoever has connected the processes knows of one group alone, which may be NCCL's
        return [any(column) for column in zip(*gather_objects(flags), strict=True)]
    found = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_control)
    return [bool(flag) for flag in found.tolist()]


def broadcast(value: T, source: int = 0) -> T:
    """A small object of one process, in all of them."""
    if _is_alone():
        return value
    held = [value]
    dist.broadcast_object_list(held, source, group=_control)
    return held[0]


def limit(groups: Iterable[dist.ProcessGroup]) -> None:
    """Let groups that others have made wait as long as ours do."""
    for group in groups:
        dist.set_timeout(timeout() + (LAST if dist.get_backend(group) == "nccl" else timedelta()), group)


def gather_objects(value: Any) -> list[Any]:
    """A small value of every process, by rank."""
    if _is_alone():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_control)
    return values


def decide(action: Callable[[], T]) -> T:
    """Let process 0 act; its result, or its error, is that of every process."""
    result, error = None, None
    if not dist.is_initialized():
        return action()
    if dist.get_rank() == 0:
        try:
            result = action()
        except Exception as raised:  # noqa: BLE001  (raised again below, in all processes)
            error = raised
    result, error = gather_objects((result, error))[0]
    if error is not None:
        raise error
    return cast(T, result)


def agree(what: str, value: Any, remedy: str) -> None:
    """Stop, in all processes together, where they do not see the same.

    Raises:
        ConfigError: names what differs, and between which processes.
    """
    values = gather_objects(value)
    other = [rank for rank, found in enumerate(values) if found != values[0]]
    if other:
        first, second = values[0], values[other[0]]
        raise ConfigError(f"{what} differs: {first} on process 0, {second} on process {other[0]}; {remedy}")


def share_file(path: Path | None, folder: Path) -> Path | None:
    """Give every process the file that process 0 has chosen: nodes may have run folders of their own.

    A node that lacks the file, or has another or a damaged one of that name, gets it from process 0.

    Args:
        path: process 0's choice inside its ``folder``, or None; of no consequence elsewhere.
        folder: this process's run folder.

    Returns:
        The file in this process's folder, equal everywhere; None where process 0 has none.
    """
    if not dist.is_initialized():
        return path
    first = None if path is None else (str(path.relative_to(folder)), *_size_and_digest(path))
    name, size, digest = gather_objects(first)[0] or (None, 0, "")
    if name is None:
        return None
    mine: Path = folder / name
    found = cluster()
    writes = found is None or found.local_rank() == 0
    lacking = not mine.is_file() or _size_and_digest(mine) != (size, digest)
    if writes and not lacking and dist.get_rank():  # process 0 has compared its own
        lacking = not _is_whole(mine)
    if any(gather_objects(lacking)):
        _send(mine, size, lacking and writes)
    return mine


def _is_whole(path: Path) -> bool:
    try:
        check_archive(path)
    except DamageError:
        return False
    return True


def _size_and_digest(path: Path) -> tuple[int, str]:
    """Size, and a hash of the file's end: that of a checkpoint holds the checksums of all that is in it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2**20))
        return size, hashlib.sha256(file.read()).hexdigest()


def _send(path: Path, size: int, write: bool) -> None:
    part = hidden(path)
    if write:
        make_folder(path.parent.parent, path.parent.name)
    source = path.open("rb") if dist.get_rank() == 0 else None
    target = create(part) if write else None
    for start in range(0, size, CHUNK):
        length = min(CHUNK, size - start)
        piece = torch.empty(length, dtype=torch.uint8)
        if source:
            piece = torch.frombuffer(bytearray(source.read(length)), dtype=torch.uint8)
        dist.broadcast(piece, 0, group=_control)
        if target:
            target.write(piece.numpy().tobytes())
    for file in (source, target):
        if file:
            file.close()
    if write:
        publish(part, path)
    barrier()
