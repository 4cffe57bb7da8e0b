"""What decides a result besides the configuration: versions of Python, the packages and the code."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = (
    *("torch", "torchvision", "lightning", "open_clip_torch", "timm", "webdataset", "hydra-core", "transformers"),
    *("pycocotools", "numpy"),
)


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
