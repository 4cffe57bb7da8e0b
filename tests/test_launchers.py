"""What launchers say: understood, or refused in a line that names the variable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from cloc.command import line_of
from cloc.launchers import Launch, LaunchError, is_alone, is_first, launch, started_with_others
from tests.kit.pairs import alone, as_kubeflow, as_mpirun
from tests.kit.paths import ROOT

PLACE = {"MASTER_ADDR": "host0", "MASTER_PORT": "29400"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2"}
SLURM = {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
SLURM |= {"SLURM_NNODES": "2", "SLURM_STEP_ID": "0", "SLURM_NODELIST": "gpu[07-09],cpu1", "SLURM_NTASKS_PER_NODE": "4"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}
OPEN_MPI |= {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_RANK": "1"}
PMI = {"PMI_RANK": "1", "PMI_SIZE": "2"}
PLAIN = {"WORLD_SIZE": "2", "RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1"}, None),
        ({"LOCAL_RANK": "0"}, None),
        (TORCHRUN | PLACE, Launch("torchrun", 3, 4, 1, 2, 1, 2, "host0", 29400)),
        # torchrun inside of srun, and of Kubeflow's job, whose variables it replaces
        (TORCHRUN | PLACE | SLURM, Launch("torchrun", 3, 4, 1, 2, 1, 2, "host0", 29400)),
        (TORCHRUN | PLACE | {"PET_NPROC_PER_NODE": "2"}, Launch("torchrun", 3, 4, 1, 2, 1, 2, "host0", 29400)),
        (PLAIN | PLACE, Launch("the environment", 1, 2, address="host0", port=29400)),
        (PLAIN | PLACE | {"PET_NPROC_PER_NODE": "auto"}, Launch("the environment", 1, 2, address="host0", port=29400)),
        (SLURM, Launch("srun", 5, 8, 1, None, 1, 2, "gpu07", 19711)),
        (SLURM | {"SLURM_JOB_NAME": "interactive"}, Launch("srun", 5, 8, 1, None, 1, 2, "gpu07", 19711)),
        (SLURM | PLACE | {"WORLD_SIZE": "8"}, Launch("srun", 5, 8, 1, None, 1, 2, "host0", 29400)),
        (SLURM | {"PMI_RANK": "5", "PMI_SIZE": "8"}, Launch("srun", 5, 8, 1, None, 1, 2, "gpu07", 19711)),
        # salloc's shell: nobody has started anything yet
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, None),
        (OPEN_MPI | PLACE, Launch("mpirun", 1, 4, 1, 2, address="host0", port=29400)),
        (OPEN_MPI | {"MASTER_ADDR": "host0"}, Launch("mpirun", 1, 4, 1, 2, address="host0", port=29500)),
        # mpirun in an allocation: srun starts its daemons, one a machine
        (OPEN_MPI | PLACE | SLURM, Launch("mpirun", 1, 4, 1, 2, address="host0", port=29400)),
        (PMI | PLACE, Launch("mpirun", 1, 2, address="host0", port=29400)),
        (
            PMI | {"MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
            Launch("mpirun", 1, 2, 1, 2, 0, 1, "127.0.0.1", 29500),
        ),
        (
            {"SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_LOCALID": "1", "SUBMITIT_LOCAL_NTASKS": "2"},
            Launch("submitit", 1, 2, 1, 2, 0, 1, "127.0.0.1", 29500),
        ),
        ({"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "1"}, None),
        (
            {"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2"} | PLAIN | PLACE,
            Launch("the environment", 1, 2, None, None, None, None, "host0", 29400),
        ),
    ],
)
def test_a_launcher_is_understood(environment: dict[str, str], expected: Launch | None) -> None:
    assert launch(environment) == expected


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"RANK": "1"} | PLACE, "WORLD_SIZE is not set, but RANK=1 is"),
        ({"WORLD_SIZE": "2"} | PLACE, "RANK is not set, but WORLD_SIZE=2 is"),
        (PLAIN, "MASTER_ADDR is not set, but the environment says WORLD_SIZE=2"),
        (PLAIN | {"MASTER_ADDR": "host0"}, "MASTER_PORT is not set"),
        (PLAIN | PLACE | {"RANK": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        (PLAIN | PLACE | {"RANK": "-1"}, "RANK='-1' is not a whole number"),
        (PLAIN | PLACE | {"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a whole number"),
        (PLAIN | PLACE | {"WORLD_SIZE": "0"}, "WORLD_SIZE='0' is not a whole number from 1"),
        (PLAIN | PLACE | {"MASTER_PORT": "99999"}, "MASTER_PORT='99999' is not a whole number from 1 to 65535"),
        (PLAIN | PLACE | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2 is not below the 2 processes"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1, but RANK and WORLD_SIZE are not set"),
        ({"NODE_RANK": "1"}, "NODE_RANK=1, but RANK and WORLD_SIZE are not set"),
        (PLAIN | PLACE | {"PET_NPROC_PER_NODE": "8"}, "PET_NPROC_PER_NODE=8 .* torchrun"),
        ({"TORCHELASTIC_RUN_ID": "x"}, "RANK is not set, but torchrun's other variables are"),
        (TORCHRUN, "MASTER_ADDR is not set, but torchrun says WORLD_SIZE=4"),
        (TORCHRUN | PLACE | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2 is not below LOCAL_WORLD_SIZE=2"),
        (TORCHRUN | PLACE | {"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE=8 is above the 4 processes"),
        (TORCHRUN | PLACE | {"GROUP_RANK": "2"}, "GROUP_RANK=2 is not below GROUP_WORLD_SIZE=2"),
        (OPEN_MPI, "OMPI_COMM_WORLD_SIZE=4, 2 of them here, and MASTER_ADDR is not set: .*mpirun -x MASTER_ADDR=HOST"),
        (OPEN_MPI | PLACE | {"OMPI_COMM_WORLD_SIZE": ""}, "OMPI_COMM_WORLD_SIZE is not set"),
        (OPEN_MPI | PLACE | {"WORLD_SIZE": "2"}, "WORLD_SIZE=2, but the launcher says 4"),
        (PMI, "PMI_SIZE=2, MPI_LOCALNRANKS is not set, and MASTER_ADDR is not set"),
        (SLURM | {"WORLD_SIZE": "16"}, "WORLD_SIZE=16, but the launcher says 8 .SLURM_NTASKS=8.; unset WORLD_SIZE"),
        (SLURM | {"SLURM_PROCID": "8"}, "SLURM_PROCID=8 is not below SLURM_NTASKS=8"),
        # a batch script without srun
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, "SLURM_NTASKS=8, but srun has not started this process"),
        ({"PMIX_RANK": "0"}, "PMIX_RANK=0: a launcher over PMIx has started this process, which cloc does not under"),
        ({"FLUX_TASK_RANK": "0", "FLUX_JOB_SIZE": "2"}, "FLUX_JOB_SIZE=2: flux run has started"),
        ({"JSM_NAMESPACE_RANK": "0", "JSM_NAMESPACE_SIZE": "2"}, "jsrun"),
        ({"ALPS_APP_PE": "1"}, "aprun"),
    ],
)
def test_what_is_not_understood_is_refused(environment: dict[str, str], told: str) -> None:
    with pytest.raises(LaunchError, match=told) as caught:
        launch(environment)
    assert "\n" not in line_of(caught.value)


def test_processes_of_a_job_choose_one_port() -> None:
    found = [launch(as_mpirun(rank, 1)) for rank in range(2)]
    assert [(one.rank, one.world, one.nodes) for one in found if one] == [(0, 2, 1), (1, 2, 1)]
    ports = {one.port for one in found if one}
    other = launch(as_mpirun(0, 2))
    assert len(ports) == 1 and other is not None and other.port not in ports


def test_what_needs_no_address_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(os.environ) - set(alone()):
        monkeypatch.delenv(name)
    assert is_alone() and is_first() and not started_with_others()
    for own in (as_kubeflow(1, 1), as_mpirun(1, 1)):
        with monkeypatch.context() as patched:
            for name, value in own.items():
                patched.setenv(name, value)
            assert not is_alone() and not is_first() and started_with_others()
    monkeypatch.setenv("WORLD_SIZE", "what")
    assert started_with_others()


@pytest.mark.parametrize("own", [{"RANK": "0"}, {"WORLD_SIZE": "2", "RANK": "1"}, {"PMIX_RANK": "0"}])
def test_train_refuses_in_a_line(own: dict[str, Any], tmp_path: Any) -> None:
    command = [sys.executable, "train.py", "experiment=demo_cloc", "data.train=x", f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, env=alone() | own, capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    assert done.stderr.startswith("LaunchError: ") and done.stderr.count("\n") == 1, json.dumps(done.stderr)
