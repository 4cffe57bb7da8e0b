"""No run is lost: interrupted at any moment it ends as if nothing had happened, and says what it does."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from cloc.config import ConfigError
from cloc.engine import run
from cloc.engine.durable import checkpoint_file as checkpoint
from cloc.engine.durable.checkpoint_file import CheckpointError, commit, inspect
from cloc.engine.durable.run_folder import RunFolder, locked
from cloc.engine.module import Pretrain
from cloc.engine.nonfinite import flag_nonfinite
from cloc.files import discard
from cloc.losses.objective import ClocLoss
from tests.kit.resuming import assert_same, configure, newest_step, weights

STEPS = 8
BUDGET = ["samples=64", "trainer.checkpoint_every=16"]  # a checkpoint after steps 2, 4, 6 and 8
LOSSES = ("samples", "loss", "loss/global", "loss/region", "loss/grounding", "lr", "step", "data/regions")


@pytest.fixture(scope="module")
def whole(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    run.train(configure(squares, folder, *BUDGET))
    return folder


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Any) -> None:
    """Do something right after a step, before any callback sees it."""
    advance = Pretrain.advance

    def disturbed(self: Pretrain, batch: Any) -> None:
        advance(self, batch)
        if self.global_step == step:
            action()

    monkeypatch.setattr(Pretrain, "advance", disturbed)


def crash() -> None:
    raise RuntimeError("the power went out")


def crashed_run(squares: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Checkpoints of steps 2 and 4, then a crash in step 5."""
    with monkeypatch.context() as patch:
        at_step(patch, 5, crash)
        with pytest.raises(RuntimeError, match="power"):
            run.train(configure(squares, folder, *BUDGET, *more))
    assert newest_step(folder) == 4


def log_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_crashed_run_ends_as_if_nothing_had_happened(
    squares: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, both optimizers and the log, with dropout; the model has been trained past the checkpoint before."""
    crashed_run(squares, tmp_path, monkeypatch)
    run.train(configure(squares, tmp_path, *BUDGET))
    assert_same(weights(tmp_path), weights(whole))
    expected, found = log_rows(whole), log_rows(tmp_path)
    assert [[row[name] for name in LOSSES] for row in found] == [[row[name] for name in LOSSES] for row in expected]
    assert len(found) == STEPS
    seconds = [float(row["seconds"]) for row in found]
    assert seconds == sorted(seconds)


def test_dropout_takes_part(squares: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the random state the run above would end elsewhere."""
    crashed_run(squares, tmp_path, monkeypatch)
    monkeypatch.setattr("cloc.engine.durable.checkpointing.set_random_state", lambda state: None)
    run.train(configure(squares, tmp_path, *BUDGET))
    with pytest.raises(AssertionError, match="differ"):
        assert_same(weights(tmp_path), weights(whole))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    damage: Any, squares: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    crashed_run(squares, tmp_path, monkeypatch)
    damage(tmp_path / "checkpoints" / "step-00000004.ckpt")
    run.train(configure(squares, tmp_path, *BUDGET))
    text = " ".join(capsys.readouterr().out.split())
    assert "is damaged" in text and "taking step-00000002.ckpt" in text
    assert (tmp_path / "checkpoints" / "damaged-step-00000004.ckpt").exists()
    assert_same(weights(tmp_path), weights(whole))


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed_run(squares, tmp_path, monkeypatch)
    for path in (tmp_path / "checkpoints").glob("step-*.ckpt"):
        truncate(path)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="all of its checkpoints"):
            run.train(configure(squares, tmp_path, *BUDGET))


def test_a_full_disk_costs_one_checkpoint_and_not_the_run(
    squares: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    save, calls = torch.save, []

    def full(stored: Any, file: Any) -> None:
        calls.append(file)
        if len(calls) == 2:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(stored, file)

    monkeypatch.setattr(checkpoint.torch, "save", full)
    run.train(configure(squares, tmp_path, *BUDGET))
    text = " ".join(capsys.readouterr().out.split())
    assert "step-00000004.ckpt could not be written" in text and "No space left" in text
    assert "newest whole one is step-00000002.ckpt" in text
    assert_same(weights(tmp_path), weights(whole))
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert [row["train/failed_checkpoints"] for row in log_rows(tmp_path)[3:]] == ["1.0"] * 5


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_really_full_disk(squares: Path, whole: Path, tmp_path: Path) -> None:
    """Two checkpoints fit, a third does not: the run says so at its end, and continues once there is room."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=3200k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        with pytest.raises(CheckpointError, match="step-00000008.ckpt could not be written.*step-00000004.ckpt"):
            run.train(configure(squares, tmp_path, *BUDGET))
        assert inspect(tmp_path / "checkpoints" / "last.ckpt").step == 4
        subprocess.run(["mount", "-o", "remount,size=20m", str(tmp_path)], check=True)
        run.train(configure(squares, tmp_path, *BUDGET))
        assert_same(weights(tmp_path), weights(whole))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_newest_and_the_best_are_kept(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured after every step; the third is best. Resuming knows it."""
    name = "openmoji_val/region/prompter/top1"
    values = iter([0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.6, 0.7])
    monkeypatch.setattr("cloc.evaluation.suite.TrainingSuite", lambda *a: lambda model: {name: next(values)})
    best = ["evaluation.every=8", "evaluation.data=[openmoji_val]", f"evaluation.best=val/{name}"]
    run.train(configure(squares, tmp_path, "samples=40", "trainer.checkpoint_every=8", *best))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", *(f"step-0000000{step}.ckpt" for step in (3, 4, 5))]
    run.train(configure(squares, tmp_path, *BUDGET, *best))
    assert os.readlink(tmp_path / "checkpoints" / "best.ckpt") == "step-00000003.ckpt"
    assert os.readlink(tmp_path / "checkpoints" / "last.ckpt") == "step-00000008.ckpt"
    values = iter([0.5] * 8)
    with pytest.raises(ConfigError, match="mAcc' is not measured; choose of .*prompter/top1"):
        run.train(configure(squares, tmp_path / "b", *BUDGET, *best[:2], best[2].replace("top1", "mAcc")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.text.options.width=64"], r"another model: \d+ weights differ.*model\.text\.options\.width: 32 → 64"),
        (["optim=adamw", "optim.warmup=0"], r"another optimizer.*optim\.name: muon → adamw"),
        (["optim.muon_projections=false"], r"another optimizer.*muon_projections"),
    ],
)
def test_what_does_not_fit_is_refused(changes: list[str], message: str, squares: Path, whole: Path) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (whole / "checkpoints").iterdir())
    with pytest.raises(ConfigError, match=message):
        run.train(configure(squares, whole, "samples=80", *changes))
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (whole / "checkpoints").iterdir()) == before


def test_changed_keys_are_reported(squares: Path, tmp_path: Path, capsys: Any) -> None:
    run.train(configure(squares, tmp_path, "samples=8"))
    run.train(configure(squares, tmp_path, "samples=16", "optim.lr=1e-4"))
    text = capsys.readouterr().out
    assert "samples: 8 → 16" in text and "optim.lr: 0.003 → 0.0001" in text and "run_dir" not in text.split("not as")[1]


def test_a_folder_in_use_is_refused_and_that_of_a_dead_process_taken_over(
    squares: Path, tmp_path: Path, capsys: Any
) -> None:
    with (
        locked(RunFolder(str(tmp_path))),
        pytest.raises(ConfigError, match=f"process {os.getpid()} on .* is writing it"),
    ):
        run.train(configure(squares, tmp_path, "samples=8"))
    held = {"host": "node7", "pid": 4242, "since": "yesterday"}
    (tmp_path / "run.lock").write_text(json.dumps(held))
    run.train(configure(squares, tmp_path, "samples=8"))
    assert "process 4242 on node7 (since yesterday) ended without releasing it" in " ".join(
        capsys.readouterr().out.split()
    )
    assert not (tmp_path / "run.lock").read_text()


def poison(monkeypatch: pytest.MonkeyPatch, calls: set[int], term: str = "region") -> None:
    """Make one term of the loss NaN at some of its calls (counted from 1)."""
    forward, count = ClocLoss.forward, 0

    def poisoned(self: ClocLoss, features: Any, batch: Any) -> Any:
        nonlocal count
        count += 1
        terms = forward(self, features, batch)
        if count in calls:
            terms.total, terms.terms[term] = terms.total * torch.nan, terms.terms[term] * torch.nan
        return terms

    monkeypatch.setattr(ClocLoss, "forward", poisoned)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_step_that_is_not_finite_is_skipped(
    name: str, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Steps 2 and 3 change neither weights nor optimizer, and step 4 goes on from there."""
    poison(monkeypatch, {2, 3})
    run.train(
        configure(
            squares,
            tmp_path,
            "samples=32",
            "trainer.checkpoint_every=8",
            f"optim={name}",
            "trainer.keep_last=9",
            "optim.warmup=0",
        )
    )
    states = [
        torch.load(tmp_path / "checkpoints" / f"step-0000000{step}.ckpt", weights_only=True) for step in (1, 3, 4)
    ]
    first, skipped, last = ([s["state_dict"], *_states(s["optimizer_states"][0])] for s in states)
    for before, after in zip(first, skipped, strict=True):
        assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not all(torch.equal(value, last[0][key]) for key, value in first[0].items())
    assert all(torch.isfinite(value).all() for part in last for value in part.values())
    assert [row["train/skipped_steps"] for row in log_rows(tmp_path)] == ["0.0", "1.0", "2.0", "2.0"]
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3] and all(len(line["keys"]) == 8 for line in lines)
    text = " ".join(capsys.readouterr().out.split())
    assert "step 2: loss, loss/region not finite; step skipped (1 in a row); keys: " + lines[0]["keys"][0] in text


def _states(optimizer: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    parts = optimizer.get("parts", [optimizer])
    return [{key: torch.as_tensor(v) for key, v in state.items()} for part in parts for state in part["state"].values()]


def test_too_many_skipped_steps_in_a_row_stop_the_run(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {2, 4, 5, 6})
    with pytest.raises(
        FloatingPointError, match=r"step 6: loss, loss/region not finite, 3 steps in a row.*max_skipped"
    ):
        run.train(configure(squares, tmp_path, *BUDGET, "trainer.max_skipped_steps=3"))


def test_a_loss_that_is_not_finite_marks_a_gradient_that_is() -> None:
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    flag_nonfinite(weight.sum()).backward()
    assert torch.equal(weight.grad, torch.ones(2))
    weight.grad = None
    flag_nonfinite(weight.sum() + torch.inf).backward()
    assert weight.grad.isnan().all()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGUSR1, 75)]
)
def test_a_signal_stops_the_run_after_a_checkpoint(
    number: signal.Signals,
    code: int,
    squares: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    """Under SLURM SIGUSR1 (time is nearly up) puts the job back into the queue; SIGTERM (it is unwanted) does not."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tools / 'asked'}\n")
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, default)  # under nohup SIGHUP is ignored, and a run leaves it so
    before, folder = signal.getsignal(number), tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as stopped:
            run.train(configure(squares, folder, *BUDGET))
    assert stopped.value.code == code and newest_step(folder) == 3
    assert signal.getsignal(number) == before
    requeued = (tools / "asked").read_text().split() if (tools / "asked").exists() else []
    assert requeued == (["requeue", "17"] if number == signal.SIGUSR1 else [])
    assert f"stopped by {number.name} at step 3 of 8" in "".join(capsys.readouterr())
    run.train(configure(squares, folder, *BUDGET))
    assert_same(weights(folder), weights(whole))


def test_a_remote_run_folder(squares: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine, with nothing but what was uploaded."""
    store, place = fsspec.filesystem("memory"), "memory://bucket/run"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "one"))
    crashed_remote(squares, place, monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    run.train(configure(squares, place, *BUDGET))
    names = {path.removeprefix("/bucket/run/") for path in store.find("/bucket/run")}
    assert {"config.yaml", "versions.json", "metrics.csv", "text/tokenizer.json"} <= names
    assert {name for name in names if "ckpt" in name} == {f"checkpoints/step-0000000{step}.ckpt" for step in (6, 8)}
    store.get("/bucket/run", str(tmp_path / "copy"), recursive=True)
    assert_same(weights(tmp_path / "copy", "step-00000008.ckpt"), weights(whole))
    expected, found = ([row["loss"] for row in log_rows(folder)] for folder in (whole, tmp_path / "copy"))
    assert found == [*expected[:3], *expected[4:]]  # step 4's row is written after its checkpoint was uploaded


def crashed_remote(squares: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 5, crash)
        with pytest.raises(RuntimeError, match="power"):
            run.train(configure(squares, place, *BUDGET))


def test_a_sharded_checkpoint_is_complete_or_none(tmp_path: Path) -> None:
    part, path = tmp_path / ".step-00000004.ckpt.part", tmp_path / "step-00000004.ckpt"
    for _ in range(2):  # the second replaces the first
        part.mkdir()
        torch.save({"global_step": 4, "cloc": {"cursor": 32}}, part / "meta.pt")
        (part / "__0_0.distcp").write_bytes(b"shard")
        with pytest.raises(CheckpointError, match="complete.json"):
            inspect(part)
        commit(part, path)
        assert not part.exists() and inspect(path).step == 4
    (path / "__0_0.distcp").write_bytes(b"sha")
    with pytest.raises(CheckpointError, match="3 bytes, not 5"):
        inspect(path)
    discard(path)
    assert not list(tmp_path.iterdir())


def test_wandb_keeps_its_run(squares: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    from cloc.config import validate
    from cloc.engine.loggers import build_loggers

    config = validate(configure(squares, tmp_path, "samples=8", "logger=wandb"))
    ids = [build_loggers(config, RunFolder(str(tmp_path)))[1].version for _ in range(2)]
    assert ids[0] and ids[0] == ids[1]
