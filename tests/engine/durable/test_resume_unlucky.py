"""Runs whose folder holds garbage, whose file system has no links, whose disk is full, whose data end in an error."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import cloc
from cloc.checkpoints import find, list_checkpoints, pointed
from cloc.data.stream.batches import Stream
from cloc.data.stream.skip_limits import SkipLimitError
from cloc.engine import run
from cloc.engine.durable.checkpoint_file import point
from cloc.engine.durable.signals import StopAtSignal
from cloc.engine.loggers import Board, read_rows
from cloc.engine.sweep.jobs import last_metrics
from tests.kit.resuming import assert_same, configure, newest_step, weights

BUDGET = ["samples=64", "trainer.checkpoint_every=16"]  # a checkpoint after steps 2, 4, 6 and 8
NOISE = bytes(range(256)) * 8


@pytest.fixture(scope="module")
def whole(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run.train(configure(squares, folder, *BUDGET))
    return folder


@pytest.fixture(scope="module")
def half(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of the same run, then a signal."""
    folder, note = tmp_path_factory.mktemp("half"), StopAtSignal.on_train_batch_end

    def stopping(self: StopAtSignal, trainer: Any, *rest: Any) -> None:
        self.noted = signal.SIGTERM if trainer.global_step == 4 else None
        note(self, trainer, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(StopAtSignal, "on_train_batch_end", stopping)
        run.train(configure(squares, folder, *BUDGET))
    return folder


def test_reading_that_fails_ends_after_a_checkpoint(
    squares: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The batch of step 6 cannot be read while step 5 is in hand: step 5 is saved, whatever ``checkpoint_every`` is."""
    batch_at = Stream.batch_at

    def failing(self: Stream, position: int, images: Any = None) -> Any:
        if position == 5 * 8:
            raise SkipLimitError("too many bad samples")
        return batch_at(self, position, images)

    budget = ["samples=64", "trainer.checkpoint_every=1000000"]
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "batch_at", failing)
        with pytest.raises(SkipLimitError, match="too many bad samples"):
            run.train(configure(squares, tmp_path, *budget))
    assert newest_step(tmp_path) == 5
    assert "stopped by an error in reading at step 5 of 8, which is saved" in capsys.readouterr().out
    run.train(configure(squares, tmp_path, *budget))
    assert_same(weights(tmp_path), weights(whole))


def put(path: Path, content: bytes | None) -> None:
    """A file, or a folder with something in it."""
    if path.is_file():
        path.unlink()
    if content is None:
        path.mkdir()
        path = path / "something"
    path.write_bytes(content or b"")


GARBAGE = {
    "run.lock": [NOISE, b"[]", b'{"pid": 1}'],
    "versions.json": [NOISE, b"[]", b"{", b""],
    "config.yaml": [NOISE, b""],
    "metrics.csv": [NOISE, None, b"samples,loss\n8,1.0,3,4\nx,y\n\0\n8,2.0\n9"],
    "checkpoints/step-00000099.ckpt": [NOISE, None, b""],
    "checkpoints/.step-00000007.ckpt.0123456789abcdef.part": [NOISE, None],
    "checkpoints/best.ckpt": [NOISE, b"step-00000077.ckpt"],
    "checkpoints/last.ckpt": [b"step-00000077.ckpt"],
}


@pytest.mark.parametrize("turn", range(3))
def test_garbage_in_side_files(turn: int, squares: Path, whole: Path, half: Path, tmp_path: Path, capsys: Any) -> None:
    """It is told and written anew; the run ends where it would have ended."""
    shutil.copytree(half, tmp_path, symlinks=True, dirs_exist_ok=True)
    for name, contents in GARBAGE.items():
        put(tmp_path / name, contents[turn % len(contents)])
    capsys.readouterr()
    run.train(configure(squares, tmp_path, *BUDGET))
    told = capsys.readouterr().out
    assert_same(weights(tmp_path), weights(whole))
    assert "step-00000099.ckpt" in told and "versions.json" in told and "ended without releasing it" in told
    rows, wrong = read_rows(tmp_path / "metrics.csv")
    assert not wrong and [row["step"] for row in rows if float(row["samples"]) > 32]
    assert find(tmp_path).name == "step-00000008.ckpt" and cloc.load(tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "versions.json", "checkpoints"])
def test_what_stands_in_the_way_is_named(name: str, squares: Path, tmp_path: Path) -> None:
    put(tmp_path / name, b"" if name == "checkpoints" else None)
    with pytest.raises(OSError, match=name):
        run.train(configure(squares, tmp_path, "samples=8"))


@pytest.mark.parametrize(
    ("text", "count", "wrong"),
    [
        (b"samples,loss\n8,1.5\n16,", 1, ""),
        (b"samples,loss\n8,1.5\n16,\n,2.5\n", 3, ""),
        (b"samples,loss\n8,1.5\n\xff\xfe,1\n16,1,2\n16\n24,nan\n", 2, "3 of 5 lines are no rows of a log"),
        (b"loss\n1.5\n", 0, "1 of 1 lines are no rows of a log"),
        (b"samples,loss\n8,1.5\n\0\0,1\n", 1, "1 of 2 lines are no rows of a log"),
        (b"x" * 200_000 + b"\n1\n", 0, "cannot be read"),
    ],
)
def test_rows_of_a_log(text: bytes, count: int, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(text)
    rows, told = read_rows(tmp_path / "metrics.csv")
    assert len(rows) == count and wrong in told and bool(wrong) == bool(told)
    assert last_metrics(tmp_path) == {}


def test_a_file_system_without_links(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    for name in ("symlink", "link"):
        monkeypatch.setattr(os, name, refuse)
    for name in ("symlink_to", "hardlink_to"):
        monkeypatch.setattr(Path, name, refuse)
    run.train(configure(squares, tmp_path, *BUDGET, "trainer.keep_last=1"))
    folder = tmp_path / "checkpoints"
    assert "could not be written" not in capsys.readouterr().out
    assert list_checkpoints(folder) == ["step-00000008.ckpt"]
    point(folder / "best.ckpt", folder / "step-00000008.ckpt")
    for path in (tmp_path, folder / "last.ckpt", folder / "best.ckpt"):
        assert find(path) == folder / "step-00000008.ckpt"
        assert cloc.load(path).info["samples_seen"] == 64
    run.train(configure(squares, tmp_path, *BUDGET, "samples=72"))
    assert find(folder / "last.ckpt").name == "step-00000009.ckpt"


def test_names_of_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert find(tmp_path) == folder / "last.ckpt"
    folder.mkdir()
    (folder / "last.ckpt").write_bytes(b"a checkpoint of an older version" * 9)
    assert list_checkpoints(folder) == ["last.ckpt"] and find(tmp_path).name == "last.ckpt"
    for step in (9, 100000010):
        (folder / f"step-{step:08d}.ckpt").write_bytes(b"")
    (folder / "best.ckpt").symlink_to("step-00000009.ckpt")
    assert find(tmp_path).name == "step-100000010.ckpt"
    assert find(folder / "best.ckpt") == folder / "best.ckpt"
    for text in (b"", b"../../elsewhere.ckpt", b"step-00000009.ckpt/..", NOISE):
        (folder / "odd.ckpt").write_bytes(text)
        assert pointed(folder / "odd.ckpt") is None


def test_a_run_without_a_terminal_stays_so() -> None:
    """``nohup`` ignores SIGHUP: the run must not stop at it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopAtSignal()
    try:
        stop.on_train_start(None, None)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and signal.getsignal(signal.SIGINT) == stop._note
    finally:
        stop.on_train_end(None, None)
        signal.signal(signal.SIGHUP, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_on_a_full_disk(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    board = Board(tmp_path, name="", version="")
    board.log_metrics({"loss": 1.0}, 1)
    size = max(file.stat().st_size for file in tmp_path.glob("events*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        for step in range(2, 12):
            board.log_metrics({f"loss/{'long' * 40}": 1.0}, step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert board.lost and "rows of TensorBoard are lost" in " ".join(capsys.readouterr().out.split())
    board.log_metrics({"loss": 2.0}, 12)
    lost = board.lost
    board.log_metrics({"loss": 3.0}, 13)
    board.finalize("success")
    assert board.lost == lost
