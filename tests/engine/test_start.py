"""What a run cannot do here is refused before it begins, by a dry run too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from cloc import command
from cloc.command import line_of
from cloc.config import ConfigError, TrainerConfig
from cloc.engine import readers, run
from cloc.engine.durable.run_folder import RunFolder
from cloc.engine.loggers import check_logger
from cloc.engine.start import check_devices, check_folder, check_precision
from tests.kit.resuming import configure, make_squares

MEASURED = ("evaluation.every=8", "evaluation.data=[openmoji]")


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_squares(tmp_path_factory.mktemp("squares"), 16)


@pytest.fixture
def cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"accelerator": "gpu"}, "trainer.accelerator=gpu: there is no GPU"),
        ({"accelerator": "mps"}, "no GPU of Apple"),
        ({"accelerator": "tpu"}, "torch_xla"),
        ({"devices": 2}, "trainer.devices=2 asks for 2 processes, 1 were launched"),
        ({"devices": [0]}, "cpu has no indices"),
        ({"num_nodes": 3}, r"× trainer.num_nodes=3 asks for 3 processes.*--nnodes=3 .*--nproc-per-node=1"),
    ],
)
def test_devices_that_are_not_there_are_refused(options: dict[str, Any], told: str, cpu_alone: None) -> None:
    with pytest.raises(ConfigError, match=told):
        check_devices(TrainerConfig(**options), 1)


def test_more_processes_than_devices_are_told_the_key(cpu_alone: None) -> None:
    with pytest.raises(ConfigError, match=r"asks for 1 processes, 2 were launched: give trainer\.devices=2, or start"):
        check_devices(TrainerConfig(), 2)
    with pytest.raises(ConfigError, match=r"asks for 2 processes, 3 were launched: start them with .*--nnodes=2"):
        check_devices(TrainerConfig(num_nodes=2), 3)


def test_devices_that_are_there_pass(cpu_alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for devices in (1, "1", "auto", -1):
        check_devices(TrainerConfig(devices=devices), 1)
    check_devices(TrainerConfig(accelerator="cpu", devices=2, num_nodes=2), 4)
    with pytest.raises(ConfigError, match="16-mixed: float16 needs a GPU"):
        check_precision(TrainerConfig(precision="16-mixed"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_precision(TrainerConfig(precision="16-mixed"))
    for devices, world in (("auto", 2), ([1], 1), ("0,1", 2), (2, 2), ("1,", 1), ("0, 1", 2)):
        check_devices(TrainerConfig(accelerator="gpu", devices=devices), world)
    for devices in (3, [2], "0,5"):
        with pytest.raises(ConfigError, match="there are 2 here"):
            check_devices(TrainerConfig(accelerator="gpu", devices=devices), 3)


def test_a_logger_must_be_installed_and_take_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    check_logger({"name": "csv"})
    with pytest.raises(ConfigError, match=r"logger\.project: no option of logger.name=csv; it takes no other key"):
        check_logger({"name": "csv", "project": "x"})
    monkeypatch.setattr(command, "_is_there", lambda module: False)
    with pytest.raises(ConfigError, match=r"logger\.name=wandb: wandb: not installed; pip install .*\[wandb\]"):
        check_logger({"name": "wandb", "project": "x"})


def test_an_option_of_tensorboard_is_checked() -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    check_logger({"name": "tensorboard", "flush_secs": 5})
    with pytest.raises(ConfigError, match=r"logger\.flush_sec: .*did you mean 'flush_secs'"):
        check_logger({"name": "tensorboard", "flush_sec": 5})
    with pytest.raises(ConfigError, match=r"logger\.prefix=3: must be a text"):
        check_logger({"name": "tensorboard", "prefix": 3})


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    check_folder(RunFolder(str(tmp_path / "a" / "b")))
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="run_dir="):
        check_folder(RunFolder(str(tmp_path / "file" / "x")))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["trainer.accelerator=gpu"], "there is no GPU"),
        (["trainer.accelerator=cpu", "trainer.devices=2", "batch_size=7"], "batch_size=7 does not divide|2 processes"),
        ([*MEASURED, "evaluation.data=[nothing]"], "nothing"),
        ([*MEASURED, "datasets.openmoji.shards=nowhere"], "nowhere"),
        ([*MEASURED, "+datasets.openmoji.lead=no"], r"datasets\.openmoji\.lead"),
        (["init_from=nowhere"], "nowhere"),
        (["+model.image.pretrained=nowhere.pt"], r"model\.image\.pretrained='nowhere.pt': no such file"),
        (["model.text.options.vocab_size=8"], "vocab_size"),
        (["batch_size=1048576", "model.image.image_size=64"], "batch_size=1048576: the pictures"),
    ],
)
def test_a_dry_run_refuses_what_a_run_would(
    overrides: list[str], told: str, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_alone: None
) -> None:
    monkeypatch.setattr("cloc.engine.pretrain_data.memory", lambda: 2**30)
    for more in (["dry_run=true"], []):
        with pytest.raises((ValueError, OSError), match=told) as caught:
            run.train(configure(squares, tmp_path / "run", "samples=8", *overrides, *more))
        assert "\n" not in line_of(caught.value)
        assert more == [] or not (tmp_path / "run").exists()
    assert list(tmp_path.glob("run/checkpoints/*")) == []


def test_numbers_in_texts_are_numbers(squares: Path, tmp_path: Path) -> None:
    """As an environment variable gives them."""
    config = configure(squares, tmp_path / "run", "samples='8'", "model.joint_dim='32'")
    run.train(config)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_a_dry_run_of_one_process_plans_for_those_of_the_job(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cpu_alone: None
) -> None:
    """On a login node, where nothing can be launched."""
    job = ["samples=16", "data.workers=auto", "trainer.threads=1", "trainer.devices=2", "trainer.num_nodes=2"]
    monkeypatch.setattr(readers, "usable_cores", lambda: set(range(12)))
    monkeypatch.setattr(readers, "cpu_quota", lambda: None)
    monkeypatch.setattr("sys.argv", ["train.py", "name=x", "dry_run=true"])
    readers._host_share.cache_clear()
    run.train(configure(squares, tmp_path / "run", *job, "dry_run=true"))
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "processes 4, 2 on each of 2 nodes, planned by one: cores, memory and rates are those of this machine" in said
    )
    assert "readers 4 rank(s) × 5 reader(s) of 12 cores, 2 samples a rank and step" in said
    assert "a host touches shards of" in said, "amplification is that of the planned hosts"
    launched = "torchrun --nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 --nproc-per-node=2 train.py name=x"
    assert said.endswith(f"next: {launched}")
    with pytest.raises(ConfigError, match="asks for 4 processes, 1 were launched"):
        run.train(configure(squares, tmp_path / "run", *job))
    run.train(configure(squares, tmp_path / "run", "samples=16", "dry_run=true"))
    assert readers.host_share().processes == 1, "a later run of this process takes the whole host"
    readers._host_share.cache_clear()


def test_a_reader_does_not_wait_for_its_store_longer_than_the_others_for_it(
    squares: Path, tmp_path: Path, cpu_alone: None
) -> None:
    system = fsspec.filesystem("memory")
    system.put(str(squares / "train"), "/patience/train", recursive=True)
    data = ["data.train=memory://patience/train", f"data.cache_dir={tmp_path}", "dry_run=true"]
    two = [*data, "trainer.accelerator=cpu", "trainer.devices=2", "trainer.timeout=630"]
    with pytest.raises(
        ConfigError, match=r"data\.retry_seconds=600: .* 630 seconds .*give a trainer\.timeout above 630"
    ):
        run.train(configure(squares, tmp_path / "run", "samples=16", *two))
    for more in (["data.retry_seconds=599"], ["trainer.devices=1"], [f"data.train={squares / 'train'}"]):
        run.train(configure(squares, tmp_path / "run", "samples=16", *two, *more))
    system.store.clear()
