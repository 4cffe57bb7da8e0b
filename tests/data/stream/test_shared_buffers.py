"""Batches arrive from their worker whole, and no memory that somebody still reads is written again."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from cloc.contracts import Batch
from cloc.data.stream import batches as stream_module
from cloc.data.stream import shared_buffers as handover
from cloc.data.stream.batches import make_loader
from cloc.data.stream.shared_buffers import (
    SharedBatch,
    SharedBuffers,
    SharedMemoryError,
    buffers_needed,
    check_shared_memory,
)
from cloc.data.stream.workers import horizons
from tests.kit.paths import ROOT
from tests.kit.streams import contents, make_manifest, make_stream

SIZE = 12


class _SameProcess:
    """Sends to this process, as a worker sends to another: each buffer itself travels once."""

    def __init__(self) -> None:
        self.buffers = SharedBuffers()

    def __call__(self, batch: Batch, value: int) -> tuple[Batch, int]:
        number, memory = self.buffers.take(SIZE)
        batch.images = memory.view(1, 2, 2, 3).permute(0, 3, 1, 2)
        batch.images.fill_(value)
        return pickle.loads(ForkingPickler.dumps(self.buffers.share(batch, number))), number


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    return next(iter(make_stream(make_manifest(tmp_path / "shards"))))


def test_a_room_is_free_when_the_last_tensor_over_it_is_gone(batch: Batch) -> None:
    send = _SameProcess()
    first, buffer = send(batch, 1)
    part = first.images[0, :2]
    del first
    gc.collect()
    second, other = send(batch, 2)
    assert other != buffer, "a slice still looks into the first buffer"
    assert part.eq(1).all() and second.images.eq(2).all()
    del part
    gc.collect()
    third, again = send(batch, 3)
    assert again == buffer
    assert second.images.eq(2).all() and third.images.eq(3).all()


@pytest.mark.parametrize("held", [0, 1, 3])
def test_there_are_as_many_rooms_as_batches_that_are_held(batch: Batch, held: int) -> None:
    send, kept = _SameProcess(), []
    for value in range(20):
        kept = [*kept, send(batch, value)[0]][-held:] if held else [None, send(batch, value)[0]][:1]
    assert len(send.buffers._buffers) <= held + 1
    assert [int(one.images[0, 0, 0, 0]) for one in kept if one] == list(range(20 - held, 20))


def test_batches_of_another_size_get_rooms_of_their_own() -> None:
    buffers = SharedBuffers()
    (first, memory), (second, larger) = buffers.take(SIZE), buffers.take(2 * SIZE)
    assert first != second and len(memory) == SIZE and len(larger) == 2 * SIZE


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_of_real_workers_are_those_read_here(tmp_path: Path, workers: int) -> None:
    """Held all the time, and dropped at once: the second makes workers use their buffers again and again."""
    manifest = make_manifest(tmp_path / "shards")
    expected = [contents(batch) for batch in islice(make_stream(manifest), 30)]

    def arriving() -> Iterator[Batch]:
        return islice(make_loader(make_stream(manifest), workers, prefetch_factor=2), 30)

    held = list(arriving())
    assert [contents(batch) for batch in held] == expected
    assert [contents(batch) for batch in arriving()] == expected
    assert [contents(batch) for batch in held] == expected, "a later worker wrote into memory of an earlier one"


def test_a_fork_that_drops_a_batch_does_not_free_its_room(batch: Batch) -> None:
    send = _SameProcess()
    first, buffer = send(batch, 1)
    child = os.fork()
    if not child:
        del first
        os._exit(0)
    os.waitpid(child, 0)
    _, other = send(batch, 2)
    assert other != buffer
    assert first.images.eq(1).all()


def test_what_numpy_cannot_carry_is_pickled_as_it_is(batch: Batch) -> None:
    batch.boxes, batch.content = batch.boxes.bfloat16(), batch.content.requires_grad_()
    again = copy.deepcopy(pickle.loads(pickle.dumps(batch)))
    assert again.boxes.equal(batch.boxes) and again.content.requires_grad


def test_all_but_the_pictures_is_pickled_by_value(batch: Batch) -> None:
    state = batch.__getstate__()
    assert [name for name, value in state.items() if isinstance(value, Tensor)] == ["images"]
    again = pickle.loads(pickle.dumps(batch))
    assert contents(again) == contents(batch)
    again.boxes.zero_()  # what arrives can be written to
    assert again.negatives is None and again.stats == batch.stats


def test_rooms_of_workers_that_ended_are_let_go(monkeypatch: pytest.MonkeyPatch, batch: Batch) -> None:
    ended = 2**22 + 1  # beyond the largest process number of Linux
    monkeypatch.setattr(handover, "_received", {(ended, 0): torch.zeros(SIZE + 1, dtype=torch.uint8)})
    arrived, _ = _SameProcess()(batch, 5)
    assert [owner for owner, _ in handover._received] != [] and ended not in {owner for owner, _ in handover._received}
    assert arrived.images.eq(5).all()


def test_a_worker_sends_parcels_and_the_training_process_reads_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_manifest(tmp_path / "shards")
    assert isinstance(next(iter(make_stream(manifest))), Batch)
    monkeypatch.setattr(stream_module, "get_worker_info", lambda: SimpleNamespace(num_workers=1, id=0))
    assert isinstance(next(iter(make_stream(manifest))), SharedBatch)


@pytest.fixture
def no_anonymous(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that gives no memory without a name: PyTorch's shared memory, in ``/dev/shm``, takes its place."""
    monkeypatch.setattr(handover, "has_anonymous", lambda: False)


def test_shared_memory_of_pytorch_serves_where_the_kernel_has_no_other(batch: Batch, no_anonymous: None) -> None:
    send = _SameProcess()
    (first, _), (second, _) = send(batch, 1), send(batch, 2)
    assert first.images.eq(1).all() and second.images.eq(2).all() and send.buffers._buffers[0].is_shared()


@pytest.mark.skipif(not handover.has_anonymous(), reason="this kernel gives no memory without a name")
def test_buffers_take_no_room_in_shm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "share_memory_", lambda self: pytest.fail("lies in /dev/shm"))
    number, memory = SharedBuffers().take(2**20)
    memory.fill_(7)
    assert number == 0 and memory.eq(7).all()


def statvfs_of(free: int) -> SimpleNamespace:
    return SimpleNamespace(f_bavail=free // 4096, f_frsize=4096)


def test_too_small_an_shm_is_refused_before_a_reader_starts(
    monkeypatch: pytest.MonkeyPatch, no_anonymous: None
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: statvfs_of(64 * 2**20))  # what Docker gives
    needed = buffers_needed(8, 2, 256 * 3 * 224**2)
    assert needed == 20 * (256 * 3 * 224**2 + 1)
    with pytest.raises(SharedMemoryError, match=r"data.workers=8 need 735.0 MiB, 64.0 MiB are free.*--shm-size.*=0$"):
        check_shared_memory(needed, 8)
    check_shared_memory(60 * 2**20, 8)
    check_shared_memory(buffers_needed(0, 2, 2**40), 0)  # reads in the training process
    monkeypatch.setattr(os, "statvfs", lambda path: statvfs_of(2**40))
    check_shared_memory(needed, 8)


def test_anonymous_memory_asks_of_shm_the_queues_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "has_anonymous", lambda: True)
    monkeypatch.setattr(os, "statvfs", lambda path: statvfs_of(2**20))
    check_shared_memory(2**40, 8)
    monkeypatch.setattr(os, "statvfs", lambda path: statvfs_of(8192))
    with pytest.raises(SharedMemoryError, match="the queues of data.workers=8 need 0.2 MiB, 0.0 MiB are free"):
        check_shared_memory(1, 8)

    def absent(path: Path) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "statvfs", absent)  # macOS
    check_shared_memory(2**40, 8)


def test_memory_that_cannot_be_had_is_an_error_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken at once: a page that is missing later would end the reader by a signal."""

    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    with pytest.raises(SharedMemoryError, match=r"^no memory for a batch of 1.0 MiB .*fewer data.workers"):
        SharedBuffers().take(2**20)
    assert not before or len(os.listdir("/proc/self/fd")) == before


def test_a_full_shm_that_holds_no_horizon_is_an_error_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", full)
    with pytest.raises(SharedMemoryError, match=r"^/dev/shm: data.workers=3 need a page, .* are free; .*workers=0$"):
        horizons(3)


SMALL_SHM = """
import sys, torch
from itertools import islice
from pathlib import Path
from cloc.data.stream import shared_buffers
from cloc.data.stream.batches import make_loader
from tests.kit.streams import make_manifest, make_stream

if __name__ == "__main__":
    way, set = sys.argv[1:]
    stream = make_stream(make_manifest(Path(set)), batch_size=64)
    if way == "named":
        class Named(type(stream)):
            def __iter__(self):
                shared_buffers.has_anonymous = lambda: False
                return super().__iter__()
        stream.__class__ = Named
    try:
        loader = make_loader(stream, 1, **({"multiprocessing_context": "fork"} if way == "named" else {}))
        held = list(islice(loader, 40))  # in hand, all of them
        print("read", len(held))
    except OSError as error:
        print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("way", "told"),
    [("anonymous", "read 40"), ("named", "SharedMemoryError: /dev/shm: a batch of data.workers needs")],
)
def test_an_shm_that_is_full_or_fills_up(tmp_path: Path, way: str, told: str) -> None:
    """A tmpfs of its own, as a container has it: without a name all batches fit; with one the line says what to do."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs a mount namespace of its own, which this user may not make (unshare -m)")
    script = tmp_path / "script.py"
    script.write_text(SMALL_SHM)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=256k tmpfs /dev/shm; exec "$@"', "sh"]
        + [sys.executable, str(script), way, str(tmp_path / "set")],
        **{"capture_output": True, "text": True, "cwd": ROOT, "timeout": 300},
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert told in done.stdout and len(done.stdout.strip().splitlines()) == 1, done.stdout + done.stderr
