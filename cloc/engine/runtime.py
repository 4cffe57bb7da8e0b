"""The run folder and the machine: what a run writes beside its weights, and what it needs before it starts."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import yaml

PACKAGES = ("torch", "torchvision", "lightning", "open_clip_torch", "timm", "webdataset", "hydra-core", "transformers")


def versions() -> dict[str, str]:
    """Versions of Python, the machine and the packages that decide a result; and the git commit of the code."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["git"] = git_commit()
    return found


def git_commit() -> str:
    """Commit of the code, with ``+changes`` where the tree differs from it; ``unknown`` outside a clone."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root)]
    try:
        commit = subprocess.run(
            [*command, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        changes = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")


def prepare_run(folder: Path, resolved: dict[str, Any], data_digest: str) -> None:
    """Write ``config.yaml`` and ``versions.json`` into the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    facts = versions() | {"data": data_digest}
    (folder / "versions.json").write_text(json.dumps(facts, indent=2) + "\n")


def use_threads(count: int) -> None:
    """Limit the CPU threads of this process; 0 leaves PyTorch's choice."""
    if count:
        torch.set_num_threads(count)


def rank_and_world() -> tuple[int, int]:
    """This process's global rank and the number of processes, as torchrun or SLURM tell them before set-up."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            found = environment()
            return found.global_rank(), found.world_size()
    return 0, 1
