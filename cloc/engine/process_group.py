"""The run folder and the machine: what a run writes beside its weights, and what it needs before it starts."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from cloc.config import ConfigError
from cloc.config.secrets import public
from cloc.files import create, hidden, make_folder, publish
from cloc.models.weights.digests import DamageError, check_archive

T = TypeVar("T")
CHUNK = 64 * 2**20  # bytes of a checkpoint sent at once
_turns = itertools.count()  # every process counts alike: what one turn says is not taken for another's


def cluster() -> Any:
    """Lightning's view of what launched this process, torchrun or SLURM; None for a process of its own."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            return environment()
    return None


def rank_and_world() -> tuple[int, int]:
    """This process's global rank and the number of processes, as torchrun or SLURM tell them before set-up."""
    found = cluster()
    return (found.global_rank(), found.world_size()) if found else (0, 1)


@cache
def _store(address: str, port: int, rank: int, world: int) -> dist.Store:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    store: dist.Store = next(dist.rendezvous("env://", rank, world))[0]
    return store


def _meeting_place() -> dist.Store | None:
    """Where processes find each other, whatever devices they will use; None for a process of its own."""
    found = cluster()
    if found is None or found.world_size() == 1:
        return None
    return _store(found.main_address, found.main_port, found.global_rank(), found.world_size())


def exchange(value: Any) -> list[Any]:
    """A small value of every process, by rank, before :func:`connect`. Waits for processes that start later.

    Args:
        value: what JSON can hold.
    """
    store = _meeting_place()
    if store is None:
        return [value]
    turn, (rank, world) = next(_turns), rank_and_world()
    store.set(f"cloc/{turn}/{rank}", json.dumps(value))
    values = [json.loads(store.get(f"cloc/{turn}/{number}")) for number in range(world)]
    store.set(f"cloc/{turn}/{rank}/read", "")
    if rank == 0:  # the store may be this process's: it must not end while another still reads
        store.wait([f"cloc/{turn}/{number}/read" for number in range(world)])
    return values


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
    store = None if dist.is_initialized() else _meeting_place()
    if store is None:
        return
    found, backend = cluster(), backend_for(accelerator)
    if backend == "nccl":
        torch.cuda.set_device(found.local_rank())
    own = dist.PrefixStore(f"cloc/{next(_turns)}", store)
    dist.init_process_group(backend, store=own, rank=found.global_rank(), world_size=found.world_size())


def backend_for(accelerator: str) -> str:
    """What processes talk by on this machine: NCCL between GPUs, else Gloo."""
    return "nccl" if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda") else "gloo"


def disconnect() -> None:
    """Part from the other processes together: one that ends while another still talks to it may abort."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def gather_objects(value: Any) -> list[Any]:
    """A small value of every process, by rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
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
    writes = cluster().local_rank() == 0
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
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
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
        piece = piece.to(device)
        dist.broadcast(piece, 0)
        if target:
            target.write(piece.cpu().numpy().tobytes())
    for file in (source, target):
        if file:
            file.close()
    if write:
        publish(part, path)
    dist.barrier()
