"""Brings a batch from the worker that read it to the training process (last step of ``stream``).

Left to PyTorch, each tensor of each batch gets shared memory of its own: the kernel clears its pages, the worker copies
into them, the training process maps and unmaps them, and a socket hands a file descriptor over. Here the pictures are
written where the training process will read them, into buffers that are used again; all else travels by value.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cloc.contracts import Batch

_received: dict[tuple[int, int], Tensor] = {}
"""SharedBuffers of this process's workers, by process and number."""


class SharedBuffers:
    """Shared memory for pictures, of one worker.

    A buffer is free again when the training process holds no tensor over it any more, views and slices included. Where
    none is free a new one is made, so there are as many as batches under way at a time.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._sent: set[int] = set()

    def take(self, size: int) -> tuple[int, Tensor]:
        """Return number and memory, ``[size]`` uint8, of a free buffer, which is taken from now on."""
        free = (
            number for number, buffer in enumerate(self._buffers) if len(buffer) == size + 1 and not buffer[-1].item()
        )
        number = next(free, len(self._buffers))
        if number == len(self._buffers):
            self._buffers.append(torch.zeros(size + 1, dtype=torch.uint8).share_memory_())
        buffer = self._buffers[number]
        buffer[-1] = 1  # the last byte says that it is taken; the training process clears it
        return number, buffer[:-1]

    def share(self, batch: Batch, number: int) -> SharedBatch:
        """Make a batch, whose pictures lie in a buffer, ready for sending."""
        known = number in self._sent
        self._sent.add(number)
        return SharedBatch(batch, number, None if known else self._buffers[number])


class SharedBatch:
    """A batch on its way; the process that unpickles it gets the :class:`Batch`."""

    def __init__(self, batch: Batch, number: int, buffer: Tensor | None) -> None:
        self.batch, self.number, self.buffer = batch, number, buffer

    def __reduce__(self) -> tuple[Any, ...]:
        images = self.batch.images
        layout = (tuple(images.shape), images.stride())
        return _receive, (os.getpid(), self.number, self.buffer, layout, self.batch.__getstate__() | {"images": None})


class _Lease(np.ndarray):
    """Array over a buffer; PyTorch holds it as long as a tensor uses its memory. Its end sets the buffer free."""


def _receive(
    process: int,
    number: int,
    buffer: Tensor | None,
    layout: tuple[tuple[int, ...], tuple[int, ...]],
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
    batch.__setstate__(state | {"images": torch.from_numpy(lease).as_strided(*layout)})
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
