"""Worker processes keep what they made once, are replaced when they are killed, and change nothing of the results."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cloc.contracts import BadSample, Sample
from cloc.data.jobs.report import Report
from cloc.data.jobs.resumable_jobs import Job, Task
from cloc.data.jobs.worker_pool import MAX_KILLS, WorkerError, WorkerPool


class ToyModel:
    """Counts how often it was made, by a file each, and is asked at every call."""

    def __init__(self, made: Path) -> None:
        handle, _ = tempfile.mkstemp(dir=made)
        os.close(handle)
        self.made = made

    def label(self, number: int) -> str:
        return f"label {number}"

    def wait_for(self, workers: int) -> None:
        """Let no process do all before the others have started."""
        deadline = time.monotonic() + 120
        while count(self.made) < workers and time.monotonic() < deadline:
            time.sleep(0.01)


def broken_model(made: Path) -> ToyModel:
    raise RuntimeError(f"no weights in {made}\nand a second line")


def killed_model() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def label(number: int, model: ToyModel) -> str:
    return model.label(number)


def kill_once(number: int, flag: Path, *state: ToyModel) -> int:
    """Die at the first call of number 1; the flag tells that it was that."""
    if number == 1 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail_at(number: int, bad: int) -> int:
    if number == bad:
        raise BadSample("no_image", f"number {number}")
    return number


def unpicklable(number: int) -> object:
    return lambda: number


def label_shard(number: int, workers: int, kill: Path | None, report: Report, model: ToyModel) -> Iterator[Sample]:
    model.wait_for(workers)
    report.given.update(records=2)
    yield Sample(f"k{number}-0", b"picture", "jpg", (model.label(number),))
    if kill is not None:
        kill_once(number, kill)
    yield Sample(f"k{number}-1", b"picture" * number, "jpg", (model.label(number + 100),))


def label_set(out: Path, made: Path, workers: int, kill: Path | None = None, stop_at: int = 9) -> list[bool]:
    made.mkdir(exist_ok=True)
    seen = []

    def on_shard(report: Report, earlier: bool) -> None:
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        seen.append(earlier)

    job = Job(out, {"identity": "x"})
    tasks = [Task(partial(label_shard, number, workers, kill)) for number in range(6)]
    job.run(tasks, workers=workers, initialize=partial(ToyModel, made), on_shard=on_shard)
    job.place()
    job.close()
    return seen


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def count(folder: Path) -> int:
    return len(list(folder.iterdir()))


def test_one_worker_is_this_process_and_makes_its_state_when_it_is_needed(tmp_path: Path) -> None:
    with WorkerPool(1, partial(ToyModel, tmp_path)) as pool:
        assert list(pool.run(label, [])) == [] and count(tmp_path) == 0
        assert list(pool.run(label, ((number,) for number in range(3)))) == ["label 0", "label 1", "label 2"]
        assert list(pool.run(label, [(7,)])) == ["label 7"] and count(tmp_path) == 1
    assert not multiprocessing.active_children()


def test_an_error_of_preparing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="RuntimeError: no weights in .*same command again$") as caught:
        with WorkerPool(1, partial(broken_model, tmp_path)) as pool:
            list(pool.run(label, [(1,)]))
    assert "\n" not in str(caught.value)


def test_a_job_labels_with_a_state_and_continues_with_another(tmp_path: Path) -> None:
    label_set(tmp_path / "whole", tmp_path / "made", 1)
    with pytest.raises(KeyboardInterrupt):
        label_set(tmp_path / "out", tmp_path / "again", 1, stop_at=3)
    assert label_set(tmp_path / "out", tmp_path / "again", 1) == [True] * 4 + [False] * 2
    assert count(tmp_path / "made") == 1 and count(tmp_path / "again") == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.distributed
def test_any_number_of_processes_and_a_kill_make_the_same_bytes(tmp_path: Path) -> None:
    label_set(tmp_path / "one", tmp_path / "made_1", 1)
    label_set(tmp_path / "three", tmp_path / "made_3", 3)
    label_set(tmp_path / "killed", tmp_path / "made_2", 2, kill=tmp_path / "flag")
    assert contents(tmp_path / "one") == contents(tmp_path / "three") == contents(tmp_path / "killed")
    assert [count(tmp_path / f"made_{workers}") for workers in (1, 3)] == [1, 3]
    assert (tmp_path / "flag").exists() and count(tmp_path / "made_2") in (2, 3)  # the other one may have done it all


@pytest.mark.slow
@pytest.mark.distributed
def test_results_come_in_order_and_a_state_lives_from_run_to_run(tmp_path: Path) -> None:
    with WorkerPool(2, partial(ToyModel, tmp_path)) as pool:
        assert list(pool.run(label, ((number,) for number in range(40)))) == [f"label {n}" for n in range(40)]
        assert list(pool.run(label, [(5,), (6,)])) == ["label 5", "label 6"] and count(tmp_path) <= 2
        some = pool.run(label, ((number,) for number in range(40)))
        assert next(some) == "label 0"
        some.close()  # what is not taken must not be taken for results of the next run
        assert list(pool.run(label, [(8,)])) == ["label 8"]
    assert count(tmp_path) <= 4
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.distributed
def test_a_killed_process_is_replaced_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with WorkerPool(2) as pool:
        calls = [(number, tmp_path / "flag") for number in range(6)]
        assert list(pool.run(kill_once, calls)) == list(range(6))
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "(signal 9)" in caplog.text


@pytest.mark.slow
@pytest.mark.distributed
def test_processes_that_cannot_start_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=f"{MAX_KILLS} times.*fewer --workers"):
        with WorkerPool(2, killed_model) as pool:
            list(pool.run(fail_at, [(1, 0)]))
    with pytest.raises(WorkerError, match="^a worker cannot be prepared: RuntimeError: no weights in .*again$"):
        with WorkerPool(2, partial(broken_model, tmp_path)) as pool:
            list(pool.run(label, [(1,), (2,)]))
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.distributed
def test_an_error_comes_when_all_before_it_has_been_taken(tmp_path: Path) -> None:
    taken = []
    with pytest.raises(BadSample, match="number 5") as caught, WorkerPool(2) as pool:
        taken.extend(pool.run(fail_at, ((number, 5) for number in range(9))))
        pytest.fail("no error")
    assert caught.value.reason == "no_image" and "in fail_at" in caught.value.__notes__[0]
    with pytest.raises(Exception, match="pickle"), WorkerPool(2) as pool:
        list(pool.run(unpicklable, [(1,)]))
    assert not multiprocessing.active_children()
