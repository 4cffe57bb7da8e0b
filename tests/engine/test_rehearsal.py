"""A dry run says whether reading keeps up with the step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cloc.config import ConfigError
from cloc.data.stream import shared_buffers
from cloc.engine import rehearsal, run
from cloc.engine.module import Pretrain
from cloc.engine.readers import HostShare
from cloc.engine.rehearsal import elsewhere, step_rate, verdict
from tests.kit.resuming import configure, make_squares


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_squares(tmp_path_factory.mktemp("squares"))


@pytest.mark.parametrize(
    ("one", "workers", "step", "told"),
    [
        (400, 11, 2000, r"^yes, the readers give 2\.2 times the samples that the step takes$"),
        (400, 1, 900, r"^warning: reading starves the step: 400 of 900 samples/s; give data\.workers=3$"),
        (100, 4, 900, r"400 of 900 .*data\.workers=9 on more cores than the 8 of a process here, or smaller pictures$"),
        (300, 0, 100, r"^reading takes 25% of the time, .*data\.workers=1"),
        (410, 2, 0, r"^not known: a process that takes more than 820 samples/s waits"),
    ],
)
def test_verdict(monkeypatch: pytest.MonkeyPatch, one: float, workers: int, step: float, told: str) -> None:
    monkeypatch.setattr(rehearsal, "host_share", lambda: HostShare(8.0, 8, 1))
    assert re.search(told, verdict(one, workers, step))


def test_what_a_gpu_elsewhere_needs() -> None:
    assert elsewhere(400, 3500).startswith(
        "such a GPU needs 9 of these readers, so 10 cores of its own; data.workers=auto"
    )
    assert elsewhere(100, 3500).endswith("data.workers=auto takes 16: give 35")


def planned(capsys: pytest.CaptureFixture[str], config: Any) -> str:
    assert run.train(config) is None
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            ["data.workers=2"],
            r"reading 2 × ([\d,]+) = [\d,]+ samples/s.*step [\d,]+ samples/s a process \(measured on 8",
        ),
        (["data.workers=0"], r"samples/s in the training process.*keeps up reading takes \d+% of the time"),
        (["trainer.accumulate=2"], r"step [\d,]+ samples/s a process \(measured on 8 samples"),
    ],
)
def test_a_dry_run_measures_both_and_writes_nothing(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    said = planned(capsys, configure(squares, tmp_path / "none", "dry_run=true", *more))
    assert re.search(told, said), said
    assert not (tmp_path / "none").exists()


def test_what_no_cpu_measures_is_calculated_for_a_gpu(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step itself is never taken then: the count of operations alone decides."""
    monkeypatch.setattr(rehearsal, "CORE", 1e-3)
    monkeypatch.setattr(rehearsal, "_timed", lambda *_: pytest.fail("was measured"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = configure(squares, tmp_path / "none", "dry_run=true", "data.workers=auto", "trainer.accelerator=auto")
    said = planned(capsys, config)
    assert re.search(r"\(calculated for a GPU, none is here: about \d+ GFLOP a sample at 40% of an H100", said), said
    assert "such a GPU needs" in said
    config.trainer.accelerator = "cpu"
    assert "GFLOP a sample take too long on CPUs keeps up not known" in planned(capsys, config)


def test_operations_are_those_of_the_matrix_products(squares: Path, tmp_path: Path) -> None:
    """Twice the weights of a linear tower for each place, counted by hand for one of its blocks."""
    from omegaconf import OmegaConf

    from cloc.config import TrainConfig, validate

    composed = configure(squares, tmp_path / "run")
    resolved: Any = OmegaConf.to_container(composed, resolve=True)
    config = validate(composed, TrainConfig)
    Pretrain.complete(resolved)
    task = Pretrain(config, resolved)
    stream = task.open_stream(Pretrain.open_data(config), 0, 1)
    batch = next(iter(stream))
    places = len(batch.images) * task.model.grid[0] * task.model.grid[1]
    matrices = [
        one.weight for block in [task.model.image.modules()] for one in block if isinstance(one, torch.nn.Linear)
    ]
    least = sum(2 * places * weight.numel() for weight in matrices if weight.shape[0] != 32)
    found = rehearsal.forward_flops(task, config, batch)
    assert least <= found <= 20 * least
    before = [parameter.clone() for parameter in task.model.parameters()]
    assert step_rate(task, config, batch).rate > 0
    assert all(map(torch.equal, before, task.model.parameters())), "a rehearsal trains nothing"
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_a_source_that_fails_is_told_not_raised(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise OSError("the store\nis gone")

    monkeypatch.setattr(rehearsal, "stream_rate", fails)
    said = planned(capsys, configure(squares, tmp_path / "none", "dry_run=true"))
    assert "keeps up not measured here: the store is gone" in said


def test_batches_that_no_memory_or_shm_holds_are_refused_by_the_dry_run_too(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloc.engine import pretrain_data

    config = configure(squares, tmp_path / "none", "dry_run=true", "data.workers=4")
    monkeypatch.setattr(pretrain_data, "memory", lambda: 400_000)  # a batch is 24,576 bytes, 20 are held
    with pytest.raises(ConfigError, match="data.workers=4: the batches that the readers of this host's 1 training"):
        run.train(config)
    monkeypatch.undo()
    monkeypatch.setattr(shared_buffers, "has_anonymous", lambda: False)
    monkeypatch.setattr(shared_buffers, "_free_in_shm", lambda: 400_000)
    with pytest.raises(OSError, match="/dev/shm: the batches of data.workers=4 need 0.5 MiB, 0.4 MiB are free; give a"):
        run.train(config)
