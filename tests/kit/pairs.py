"""Two processes of ``train.py``, started as a launcher would start them, without one that ends the other."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.kit.paths import ROOT

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER", "OMPI_", "PMI", "SLURM_", "TORCHELASTIC_", "GROUP_")


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def alone() -> dict[str, str]:
    """This process's environment without what a launcher said."""
    return {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}


def as_kubeflow(rank: int, port: int) -> dict[str, str]:
    """What the operator of PyTorchJob sets in a pod: no local rank, no torchrun."""
    return {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def as_mpirun(rank: int, port: int) -> dict[str, str]:
    """What Open MPI's mpirun sets for two processes of one machine; the port follows from the job's name."""
    own = {"RANK": rank, "SIZE": 2, "LOCAL_RANK": rank, "LOCAL_SIZE": 2, "NODE_RANK": rank}
    names = {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in own.items()}
    return names | {"PMIX_RANK": str(rank), "PMIX_NAMESPACE": f"test-{port}"}


class Pair:
    """Two processes of a run.

    Args:
        environments: what a launcher says to each.
        arguments: of ``train.py``.
        logs: folder for their output.
    """

    def __init__(self, environments: Sequence[Mapping[str, str]], arguments: Sequence[str], logs: Path) -> None:
        self.logs = [logs / f"{rank}.log" for rank in range(len(environments))]
        self.processes = []
        for log, own in zip(self.logs, environments, strict=True):
            environment = alone() | {"OMP_NUM_THREADS": "1"} | dict(own)
            with log.open("w") as file:
                command = [sys.executable, str(ROOT / "train.py"), *arguments]
                self.processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, stdout=file, stderr=file, env=environment, start_new_session=True
                    )
                )

    def wait(self, seconds: float = 300.0) -> list[int]:
        """Exit codes; all of it is killed where it takes longer."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
        finally:
            self.kill()

    def kill(self) -> None:
        """Leave nothing behind."""
        for process in self.processes:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()

    def said(self, rank: int) -> str:
        """What a process has printed."""
        return self.logs[rank].read_text(errors="replace")
