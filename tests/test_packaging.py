"""What surrounds the code agrees with it and with itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cloc
from tests.kit.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALLED_EXTRAS = ["train", "eval", "demo", "transformers", "tensorboard", "export", "dev"]
SLOW_EXTRAS = ["s3-test", "docs"]
TARGETS = ["help", "setup", "demo", "test", "test-slow", "lint", "format", "docs", "site", "clean"]


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in found if not re.fullmatch(r"[A-Za-z0-9._-]+==[^ ;@]+", line)] == []
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in found)}


def test_versions_agree() -> None:
    assert getattr(cloc, "__version__", PROJECT["version"]) == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_citation() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert "arXiv:2410.02746" in [i["value"] for r in citation["references"] for i in r["identifiers"]]


def test_extras() -> None:
    assert set(PROJECT["optional-dependencies"]) == {
        *INSTALLED_EXTRAS,
        "clip_benchmark",
        "heic",
        "parquet",
        "s3",
        "search",
        *SLOW_EXTRAS,
        "slurm",
        "sweep",
        "wandb",
    }


def test_constraints_satisfy_every_range() -> None:
    pinned = pins()
    assert canonicalize_name(PROJECT["name"]) not in pinned
    extras = [line for extra in INSTALLED_EXTRAS + SLOW_EXTRAS for line in PROJECT["optional-dependencies"][extra]]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not pinned in requirements/constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} does not admit the pinned {version}"


def test_make_lists_its_targets() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    listing = subprocess.run([make, "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make ([a-z-]+) +\S", listing, re.MULTILINE) == TARGETS


def test_make_uses_the_same_extras() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.search(r"^EXTRAS := (.+)$", makefile, re.MULTILINE)
    assert named and named[1].split(",") == INSTALLED_EXTRAS
    slow = re.search(r"^SLOW_EXTRAS := (.+)$", makefile, re.MULTILINE)
    assert slow and slow[1].split(",") == SLOW_EXTRAS


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("data/openmoji/manifest.json", True),
        ("runs/demo/metrics.json", True),
        (".venv/bin/python", True),
        ("cloc/data/shards/reader.py", False),
        ("conf/data/openmoji.yaml", False),
        ("tests/data/test_order.py", False),
    ],
)
def test_git_ignores_products_and_keeps_source(path: str, ignored: bool) -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    done = subprocess.run([git, "check-ignore", "-q", "--no-index", path], cwd=ROOT, check=False)
    assert done.returncode == (0 if ignored else 1)
