"""Which weights are exported: newest, averaged, beside their moving average, blended; and runs that must not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import cloc
from cloc.__main__ import app
from cloc.export.capabilities import ExportError
from cloc.export.run_weights import Choice, load_source
from cloc.loading import load
from cloc.models.build import build_model
from cloc.models.foreign.base import nodes_of
from cloc.models.weights.averages import average, blend
from cloc.models.weights.pretrained import complete
from tests.kit.exporting import CNN, OPEN_CLIP, SHARED, TIMM, save, stored
from tests.kit.local_clip import random_open_clip

SMALL = OPEN_CLIP | {"options": OPEN_CLIP["options"] | {"width": 32, "head_width": 16, "layers": 1}}
TEXT = {
    "_target_": "cloc.models.text.ClipText",
    "context_length": 8,
    "options": {"width": 16, "heads": 2, "layers": 1},
}


def config(image: dict[str, Any] = SMALL, **parts: Any) -> dict[str, Any]:
    return {"joint_dim": 16, "image": image, "text": TEXT, "prompter": None, "grounding": None} | parts


def states(own: dict[str, Any], count: int) -> list[dict[str, torch.Tensor]]:
    """State dicts of the same model with other random weights."""
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        found.append({name: value.clone() for name, value in build_model(own).state_dict().items()})
    return found


def of(folder: Path) -> dict[str, torch.Tensor]:
    return cloc.load(str(folder)).model.state_dict()


def test_an_average_is_the_mean_in_double() -> None:
    found = states(config(CNN), 3)
    found[0]["image.trunk.bn1.num_batches_tracked"] = torch.tensor(7)
    mean = average(found)
    for name, value in mean.items():
        if value.is_floating_point():
            naive = (found[0][name].double() + found[1][name].double() + found[2][name].double()) / 3
            torch.testing.assert_close(value, naive.float(), atol=0, rtol=1e-6)
    assert mean["image.trunk.bn1.num_batches_tracked"] == 7


def test_a_blend_is_linear() -> None:
    base, run = states(config(), 2)
    mixed, apart = blend(base, run, 0.25, "base")
    for name, value in mixed.items():
        torch.testing.assert_close(value, 0.75 * base[name] + 0.25 * run[name])
    assert apart == []
    for alpha, end in ((0.0, base), (1.0, run)):
        assert all(torch.equal(value, end[name]) for name, value in blend(base, run, alpha, "b")[0].items())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three checkpoints, the newest of which holds a moving average."""
    folder, own = tmp_path / "run", config()
    for step, state in enumerate(states(own, 3), start=1):
        content = stored(state, own)
        if step == 3:
            content["current_model_state"] = {name: value + 1 for name, value in content["state_dict"].items()}
        save(folder / "checkpoints" / f"step-{step:08d}.ckpt", content)
    (folder / "checkpoints" / "last.ckpt").symlink_to("step-00000003.ckpt")
    return folder


def test_the_command_exports_what_was_chosen(run: Path, tmp_path: Path) -> None:
    found = states(config(), 3)
    name = "image.visual.conv1.weight"

    def export(out: str, *options: str) -> torch.Tensor:
        result = CliRunner().invoke(app, ["export", "open_clip", str(run), str(tmp_path / out), *options])
        assert result.exit_code == 0, result.output
        return of(tmp_path / out)[name]

    torch.testing.assert_close(export("newest"), found[2][name])
    torch.testing.assert_close(export("mean", "--average", "2"), (found[1][name] + found[2][name]) / 2)
    save(tmp_path / "base.ckpt", stored(found[0], config()))
    torch.testing.assert_close(
        export("blend", "--base", str(tmp_path / "base.ckpt"), "--alpha", "0.5"), (found[0][name] + found[2][name]) / 2
    )
    assert "the moving average of the weights" in (tmp_path / "newest" / "README.md").read_text()
    card = (tmp_path / "mean" / "README.md").read_text()
    assert "mean of step-00000003.ckpt, step-00000002.ckpt" in card
    said = json.loads((tmp_path / "blend" / "cloc.json").read_text())["weights"]
    assert said == "the moving average of the weights; 0.5 of the run and 0.5 of base.ckpt"
    raw = load_source(run, Choice(raw=True))
    torch.testing.assert_close(raw.model.state_dict()[name], found[2][name] + 1)
    assert raw.info["weights"] == "the trained weights beside their moving average"
    named = load_source(run / "checkpoints" / "step-00000002.ckpt", Choice(average=2))
    torch.testing.assert_close(named.model.state_dict()[name], (found[0][name] + found[1][name]) / 2)


def test_what_the_base_lacks_stays_the_runs(tmp_path: Path) -> None:
    plain, whole = config(), config(prompter=SHARED)
    base, run = states(plain, 1)[0], states(whole, 2)[1]
    save(tmp_path / "base.ckpt", stored(base, plain))
    save(tmp_path / "run.ckpt", stored(run, whole))
    encoder = load_source(tmp_path / "run.ckpt", Choice(base=tmp_path / "base.ckpt", alpha=0.0))
    state = encoder.model.state_dict()
    assert torch.equal(state["image.visual.proj"], base["image.visual.proj"])
    assert torch.equal(state["prompter.query.weight"], run["prompter.query.weight"])
    assert "log_scales, prompter of the run alone" in encoder.info["weights"]
    save(tmp_path / "cnn.ckpt", stored(states(config(CNN), 1)[0], config(CNN)))
    with pytest.raises(ValueError, match="has other towers"):
        load_source(tmp_path / "run.ckpt", Choice(base=tmp_path / "cnn.ckpt", alpha=0.5))


def test_the_folder_that_a_run_started_from_is_a_base(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = shape | {"image_size": 32, "patch_size": 16, "hidden_act": "gelu", "projection_dim": 16}
    text = shape | {"vocab_size": 49408, "hidden_act": "gelu", "projection_dim": 16, "eos_token_id": 49407}
    text |= {"max_position_embeddings": 8, "bos_token_id": 49406}
    model = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16))
    model.save_pretrained(tmp_path / "clip")
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(pixels))
    from cloc.models.weights.pretrained import complete

    node = {"pretrained": str(tmp_path / "clip")}
    own = complete(
        config({"_target_": OPEN_CLIP["_target_"], "image_size": 32} | node)
        | {"text": {"_target_": "cloc.models.text.ClipText"} | node}
    )
    trained = {name: value + 1 for name, value in build_model(own).state_dict().items()}
    save(tmp_path / "run.ckpt", stored(trained, own))
    half = load_source(tmp_path / "run.ckpt", Choice(base=tmp_path / "clip", alpha=0.5)).model.state_dict()
    for name in ("image.visual.conv1.weight", "text.tower.positional_embedding"):
        torch.testing.assert_close(half[name], trained[name] - 0.5)
    with pytest.raises(ExportError, match="is a model of another library"):
        load_source(tmp_path / "clip", Choice())


def test_a_run_is_blended_with_what_it_started_from(tmp_path: Path) -> None:
    """By the name in its configuration, as long as that is here: what a file says fetches nothing."""
    own = config()
    base, run = states(own, 2)
    save(tmp_path / "base.ckpt", stored(base, own))
    for key in ("base", "init_from"):
        content = stored(run, own)
        content["cloc"]["config"][key] = str(tmp_path / "base.ckpt")
        save(tmp_path / "run.ckpt", content)
        half = load_source(tmp_path / "run.ckpt", Choice(alpha=0.5))
        name = "image.visual.conv1.weight"
        torch.testing.assert_close(half.model.state_dict()[name], (base[name] + run[name]) / 2)
        assert half.info["weights"] == "0.5 of the run and 0.5 of base.ckpt"
    for name, why in (("open_clip:ViT-B-16:openai", "which may be a download"), ("gone", "which is not there")):
        content["cloc"]["config"]["base"] = name
        save(tmp_path / "run.ckpt", content)
        with pytest.raises(ExportError, match=f"has started from {name}, {why}; name the base yourself: --base {name}"):
            load_source(tmp_path / "run.ckpt", Choice(alpha=0.5))


@pytest.mark.parametrize("kind", ["local-dir", "toy-blend"])
def test_a_base_of_open_clip_that_lies_here_is_blended_without_its_place_in_the_card(kind: str, tmp_path: Path) -> None:
    """``open_clip:local-dir:FOLDER`` and ``open_clip:NAME:FILE``: a card does not tell the paths of a machine."""
    folder = random_open_clip(tmp_path / "clip", "toy-blend")
    place = folder if kind == "local-dir" else folder / "open_clip_model.safetensors"
    name = f"open_clip:{kind}:{place}"
    nodes = complete(nodes_of(name))
    own = nodes | {"prompter": None, "grounding": None}
    own |= {part: {key: value for key, value in own[part].items() if key != "pretrained"} for part in ("image", "text")}
    content = stored(states(own, 1)[0], own)
    content["cloc"]["config"]["base"] = name
    save(tmp_path / "run.ckpt", content)
    said = load_source(tmp_path / "run.ckpt", Choice(alpha=0.5)).info["weights"]
    assert said.startswith("0.5 of the run and 0.5 of ") and place.name in said and str(tmp_path) not in said


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(alpha=0.5), "--alpha without --base: .* has started from no other model"),
        (Choice(base=Path("x")), "--base goes with --alpha, the share of RUN"),
        (Choice(base=Path("x"), alpha=1.5), "--alpha 1.5: a share in 0..1"),
        (Choice(average=0), "--average 0: at least 1"),
        (Choice(average=4), r"--average 4: .* holds 3 checkpoints .*trainer.keep_last"),
    ],
)
def test_choices_that_are_refused(run: Path, choice: Choice, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        load_source(run, choice)


def test_runs_that_are_refused(tmp_path: Path) -> None:
    own = config()
    state = states(own, 1)[0]
    short = stored(state, own, samples_seen=4)
    save(tmp_path / "short" / "checkpoints" / "last.ckpt", short)
    with pytest.raises(ExportError, match="has not finished: 4 of 8 samples.*--unfinished"):
        load_source(tmp_path / "short", Choice())
    load_source(tmp_path / "short", Choice(unfinished=True))
    load_source(tmp_path / "short" / "checkpoints" / "last.ckpt", Choice())  # this one was named
    save(tmp_path / "plain.ckpt", stored(state, own))
    with pytest.raises(ValueError, match="trained without an average .trainer.ema=0"):
        load_source(tmp_path / "plain.ckpt", Choice(raw=True))


def test_checkpoints_of_another_version(tmp_path: Path) -> None:
    own = config()
    state = states(own, 1)[0]
    save(tmp_path / "new.ckpt", stored(state, own, version="9.1.0"))
    with pytest.raises(ValueError, match="written by cloc 9.1.0, this is .*pip install -U 'cloc-pretrain>=9.1.0'"):
        load(tmp_path / "new.ckpt")
    state.pop("image.visual.proj")
    save(tmp_path / "old.ckpt", stored(state, own, version="0.0.3"))
    with pytest.raises(ValueError, match="do not fit this version; it was written by cloc 0.0.3"):
        load(tmp_path / "old.ckpt")
    renamed = own | {"prompter": {"_target_": "cloc.models.prompter.Forgotten"}}
    save(tmp_path / "other.ckpt", stored(state, renamed, version="0.0.3"))
    with pytest.raises(ValueError, match="written by cloc 0.0.3.*model.prompter._target_"):
        load(tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    ("part", "node"),
    [
        ("text", {"options": {"layers": False}}),
        ("text", {"options": {"layers": -0.5}}),
        ("text", {"options": {"layers": "1"}}),
        ("text", {"options": {"heads": 0}}),
        ("text", {"_target_": ["a", 1, None]}),
        ("text", {"context_length": "long"}),
        ("image", {"options": {"depth": 2**64}}),
        ("image", {"options": {"num_heads": "1"}}),
        ("image", {"image_size": [1, 2, 3]}),
    ],
)
def test_values_that_build_no_model_are_told_in_a_line(part: str, node: dict[str, Any], tmp_path: Path) -> None:
    """Libraries raise TypeError, OverflowError and others there."""
    own = config() | {"image": TIMM, "text": TEXT}
    save(tmp_path / "x.ckpt", stored({}, own | {part: own[part] | node}))
    with pytest.raises(ValueError, match="x.ckpt") as caught:
        load(tmp_path / "x.ckpt")
    assert "\n" not in str(caught.value)


def test_folders_whose_values_build_no_model_are_told_in_a_line(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    folder, file = tmp_path / "x", tmp_path / "x" / "open_clip_config.json"
    folder.mkdir()
    whole = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": {}}
    for section, change in (("vision_cfg", {"layers": "x"}), ("text_cfg", {"heads": 0}), ("text_cfg", None)):
        section_of = whole["model_cfg"][section] | change if change else 7
        file.write_text(json.dumps(whole | {"model_cfg": whole["model_cfg"] | {section: section_of}}))
        with pytest.raises(ValueError, match="x") as caught:
            load(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    file.unlink()
    for kind in ("clip", "siglip"):
        (folder / "config.json").write_text(json.dumps({"model_type": kind, "vision_config": {"hidden_size": "x"}}))
        (folder / "preprocessor_config.json").write_text("{}")
        with pytest.raises((ValueError, OSError), match=str(folder)) as caught:
            load(folder)
