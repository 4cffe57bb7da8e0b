"""``AutoModel.from_pretrained(FOLDER, trust_remote_code=True)``: the model by transformers alone, and never by cloc."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cloc
from cloc.data.transforms import to_view
from cloc.export import remote_code
from cloc.export.pipeline import export
from cloc.export.verify import BOXES, make_probe
from cloc.loading import load
from tests.kit.exporting import PAPER, READING, ROI, SHARED, SPATIAL, TIMM, make_run, parity

transformers = pytest.importorskip("transformers")
PHRASES = ["a chick", "two dogs, one of them brown"]
ALONE = """
import importlib.util, json, sys
sys.path[1:1] = sys.argv[4:]
for name in ("cloc", "open_clip", "timm", "torchvision", "PIL"):
    assert importlib.util.find_spec(name) is None, name
import torch, transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPModel
folder, asked, answered = sys.argv[1:4]
phrases = json.load(open(asked + ".json"))
given = load_file(asked)
pictures = [given[name] for name in sorted(given) if name != "boxes"]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
boxes, scores = model.ground(pictures, [phrases] * len(pictures), return_scores=True)
found = {
    "image": model.encode_image(pictures), "text": model.encode_text(phrases),
    "regions": torch.cat(model.encode_regions(pictures, [given["boxes"]] * len(pictures))),
    "grounded": torch.cat(boxes), "scores": torch.cat(scores),
}
save_file(found, answered)
assert type(CLIPModel.from_pretrained(folder)) is CLIPModel and isinstance(model, CLIPModel)
print(transformers.__version__)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("remote") / "run", prompter=SHARED, grounding=SPATIAL)


@pytest.fixture(scope="module")
def folder(run: Path) -> Path:
    return export("hf", run, run.parent / "hf")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model without Prompter."""
    base = tmp_path_factory.mktemp("plain")
    return export("hf", make_run(base / "run"), base / "hf")


def bare_packages(place: Path, names: list[str]) -> Path:
    """A folder of packages that holds these and what they need, and nothing else."""
    place.mkdir()
    seen, rest = set(), list(names)
    while rest:
        name = re.sub(r"[-_.]+", "-", rest.pop()).lower()
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of another platform
            continue
        if name in seen:
            continue
        seen.add(name)
        rest += [re.match(r"[\w.-]+", line)[0] for line in found.requires or () if "extra ==" not in line]
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (place / top).exists():
                (place / top).symlink_to(found.locate_file(top))
    return place


def answers(folder: Path, run: Path, place: Path, packages: list[Path]) -> str:
    """Ask an export in a process without cloc, compare with the run, and return the version of transformers there."""
    encoder = load(run)
    pictures = [torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in make_probe(encoder).pictures]
    given = {f"picture{i}": picture.contiguous() for i, picture in enumerate(pictures)}
    save_file(given | {"boxes": torch.tensor(BOXES)}, place / "asked")
    (place / "asked.json").write_text(json.dumps(PHRASES))
    (place / "alone.py").write_text(ALONE)
    files = [folder, place / "asked", place / "answered", *packages]
    command = [sys.executable, "-I", "-S", place / "alone.py", *files]
    environment = os.environ | {"HF_HOME": str(place / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    boxes, scores = encoder.ground(pictures, [PHRASES] * len(pictures), return_scores=True)
    expected = {
        "image": encoder.encode_image(pictures),
        "text": encoder.encode_text(PHRASES),
        "regions": torch.cat(encoder.encode_regions(pictures, [torch.tensor(BOXES)] * len(pictures))),
        "grounded": torch.cat(boxes),
        "scores": torch.cat(scores),
    }
    found = load_file(place / "answered")
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0, msg=lambda said, name=name: f"{name}: {said}")
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_process_with_three_packages(run: Path, folder: Path, tmp_path: Path) -> None:
    packages = bare_packages(tmp_path / "packages", ["torch", "transformers", "safetensors"])
    assert answers(folder, run, tmp_path, [packages]) == transformers.__version__


@pytest.mark.slow
def test_transformers_4(run: Path, folder: Path, tmp_path: Path) -> None:
    """With ``pip install --target FOLDER transformers==4.57.6`` but for torch, and ``CLOC_TRANSFORMERS4=FOLDER``."""
    older = os.environ.get("CLOC_TRANSFORMERS4")
    if not older:
        pytest.skip("CLOC_TRANSFORMERS4 names no folder with transformers 4.57")
    packages = bare_packages(tmp_path / "packages", ["torch", "transformers", "safetensors"])
    assert answers(folder, run, tmp_path, [Path(older), packages]).startswith("4.")


@pytest.mark.slow
@pytest.mark.parametrize(("resize", "prompter"), [("pad", PAPER), ("squash", READING)])
def test_other_prompters_and_views(resize: str, prompter: dict[str, Any], tmp_path: Path) -> None:
    """PaperPrompter, without grounding head; a view that was squashed in training."""
    image = TIMM | {"name": "vit_tiny_patch16_224", "resize": resize}
    image |= {"options": TIMM["options"] | {"pre_norm": True}}
    made = make_run(tmp_path / "run", image, prompter=prompter)
    rows = parity(export("hf", made, tmp_path / "hf"))
    assert {"AutoModel: regions", "AutoModel: pooled"} <= set(rows) and "AutoModel: grounded" not in rows
    with remote_code._opened(tmp_path / "hf") as module:
        model = module.ClocModel.from_pretrained(tmp_path / "hf")
        with pytest.raises(ValueError, match="without a grounding head"):
            model.ground(np.zeros((20, 30, 3), np.uint8), "a chick")


def test_without_prompter_it_says_what_is_missing(plain: Path) -> None:
    assert {"AutoModel: pooled", "AutoModel: text"} == {name for name in parity(plain) if name.startswith("AutoModel")}
    picture = np.zeros((20, 30, 3), np.uint8)
    with remote_code._opened(plain) as module:
        model = module.ClocModel.from_pretrained(plain)
        assert model.encode_image(picture).shape == (1, 32) and model.encode_text("a chick").shape == (1, 32)
        with pytest.raises(ValueError, match="without a Prompter.*encode_image and encode_text work.*model.prompter="):
            model.encode_regions(picture, [[0, 0, 1, 1]])
        with pytest.raises(ValueError, match="without a grounding head"):
            model.ground(picture, "a chick")


@pytest.mark.slow
def test_a_prompter_that_needs_more_than_pytorch(tmp_path: Path) -> None:
    made = export("hf", make_run(tmp_path / "run", prompter=ROI), tmp_path / "hf")
    assert "AutoModel: regions" not in parity(made) and "AutoModel: pooled" in parity(made)


def test_any_kind_of_input(run: Path, folder: Path, tmp_path: Path) -> None:
    encoder = load(run)
    one, other = make_probe(encoder).pictures[:2]
    one.save(tmp_path / "one.png")
    box = [0.1, 0.2, 0.5, 0.9]
    with remote_code._opened(folder) as module:
        model: Any = module.ClocModel.from_pretrained(folder)
        expected = encoder.encode_regions([one, other], [[box], []])
        for given in ([one, other], [str(tmp_path / "one.png"), other], [tmp_path / "one.png", np.asarray(other)]):
            found = model.encode_regions(given, [[box], []])
            assert [len(rows) for rows in found] == [1, 0]
            torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=0)
        for boxes in ([box], [[box]], torch.tensor([box]), np.array([box])):
            torch.testing.assert_close(model.encode_regions(one, boxes)[0], expected[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(model.encode_image(one), encoder.encode_image(one), atol=1e-5, rtol=0)
        for odd in (np.asarray(one.convert("L")), np.asarray(one.convert("RGBA"))):
            torch.testing.assert_close(model.encode_image(odd), encoder.encode_image(odd), atol=1e-5, rtol=0)
        pixels = make_probe(encoder).pixels[:2]  # boxes are then those of the view
        place = encoder.see([one]).content
        moved = to_view(torch.tensor([box]), place)
        torch.testing.assert_close(model.encode_regions(pixels, [moved, []])[0], expected[0], atol=1e-5, rtol=0)
        assert [len(rows) for rows in model.ground([one, other], "a chick")] == [1, 1]
        assert [len(rows) for rows in model.ground([one, other], [["a chick", "x"], []])] == [2, 0]
        for boxes in ([[0.5, 0, 0.1, 1]], [[0, 0, 50, 40]], [[0, 0, 1, float("nan")]]):
            with pytest.raises(ValueError, match="in 0..1 of the picture"):
                model.encode_regions(one, boxes)
        with pytest.raises(ValueError, match="2 pictures but 1 lists"):
            model.encode_regions([one, other], [[box]])
        with pytest.raises(ValueError, match="a list of texts for each picture"):
            model.ground([one, other], ["a chick", "x"])
        with pytest.raises(TypeError, match="give a PIL image"):
            model.encode_image([3])
        with pytest.raises(ValueError, match=r"give \[B,3,64,64\]"):
            model.encode_image(torch.zeros(1, 3, 32, 32))
        with pytest.raises(ValueError, match="no picture"):
            model.encode_image([])


def test_it_is_saved_with_its_code(run: Path, folder: Path, tmp_path: Path) -> None:
    """A model that was trained on is saved by transformers, regions and code too."""
    picture = make_probe(load(run)).pictures[0]
    with remote_code._opened(folder) as module:
        model = module.ClocModel.from_pretrained(folder)
        with torch.no_grad():
            model.regions.prompter.proj.weight.mul_(1.5).add_(0.01)
        expected = model.encode_regions(picture, [[0, 0, 1, 1]])[0]
        texts = model.encode_text(PHRASES)
        model.save_pretrained(tmp_path / "again")
    with remote_code._opened(tmp_path / "again") as module:
        again = module.ClocModel.from_pretrained(tmp_path / "again")
        torch.testing.assert_close(again.encode_regions(picture, [[0, 0, 1, 1]])[0], expected)
        torch.testing.assert_close(again.encode_text(PHRASES), texts)  # by a tokenizer that is saved, too
        (tmp_path / "again/tokenizer.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"again has no tokenizer\.json; copy it from the exported folder"):
            module.ClocModel.from_pretrained(tmp_path / "again").encode_text("a chick")


def test_cloc_runs_no_code_of_a_folder(folder: Path, tmp_path: Path) -> None:
    bad = shutil.copytree(folder, tmp_path / "bad")
    for name in (remote_code.CODE, remote_code.REGIONS, "tokenization_cloc.py"):
        (bad / name).write_text(f"open({str(tmp_path / 'witness')!r}, 'w').write('ran')\n")
    config = json.loads((bad / "config.json").read_text())
    names = ("AutoConfig", "AutoTokenizer", "AutoImageProcessor", "AutoModel")
    config["auto_map"] = dict.fromkeys(names, "modeling_cloc.ClocModel")
    (bad / "config.json").write_text(json.dumps(config))
    sums = json.loads((bad / "cloc.json").read_text())
    del sums["sha256"]
    (bad / "cloc.json").write_text(json.dumps(sums))
    model = cloc.load(str(bad))
    model.ground(np.zeros((20, 30, 3), np.uint8), "a chick")
    assert not (tmp_path / "witness").exists()
