"""``export --resize``: another view than in training, told in figures; and which transformers an export needs."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cloc
from cloc.__main__ import app
from cloc.export.capabilities import ExportError
from cloc.export.cloc_files import LEAST_TRANSFORMERS, PADDING_PROCESSOR
from cloc.export.verify import make_probe
from cloc.export.view_change import change_view
from cloc.loading import load
from tests.kit.exporting import SHARED, SPATIAL, make_run, parity
from tests.kit.paths import ROOT


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("view") / "run", prompter=SHARED, grounding=SPATIAL)


def pictures(folder: Path, *sizes: tuple[int, int]) -> Path:
    """Cuts of one picture, width × height."""
    folder.mkdir()
    for number, size in enumerate(sizes):
        Image.linear_gradient("L").resize(size).convert("RGB").save(folder / f"{number}.png")
    return folder


def test_squash_is_exported_with_what_it_changes(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    own = pictures(tmp_path / "own", (80, 60), (60, 80))
    args = ["export", "hf", str(run), str(tmp_path / "hf"), "--resize", "squash", "--pictures", str(own)]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    stored = json.loads((tmp_path / "hf" / "cloc.json").read_text())
    assert stored["resize"] == "squash" and set(stored["needs"].values()) == {f"transformers>={LEAST_TRANSFORMERS}"}
    change = stored["view_change"]
    assert (change["trained"], change["exported"]) == ("pad", "squash")
    figures = {one["what"]: one for one in change["figures"]}
    kinds = [
        f"{kind}, {which}" for kind in ("pictures", "boxes", "phrases") for which in ("4 generated", "2 of --pictures")
    ]
    assert list(figures) == kinds
    assert all(-1 <= one["least"] <= one["mean"] <= 1 for one in figures.values())

    ours, squashed = load(run), cloc.load(str(tmp_path / "hf"))
    assert squashed.preprocess.mode == "squash" and ours.preprocess.mode == "pad"
    shown = make_probe(ours).pictures
    cosines = (ours.encode_image(shown) * squashed.encode_image(shown)).sum(-1)
    assert figures["pictures, 4 generated"]["mean"] == pytest.approx(cosines.mean().item(), abs=1e-5)
    assert (
        figures["pictures, 4 generated"]["least"] == pytest.approx(cosines.min().item(), abs=1e-5) and cosines.min() < 1
    )

    rows = parity(tmp_path / "hf")
    assert rows["squash instead of pad: 1 - cosine of pictures, 4 generated"] == pytest.approx(1 - cosines.min().item())
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "## Another view than in training" in card and f"{cosines.mean().item():.4f}" in card
    processor = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "CLIPImageProcessor" and not processor["do_center_crop"]


def test_a_square_picture_does_not_change(run: Path, tmp_path: Path) -> None:
    change = change_view(load(run), "squash", pictures(tmp_path / "own", (64, 64), (200, 200)))
    assert change is not None
    least = {one.what: one.least for one in change.figures if "--pictures" in one.what}
    assert least == pytest.approx(dict.fromkeys(least, 1.0), abs=1e-5) and len(least) == 3


def test_the_view_of_the_training_is_no_change(run: Path) -> None:
    encoder = load(run)
    before = encoder.encode_image(make_probe(encoder).pictures)
    assert change_view(encoder, "pad") is None
    assert torch.equal(encoder.encode_image(make_probe(encoder).pictures), before)


def test_an_unknown_view_is_refused(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", "hf", str(run), str(tmp_path / "out"), "--resize", "crop"])
    assert result.exit_code == 1 and "crop" in result.output and not (tmp_path / "out").exists()


def test_the_extra_can_export_and_docs_name_the_versions() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = [line for lines in extras.values() for line in lines if line.startswith("transformers")]
    assert asked and set(asked) == {f"transformers>={PADDING_PROCESSOR}"}
    page = (ROOT / "docs" / "export.md").read_text()
    table = page[page.index("## Which transformers") : page.index("## Parity")]
    assert set(re.findall(r"\| (\d\.\d+) \|", table)) == {LEAST_TRANSFORMERS, PADDING_PROCESSOR}


def test_an_old_transformers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from cloc.export import hf

    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(__version__="4.57.6"))
    with pytest.raises(ExportError, match="this is 4.57.6: pip install 'transformers>=5.11'"):
        hf._check_version()
