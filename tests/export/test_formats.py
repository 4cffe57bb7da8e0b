"""Every tower of the matrix in every format that can hold it, and files that must not be trusted."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import cloc
from cloc.export.capabilities import FORMATS, ExportError, check_pair
from cloc.export.pipeline import export
from cloc.export.torch import load_program
from cloc.loading import load
from tests.conftest import ROOT
from tests.kit.exporting import (
    CNN,
    MLP,
    OPEN_CLIP,
    PAPER,
    READING,
    ROI,
    SHARED,
    SPATIAL,
    TIMM,
    check_loaded,
    make_run,
    parity,
    word_text,
)

CLIP_LIKE = TIMM | {"options": TIMM["options"] | {"pre_norm": True, "act_layer": "quick_gelu"}, "mean": [0.4, 0.5, 0.6]}
AVERAGE = OPEN_CLIP | {"options": OPEN_CLIP["options"] | {"pool_type": "avg"}}
REGISTERS = TIMM | {"options": TIMM["options"] | {"reg_tokens": 2}}
BY_NAME = {"_target_": TIMM["_target_"], "name": "test_vit", "image_size": 160}
# The rows of the table in docs/export.md: image node, text ("clip", "own" or "hf") and further parts.
ROWS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "open_clip's ViT, class token": (OPEN_CLIP, "own", {}),
    "the same, its activation not the text tower's": (OPEN_CLIP | {"quick_gelu": True}, "own", {}),
    "open_clip's ViT, other pooling": (AVERAGE, "own", {}),
    "timm's ViT, class token and first norm (CLIP's)": (CLIP_LIKE, "quick", {}),
    "timm's ViT, class token": (TIMM, "own", {}),
    "timm's ViT with registers, RoPE or other pooling, as named": (BY_NAME, "own", {}),
    "the same with `options` or another `image_size`": (REGISTERS, "own", {}),
    "timm's CNN, as named": (CNN, "own", {}),
    "any timm backbone with adapter or convolution stem": (TIMM | {"adapter_depth": 1, "adapter_width": 64}, "own", {}),
    "open_clip's ViT, class token, with `HuggingFaceText`": (OPEN_CLIP, "hf", {}),
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("texts")
    own = word_text(folder / "own")
    config = transformers.BertConfig(
        vocab_size=own["options"]["vocab_size"],
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    transformers.BertModel(config).save_pretrained(folder / "bert")
    hf = {"_target_": "cloc.models.text.HuggingFaceText", "name": str(folder / "bert"), "tokenizer": own["tokenizer"]}
    return {"own": own, "hf": hf | {"context_length": 24}, "quick": own | {"quick_gelu": True}}


def docs_matrix() -> dict[str, dict[str, bool]]:
    """The table of docs/export.md."""
    lines = (ROOT / "docs" / "export.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| image tower |"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:] if line.startswith("|")]
    names = cells[0][1:]
    rows = [row for row in cells[2:] if len(row) == len(cells[0])]
    return {row[0]: {name: value == "yes" for name, value in zip(names, row[1:], strict=True)} for row in rows}


def test_the_table_in_the_docs_is_that_of_the_code(texts: dict[str, Any], tmp_path: Path) -> None:
    table = docs_matrix()
    assert set(table) == set(ROWS)
    for i, (name, (image, text, parts)) in enumerate(ROWS.items()):
        encoder = load(make_run(tmp_path / str(i), image, texts[text], **parts))
        able = {format: not FORMATS[format].refuses(encoder) for format in ("hf", "open_clip", "timm", "onnx", "torch")}
        assert table[name] == able, name


@pytest.mark.parametrize("format", ["hf", "open_clip", "timm"])
def test_a_class_token_vit_of_timm_is_that_of_clip(format: str, texts: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", CLIP_LIKE, texts["quick"], prompter=SHARED)
    folder = export(format, run, tmp_path / "out")
    rows = parity(folder)
    assert {"pooled", "tokens", "last", "penultimate"} <= set(rows)
    assert max(value for name, value in rows.items() if "preprocessing" not in name) <= 1e-5
    if format != "timm":
        check_loaded(run, folder)
        assert type(cloc.load(str(folder)).model.image).__name__ == "OpenClipTower"


def test_a_class_token_vit_of_open_clip_is_one_of_timm(texts: dict[str, Any], tmp_path: Path) -> None:
    for quick in (False, True):
        run = make_run(tmp_path / f"run{quick}", OPEN_CLIP | {"quick_gelu": quick}, texts["own"])
        assert max(parity(export("timm", run, tmp_path / f"out{quick}")).values()) <= 1e-5


def test_a_class_token_vit_without_first_norm_goes_to_open_clip(texts: dict[str, Any], tmp_path: Path) -> None:
    """Its patches have a bias, which moves into the positions."""
    run = make_run(tmp_path / "run", TIMM, texts["own"], prompter=SHARED, grounding=SPATIAL)
    folder = export("open_clip", run, tmp_path / "out")
    assert max(value for name, value in parity(folder).items() if "preprocessing" not in name) <= 1e-5
    check_loaded(run, folder)


@pytest.mark.parametrize(("format", "image"), [("open_clip", CNN), ("open_clip", BY_NAME), ("timm", CNN)])
def test_timm_by_name(format: str, image: dict[str, Any], texts: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", image | {"resize": "squash"}, texts["own"], prompter=SHARED)
    folder = export(format, run, tmp_path / "out")
    assert max(value for name, value in parity(folder).items() if "preprocessing" not in name) <= 1e-5
    if format == "open_clip":
        check_loaded(run, folder)


def test_a_squashed_view_and_a_bias_travel(texts: dict[str, Any], tmp_path: Path) -> None:
    """Those of crops stay behind: they served training alone."""
    bias = {"logit_bias": -10.0, "crop_scale": True}
    run = make_run(tmp_path / "run", OPEN_CLIP | {"resize": "squash"}, texts["own"], **bias)
    for format in ("hf", "open_clip"):
        folder = export(format, run, tmp_path / format)
        check_loaded(run, folder)
        own, again = load(run).model.biases, cloc.load(str(folder)).model.biases
        torch.testing.assert_close(again["global"], own["global"])
        assert set(own) == {"global", "crops"} and set(again) == {"global"}
        assert "both sides resized" in (folder / "README.md").read_text()


def test_what_obstructs_a_class_token_vit() -> None:
    from cloc.models.image import TimmTower
    from cloc.models.weights.other_formats import timm_obstacles

    def reasons(**options: Any) -> str:
        small = {"embed_dim": 32, "depth": 1, "num_heads": 2}
        return "; ".join(timm_obstacles(TimmTower(8, "vit_tiny_patch16_224", 32, options=small | options)))

    assert reasons() == ""
    assert "2 register tokens" in reasons(reg_tokens=2)
    assert "class token has no position" in reasons(no_embed_class=True)
    assert "pools by 'avg'" in reasons(global_pool="avg")
    assert "pools by 'map'" in reasons(global_pool="map", class_token=False)
    assert "scale their branches" in reasons(init_values=0.1) and "scale their branches" in reasons(qk_norm=True)
    assert "attention has no bias" in reasons(qkv_bias=False)
    assert "activation is SiLU" in reasons(act_layer="silu")


@pytest.mark.slow
def test_programs_hold_every_part(texts: dict[str, Any], tmp_path: Path) -> None:
    image_node = OPEN_CLIP | {"options": OPEN_CLIP["options"] | {"layers": 1}}
    run = make_run(tmp_path / "run", image_node, texts["own"], prompter=SHARED, grounding=SPATIAL)
    programs = export("torch", run, tmp_path / "out")
    rows = parity(programs)
    assert set(rows) == {"pooled", "tokens", "last", "penultimate", "text", "regions", "grounded"}
    assert max(rows.values()) <= 1e-5
    image = torch.export.load(programs / "image.pt2").module()
    regions = torch.export.load(programs / "regions.pt2").module()
    for batch, count in ((1, 1), (3, 5)):
        tokens = image(images=torch.zeros(batch, 3, 64, 64, dtype=torch.uint8))[1]
        assert regions(tokens=tokens, boxes=torch.rand(batch, count, 4)).shape == (batch, count, 32)
    assert load_program(programs / "ground.pt2")[1] == ("boxes",)
    for name in ("image", "text", "regions", "ground"):
        program, size = load_program(programs / f"{name}.pt2")[0], (programs / f"{name}.pt2").stat().st_size
        inputs = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
        used = {inputs[node.name] for node in program.graph.nodes if node.users and node.name in inputs}
        assert set(program.state_dict) <= used
        assert size < 500_000 + 4.4 * sum(value.numel() for value in program.state_dict.values())
    with pytest.raises(ValueError, match="is an export to torch"):
        cloc.load(str(programs))


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


def rewrite(source: Path, target: Path, change: dict[str, bytes], extra: dict[str, bytes] | None = None) -> Path:
    """Copy an archive, with other content for the members that end so."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            end = next((end for end in change if name.endswith(end)), None)
            new.writestr(name, change[end] if end else old.read(name))
        for name, data in (extra or {}).items():
            new.writestr(name, data)
    return target


def test_a_program_with_a_pickle_is_refused(tmp_path: Path) -> None:
    buffer, witness, good = io.BytesIO(), tmp_path / "witness", tmp_path / "good.pt2"
    torch.save(Payload(witness), buffer)
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, good, extra_files={"outputs": '["y"]'})
    assert load_program(good)[1] == ("y",)
    bad = rewrite(good, tmp_path / "inputs.pt2", {"data/sample_inputs/model.pt": buffer.getvalue()})
    with pytest.raises(ValueError, match="would run code"):
        load_program(bad)
    with zipfile.ZipFile(good) as archive:
        name = next(name for name in archive.namelist() if name.endswith("_weights_config.json"))
        config = json.loads(archive.read(name))
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    change = {"_weights_config.json": json.dumps(config).encode(), f"/{first['path_name']}": buffer.getvalue()}
    with pytest.raises(ValueError, match="is stored as a pickle"):
        load_program(rewrite(good, tmp_path / "weights.pt2", change))
    with pytest.raises(ValueError, match="not part of a plain program"):
        load_program(rewrite(good, tmp_path / "code.pt2", {}, {"good/data/aotinductor/m/m.so": b"code"}))
    (tmp_path / "half.pt2").write_bytes(good.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        load_program(tmp_path / "half.pt2")
    assert not witness.exists()


@pytest.mark.parametrize(
    ("prompter", "head"),
    [
        (SHARED | {"heads": 2}, SPATIAL),
        (PAPER, MLP),
        (READING, SPATIAL),
        (PAPER | {"average": "tokens", "positions": "fixed"}, MLP),
        (SHARED | {"focus": None}, MLP),
        (SHARED, None),
    ],
)
def test_regions_need_pytorch_alone(
    prompter: dict[str, Any], head: dict[str, Any] | None, texts: dict[str, Any], tmp_path: Path
) -> None:
    run = make_run(
        tmp_path / "run", CNN if head is None else OPEN_CLIP, texts["own"], prompter=prompter, grounding=head
    )
    folder = export("regions", run, tmp_path / "out")
    rows = parity(folder)
    assert set(rows) == {"regions"} | ({"grounded"} if head else set()) and max(rows.values()) <= 1e-6
    if prompter != SHARED | {"heads": 2}:  # one process is enough to show what is imported
        return
    encoder = load(run)
    tokens = torch.randn(2, encoder.model.grid[0] * encoder.model.grid[1], encoder.model.image.width)
    boxes = torch.tensor([[[0.1, 0.2, 0.5, 0.9]]] * 2)
    torch.save({"tokens": tokens, "boxes": boxes}, tmp_path / "asked.pt")
    script = """
import sys
for name in ("cloc", "torchvision", "timm", "open_clip", "transformers", "safetensors"):
    sys.modules[name] = None  # importing it is an error
import torch
from regions import RegionSampler
asked, sampler = torch.load("../asked.pt"), RegionSampler.load(".")
boxes = sampler.to_view(asked["boxes"], 200, 100)
torch.testing.assert_close(sampler.to_picture(boxes, 200, 100), asked["boxes"])
found = sampler.encode_regions(asked["tokens"], boxes)
found.sum().backward()
assert all(p.grad is not None for n, p in sampler.named_parameters() if n.startswith("prompter.box_prompt"))
torch.save({"found": found.detach(), "boxes": boxes}, "../answered.pt")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answered = torch.load(tmp_path / "answered.pt")
    expected = torch.tensor([[[0.1, 0.25 + 0.1, 0.5, 0.25 + 0.45]]] * 2)
    torch.testing.assert_close(answered["boxes"], expected)
    with torch.no_grad():
        prompter_, memory = encoder.model.prompter, encoder.model.prompter.memory(tokens)
        ours = torch.nn.functional.normalize(prompter_.boxes(memory, expected), dim=-1)
    torch.testing.assert_close(answered["found"], ours, atol=1e-6, rtol=0)


def test_regions_of_what_has_none(texts: dict[str, Any], tmp_path: Path) -> None:
    clip = load(make_run(tmp_path / "clip", OPEN_CLIP, texts["own"]))
    with pytest.raises(ExportError, match="no Prompter.*Possible for this model: hf, open_clip, timm, onnx, torch$"):
        check_pair(clip, "regions")
    roi = load(make_run(tmp_path / "roi", OPEN_CLIP, texts["own"], prompter=ROI))
    with pytest.raises(ExportError, match="RoiAlign, which needs torchvision"):
        check_pair(roi, "regions")
