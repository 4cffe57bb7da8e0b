"""Exports: each format holds the model that was trained; what cannot be held is refused before anything is written."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cloc
from cloc.__main__ import app
from cloc.export.capabilities import FORMATS, ExportError, check_pair
from cloc.export.pipeline import export
from cloc.export.verify import Row, make_probe
from cloc.loading import load
from tests.kit.exporting import (
    MLP,
    OPEN_CLIP,
    PAPER,
    READING,
    ROI,
    SHARED,
    SPATIAL,
    TEXT,
    TIMM,
    check_loaded,
    make_run,
    parity,
)


@pytest.fixture(scope="module")
def cloc_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "cloc", prompter=SHARED, grounding=SPATIAL)


@pytest.fixture(scope="module")
def hf(cloc_run: Path) -> Path:
    pytest.importorskip("transformers")
    return export("hf", cloc_run, cloc_run.parent / "hf")


@pytest.fixture(scope="module")
def open_clip_folder(cloc_run: Path) -> Path:
    return export("open_clip", cloc_run, cloc_run.parent / "open_clip")


def test_hf_holds_the_model(cloc_run: Path, hf: Path) -> None:
    rows = parity(hf)
    states = {"pooled", "tokens", "last", "penultimate", "text", "vision/: last", "vision/: penultimate"}
    assert max(rows[name] for name in states) <= 1e-5
    assert rows["own preprocessing: pixels"] <= 1e-5 and rows["texts with other token ids"] == 0
    check_loaded(cloc_run, hf)
    card = (hf / "README.md").read_text()
    assert "| penultimate |" in card and "SharedPrompter" in card


def test_hf_drops_into_transformers(cloc_run: Path, hf: Path) -> None:
    """Features by transformers' own front door, without our code."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    ours, model = load(cloc_run), AutoModel.from_pretrained(hf).eval()
    pictures, texts = make_probe(ours).pictures, ["a chick", "two dogs run"]
    pixels = AutoImageProcessor.from_pretrained(hf)(pictures, return_tensors="pt").pixel_values
    tokens = AutoTokenizer.from_pretrained(hf)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        out = model(pixel_values=pixels, **tokens)
    torch.testing.assert_close(out.image_embeds, ours.encode_image(pictures), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.text_embeds, ours.encode_text(texts), atol=1e-5, rtol=0)
    expected = ours.encode_image(pictures) @ ours.encode_text(texts).T * ours.model.scales()["global"]
    torch.testing.assert_close(out.logits_per_image, expected.detach(), atol=1e-3, rtol=0)


def test_open_clip_holds_the_model(cloc_run: Path, open_clip_folder: Path) -> None:
    rows = parity(open_clip_folder)
    assert max(rows[name] for name in ("pooled", "tokens", "last", "penultimate", "text")) <= 1e-5
    check_loaded(cloc_run, open_clip_folder)


def test_an_export_can_be_exported(open_clip_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    check_loaded(open_clip_folder, export("hf", open_clip_folder, tmp_path / "hf"))


@pytest.mark.parametrize("format", ["hf", "open_clip"])
def test_quick_gelu_travels(format: str, tmp_path: Path) -> None:
    if format == "hf":
        pytest.importorskip("transformers")
    run = make_run(tmp_path / "quick", OPEN_CLIP | {"quick_gelu": True}, TEXT | {"quick_gelu": True})
    folder = export(format, run, tmp_path / "out")
    assert max(value for name, value in parity(folder).items() if "preprocessing" not in name) <= 1e-5
    check_loaded(run, folder)
    assert not load(folder).can_ground and "prompter" not in load(folder).sources
    if format == "hf":
        assert json.loads((folder / "config.json").read_text())["vision_config"]["hidden_act"] == "quick_gelu"


def test_timm_holds_the_backbone(tmp_path: Path) -> None:
    import timm

    run = make_run(tmp_path / "timm", TIMM, prompter=SHARED)
    folder = export("timm", run, tmp_path / "out")
    rows = parity(folder)
    states = {"pooled", "tokens", "last", "penultimate"}
    assert states <= set(rows) <= states | {"transformers: pooled", "transformers: tokens"}
    assert max(rows.values()) <= 1e-5
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.pretrained_cfg["input_size"] == (3, 64, 64)
    with pytest.raises(ValueError, match="is an export to timm.* Load the run itself, or .*to hf or open_clip"):
        cloc.load(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompter", "head"), [(SHARED, SPATIAL), (READING, MLP), (PAPER, None), (ROI | {"hidden": 20}, None)]
)
def test_onnx_holds_every_part(prompter: dict[str, Any], head: dict[str, Any] | None, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    image, text = ({**node, "options": {**node["options"], "layers": 1}} for node in (OPEN_CLIP, TEXT))
    run = make_run(tmp_path / "run", image, text, prompter=prompter, grounding=head)  # tracing takes seconds a block
    folder = export("onnx", run, tmp_path / "onnx")
    rows = parity(folder)
    found, files = ({"grounded"}, {"ground"}) if head else (set(), set())
    assert set(rows) == {"pooled", "tokens", "last", "penultimate", "text", "regions"} | found
    assert max(rows.values()) <= 1e-4
    assert {file.stem for file in folder.glob("*.onnx")} == {"image", "regions", "text"} | files


def test_unsupported_pairs_name_what_is_possible(tmp_path: Path) -> None:
    adapter = load(make_run(tmp_path / "adapter", TIMM | {"adapter_depth": 1, "adapter_width": 64}))
    for format in ("hf", "open_clip", "timm"):
        with pytest.raises(ExportError, match="adapter.*Possible for this model: onnx, torch$"):
            check_pair(adapter, format)
    stem = load(make_run(tmp_path / "stem", TIMM | {"conv_stem": True, "options": TIMM["options"] | {"patch_size": 8}}))
    with pytest.raises(ExportError, match="convolution stem is not part of a timm model"):
        check_pair(stem, "timm")
    plain = load(make_run(tmp_path / "plain", TIMM))
    with pytest.raises(ExportError, match="no norm before its blocks.*for this model: open_clip, timm, onnx, torch$"):
        check_pair(plain, "hf")
    mixed = load(make_run(tmp_path / "mixed", OPEN_CLIP | {"quick_gelu": True}))
    with pytest.raises(ExportError, match="one activation for both towers.*for this model: hf, timm, onnx, torch$"):
        check_pair(mixed, "open_clip")
    average = load(make_run(tmp_path / "avg", OPEN_CLIP | {"options": OPEN_CLIP["options"] | {"pool_type": "avg"}}))
    with pytest.raises(ExportError, match="pools by 'avg'.*Possible for this model: open_clip, onnx, torch$"):
        check_pair(average, "hf")
    with pytest.raises(ExportError, match="has no Prompter .a plain CLIP.*for this model: open_clip, onnx, torch$"):
        check_pair(average, "regions")


def test_refuses_a_folder_that_is_not_empty(cloc_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(ExportError, match="is not an empty folder of its own"):
        export("open_clip", cloc_run, tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_refuses_a_run_without_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match="has the run started"):
        export("open_clip", tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_difference_is_kept_and_told(cloc_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloc.export import open_clip as writer

    exact = writer.read
    monkeypatch.setattr(writer, "read", lambda *args: exact(*args) | {"pooled": exact(*args)["pooled"] + 1e-3})
    monkeypatch.setattr(writer, "more_rows", lambda *args: [])
    for kept in ("out.failed", "out.failed-2"):
        with pytest.raises(ExportError, match=f"kept as .*{kept}$"):
            export("open_clip", cloc_run, tmp_path / "out")
        stored = json.loads((tmp_path / kept / "parity.json").read_text())
        assert not stored["ok"] and [row["name"] for row in stored["rows"] if not row["ok"]] == ["pooled"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.failed", "out.failed-2"]


def test_nan_is_a_difference() -> None:
    assert not Row("pooled", float("nan"), 1.0, 1e-5).ok
    assert Row("last", 9e-5, 10.0, 1e-5).ok and not Row("last", 2e-4, 10.0, 1e-5).ok


def test_a_malicious_weight_file_is_refused(open_clip_folder: Path, tmp_path: Path) -> None:
    """A pickle under the name of the weights is not unpickled."""
    folder = shutil.copytree(open_clip_folder, tmp_path / "bad")
    witness = tmp_path / "witness"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (witness,)

    torch.save({"state_dict": Payload()}, folder / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        cloc.load(str(folder))
    assert not witness.exists()


def test_command_line(cloc_run: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (50, 80), (200, 30, 30)).save(tmp_path / "pictures" / "red.jpg")
    args = ["export", "open_clip", str(cloc_run), str(tmp_path / "out"), "--pictures", str(tmp_path / "pictures")]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert "penultimate" in result.output
    wrote, then = result.output.splitlines()[-2:]
    assert wrote == f"wrote {tmp_path / 'out'}" and then.startswith("next: python -c 'import open_clip; ")
    exec(shlex.split(then)[3])
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["pictures"] == 5
    assert CliRunner().invoke(app, args).exit_code == 1


def test_every_format_has_a_command() -> None:
    for name in FORMATS:
        assert CliRunner().invoke(app, ["export", name, "--help"]).exit_code == 0
