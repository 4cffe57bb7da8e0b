"""``data.workers=auto``: the cores that a process may use, by what its system says of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cloc.config import ConfigError, DataConfig, TrainConfig, TrainerConfig
from cloc.config.values import check_schema
from cloc.engine import readers as module
from cloc.engine.readers import MOST, HostShare, cpu_quota, deal, readers, usable_cores


def process(host: str, cores: range, quota: float | None = None) -> dict[str, Any]:
    return {"host": host, "cores": hex(sum(1 << core for core in cores)), "quota": quota}


@pytest.mark.parametrize(
    ("everyone", "expected"),
    [
        ([process("a", range(6))], HostShare(6.0, 6, 1)),
        ([process("a", range(96))] * 8, HostShare(12.0, 96, 8)),  # torchrun leaves all cores to all
        ([process("a", range(12 * i, 12 * i + 12)) for i in range(8)], HostShare(12.0, 96, 8)),  # SLURM binds them
        ([process("a", range(96))] * 4 + [process("b", range(8))] * 8, HostShare(24.0, 96, 4)),
        ([process("a", range(96), 16.0)] * 8, HostShare(2.0, 16, 8)),  # a container's quota is that of all
        ([process("a", range(4), 0.5)], HostShare(0.5, 1, 1)),
        ([process("a", range(4)), process("a", range(2, 4))], HostShare(3.0, 4, 2)),  # 2 alone, 2 by two
    ],
)
def test_cores_are_dealt_over_the_processes_of_a_host(everyone: list[dict[str, Any]], expected: HostShare) -> None:
    assert deal(everyone[0], everyone) == expected


def configured(**trainer: Any) -> TrainConfig:
    return TrainConfig(data=DataConfig(train="x", workers="auto"), trainer=TrainerConfig(**trainer))


@pytest.mark.parametrize(
    ("cores", "trainer", "expected"),
    [
        (12.0, {"accelerator": "gpu"}, 11),
        (2.5, {"accelerator": "gpu"}, 1),
        (0.5, {"accelerator": "gpu"}, 1),
        (64.0, {"accelerator": "gpu"}, MOST),
        (12.0, {"accelerator": "cpu", "threads": 4}, 8),
        (4.0, {"accelerator": "cpu", "threads": 4}, 1),
        (12.0, {"accelerator": "cpu", "threads": 0}, 1),  # computes on all of them
    ],
)
def test_auto_leaves_the_training_process_what_it_computes_on(
    monkeypatch: pytest.MonkeyPatch, cores: float, trainer: dict[str, Any], expected: int
) -> None:
    monkeypatch.setattr(module, "host_share", lambda: HostShare(cores, 96, 8))
    monkeypatch.setattr(module, "accelerator_of", lambda name: {"gpu": "cuda"}.get(name, name))
    assert readers(configured(**trainer)) == expected


@pytest.mark.parametrize("value", [0, 3, "3", "0012", 512])
def test_numbers_are_taken_as_they_are(value: Any) -> None:
    config = configured()
    config.data.workers = value
    assert readers(config) == int(value)


@pytest.mark.parametrize("value", [-1, 513, "513", True, 1.5, "", "many", "٣", None, [1]])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="data.workers=.*from 0 to 512, or auto"):
        check_schema(DataConfig(train="x", workers=value), "data.")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "PROC", tmp_path / "proc")
    monkeypatch.setattr(module, "CGROUPS", tmp_path / "cgroup")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_quota_of_version_2_is_the_least_of_the_groups_above(system: Path) -> None:
    write(system / "proc/self/cgroup", "0::/pod/box\n")
    write(system / "cgroup/pod/box/cpu.max", "max 100000\n")
    assert cpu_quota() is None
    write(system / "cgroup/pod/cpu.max", "800000 100000\n")
    assert cpu_quota() == 8.0
    write(system / "cgroup/cpu.max", "150000 100000\n")  # as a container sees its own group
    assert cpu_quota() == 1.5


def test_quota_of_version_1(system: Path) -> None:
    write(system / "proc/self/cgroup", "4:memory:/x\n3:cpu,cpuacct:/docker/abc\n")
    write(system / "cgroup/cpu,cpuacct/cpu.cfs_quota_us", "400000\n")
    write(system / "cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert cpu_quota() == 4.0
    write(system / "cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    assert cpu_quota() is None


def test_a_system_without_control_groups_or_binding(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cpu_quota() is None and usable_cores() == set(range(os.cpu_count() or 1))
