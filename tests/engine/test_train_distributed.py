"""Training by several processes equals training by one: DDP and FSDP2 over Gloo, and what goes with them."""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

import cloc
from cloc.config import ConfigError, validate
from cloc.contracts import Region, Sample
from cloc.data.shards.writer import write_shards
from cloc.data.stream.sources import open_sources
from cloc.engine.module import Pretrain
from cloc.engine.process_group import agree, connect, disconnect, share_file
from tests.kit.paths import ROOT

pytestmark = pytest.mark.distributed

COLORS = ("red", "green", "blue", "white", "yellow", "gray")
TINY = [
    "name=toy",
    "model.image.image_size=32",
    "model.image.options={patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2, class_token: false, global_pool: avg}",
    "model.text.options={width: 32, heads: 2, layers: 1}",
    "model.joint_dim=32",
    "trainer.accelerator=cpu",
    "trainer.log_every=1",
    "data.workers=0",
    "samples=24",
    "batch_size=8",
    "optim.lr=1e-3",
    "optim.warmup=0",
    "optim.final=1",
]
# Softmax does not see a bias of the keys: its gradient is rounding noise, which Adam turns into steps.
NOISE = ("attn.in_proj_bias", "attn.qkv.bias", "prompter.key.bias")


def picture(index: int, regions: int) -> Sample:
    """A picture of colored squares, the first ``regions`` of which are annotated."""
    image = Image.new("RGB", (32, 32), "black")
    found = []
    for place in range(4):
        left, top, color = place % 2 * 16, place // 2 * 16, COLORS[(index + place * (1 + index % 5)) % len(COLORS)]
        image.paste(color, (left, top, left + 14, top + 14))
        found.append(Region((left / 32, top / 32, (left + 14) / 32, (top + 14) / 32), (f"a {color} square",)))
    file = io.BytesIO()
    image.save(file, "png")
    return Sample(f"{index:03d}", file.getvalue(), "png", (f"squares, number {index}",), tuple(found[:regions]), 32, 32)


def configure(*options: str) -> object:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", [*TINY, *options])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures with 0 to 4 regions; in the first step, what the second of two processes reads has none at all."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards((picture(i, 4) for i in range(24)), folder / "all")
    composed = configure(f"data.train={folder / 'all'}", "run_dir=none")
    module = Pretrain(validate(composed), OmegaConf.to_container(composed, resolve=True))
    first = next(iter(module.open_stream(open_sources(module.config.data), 1, 2)))
    assert len(first.keys) == 4
    bare = {int(key.rpartition("/")[2]) for key in first.keys}
    write_shards((picture(i, 0 if i in bare else i % 5) for i in range(24)), folder / "ragged")
    return folder / "ragged"


# Stands for train.py: each process kills itself in the second step.
KILLED = """
import os, runpy, signal, sys
sys.path.insert(0, os.getcwd())
from cloc.engine.module import Pretrain
step = Pretrain.step
def fatal(self, batch):
    if self.samples_seen >= 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)
Pretrain.step = fatal
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def launch(processes: int, *options: str, script: str = "") -> subprocess.CompletedProcess[str]:
    program = ["-c", script] if script else [str(ROOT / "train.py")]
    command, options = [sys.executable, *program], (*TINY, *options)
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += ["--no-python", sys.executable, *program] if script else program
        command += [f"trainer.devices={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True)


def trained(processes: int, *options: str) -> dict[str, Any]:
    done = launch(processes, *options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    folder = Path(next(option for option in options if option.startswith("run_dir=")).removeprefix("run_dir="))
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def assert_equal_training(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Weights, and the optimizer's mean gradients: Adam's steps alone would hide a gradient of another size."""
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for name, value in expected["state_dict"].items():
        if value.is_floating_point() and not name.endswith(NOISE):
            torch.testing.assert_close(found["state_dict"][name], value, rtol=0, atol=1e-4, msg=name)
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (found, expected)]
    assert states[0].keys() == states[1].keys()
    for key in states[1]:
        mean, other = (state[key]["exp_avg"] for state in states)
        assert mean.shape == other.shape and (mean - other).norm() <= 2e-4 * other.norm() + 1e-7, key


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The last checkpoint of one process, and under ``"first"`` the file of its first."""
    folder = tmp_path_factory.mktemp("alone")
    every = ("trainer.checkpoint_every=8", "trainer.keep_last=3")
    return trained(1, f"data.train={data}", f"run_dir={folder}", *every) | {
        "first": folder / "checkpoints" / "step-00000001.ckpt"
    }


def test_three_steps_of_ddp_equal_one_process(data: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    """Ragged regions, a process without any, gradient clipping, temperatures: equal but for the order of sums."""
    pair = trained(2, f"data.train={data}", f"run_dir={tmp_path}", "trainer.strategy=ddp")
    assert_equal_training(pair, alone)


def test_taught_steps_of_two_processes_equal_one(data: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    """The teacher is whole on each process, and speaks of its rows alone; weights are decayed so that it matters."""
    taught = [f"data.train={data}", f"init_from={alone['first']}", "loss.distill=3", "optim.weight_decay=0.9"]
    one = trained(1, *taught, f"run_dir={tmp_path / 'one'}")
    assert one["cloc"]["teacher"]
    assert_equal_training(trained(2, *taught, f"run_dir={tmp_path / 'pair'}", "trainer.strategy=ddp"), one)


def test_dealt_streams_train_alike_on_one_process_and_two_and_when_killed(data: Path, tmp_path: Path) -> None:
    """Four streams: two processes with two each, one with all; and a run killed on two that goes on alone."""
    options = [f"data.train={data}", "data.streams=4", "trainer.checkpoint_every=8", "trainer.keep_last=3"]
    whole = trained(1, *options, f"run_dir={tmp_path / 'whole'}")
    pair = trained(2, *options, f"run_dir={tmp_path / 'pair'}", "trainer.strategy=ddp")
    assert_equal_training(pair, whole)
    folder = tmp_path / "killed"
    killed = launch(2, *options, f"run_dir={folder}", "trainer.strategy=ddp", script=KILLED)
    assert killed.returncode != 0
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-00000001.ckpt"]
    assert_equal_training(trained(1, *options, f"run_dir={folder}"), whole)


@pytest.mark.parametrize("processes", [1, 2])
def test_accumulated_steps_equal_whole_ones(data: Path, alone: dict[str, Any], tmp_path: Path, processes: int) -> None:
    options = [f"data.train={data}", f"run_dir={tmp_path}", "trainer.accumulate=2"]
    options += ["trainer.strategy=ddp"] if processes > 1 else []
    assert_equal_training(trained(processes, *options), alone)


def test_three_steps_of_fsdp_equal_one_process(data: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    """Sharded, resumed, evaluated in between; the last step is another run's: one process, from their checkpoint."""
    options = [f"data.train={data}", f"run_dir={tmp_path}", "trainer.strategy=fsdp", f"+datasets.toy.shards={data}"]
    options += ["evaluation.data=[toy]", "evaluation.every=8", "evaluation.at_start=true"]
    trained(2, *options, "samples=8")
    trained(2, *options, "samples=16")
    assert_equal_training(trained(1, *options, "trainer.strategy=auto"), alone)
    assert cloc.load(tmp_path).encode_text(["a red square"]).shape == (1, 32)
    with (tmp_path / "metrics.csv").open() as lines:
        measured = [row for row in csv.DictReader(lines) if row.get("val/toy/grounding/any/acc@0.5")]
    assert [float(row["samples"]) for row in measured] == [0, 8, 16, 24]


def test_fsdp_goes_on_from_a_checkpoint_of_one_process(data: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(alone["first"], tmp_path / "checkpoints")
    pair = trained(2, f"data.train={data}", f"run_dir={tmp_path}", "trainer.strategy=fsdp")
    assert_equal_training(pair, alone)


def test_other_settings_hold_with_every_strategy(data: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    """From a checkpoint at sample 8 to sample 24, with other rates, groups and batches than before."""
    options = [
        f"data.train={data}",
        "batch_size=16",
        "optim.lr=5e-4",
        "optim.betas=[0.8,0.9]",
        "optim.weight_decay=0.6",
    ]
    options += ["optim.tower_rate=2", "optim.layer_decay=0.5", "trainer.checkpoint_minutes=0.0001"]
    found = {}
    for strategy, processes in (("auto", 1), ("ddp", 2), ("fsdp", 2)):
        folder = tmp_path / strategy
        (folder / "checkpoints").mkdir(parents=True)
        shutil.copy(alone["first"], folder / "checkpoints")
        found[strategy] = trained(processes, *options, f"run_dir={folder}", f"trainer.strategy={strategy}")
        assert found[strategy]["cloc"]["samples_seen"] == 24 and found[strategy]["global_step"] == 2
        groups = found[strategy]["optimizer_states"][0]["param_groups"]
        assert len({group["peak_lr"] for group in groups}) > 2 and groups[0]["peak_lr"] == 1e-3
        assert all(tuple(group["betas"]) == (0.8, 0.9) and group["weight_decay"] in (0.6, 0.0) for group in groups)
    for strategy in ("ddp", "fsdp"):
        assert_equal_training(found[strategy], found["auto"])


def work(rank: int, folder: Path) -> None:
    environment = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "GROUP_RANK": rank, "LOCAL_WORLD_SIZE": 1}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29547, "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {name: str(value) for name, value in environment.items()}
    connect("cpu")
    agree("the seed", 1, "…")
    with pytest.raises(ConfigError, match="the seed differs: 0 on process 0, 1 on process 1; start them alike"):
        agree("the seed", rank, "start them alike")
    own = folder / str(rank)
    chosen = [own / "checkpoints" / name for name in ("missing.ckpt", "stale.ckpt", "same.ckpt")]
    for path in chosen:
        if rank == 0 or path.name != "missing.ckpt":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes([0 if path.name == "same.ckpt" else rank]) * 300_000)
    before = chosen[2].stat().st_mtime_ns
    for path in chosen:
        assert share_file(path if rank == 0 else None, own) == path
        assert path.read_bytes() == bytes(300_000)
    assert chosen[2].stat().st_mtime_ns == before and len(list((own / "checkpoints").iterdir())) == 3
    assert share_file(None, own) is None
    disconnect()


def test_nodes_agree_and_get_the_checkpoint_that_they_lack(tmp_path: Path) -> None:
    mp.spawn(work, (tmp_path,), nprocs=2)  # a failed assertion of a process is raised here
    kept = [{path.name: path.read_bytes() for path in (tmp_path / rank / "checkpoints").iterdir()} for rank in "01"]
    assert kept[0] == kept[1] and len(kept[0]) == 3


def test_the_slurm_script_starts_one_task_a_process(data: Path, tmp_path: Path) -> None:
    """Run by a stand-in for srun that starts the tasks with the variables that SLURM sets."""
    srun = tmp_path / "srun"
    srun.write_text(
        f"""#!{sys.executable}
import os, subprocess, sys
common = dict(SLURM_NTASKS="2", SLURM_STEP_ID="0", SLURM_NODEID="0")
common |= dict(SLURM_JOB_NAME="cloc", SLURM_JOB_NODELIST="localhost")
tasks = [
    subprocess.Popen(sys.argv[2:], env=os.environ | common | dict(SLURM_PROCID=str(i), SLURM_LOCALID=str(i)))
    for i in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""
    )
    srun.chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "1"}
    slurm |= {"SLURM_NTASKS_PER_NODE": "2", "SLURM_CPUS_PER_TASK": "1"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable}
    options = [*TINY, f"data.train={data}", f"run_dir={tmp_path / 'run'}", "trainer.precision=32-true"]
    script = ["bash", str(ROOT / "scripts" / "slurm.sbatch"), *options]
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "process 1 of 2, weights" in done.stdout


def test_two_nodes_joined_by_a_link(data: Path, tmp_path: Path) -> None:
    """Network namespaces: killed and resumed equals undisturbed, in one run folder and in two; see the script."""
    if shutil.which("ip") is None:
        pytest.skip("no `ip` (iproute2) on this machine")
    if subprocess.run(["ip", "netns", "add", "cloc-test"], capture_output=True).returncode:
        pytest.skip("no right to make network namespaces (root is needed)")
    subprocess.run(["ip", "netns", "delete", "cloc-test"], check=True)
    options = [*TINY, f"data.train={data}", "samples=480", "trainer.checkpoint_every=16"]
    script = [str(ROOT / "scripts" / "two_nodes.sh"), str(tmp_path / "out"), *options]
    done = subprocess.run(script, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "two nodes: equal weights on both" in done.stdout
