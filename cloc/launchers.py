"""What started this process, and how many others with it: torchrun, srun, mpirun, or plain environment variables.

Stands below all else, beside ``command``, and imports the standard library alone. A process that takes itself for the
only one while others were started with it would train a model of its own; so whatever says of itself that it started
several processes is understood or refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

PORT = 29500
"""Where the processes of one machine find each other when nobody says so; PyTorch's own."""

PLAIN = "set WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT for every process, or start them with torchrun"
# Of launchers that do not say where the first process is, or how many there are.
FOREIGN = {
    "FLUX_TASK_RANK": ("FLUX_JOB_SIZE", "flux run"),
    "JSM_NAMESPACE_RANK": ("JSM_NAMESPACE_SIZE", "jsrun"),
    "PALS_RANKID": ("", "PALS"),
    "ALPS_APP_PE": ("", "aprun"),
    "MP_CHILD": ("MP_PROCS", "poe"),
    "PMIX_RANK": ("", "a launcher over PMIx"),
}
# Rank, number of processes, rank and number on this machine. Open MPI's come first: it sets variables of PMIx as well.
# MVAPICH and Intel's MPI descend from MPICH. Submitit's local executor starts the tasks of a job on this machine.
MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID", "SUBMITIT_LOCAL_NTASKS"),
)
OF_JOBS = ("srun", "submitit")
"""Launchers that may have started the processes of one job of a sweep."""
JOBS = (
    "SUBMITIT_LOCAL_JOB_ID",
    "PMIX_NAMESPACE",
    "OMPI_MCA_ess_base_jobid",
    "PMI_JOBID",
    "SLURM_JOB_ID",
)  # names of a job of mpirun
RANKS = ("RANK", *(names[0] for names in MPI), "SLURM_PROCID", *FOREIGN)
SIZES = (
    "WORLD_SIZE",
    *(names[1] for names in MPI),
    "SLURM_NTASKS",
    *filter(None, (size for size, _ in FOREIGN.values())),
)

Environment = Mapping[str, str]
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class LaunchError(ValueError):
    """A launcher whose word is incomplete, contradicts itself, or is not understood; names the variable."""


@dataclass(frozen=True)
class Launch:
    """One process among those that were started together.

    Attributes:
        launcher: in words.
        rank: of this process.
        world: number of processes.
        local_rank: among those of this machine; None where nobody says.
        local_world: number of those of this machine; None where nobody says.
        node: of this machine among ``nodes``; None where nobody says.
        nodes: number of machines; None where nobody says.
        address: of the first process.
        port: that it can be reached at; 0 where it is alone.
        agent: torchrun's agent serves the store at that port, in place of the first process.
    """

    launcher: str
    rank: int
    world: int
    local_rank: int | None = None
    local_world: int | None = None
    node: int | None = None
    nodes: int | None = None
    address: str = "127.0.0.1"
    port: int = 0
    agent: bool = False


def launch(environment: Environment | None = None) -> Launch | None:
    """How this process was started; None for one that was started alone.

    Args:
        environment: variables; by default those of this process.

    Raises:
        LaunchError: a launcher has started several processes, but does not say enough to bring them together.
    """
    env = os.environ if environment is None else environment
    makers: tuple[Callable[[Environment], Launch | None], ...] = (_torchrun, _mpi, _slurm, _plain)
    found = next((made for made in (maker(env) for maker in makers) if made is not None), None)
    if found is None:
        _refuse_foreign(env)
    return found


def started_with_others() -> bool:
    """Whether a launcher says that it started several processes, or says it so that it cannot be understood."""
    try:
        found = launch()
    except LaunchError:
        return True
    return found is not None and found.world > 1


def host_name() -> str:
    """What all processes of a machine have in common, and none of another: two may have one name, so its boot as well.

    What stands before the space is for people.
    """
    boot = _BOOT.read_text(encoding="ascii").strip() if _BOOT.is_file() else ""
    return f"{socket.gethostname()} {boot}"


def is_first() -> bool:
    """Whether no launcher gives this process another number than 0."""
    return all(os.environ.get(name, "") in ("", "0") for name in RANKS)


def is_alone() -> bool:
    """Whether no launcher has started several processes, as far as their numbers say."""
    return all(os.environ.get(name, "1") in ("", "1") for name in SIZES)


def _torchrun(env: Environment) -> Launch | None:
    if "TORCHELASTIC_RUN_ID" not in env:
        return None
    rank, world = _pair(env, "RANK", "WORLD_SIZE", "torchrun")
    local_rank, local_world = _local(env, "LOCAL_RANK", "LOCAL_WORLD_SIZE", world)
    node, nodes = _local(env, "GROUP_RANK", "GROUP_WORLD_SIZE", world)
    if local_rank is None:
        raise LaunchError(f"LOCAL_RANK is not set, but torchrun's RANK={rank} is; {PLAIN}")
    if nodes is None and local_world:
        nodes = -(-world // local_world)
    agent = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    found = Launch("torchrun", rank, world, local_rank, local_world, node, nodes, agent=agent)
    return _at_address(found, env) if world > 1 else found


def _mpi(env: Environment) -> Launch | None:
    names = next((one for one in MPI if one[0] in env or one[1] in env), None)
    if names is None or (names[0] == "PMI_RANK" and _is_of_srun(env)):
        return None
    launcher = "submitit" if names[0].startswith("SUBMITIT") else "mpirun"
    rank, world = _pair(env, *names[:2], launcher)
    if world == 1 and "WORLD_SIZE" in env:
        return None
    local_rank, local_world = _local(env, *names[2:], world)
    _check_plain(env, rank, world, names[1])
    one = local_world == world
    found = Launch(launcher, rank, world, local_rank, local_world, 0 if one else None, 1 if one else None)
    if world == 1:
        return found
    if "MASTER_ADDR" in env:
        return _at_address(found, env, PORT)
    if one:
        return replace(found, port=_number(env, "MASTER_PORT", 1, 65535) if "MASTER_PORT" in env else _job_port(env))
    here = f"{local_world} of them here" if local_world else f"{names[3]} is not set"
    raise LaunchError(
        f"{names[1]}={world}, {here}, and MASTER_ADDR is not set: name the machine of process 0 to all of them: "
        f"mpirun -x MASTER_ADDR=HOST -x MASTER_PORT={PORT} … (MPICH: -genv MASTER_ADDR HOST)"
    )


def _job_port(env: Environment) -> int:
    """A port that all processes of a job of one machine choose alike, and those of another job otherwise."""
    job = next((env[name] for name in JOBS if env.get(name)), None)
    return PORT if job is None else 15000 + int(hashlib.sha256(job.encode()).hexdigest(), 16) % 15000


def _is_step(env: Environment) -> bool:
    """Whether srun started this process; variables of an allocation are there without it, too."""
    return "SLURM_PROCID" in env and ("SLURM_STEP_ID" in env or "SLURM_STEPID" in env)


def _is_of_srun(env: Environment) -> bool:
    """Whether srun started this process and gave it variables of MPI (``srun --mpi=pmi2``)."""
    same = env.get("PMI_RANK") == env.get("SLURM_PROCID") and env.get("PMI_SIZE", _tasks(env)) == _tasks(env)
    return _is_step(env) and same


def _tasks(env: Environment) -> str | None:
    return env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS"))


def _slurm(env: Environment) -> Launch | None:
    if not _is_step(env):
        _refuse_script(env)
        return None
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    rank, world = _pair(env, "SLURM_PROCID", size, "srun")
    if world == 1:
        return None if "WORLD_SIZE" in env else Launch("srun", rank, world, 0, 1, 0, 1)
    _check_plain(env, rank, world, size)
    local_rank, _ = _local(env, "SLURM_LOCALID", "", world)
    count = next((name for name in ("SLURM_STEP_NUM_NODES", "SLURM_NNODES") if name in env), "")
    node, nodes = _local(env, "SLURM_NODEID", count, world)
    found = Launch("srun", rank, world, local_rank, None, node, nodes)
    listed = ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST")
    hosts = next((env[name] for name in listed if env.get(name)), "127.0.0.1")
    job = re.sub(r"\D", "", env.get("SLURM_JOB_ID", ""))[-4:]
    address = env.get("MASTER_ADDR") or _first_host(hosts)
    port = _number(env, "MASTER_PORT", 1, 65535) if "MASTER_PORT" in env else 15000 + int(job or 0)
    return replace(found, address=address, port=port)


def _first_host(hosts: str) -> str:
    """The first name of a list as SLURM writes it: ``gpu[07-09,12],cpu1`` is ``gpu07``."""
    return re.split(r"[ ,]", re.sub(r"\[([^],-]*)[^]]*\]", r"\1", hosts))[0]


def _refuse_script(env: Environment) -> None:
    """In a batch script, outside of srun, one process would do what the job asked many for."""
    if "SLURM_PROCID" in env and "WORLD_SIZE" not in env and env.get("SLURM_NTASKS", "1") != "1":
        raise LaunchError(
            f"SLURM_NTASKS={env['SLURM_NTASKS']}, but srun has not started this process: put `srun` before the command "
            "(scripts/slurm.sbatch), or `srun --ntasks=1` for a single process"
        )


def _plain(env: Environment) -> Launch | None:
    if "WORLD_SIZE" not in env and "RANK" not in env:
        higher = next((name for name in ("LOCAL_RANK", "NODE_RANK") if env.get(name, "0") not in ("", "0")), None)
        if higher is not None:
            raise LaunchError(f"{higher}={env[higher]}, but RANK and WORLD_SIZE are not set; {PLAIN}")
        return None
    if "RANK" not in env and env["WORLD_SIZE"] == "1":
        return None
    rank, world = _pair(env, "RANK", "WORLD_SIZE", "the environment")
    local_rank, local_world = _local(env, "LOCAL_RANK", "LOCAL_WORLD_SIZE", world)
    pods = env.get("PET_NPROC_PER_NODE", "1")
    if pods.isdecimal() and int(pods) > 1:
        raise LaunchError(
            f"PET_NPROC_PER_NODE={pods} asks for {pods} processes a machine, which torchrun starts: begin the command "
            "with `torchrun train.py …`, or ask for one a machine"
        )
    found = Launch("the environment", rank, world, local_rank, local_world)
    return _at_address(found, env) if world > 1 else found


def _refuse_foreign(env: Environment) -> None:
    for rank, (size, launcher) in FOREIGN.items():
        if rank in env and not (size and env.get(size) == "1"):
            shown = f"{size}={env[size]}" if env.get(size) else f"{rank}={env[rank]}"
            raise LaunchError(f"{shown}: {launcher} has started this process, which cloc does not understand; {PLAIN}")


def _at_address(found: Launch, env: Environment, port: int | None = None) -> Launch:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if port is not None and missing == ["MASTER_PORT"]:
        missing = []
    if missing:
        raise LaunchError(f"{missing[0]} is not set, but {found.launcher} says WORLD_SIZE={found.world}; {PLAIN}")
    given = _number(env, "MASTER_PORT", 1, 65535) if env.get("MASTER_PORT") else port
    assert given is not None  # it is missing otherwise
    return replace(found, address=env["MASTER_ADDR"], port=given)


def _pair(env: Environment, rank: str, size: str, launcher: str) -> tuple[int, int]:
    """A rank and the number of processes, which must both be there."""
    for name, other in ((rank, size), (size, rank)):
        if not env.get(name):
            shown = f"{other}={env[other]} is" if env.get(other) else f"{launcher}'s other variables are"
            raise LaunchError(f"{name} is not set, but {shown}; {PLAIN}")
    number, count = _number(env, rank), _number(env, size, 1)
    if number >= count:
        raise LaunchError(f"{rank}={number} is not below {size}={count}; {PLAIN}")
    return number, count


def _local(env: Environment, rank: str, size: str, world: int) -> tuple[int | None, int | None]:
    """A place and a number within the job, each of which may be missing."""
    number = _number(env, rank) if env.get(rank) else None
    count = _number(env, size, 1) if size and env.get(size) else None
    if count is not None and count > world:
        raise LaunchError(f"{size}={count} is above the {world} processes that were started; {PLAIN}")
    if number is not None and number >= (world if count is None else count):
        above = f"{size}={count}" if count else f"the {world} processes that were started"
        raise LaunchError(f"{rank}={number} is not below {above}; {PLAIN}")
    return number, count


def _number(env: Environment, name: str, low: int = 0, high: int = 2**31) -> int:
    value = env[name]
    if not re.fullmatch(r"\d{1,10}", value.strip(), re.ASCII) or not low <= int(value) <= high:
        raise LaunchError(f"{name}={value!r} is not a whole number from {low} to {high}; {PLAIN}")
    return int(value)


def _check_plain(env: Environment, rank: int, world: int, size: str) -> None:
    """Refuse plain variables that say otherwise than the launcher does."""
    for name, own in (("WORLD_SIZE", world), ("RANK", rank)):
        if env.get(name) and env[name].strip() != str(own):
            raise LaunchError(f"{name}={env[name]}, but the launcher says {own} ({size}={world}); unset {name}")
