"""Several processes measure and embed as one, on a device each, and end together; precision of what is measured."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cloc.__main__ import app
from cloc.config import ConfigError
from cloc.evaluation import reduce
from cloc.evaluation.compare import compare
from cloc.evaluation.embed import embed
from cloc.evaluation.reduce import Ranks, jointly, own_device
from cloc.launchers import Launch, LaunchError
from cloc.models.devices import measuring_dtype
from cloc.usage import refuse_several
from tests.kit.evaluating import configuration, dataset, result
from tests.kit.paths import ROOT

# --- precision --------------------------------------------------------------------------------------------------------


def test_a_cpu_measures_in_float32_unless_it_is_told_otherwise() -> None:
    cpu = torch.device("cpu")
    assert measuring_dtype("auto", cpu) == torch.float32
    assert measuring_dtype("bfloat16", cpu) == torch.bfloat16
    with pytest.raises(ValueError, match="precision='half': give auto, float32, bfloat16 or float16"):
        measuring_dtype("half", cpu)


def test_auto_is_bfloat16_on_gpus_that_compute_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for computes, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda computes=computes, **_: computes)
        assert measuring_dtype("auto", torch.device("cuda:1")) == wanted


def test_what_was_measured_in_stands_beside_the_numbers(data: Path, runs: Path, tmp_path: Path) -> None:
    for precision, written in (("auto", "float32"), ("bfloat16", "bfloat16")):
        compare(configuration(data, runs, tmp_path / precision, precision=precision, baseline=[]))
        assert result(tmp_path / precision)["models"]["cloc"]["precision"] == written
        assert written in (tmp_path / precision / "report" / "index.html").read_text()
    full, half = (result(tmp_path / name)["data"]["toy"]["models"]["cloc"] for name in ("auto", "bfloat16"))
    assert full.keys() == half.keys()
    assert full["grounding/mIoU"] == pytest.approx(half["grounding/mIoU"], abs=0.02)
    assert full != half  # else nothing was computed otherwise


def test_embeddings_in_bfloat16_are_float32_files(data: Path, runs: Path, tmp_path: Path) -> None:
    rows = []
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        embed(str(runs / "cloc"), data / "shards", out, device="cpu", precision=precision)
        with np.load(out / "images.npz") as stored:
            rows.append(stored["embedding"])
    assert rows[0].dtype == rows[1].dtype == np.float32
    cosine = (rows[0] * rows[1]).sum(1)
    assert (cosine > 0.999).all() and (cosine < 1 - 1e-9).any()
    with pytest.raises(ValueError, match="another precision"):
        embed(str(runs / "cloc"), data / "shards", tmp_path / "float32", device="cpu", precision="bfloat16")


# --- devices ----------------------------------------------------------------------------------------------------------


class Said(Ranks):
    """Two ranks of which the other one says the same, or what it is told to say."""

    def __init__(self, other: Sequence[Any] = ()) -> None:
        self.rank, self.size, self.other = 0, 2, list(other)

    def collect(self, value: Any) -> list[Any]:
        return [value, self.other.pop(0) if self.other else value]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"GPU-{index}"))
    monkeypatch.setattr(reduce, "host_name", lambda: "here")
    return chosen


def test_each_process_takes_the_gpu_of_its_number(gpus: list[int]) -> None:
    started = Launch("torchrun", 0, 2, local_rank=1)
    for name in ("auto", "cuda"):
        assert own_device(name, started, Said(["here", "here GPU-0"])) == "cuda:1"
    assert gpus == [1, 1]
    assert own_device("cpu", started, Said()) == "cpu"
    silent = replace(started, local_rank=None)  # nobody says: it is counted by host
    assert own_device("auto", silent, Said(["there", "there GPU-0"])) == "cuda:0"


def test_processes_do_not_share_a_gpu(gpus: list[int]) -> None:
    started = Launch("torchrun", 0, 2, local_rank=2)
    with pytest.raises(ConfigError, match="processes 0, 1 would share a GPU of here: start one process a GPU"):
        own_device("auto", started, Said(["here", "here GPU-0"]))
    with pytest.raises(ConfigError, match="device=cuda:1: 2 processes would share this GPU; give auto"):
        own_device("cuda:1", started, Said())
    assert gpus == []


# --- launchers --------------------------------------------------------------------------------------------------------

PAIR = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_half_of_a_launchers_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LaunchError, match="RANK is not set, but WORLD_SIZE=2 is"):
        jointly(lambda ranks, device: None, "cpu")


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for name, value in (PAIR | {"MASTER_PORT": port}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=rf"process 0 of 2, .* the others at 127\.0\.0\.1:{port} \(MASTER_ADDR"):
            jointly(lambda ranks, device: None, "cpu")


def test_other_commands_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_several("python -m cloc data")
    for name, value in PAIR.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match="python -m cloc data: .* has started 2 processes, and each would do all"):
        refuse_several("python -m cloc data")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):  # the first of them speaks
        refuse_several("python -m cloc data")
    monkeypatch.delenv("MASTER_ADDR")
    refuse_several("python -m cloc data")


def test_help_answers_in_a_shell_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PAIR.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["cloc", "data", "check", "--help"])
    assert CliRunner().invoke(app, ["data", "check", "--help"]).exit_code == 0
    monkeypatch.setattr("sys.argv", ["cloc", "data", "check", "x"])
    assert isinstance(CliRunner().invoke(app, ["data", "check", "x"]).exception, LaunchError)


def processes(arguments: Sequence[str], said: Sequence[dict[str, str]]) -> list[tuple[int, str]]:
    """Run a command once for each set of variables, all at the same time; exit codes and outputs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    common |= {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env=common | own, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for own in said
    ]
    outputs = [one.communicate(timeout=300)[0] for one in started]
    return [(one.returncode, text) for one, text in zip(started, outputs, strict=True)]


def mpirun(rank: int) -> dict[str, str]:
    numbers = {"RANK": rank, "SIZE": 2, "LOCAL_RANK": rank, "LOCAL_SIZE": 2}
    return {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in numbers.items()}


@pytest.mark.distributed
def test_two_processes_of_mpirun_measure_as_one(data: Path, runs: Path, tmp_path: Path) -> None:
    """Every family of metrics, baselines, intervals and the report, to the last digit; the first process speaks."""
    alone = configuration(data, runs, tmp_path / "one")
    compare(alone)
    own = {name: value for name, value in vars(dataset(data)).items() if value and name != "templates"}
    arguments = [f"+datasets.toy.{name}={value}" for name, value in own.items()]
    arguments += [f"checkpoint={alone.checkpoint}", f"baseline=[{runs / 'clip'}]", f"out={tmp_path / 'two'}"]
    arguments += ["+datasets.toy.templates=['a {}','some {}']", "evaluation.batch_size=5", "evaluation.bootstrap=50"]
    arguments += ["data=[toy]", "cache=null", "device=cpu", "pictures=2"]
    (code, said), (other, silent) = processes(["eval.py", *arguments], [mpirun(0), mpirun(1)])
    assert (code, other) == (0, 0), said + silent
    one, two = result(tmp_path / "one"), result(tmp_path / "two")
    assert one["data"] == two["data"] and one["models"] == two["models"]
    families = {name.partition("/")[0] for name in two["data"]["toy"]["models"]["cloc"]}
    assert {"image", "image_text", "region", "grounding", "relations"} <= families
    assert two["data"]["toy"]["differences"]["clip"] and (tmp_path / "two" / "report" / "index.html").is_file()
    assert "next: " in said and silent == ""


SCRIPT = """
import os, signal, sys, time
from cloc.command import in_a_line
from cloc.evaluation.reduce import jointly

def work(ranks, device):
    ranks.all(True)
    if ranks.rank == int(sys.argv[1]):
        if sys.argv[2] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("the picture is square")
    ranks.all(True)

with in_a_line():
    jointly(work, "cpu")
"""


@pytest.mark.distributed
@pytest.mark.parametrize(("rank", "how"), [(0, "raise"), (1, "raise"), (1, "kill")])
def test_where_one_fails_the_others_end_and_say_why(rank: int, how: str, tmp_path: Path) -> None:
    file = tmp_path / "work.py"
    file.write_text(SCRIPT)
    plain = [{"WORLD_SIZE": "2", "RANK": str(number), "LOCAL_RANK": str(number)} for number in range(2)]
    begin = time.monotonic()
    ended = processes([str(file), str(rank), how], plain)
    assert time.monotonic() - begin < 120
    assert [code for code, _ in ended] == [-9 if how == "kill" and number == rank else 1 for number in range(2)]
    assert [text for _, text in ended if "Traceback" in text] == []
    other = ended[1 - rank][1]
    if how == "kill":
        assert "LeftAlone: process 0 of 2: another one has left" in other
    else:
        assert ended[rank][1].strip().endswith("ValueError: the picture is square")
        assert f"ConfigError: process {rank} of 2 cannot go on: ValueError: the picture is square" in other
