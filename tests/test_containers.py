"""The container file and the Kubernetes manifests of scripts/ say what the code understands."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch.distributed.run import config_from_args, get_args_parser

from cloc.config import TrainConfig, check_overrides, validate
from tests.kit.paths import ROOT
from tests.kit.resuming import make_squares, overrides

DOCKERFILE = (ROOT / "scripts" / "Dockerfile").read_text(encoding="utf-8")
MANIFESTS = ("pytorchjob.yaml", "pytorchjob_elastic.yaml")
# What the training operator gives to a pod (pkg/controller.v1/pytorch/{envvar,master,elastic}.go).
STATIC = ("PET_NNODES", "PET_NODE_RANK", "PET_NPROC_PER_NODE", "PET_MASTER_ADDR", "PET_MASTER_PORT")


def job_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "scripts" / name).read_text(encoding="utf-8"))


def pods_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["template"]["spec"] for spec in job["spec"]["pytorchReplicaSpecs"].values()]


def operator_says(job: dict[str, Any], node: int) -> dict[str, str]:
    """Variables of a pod's environment, as the operator sets them."""
    spec = job["spec"]
    policy = spec.get("elasticPolicy")
    nodes = sum(replica["replicas"] for replica in spec["pytorchReplicaSpecs"].values())
    if policy is None:
        values = (str(nodes), str(node), spec["nprocPerNode"], "cloc-b16-master-0", "23456")
        world = nodes * int(spec["nprocPerNode"])
        return dict(zip(STATIC, values, strict=True)) | {"WORLD_SIZE": str(world), "RANK": str(node)}
    return {
        "PET_NNODES": f"{policy['minReplicas']}:{policy['maxReplicas']}",
        "PET_RDZV_BACKEND": policy["rdzvBackend"],
        "PET_RDZV_ENDPOINT": "cloc-b16-elastic-worker-0:23456",
        "PET_RDZV_ID": "cloc-b16-elastic",
        "PET_MAX_RESTARTS": str(policy["maxRestarts"]),
        "PET_NPROC_PER_NODE": spec["nprocPerNode"],
    }


@pytest.fixture
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_starts_the_processes_that_its_run_asks_for(
    name: str, hydra: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(name)
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert len({str(pod) for pod in pods_of(job)}) == 1
    (container,) = pods_of(job)[0]["containers"]
    assert container["name"] == "pytorch" and container["args"][0] == "torchrun"
    for variable, value in operator_says(job, node=1).items():
        monkeypatch.setenv(variable, value)
    asked = get_args_parser().parse_args(container["args"][1:])
    launch, _, command = config_from_args(asked)
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert launch.nproc_per_node == gpus and asked.training_script == "train.py"
    script = command[command.index("train.py") + 1 :]
    config = validate(compose("train", check_overrides(script, TrainConfig)), TrainConfig)
    assert (config.trainer.num_nodes, config.trainer.devices) == ("auto", "auto")
    for nodes in range(launch.min_nodes, launch.max_nodes + 1):
        assert config.batch_size % (nodes * gpus * config.trainer.accumulate) == 0
    mounted = {one["mountPath"] for one in container["volumeMounts"]}
    assert any(config.data.train.startswith(f"{path}/") for path in mounted)
    assert any(str(config.run_dir).startswith(f"{path}/") for path in mounted)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_pod_has_shared_memory_and_time_for_a_checkpoint(name: str) -> None:
    pod = pods_of(job_of(name))[0]
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    places = {one["mountPath"]: volumes[one["name"]] for one in container["volumeMounts"]}
    assert len(places) == len(volumes)
    assert places["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    limit, memory = (
        int(text.removesuffix("Gi"))
        for text in (places["/dev/shm"]["emptyDir"]["sizeLimit"], container["resources"]["limits"]["memory"])
    )
    assert limit < memory / 2
    given = {one["name"]: one["value"] for one in container["env"]}
    assert 30 < int(given["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
    assert f"USER {pod['securityContext']['runAsUser']}\n" in DOCKERFILE
    workdir = re.findall(r"^WORKDIR (.*)$", DOCKERFILE, re.MULTILINE)
    assert [f"{workdir[0]}/data" in places, f"{workdir[0]}/runs" in places] == [True, True]


def test_the_container_holds_what_it_copies() -> None:
    copied = [word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == kept and all((ROOT / path).exists() for path in copied)
    assert {"train.py", "eval.py", "conf", "cloc"} <= set(copied)
    extras = re.search(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.MULTILINE)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert extras is not None and {"train", "eval"} <= set(extras[1].split(",")) <= known.keys()


def test_the_commands_in_the_container_file_compose(hydra: None) -> None:
    text = DOCKERFILE.replace("\\\n#", "")
    (command,) = re.findall(r"cloc +(torchrun .*)$", text, re.MULTILINE)
    words = shlex.split(command)
    assert get_args_parser().parse_args(words[1:]).nproc_per_node == "gpu"
    validate(compose("train", check_overrides(words[words.index("train.py") + 1 :], TrainConfig)), TrainConfig)


@pytest.mark.distributed
def test_two_pods_train_one_model(tmp_path: Path) -> None:
    """The manifest's command with the operator's variables, in two processes that stand for pods of one GPU."""
    squares, job = make_squares(tmp_path / "squares"), job_of("pytorchjob.yaml")
    (container,) = pods_of(job)[0]["containers"]
    kept = [one for one in container["args"][1:] if not re.match("experiment=|data|run_dir", one)]
    own = overrides(squares, tmp_path / "run", "samples=16", "trainer=ddp", "trainer.devices=1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    pods = []
    for node in range(2):
        said = operator_says(job, node) | {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "WORLD_SIZE": "2"}
        said |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", *kept, *own]
        pods.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | said, text=True, stdout=-1, stderr=-2))
    told = [pod.communicate(timeout=300)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], told[0][-2000:] + told[1][-2000:]
    digests = [re.search(r"process (\d) of 2, weights (\w+)", text) for text in told]
    assert [found[1] for found in digests if found] == ["0", "1"]
    assert len({found[2] for found in digests if found}) == 1
