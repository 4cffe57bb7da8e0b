"""Processes started as Kubeflow and mpirun start them train one model; one that is killed or hangs ends the other."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cloc.checkpoints import list_checkpoints
from cloc.config import ConfigError, TrainerConfig
from cloc.engine import liveness, rendezvous
from cloc.engine.durable.checkpoint_file import inspect
from cloc.engine.process_group import any_process, broadcast, gather_objects
from cloc.engine.run import train
from cloc.engine.start import check_devices
from cloc.launchers import Launch
from tests.kills import finish, kill_one
from tests.kit.pairs import Pair, as_kubeflow, as_mpirun, free_port
from tests.kit.resuming import configure, make_squares, overrides, start

HASH = re.compile(r"process (\d) of (\d), weights (\w+)")


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A process 0 of two, at a port that is free."""
    found = Launch("the environment", 0, 2, address="127.0.0.1", port=free_port())
    monkeypatch.setattr(rendezvous, "launch", lambda: found)
    monkeypatch.setattr(rendezvous, "_seconds", 0.3)
    return found


def test_who_does_not_come_is_named(met: Launch) -> None:
    with pytest.raises(ConfigError, match=r"process 1 of 2 did not come within trainer\.timeout=0\.3 seconds"):
        rendezvous.meeting()


def test_a_port_that_is_taken_is_named(met: Launch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", met.port))
        other.listen()
        with pytest.raises(ConfigError, match=rf"process 0 cannot be reached at 127\.0\.0\.1:{met.port} \(MASTER_ADDR"):
            rendezvous.meeting()


def test_a_process_0_that_is_not_there_is_named(met: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "launch", lambda: Launch("mpirun", 1, 2, address="127.0.0.1", port=met.port))
    with pytest.raises(ConfigError, match=r"process 1 of 2, started by mpirun, does not reach process 0 at 127\.0"):
        rendezvous.meeting()


def test_what_was_said_in_a_former_life_is_not_heard() -> None:
    """torchrun's agent keeps its store when it starts its processes again."""
    port = free_port()
    agent = dist.TCPStore("127.0.0.1", port, None, is_master=True, wait_for_workers=False)
    found: dict[tuple[int, int], list[Any]] = {}

    def live(life: int, rank: int) -> None:
        met = rendezvous.Meeting(Launch("torchrun", rank, 2, rank, 2, 0, 1, "127.0.0.1", port, agent=True))
        found[life, rank] = met.exchange([life, rank])

    for life in range(2):
        # In the second life process 0 is there first, and finds all that process 1 said in the first.
        threads = [threading.Thread(target=live, args=(life, rank)) for rank in range(2)]
        for thread in threads:
            thread.start()
            time.sleep(0.2)
        for thread in threads:
            thread.join(20)
    assert found == {(life, rank): [[life, 0], [life, 1]] for life in range(2) for rank in range(2)}
    del agent


@pytest.mark.parametrize(
    ("hosts", "rank", "expected"),
    [(["a", "b"], 1, (0, 1, 2)), (["a", "a", "b", "b"], 3, (1, 1, 2)), (["a", "a"], 1, (1, 0, 1))],
)
def test_places_follow_from_the_machines(hosts: list[str], rank: int, expected: tuple[int, int, int]) -> None:
    """Of pods, of which nobody says how many there are on a machine."""
    met = object.__new__(rendezvous.Meeting)
    met.found, met.__dict__["hosts"] = Launch("the environment", rank, len(hosts)), hosts
    assert (met.local_rank, met.node, met.nodes) == expected


def test_the_number_of_nodes_is_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "meeting", lambda: types.SimpleNamespace(nodes=2))
    check_devices(TrainerConfig(accelerator="cpu", devices=3), 6)
    with pytest.raises(ConfigError, match=r"trainer\.devices=1 × trainer\.num_nodes=2 asks for 2 processes, 4 were"):
        check_devices(TrainerConfig(accelerator="cpu", devices=1), 4)
    with pytest.raises(ConfigError, match=r"trainer\.devices=2 asks for 2 processes, 4 were"):
        check_devices(TrainerConfig(accelerator="cpu", devices=2, num_nodes=1), 4)


def test_one_process_needs_no_other() -> None:
    assert any_process(False, True) == [False, True] and gather_objects(3) == [3] and broadcast("x") == "x"


def test_errors_of_collectives_are_known() -> None:
    text = "[/pytorch/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:2: Connection reset by peer"
    assert liveness.is_lost(RuntimeError(text))
    assert not any(map(liveness.is_lost, (RuntimeError("shapes cannot be multiplied"), ValueError(text), None)))
    with pytest.raises(RuntimeError, match="gloo"), liveness.told():  # a process of its own: nobody is missing
        raise RuntimeError(text)


def assert_one_model(pair: Pair) -> str:
    codes = pair.wait()
    said = [pair.said(rank) for rank in range(2)]
    assert codes == [0, 0], (said[0] + said[1])[-3000:]
    found = [HASH.search(text) for text in said]
    assert [one and one.groups()[:2] for one in found] == [("0", "2"), ("1", "2")], said
    hashes = {one.group(3) for one in found if one}
    assert len(hashes) == 1
    return hashes.pop()


@pytest.mark.distributed
def test_two_processes_of_any_launcher_train_one_model(tmp_path: Path) -> None:
    squares, hashes = make_squares(tmp_path, 16), set()
    for name, maker in (("kubeflow", as_kubeflow), ("mpirun", as_mpirun)):
        port, folder = free_port(), tmp_path / name
        folder.mkdir()
        options = overrides(squares, folder / "run", "samples=32", "trainer.devices=2")
        hashes.add(assert_one_model(Pair([maker(rank, port) for rank in range(2)], options, folder)))
    assert len(hashes) == 1


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and beside it a run of two processes that was left in peace."""
    squares = make_squares(tmp_path_factory.mktemp("peace"))
    finish(squares, squares / "peace")
    return squares


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(("number", "rank"), [(signal.SIGKILL, 0), (signal.SIGKILL, 1), (signal.SIGSTOP, 0)])
def test_a_process_that_is_killed_or_hangs_ends_the_other(
    number: signal.Signals, rank: int, peace: Path, tmp_path: Path
) -> None:
    kill = kill_one(peace, tmp_path / "round", number, rank, 0.6)
    assert kill.ended and kill.whole and kill.equal, kill
    assert kill.line.startswith("LostProcess: process "), kill.line
    if number == signal.SIGKILL:
        assert kill.seconds < 15  # its sockets are closed at once


class Member:
    """Makes a child process one of two, of which process 0 stands still in the middle of its second checkpoint."""

    def __init__(self, rank: int, port: int) -> None:
        self.rank, self.port = rank, port

    def __call__(self) -> None:
        os.environ |= as_kubeflow(self.rank, self.port)
        save, count = torch.save, 0

        def still(value: Any, file: Any, **options: Any) -> None:
            nonlocal count
            count += not isinstance(file, io.BytesIO)  # what is sent goes by way of a buffer
            if count < 2 or isinstance(file, io.BytesIO):
                save(value, file, **options)
                return
            file.write(b"half of it")
            file.flush()
            os.kill(os.getpid(), signal.SIGSTOP)

        torch.save = still


@pytest.mark.distributed
@pytest.mark.slow
def test_a_timeout_in_the_middle_of_saving_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    squares, port, run = make_squares(tmp_path, 16), free_port(), tmp_path / "run"
    more = ["samples=800", "trainer.devices=2", "trainer.checkpoint_every=16", "trainer.timeout=5"]
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]
    members = [start(configure(squares, run, *more), logs[rank], Member(rank, port)) for rank in range(2)]
    try:
        members[1].join(120)
        assert members[1].exitcode == 1 and "LostProcess: process 0" in logs[1].read_text()
    finally:
        for member in members:
            member.kill()
            member.join()
    folder = run / "checkpoints"
    assert list_checkpoints(folder) == ["step-00000002.ckpt"] and inspect(folder / "step-00000002.ckpt").step == 2
    assert [path.read_bytes() for path in folder.iterdir() if path.name.startswith(".")] == [b"half of it"]
    train(configure(squares, run, *more[2:], "samples=32"))  # one process goes on from it, and clears the rest away
    assert list_checkpoints(folder)[0] == "step-00000004.ckpt"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
