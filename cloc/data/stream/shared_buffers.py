"""Brings a batch from the worker that read it to the training process (last step of ``stream``).

Left to PyTorch, each tensor of each batch gets shared memory of its own: the kernel clears its pages, the worker copies
into them, the training process maps and unmaps them, and a socket hands a file descriptor over. Here the pictures are
written where the training process will read them, into buffers that are used again; all else travels by value.

On Linux a buffer is memory without a name (``memfd_create``), which no ``/dev/shm`` bounds: containers give that 64 MB.
Where the kernel has none, it is PyTorch's shared memory, and ``/dev/shm`` must hold all of them.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from functools import cache
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cloc.contracts import PIXELS, Batch

_received: dict[tuple[int, int], Tensor] = {}
"""SharedBuffers of this process's workers, by process and number."""

SHM = Path("/dev/shm")
IN_HAND = 4
"""Batches that are held beside those read ahead: this step's, the next one's, and what is on its way from a worker."""


class SharedMemoryError(OSError):
    """There is no room for batches on their way from a reading process; says where, and what to do."""


class Anonymous:
    """Memory without a name that another process can map.

    Args:
        size: in bytes; all of it is taken at once, so that no write into it can fail (SIGBUS) later.

    Raises:
        OSError: there is no room.
    """

    def __init__(self, size: int) -> None:
        self.size, self.descriptor = size, os.memfd_create("cloc-batch", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)
        os.posix_fallocate(self.descriptor, 0, size)
        self.tensor = _mapped(self.descriptor, size)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process gets the tensor over it."""
        return _attach, (DupFd(self.descriptor), self.size)


def _attach(handed: Any, size: int) -> Tensor:
    descriptor = handed.detach()
    try:
        return _mapped(descriptor, size)
    finally:
        os.close(descriptor)


def _mapped(descriptor: int, size: int) -> Tensor:
    return torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8)


@cache
def has_anonymous() -> bool:
    """Whether this kernel gives memory without a name."""
    if not hasattr(os, "memfd_create") or not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.close(os.memfd_create("cloc-probe"))
    except OSError:
        return False
    return True


def buffers_needed(workers: int, prefetch: int, batch_bytes: int) -> int:
    """Bytes of the buffers of one training process.

    Args:
        workers: its reading processes; without any there are none.
        prefetch: batches that each reads ahead.
        batch_bytes: of the pictures and crops of one batch.
    """
    return (workers * prefetch + IN_HAND) * (batch_bytes + 1) if workers else 0


def check_shared_memory(needed: int, workers: int) -> None:
    """Refuse reading processes whose queues or batches do not fit into ``/dev/shm``, before any is started.

    Args:
        needed: by the buffers of all training processes of this host, in bytes.
        workers: reading processes of each.

    Raises:
        SharedMemoryError: says how much is needed and how much is free.
    """
    free = _free_in_shm()
    if not workers or free is None:
        return
    queues = 4096 * (4 * workers + 16)  # a page for each semaphore
    if free < queues:
        raise no_room(f"the queues of data.workers={workers} need {_mib(queues)}")
    if needed > free and not has_anonymous():
        raise no_room(f"the batches of data.workers={workers} need {_mib(needed)}")


def no_room(needed: str) -> SharedMemoryError:
    """The error of a ``/dev/shm`` that has filled up.

    Args:
        needed: who needs how much, in words.
    """
    return SharedMemoryError(
        f"{SHM}: {needed}, {_mib(_free_in_shm() or 0)} are free; give a larger one (docker run --shm-size=…, in "
        f"Kubernetes an emptyDir of medium Memory mounted at {SHM}), free some, or read in the training process: "
        "data.workers=0"
    )


def _free_in_shm() -> int | None:
    """Bytes that are free there; None on a system without it."""
    try:
        found = os.statvfs(SHM)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


class SharedBuffers:
    """Shared memory for pictures and crops, of one worker.

    A buffer is free again when the training process holds no tensor over it any more, views and slices included. Where
    none is free a new one is made, so there are as many as batches under way at a time.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._handed: list[Tensor | Anonymous] = []  # what another process gets of each
        self._sent: set[int] = set()

    def take(self, size: int) -> tuple[int, Tensor]:
        """Return number and memory, ``[size]`` uint8, of a free buffer, which is taken from now on.

        Raises:
            SharedMemoryError: there is no room for another one.
        """
        free = (
            number for number, buffer in enumerate(self._buffers) if len(buffer) == size + 1 and not buffer[-1].item()
        )
        number = next(free, len(self._buffers))
        if number == len(self._buffers):
            self._add(size + 1)
        buffer = self._buffers[number]
        buffer[-1] = 1  # the last byte says that it is taken; the training process clears it
        return number, buffer[:-1]

    def _add(self, size: int) -> None:
        try:
            made = Anonymous(size) if has_anonymous() else torch.zeros(size, dtype=torch.uint8).share_memory_()
        except (OSError, RuntimeError) as error:  # PyTorch's allocator raises the second
            if has_anonymous():
                raise SharedMemoryError(
                    f"no memory for a batch of {_mib(size)} ({error}); take fewer data.workers, or a smaller batch_size"
                ) from error
            raise no_room(f"a batch of data.workers needs {_mib(size)}") from error
        self._handed.append(made)
        self._buffers.append(made.tensor if isinstance(made, Anonymous) else made)

    def share(self, batch: Batch, number: int) -> SharedBatch:
        """Make a batch, whose pictures lie in a buffer, ready for sending."""
        known = number in self._sent
        self._sent.add(number)
        return SharedBatch(batch, number, None if known else self._handed[number])


class SharedBatch:
    """A batch on its way; the process that unpickles it gets the :class:`Batch`."""

    def __init__(self, batch: Batch, number: int, buffer: Tensor | Anonymous | None) -> None:
        self.batch, self.number, self.buffer = batch, number, buffer

    def __reduce__(self) -> tuple[Any, ...]:
        state = self.batch.__getstate__()
        layouts = {name: _layout(state[name]) for name in PIXELS if state[name] is not None}
        return _receive, (os.getpid(), self.number, self.buffer, layouts, state | dict.fromkeys(PIXELS))


Layout = tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides and place in a buffer


def _layout(pixels: Tensor) -> Layout:
    return tuple(pixels.shape), pixels.stride(), int(pixels.storage_offset())


class _Lease(np.ndarray):
    """Array over a buffer; PyTorch holds it as long as a tensor uses its memory. Its end sets the buffer free."""


def _receive(
    process: int,
    number: int,
    buffer: Tensor | None,
    layouts: dict[str, Layout],
    state: dict[str, Any],
) -> Batch:
    if buffer is not None:  # a buffer comes once, and is known by its number from then on
        if not any(owner == process for owner, _ in list(_received)):
            release_ended_workers()
        _received[process, number] = buffer
    memory = _received[process, number]
    lease = memory[:-1].numpy().view(_Lease)
    weakref.finalize(lease, _free, memory.numpy()[-1:], os.getpid()).atexit = False
    batch = Batch.__new__(Batch)
    pixels = torch.from_numpy(lease)
    batch.__setstate__(state | {name: pixels.as_strided(*layout) for name, layout in layouts.items()})
    return batch


def _free(flag: np.ndarray, reader: int) -> None:
    if os.getpid() == reader:  # a fork of it drops its own copy only
        flag[0] = 0


def release_ended_workers() -> None:
    """Let go of the buffers of workers that have ended."""
    for process, number in list(_received):
        with contextlib.suppress(PermissionError):  # alive, of another user
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                _received.pop((process, number), None)
