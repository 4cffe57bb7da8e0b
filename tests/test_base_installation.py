"""Without the extras ``train`` and ``eval`` a model loads and answers; what needs them says so in one line."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cloc.command import EXTRAS
from cloc.export.pipeline import export
from tests.kit.exporting import SHARED, SPATIAL, make_run
from tests.kit.paths import ROOT

BROUGHT_ALONG = {"fsspec"}  # by PyTorch
BLOCKED = {module for modules in EXTRAS.values() for module in modules} - BROUGHT_ALONG
BLOCK = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(BLOCKED)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""
USE = """
from PIL import Image
import cloc

for path in sys.argv[1:]:
    model = cloc.load(path)
    picture = Image.new("RGB", (60, 40), "red")
    shapes = [model.encode_image([picture]), model.encode_text(["a chick"])]
    shapes += [model.encode_regions([picture], [[[0.1, 0.2, 0.6, 0.9]]])[0], model.ground([picture], [["a chick"]])[0]]
    shapes.append(model.encode_dense([picture])[0])
    print([list(shape.shape) for shape in shapes])
"""
MODULES = {"hydra-core": "hydra"}  # where a distribution has another name than its module


def blocked(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCK + code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_a_run_and_an_export_answer_without_the_extras(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompter=SHARED, grounding=SPATIAL)
    folder = export("open_clip", run, tmp_path / "export")
    found = blocked(USE, str(run), str(folder))
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == ["[[1, 32], [1, 32], [1, 32], [1, 4], [1, 16, 64]]"] * 2


@pytest.mark.parametrize(("script", "extra"), [("train.py", "train"), ("eval.py", "eval")])
def test_a_program_names_its_extra_in_one_line(script: str, extra: str) -> None:
    found = blocked(f"import runpy\nrunpy.run_path({script!r}, run_name='__main__')")
    missing = ", ".join(module for module in EXTRAS[extra] if module in BLOCKED)
    assert found.stderr == f"ImportError: {missing}: not installed; pip install 'cloc-pretrain[{extra}]'\n"
    assert found.returncode == 1


def test_a_command_names_its_extra_in_one_line(tmp_path: Path) -> None:
    arguments = ["cloc", "data", "show", str(tmp_path)]
    found = blocked(f"sys.argv = {arguments!r}\nfrom cloc.__main__ import main\nmain()")
    assert found.returncode == 1
    assert found.stderr == "error: matplotlib: not installed; pip install 'cloc-pretrain[eval]'\n"


def test_the_extras_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, modules in EXTRAS.items():
        names = [Requirement(line).name for line in project["optional-dependencies"][extra]]
        assert sorted(MODULES.get(name, name.lower()) for name in names) == sorted(modules)
    base = {Requirement(line).name for line in project["dependencies"]}
    assert not base & {name for modules in EXTRAS.values() for name in modules}
