"""Processes of one run that were started with different settings stop at once, all of them, and name what differs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cloc.config import ConfigError
from cloc.engine import agreement as processes
from tests.kit.resuming import ROOT, TINY, make_squares


def settings(*more: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose("train", [*TINY, "name=x", "data.train=a", *more]), resolve=True)


def compare(monkeypatch: pytest.MonkeyPatch, *everyone: dict[str, Any], digests: tuple[str, ...] = ()) -> list[str]:
    """What each process hears, every one a thread of its own that exchanges with the others."""
    said: dict[int, Any] = {}
    meet, told = threading.Barrier(len(everyone), timeout=20), [""] * len(everyone)

    def exchange(value: Any) -> list[Any]:
        said[int(threading.current_thread().name)] = value
        meet.wait()
        values = [said[number] for number in range(len(everyone))]
        meet.wait()
        return values

    def act(number: int) -> None:
        try:
            processes.check_same(everyone[number], digests[number] if digests else "data")
        except ConfigError as error:
            told[number] = str(error)

    monkeypatch.setattr(processes, "exchange", exchange)
    threads = [threading.Thread(target=act, args=(number,), name=str(number)) for number in range(len(everyone))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.regions=2", "data.regions differs: 6 on process 0, 2 on process 1"),
        ("data.crop=0.5", "data.crop differs: None on process 0, 0.5 on process 1"),
        ("trainer.accumulate=2", "trainer.accumulate differs: 1 on process 0, 2 on process 1"),
        ("trainer.checkpoint_every=40", "trainer.checkpoint_every differs: 1000000 on process 0, 40 on process 1"),
        ("trainer.checkpoint_minutes=0", "trainer.checkpoint_minutes differs: 1 on process 0, 0 on process 1"),
        ("evaluation.every=8", "evaluation.every differs: 0 on process 0, 8 on process 1"),
        ("optim.betas=[0.5,0.6]", "optim.betas differs: [0.9, 0.98] on process 0, [0.5, 0.6] on process 1"),
        ("+model.image.tune_last=0", "model.image.tune_last differs: absent on process 0, 0 on process 1"),
        ("~loss.threshold", "loss.threshold differs: 0.9 on process 0, absent on process 1"),
        ("model.prompter=null", "model.prompter differs: absent on process 0, None on process 1"),
        ("model.text.tokenizer=open_clip", "model.text.tokenizer differs: "),
        ("init_from=elsewhere", "init_from differs: None on process 0, elsewhere on process 1"),
    ],
)
def test_every_setting_is_compared(override: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = compare(monkeypatch, settings(), settings(override))
    assert told[0] == told[1] and message in told[0] and "\n" not in told[0]


def test_machines_may_differ_in_where_files_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = ["run_dir=/scratch/1", "data.train=/disk", "data.cache_dir=/disk", "data.workers=3", "trainer.threads=7"]
    assert compare(monkeypatch, settings(), settings(*own)) == ["", ""]
    folders = [tmp_path / number for number in "012"]
    for folder in folders:
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}" if folder != folders[2] else "[]")
    places = [settings(f"model.text.tokenizer={folder}") for folder in folders]
    assert compare(monkeypatch, places[0], places[1]) == ["", ""]
    assert all("model.text.tokenizer differs" in text and "process 2" in text for text in compare(monkeypatch, *places))


def test_sets_that_are_not_measured_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    other = "datasets.openmoji_val.shards=elsewhere"
    assert compare(monkeypatch, settings(), settings(other)) == ["", ""]
    measured = "evaluation.every=8"
    assert "datasets.openmoji_val.shards" in compare(monkeypatch, settings(measured), settings(measured, other))[0]


def test_other_data_and_other_packages_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = compare(monkeypatch, settings(), settings(), digests=("ab", "cd"))
    assert "the data set (digest of its manifest) differs: ab on process 0, cd on process 1" in told[1]
    found = processes.versions()

    def of_this_process() -> dict[str, str]:
        return found | {"torch": f"2.{threading.current_thread().name}", "python": threading.current_thread().name}

    monkeypatch.setattr(processes, "versions", of_this_process)
    told = compare(monkeypatch, settings(), settings())
    assert "the version of torch differs: 2.0 on process 0, 2.1 on process 1" in told[0] and "python" not in told[0]


def test_credentials_may_differ_and_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [settings(f"+logger.api_key=sesame{n}", f"+logger.host='http://me:secret{n}@host'") for n in "12"]
    assert compare(monkeypatch, *secrets) == ["", ""]
    told = compare(monkeypatch, secrets[0], settings("+logger.api_key=x", "+logger.host='http://me:secret@other'"))[0]
    assert "logger.host differs: http://host on process 0, http://other on process 1" in told and "secret" not in told


def launch(folder: Path, *own: list[str]) -> list[tuple[int, str]]:
    """Exit code and output of processes that were started by hand, without an agent that would end the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": len(own), "TORCHELASTIC_RUN_ID": "x"}
    run |= {"LOCAL_WORLD_SIZE": len(own), "GROUP_RANK": 0, "OMP_NUM_THREADS": 1}
    started = []
    for rank, more in enumerate(own):
        environment = os.environ | {
            name: str(value) for name, value in (run | {"RANK": rank, "LOCAL_RANK": rank}).items()
        }
        options = [*TINY, f"trainer.devices={len(own)}", "trainer.strategy=ddp", "samples=16", *more]
        command = [sys.executable, str(ROOT / "train.py"), *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, cwd=folder, env=environment, **pipes))
    try:
        texts = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, texts, strict=True)]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("trainer.checkpoint_every=40", "trainer.checkpoint_every differs: 1000000 on process 0, 40 on process 1"),
        ("trainer.precision=bf16-mixed", "trainer.precision differs: 32-true on process 0, bf16-mixed on process 1"),
        # What cannot be had there is told, not that it differs.
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu: there is no TPU"),
        ("+optim.momentum=1", "optim.momentum"),  # known to that process alone until it tells
        ("data.train=gone", "gone"),
    ],
)
def test_two_processes_stop_together(other: str, message: str, tmp_path: Path) -> None:
    squares = make_squares(tmp_path)
    both = [f"data.train={squares / 'train'}", f"model.text.tokenizer={squares / 'tokenizer'}", "run_dir=run"]
    for code, text in launch(tmp_path, both, [*both, other]):
        assert code == 1 and message in text and "Traceback" not in text, text
    assert not (tmp_path / "run").exists()
