"""``base``: a model named once; a run begins as it computes, is taught by it, and what cannot be one is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file

import cloc
from cloc.config import ConfigError, validate
from cloc.engine import run
from cloc.engine.base import follow
from cloc.engine.module import Pretrain
from cloc.models.foreign.base import is_fetched, is_of_others
from cloc.models.temperature import MAX_SCALE
from tests.kit.exporting import make_run
from tests.kit.local_clip import random_clip, random_open_clip, random_siglip
from tests.kit.paths import ROOT
from tests.kit.resuming import make_squares

WORDS = ["a red square and a green square", "blue white"]
OWN = [
    "samples=16",
    "batch_size=8",
    "optim.warmup=0",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.log_every=1",
    "data.workers=0",
    "evaluation.every=0",
    "evaluation.at_start=false",
    "evaluation.data=[]",
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small model of each kind, and shards."""
    folder = tmp_path_factory.mktemp("bases")
    random_clip(folder / "clip", WORDS)
    random_siglip(folder / "siglip", WORDS)
    random_open_clip(folder / "open_clip")
    make_run(folder / "run")
    return make_squares(folder)


def composed(bases: Path, base: str, *more: str) -> DictConfig:
    own = [f"data.train={bases / 'train'}", f"run_dir={bases / 'unused'}", *OWN]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", ["experiment=finetune_clip_cloc", f"base={base}", *own, *more])


def named(bases: Path, kind: str) -> str:
    if kind == "file":
        return f"open_clip:toy-base:{bases / 'open_clip/open_clip_model.safetensors'}"
    return f"open_clip:local-dir:{bases / 'open_clip'}" if kind == "local-dir" else str(bases / kind)


def begun(config: DictConfig) -> Pretrain:
    """The task as a run begins with it."""
    config = Pretrain.follow(config)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    checked = validate(config)
    Pretrain.complete(resolved)
    task = Pretrain(checked, resolved)
    task.begin()
    return task


NAMES = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("local-dir", "file")]  # of what "open_clip" is, too


@pytest.mark.parametrize("kind", ["clip", "siglip", "open_clip", *NAMES, "run"])
def test_a_run_begins_as_its_base_computes(bases: Path, kind: str) -> None:
    """Pictures, texts, temperature: equal to what ``cloc.load`` says of the base; nothing of it was named twice."""
    more = ["loss.contrast=sigmoid"] if kind == "siglip" else []
    name = named(bases, kind)
    task = begun(composed(bases, name, *more))
    model, base = task.model.eval(), cloc.load(name)
    assert f"from {name}; prompter, grounding, " in task.notes[-3] and "teacher: both towers" in task.notes[-2]
    side = base.model.image.image_size
    views = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.encode_images(views).pooled, base.model.encode_images(views).pooled)
        texts = ["a red square", "blue and white"]
        tokens = torch.stack([torch.tensor(list(ids) + [0] * (12 - len(ids))) for ids in map(ids_of(task), texts)])
        torch.testing.assert_close(model.encode_texts(tokens), base.encode_text(texts), atol=1e-5, rtol=1e-5)
    expected = base.model.scales()["global"] if kind == "run" else torch.tensor([3.0]).exp().clamp(max=MAX_SCALE)
    torch.testing.assert_close(model.scales()["global"], expected)
    assert ("global" in model.biases) == (kind == "siglip")
    if kind == "siglip":
        assert model.biases["global"].item() == -9.0 and model.biases["region"].item() == -10.0
    stored = task.resolved["model"]
    assert "pretrained" not in stored["image"] and "pretrained" not in stored["text"]
    if kind in ("clip", "open_clip", "file"):
        assert kind == "file" or stored["image"]["quick_gelu"]  # the architecture says it there
        assert stored["joint_dim"] == 24 and stored["image"]["image_size"] == 32


def ids_of(task: Pretrain) -> Any:
    from cloc.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.of(task.model.text)
    return lambda text: tokenizer.encode(text)[0]


def test_a_tag_of_open_clip_says_all_without_a_network(bases: Path) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain = compose("train", ["experiment=finetune_clip_cloc", "data.train=x"])
    assert plain.base == "open_clip:ViT-B-16:laion2b_s34b_b88k"
    model = follow(plain).model
    assert (model.joint_dim, model.image.image_size, model.text.tokenizer) == (512, 224, "open_clip")
    sizes = {"openai": True, "laion2b_s34b_b88k": False}
    for tag, quick in sizes.items():
        found = follow(composed(bases, f"open_clip:ViT-B-16:{tag}")).model
        assert found.image.get("quick_gelu", False) is quick and list(found.image.mean)[0] == pytest.approx(
            0.4815, abs=1e-3
        )
    siglip = follow(composed(bases, "open_clip:ViT-B-16-SigLIP:webli", "loss.contrast=sigmoid")).model
    assert siglip.text.tokenizer == "timm/ViT-B-16-SigLIP" and siglip.text.context_length == 64
    assert siglip.logit_bias == -10 and list(siglip.image.mean) == [0.5] * 3 and siglip.text.clean == "canonicalize"
    assert is_fetched("open_clip:ViT-B-16:openai") and is_fetched("hf://openai/clip-vit-base-patch16")
    assert not is_fetched(str(bases / "clip")) and is_of_others(str(bases / "clip"))
    assert not is_of_others(str(bases / "run"))


def test_a_repository_of_the_hub_is_its_folder(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def snapshot(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        return str(bases / "clip")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr("cloc.data.downloads.unreachable", lambda url: None)
    found = follow(composed(bases, "hf://openai/clip-vit-base-patch16@main")).model
    assert found.joint_dim == 24 and set(asked) == {("openai/clip-vit-base-patch16", "main")}


def test_a_rehearsal_fetches_no_weights_for_a_teacher_either(bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(bases / "clip"))
    monkeypatch.setattr("cloc.data.downloads.unreachable", lambda url: None)
    config = Pretrain.follow(composed(bases, "hf://somebody/clip"))
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    Pretrain.complete(resolved)
    task = Pretrain.rehearse(validate(config), resolved)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    task.go_on({"teacher": "0" * 16})
    assert task.notes[-1] == "teacher: hf://somebody/clip, fetched when the run goes on" and not task.teacher
    task.fetches = True  # the run itself
    with pytest.raises(AssertionError, match="fetched"):
        task.go_on({"teacher": "0" * 16})


def fetched(*_: Any, **__: Any) -> str:
    raise AssertionError("fetched")


@pytest.mark.parametrize("base", ["hf://somebody/clip", "open_clip:hf-hub:somebody/clip", "SECRET"])
def test_a_run_of_others_is_loaded_without_a_look_at_what_it_names(
    bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    """Its ``base`` may be gone, or be a name that a stranger has chosen: neither fetched nor opened."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    for module in ("cloc.models.foreign.base", "cloc.engine.durable.initial_weights"):
        monkeypatch.setattr(f"{module}.model_of", fetched)
    run_folder = shutil.copytree(bases / "run", tmp_path / "run", symlinks=True)
    file = (run_folder / "checkpoints/last.ckpt").resolve()
    stored = torch.load(file, weights_only=True)
    named = base.replace("SECRET", str(tmp_path / "secret"))
    stored["cloc"]["config"] |= {"base": named, "loss": {"distill": 1.0}}
    torch.save(stored, file)
    assert cloc.load(run_folder).encode_text("a red square").shape == (1, 32)


def test_what_is_said_beside_a_base_holds(bases: Path) -> None:
    more = ["+model.image.image_size=64", "+model.image.resize=squash", "+model.text.context_length=32"]
    task = begun(composed(bases, named(bases, "clip"), *more))
    assert task.model.grid == (8, 8) and task.model.image.resize == "squash" and task.model.text.context_length == 32
    again = begun(composed(bases, str(bases / "run"), "+model.image.image_size=128"))
    assert again.model.grid == (8, 8)


@pytest.mark.parametrize(
    ("base", "more", "message"),
    [
        ("open_clip:ViT-B-16:laion3b", [], r"base=open_clip:ViT-B-16:laion3b: .* its tags are \['openai', 'laion"),
        ("open_clip:ViT-B-17:openai", [], r"base=open_clip:ViT-B-17:openai: 'ViT-B-17' is not an open_clip archi"),
        ("open_clip:ViT-B-16", [], r"base=open_clip:ViT-B-16: no weights are named; give open_clip:ViT-B-16:FILE or"),
        ("open_clip:roberta-ViT-B-32:laion2b_s12b_b32k", [], r"its text tower is transformers' 'roberta-base'"),
        ("open_clip:coca_ViT-B-32:laion2b_s13b_b90k", [], r"its text tower \(CoCa's\) has a class token"),
        ("open_clip:local-dir:nowhere", [], r"base=open_clip:local-dir:nowhere: no folder nowhere"),
        ("nowhere", [], r"^base=nowhere: no run, .* or hf://OWNER/NAME. .*nowhere: no checkpoint at"),
        ("7", [], r"^base=7: no run, "),
        ("BASES", [], r"^base=.*: no run, checkpoint, export, folder of open_clip or Hugging Face"),
        ("BASES/note.txt", [], r"^base=.*note.txt: no run, .* damaged or no checkpoint"),
        ("hf://", [], r"^base=hf://: '' names no repository of the hub; write OWNER/NAME"),
        (
            "BASES/vision",
            [],
            r"base=.*vision: its text tower is missing \(config.json: clip_vision_model\); give the fol",
        ),
        ("BASES/blind_text", [], r"base=.*blind_text: .*holds no weight of the text tower; is the folder a whole"),
        ("BASES/timm", [], r"base=.*timm: its text tower is missing \(config.json: timm\); .* model.image.pretrained="),
        ("BASES/bert", [], r"base=.*bert: model_type='bert' of config.json is no CLIP"),
        ("BASES/clip", ["model=tiny"], r"base=.* brings both towers, and model.image names one; choose model=base"),
        ("BASES/clip", ["+model.image.options={width: 8}"], r"model.image.options=.*says it; beside a base"),
        ("BASES/clip", ["+model.joint_dim=8"], r"model.joint_dim=8: base=.*clip has joint width 24; leave it out"),
        ("BASES/clip", ["init_from=x"], r"base=.*clip with init_from=x: both say where weights come from; give one"),
        ("BASES/clip", ["loss.contrast=sigmoid"], r"loss.contrast=sigmoid with model.logit_bias=None"),
        ("BASES/siglip", ["+model.text.context_length=40"], r"context_length=40 .* reads texts padded to 12 tokens"),
        ("null", [], r"model names no towers: model=base takes them from base=MODEL"),
        ("BASES/clip", ["+model.image.image_size=30"], r"image_size"),
    ],
)
def test_what_cannot_be_a_base_is_told_in_a_line(bases: Path, base: str, more: list[str], message: str) -> None:
    for name, stored in (
        ("vision", {"model_type": "clip_vision_model"}),
        ("timm", {"architecture": "resnet18"}),
        ("bert", {"model_type": "bert"}),
    ):
        (bases / name).mkdir(exist_ok=True)
        (bases / name / "config.json").write_text(json.dumps(stored))
    shutil.copytree(bases / "open_clip", bases / "blind_text", dirs_exist_ok=True)
    weights = bases / "blind_text/open_clip_model.safetensors"
    whole = load_file(weights).items()
    save_file({name if name.startswith("visual") else f"kept.{name}": value for name, value in whole}, weights)
    (bases / "note.txt").write_text("a dog")
    with pytest.raises((ConfigError, FileNotFoundError), match=message) as told:
        begun(composed(bases, base.replace("BASES", str(bases)), *more))
    assert "\n" not in str(told.value)


def test_a_teacher_needs_a_start(bases: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"loss\.distill=1\.0 needs a teacher, but there is none; .*: base, or init_f"
    ):
        validate(composed(bases, "null", "model=tiny"))


def test_a_cnn_goes_where_it_can(bases: Path, tmp_path: Path) -> None:
    """CLIP's ResNet trains; the plan says which formats hold it."""
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    random_open_clip(tmp_path / "resnet", "toy-base-resnet", vision_cfg=vision, quick_gelu=False)
    task = begun(composed(bases, str(tmp_path / "resnet")))
    assert task.notes[-1].startswith("will export to open_clip, torch, not to hf (")


@pytest.mark.slow
def test_training_and_resuming_with_a_teacher(bases: Path, tmp_path: Path) -> None:
    """Checkpoints do not hold it, a run that was stopped goes on to the same weights, another base is refused."""
    own = shutil.copytree(bases / "clip", tmp_path / "base")

    def train(folder: str, *more: str) -> dict[str, Any]:
        run.train(composed(bases, str(own), f"run_dir={tmp_path / folder}", *more))
        return torch.load(tmp_path / folder / "checkpoints/last.ckpt", weights_only=True)

    every = "trainer.checkpoint_every=8"
    whole, first = train("whole", "samples=16"), train("stopped", "samples=8", every)
    assert not [name for name in whole["state_dict"] if "teacher" in name] and first["cloc"]["teacher"]
    again = train("stopped", "samples=16", every)
    for name, value in whole["state_dict"].items():
        assert name.startswith("model.") and torch.equal(again["state_dict"][name], value), name
    assert "loss/distill" in (tmp_path / "whole/metrics.csv").read_text().splitlines()[0]
    parted = train("parted", "samples=16", "trainer.accumulate=4")
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(parted["state_dict"][name], value, atol=2e-4, rtol=0, msg=name)
    loaded = cloc.load(tmp_path / "whole")
    assert loaded.can_ground and loaded.encode_text("a red square").shape == (1, 24)
    state = own / "model.safetensors"
    state.write_bytes(state.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(ConfigError, match=r"base=.*: its weights are not those that the run has started from"):
        train("stopped", "samples=24")
    shutil.rmtree(own)
    again = cloc.load(tmp_path / "whole")  # a checkpoint needs nothing of its base, not even its tokenizer
    torch.testing.assert_close(again.encode_text("a red square"), loaded.encode_text("a red square"))
