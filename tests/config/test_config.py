"""Every configuration composes, validates and builds; a wrong one fails with the key's name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from cloc.config import (
    ConfigError,
    EvalConfig,
    TrainConfig,
    check_overrides,
    instantiate,
    register_eval,
    validate,
)
from cloc.engine.base import follow
from cloc.losses.objective import ClocLoss
from cloc.models.build import build_model
from tests.kit.paths import ROOT

CONF = ROOT / "conf"
EXPERIMENTS = sorted(
    path.relative_to(CONF / "experiment").with_suffix("").as_posix() for path in CONF.rglob("experiment/**/*.yaml")
)
RUN = ["name=toy", "samples=64", "batch_size=8", "data.train=nowhere"]


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def composed(*overrides: str) -> DictConfig:
    return compose("train", list(overrides))


def rejected(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(composed(*RUN, *overrides))
    return str(caught.value)


def test_there_are_experiments() -> None:
    assert {"demo_clip", "demo_cloc"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_a_complete_run(experiment: str) -> None:
    config = validate(composed(f"experiment={experiment}"))
    assert isinstance(config, TrainConfig)
    assert config.samples >= config.batch_size >= 1
    assert config.run_dir == f"runs/{config.name}"
    header = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()[:8]
    assert any(f"experiment={experiment}" in line for line in header if line.startswith("#")), (
        "no launch command on top"
    )


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_builds_its_loss_and_evaluates_known_sets(experiment: str) -> None:
    config = validate(composed(f"experiment={experiment}"))
    loss = instantiate(config.loss, "loss")
    assert loss.needs_regions == (config.model.prompter is not None or config.data.crops > 0)
    assert set(config.evaluation.data) <= set(config.datasets)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_builds_its_model(experiment: str) -> None:
    whole = follow(composed(f"experiment={experiment}"))  # with the towers of a base, where it names one
    resolved: dict[str, Any] = OmegaConf.to_container(whole, resolve=True)["model"]
    text = str(resolved["text"].get("name", ""))
    if "HuggingFace" in resolved["text"]["_target_"] and not Path(text).expanduser().is_dir():
        resolved["text"] = {"_target_": "cloc.models.text.ClipText", "options": {"width": 32, "heads": 2, "layers": 1}}
    with torch.device("meta"):  # shapes without memory: the largest builds too
        model = build_model(resolved, pretrained=False)
    assert (model.prompter is not None) == bool(resolved["prompter"])
    assert (model.grounding is not None) == bool(resolved["grounding"])


def test_the_model_that_knows_words_sees_as_the_demo_does() -> None:
    own, plain = (composed(*RUN, f"model={name}").model for name in ("tiny_minilm", "tiny"))
    assert {**own, "text": None} == {**plain, "text": None}


@pytest.mark.parametrize(
    ("method", "baseline"),
    [
        ("demo_cloc", "demo_clip_crops"),
        ("demo_cloc_words", "demo_clip_words_crops"),
        ("flickr8k_cloc", "flickr8k_clip_crops"),
    ],
)
def test_clip_with_crops_leaves_out_the_pairs_that_cloc_leaves_out(method: str, baseline: str) -> None:
    """``loss=clip`` names no rule for texts that mean the same: the class's own holds then."""
    default = signature(ClocLoss).parameters["conflicts"].default
    rules = [composed(*RUN, f"experiment={name}").loss.get("conflicts", default) for name in (method, baseline)]
    assert rules[0] == rules[1]


def group_choices() -> list[str]:
    """Every file of every group that train.yaml can choose from."""
    return sorted(
        f"{path.parent.relative_to(CONF).as_posix()}={path.stem}"
        for path in CONF.glob("**/*.yaml")
        if path.parent != CONF and path.relative_to(CONF).parts[0] not in ("experiment", "sweep", "hydra")
    )


@pytest.mark.parametrize("choice", group_choices())
def test_every_choice_of_every_group_validates(choice: str) -> None:
    try:
        config = composed(*RUN, choice)
    except ConfigCompositionException:  # a group that the defaults leave out
        choice = f"+{choice}"
        config = composed(*RUN, choice)
    if choice == "model=base":
        config = follow(composed(*RUN, choice, "base=open_clip:ViT-B-16:openai"))
    if config.model.prompter is None and choice != "loss=clip":
        config = composed(*RUN, choice, "loss=clip")
    if choice == "loss=clip":
        config = composed(*RUN, choice, "model.prompter=null", "model.grounding=null")
    if config.model.grounding is None:
        config.loss.grounding = 0.0
    assert isinstance(validate(config), TrainConfig)


def test_eval_yaml_composes_and_validates(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is registered would otherwise stay for the tests that follow.
    monkeypatch.setattr(ConfigStore.instance(), "repo", deepcopy(ConfigStore.instance().repo))
    GlobalHydra.instance().clear()
    register_eval()
    with initialize(None, version_base="1.3"):
        config = compose("eval", ["checkpoint=runs/demo/cloc", "data=[openmoji]", "baseline=[runs/demo/clip]"])
    found = validate(config, EvalConfig)
    assert (found.checkpoint, found.data, found.baseline) == ("runs/demo/cloc", ["openmoji"], ["runs/demo/clip"])
    assert "prompter" in found.evaluation.sources
    assert set(found.data) <= set(found.datasets)


def test_eval_names_a_missing_checkpoint_and_unknown_keys() -> None:
    with pytest.raises(ConfigError, match="no value for checkpoint"):
        validate({"data": ["openmoji"]}, EvalConfig)
    with pytest.raises(ConfigError, match="'chekpoint'"):
        validate({"chekpoint": "x"}, EvalConfig)


def test_missing_values_are_listed() -> None:
    with pytest.raises(ConfigError, match="no value for batch_size, data.train, name, run_dir, samples"):
        validate({})


@pytest.mark.parametrize(
    ("override", "key", "meant"),
    [
        ("+optim.learning_rate=1", "optim.learning_rate", None),
        ("+optim.weight_decai=1", "optim.weight_decai", "weight_decay"),
        ("+batchsize=8", "batchsize", "batch_size"),
        ("+trainer.device=2", "trainer.device", "devices"),
        ("+loss.conflict=exact", "loss.conflict", "conflicts"),
        ("+model.image.img_size=64", "model.image.img_size", "image_size"),
        ("+model.text.tokeniser=x", "model.text.tokeniser", "tokenizer"),
        ("+model.prompter.head=2", "model.prompter.head", "heads"),
        ("+model.grounding.grids=2", "model.grounding.grids", "grid"),
        ("+datasets.openmoji.shard=x", "datasets.openmoji.shard", None),
    ],
)
def test_an_unknown_key_is_named_with_what_was_meant(override: str, key: str, meant: str | None) -> None:
    message = rejected(override)
    assert key in message
    if meant:
        assert f"did you mean {meant!r}?" in message


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.prompter=null", "model.grounding=null"], ["loss.region=1.0", "model.prompter is null"]),
        (["model.prompter=null", "loss.region=0"], ["loss.grounding=1.0", "model.prompter is null"]),
        (["model.grounding=null"], ["loss.grounding=1.0", "model.grounding is null"]),
        (["optim.name=sgd"], ["optim.name='sgd'", "adamw or muon"]),
        (["batch_size=0"], ["batch_size=0"]),
        (["samples=-1"], ["samples=-1"]),
        (["data.regions=0"], ["data.regions=0"]),
        (["data.negatives=-1"], ["data.negatives=-1"]),
        (["data.negatives=2", "loss.region=0"], ["data.negatives=2", "loss.region=0"]),
        (["loss.contrast=sigmoid"], ["loss.contrast=sigmoid", "model.logit_bias=-10"]),
        (["model.logit_bias=-10"], ["loss.contrast=softmax with model.logit_bias=-10"]),
        (["batch_size=many"], ["batch_size", "many"]),
        (["data.crop=wide"], ["data.crop", "wide"]),
    ],
)
def test_a_contradiction_or_wrong_type_names_key_and_value(overrides: list[str], told: list[str]) -> None:
    message = rejected(*overrides)
    for part in told:
        assert part in message


@pytest.mark.parametrize("target", ["os.system", "clock.models.x", "cloc", None])
@pytest.mark.parametrize("node", ["model.image", "model.text", "model.prompter", "model.grounding", "loss"])
def test_a_target_that_is_no_class_is_refused(node: str, target: str | None) -> None:
    config = composed(*RUN)
    OmegaConf.set_struct(config, False)
    OmegaConf.update(config, f"{node}._target_", target)
    with pytest.raises(ConfigError, match=rf"{node}\._target_="):
        validate(config)


def test_a_node_that_is_no_node_is_told_in_a_line() -> None:
    config = composed(*RUN, "name=x")
    OmegaConf.set_struct(config, False)
    config.loss = "${name}"
    with pytest.raises(ConfigError, match="loss='x': must be a node"):
        validate(config)


def test_a_target_may_be_any_class_and_its_keys_are_checked() -> None:
    config = composed(*RUN, "model.image._target_=torch.nn.Linear")
    with pytest.raises(ConfigError, match=r"model\.image\.positions: torch\.nn\.Linear has no such argument"):
        validate(config)
    built = instantiate({"_target_": "torch.nn.Linear", "in_features": 3}, "model.prompter", out_features=2)
    assert built.weight.shape == (2, 3)


@pytest.mark.parametrize(
    "target", ["cloc.models.image.Timm", "cloc.models.nothing.Timm", "cloc.models.image.torch.load"]
)
def test_a_target_that_is_not_there_is_named(target: str) -> None:
    config = composed(*RUN)
    OmegaConf.update(config, "model.image._target_", target)
    with pytest.raises(ConfigError, match=r"model\.image\._target_="):
        validate(config)


@pytest.mark.parametrize(
    "target", ["cloc.data.shards.writer.write_shards", "cloc.config.nodes.inspect", "cloc.models.image.nn"]
)
def test_a_target_is_a_class_and_nothing_else_that_a_module_holds(target: str) -> None:
    with pytest.raises(ConfigError, match="must name a class"):
        instantiate({"_target_": target}, "model.image")


def test_a_keyword_of_python_is_spelled_without_its_underscore() -> None:
    loss = instantiate({"_target_": "cloc.losses.objective.ClocLoss", "global": 0.25}, "loss")
    assert loss.terms[0].weight == 0.25


def test_the_context_yields_to_the_node() -> None:
    node = {"_target_": "cloc.models.prompter.RoiAlign", "joint_dim": 7}
    built = instantiate(node, "model.prompter", width=4, joint_dim=3, grid=(2, 2), unknown=1)
    assert built.proj.out_features == 7


def test_a_wrong_value_is_told_before_the_heavy_imports() -> None:
    command = [sys.executable, "-X", "importtime", "train.py", "experiment=demo_cloc", "batch_size=many"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1
    assert "ConfigError: configuration key 'batch_size'" in found.stderr
    imported = {line.rsplit("|", 1)[1].strip() for line in found.stderr.splitlines() if line.startswith("import time:")}
    assert "hydra" in imported
    assert not imported & {"torch", "lightning", "open_clip", "timm"}


@pytest.mark.parametrize(
    ("script", "argument", "told"),
    [
        ("eval.py", "output=x", "'output': Key 'output' not in 'EvalConfig'; did you mean 'out'?"),
        ("eval.py", "evaluation.bootstrp=3", "Key 'bootstrp' not in 'EvaluationConfig'; did you mean 'bootstrap'?"),
        ("train.py", "sampls=3", "'sampls': Key 'sampls' not in 'TrainConfig'; did you mean 'samples'?"),
    ],
)
def test_an_unknown_key_of_a_command_line_is_one_line(script: str, argument: str, told: str) -> None:
    done = subprocess.run([sys.executable, script, argument], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("ConfigError: configuration key ") and told in done.stderr
    assert done.stderr.count("\n") == 1


def test_keys_of_a_command_line_that_hydra_knows_pass() -> None:
    train = ["experiment=demo_cloc", "model/prompter=paper", "+loss.more=1", "~sweep", "loss.region=1", "data=shards"]
    train += ["model.image.options.depth=2", "optim.lr=1,2", "hydra.sweeper.x=1", "-m", "data.train=a=b", "'seed=1'"]
    check_overrides(train, TrainConfig)
    check_overrides(["datasets.mine.shards=x", "evaluation=quick", "data=[openmoji]"], EvalConfig)
    check_overrides(["--config-dir=x", "mine=x"], TrainConfig)


class Faulty:
    """A class of a user's, with a fault or a wrong value in it."""

    def __init__(self, error: str) -> None:
        raise {kind.__name__: kind for kind in (*THEIRS, *OURS)}[error]("what it says")


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's."""


THEIRS = (AttributeError, NameError, KeyError, IndexError, MemoryError, RecursionError, OutOfMemoryError)
OURS = (ValueError, TypeError, RuntimeError, AssertionError)


@pytest.mark.parametrize("kind", THEIRS)
def test_a_fault_in_a_users_class_keeps_its_traceback(kind: type[Exception]) -> None:
    node = {"_target_": f"{__name__}.Faulty", "error": kind.__name__}
    with pytest.raises(kind):
        instantiate(node, "model.image")
    with pytest.raises(kind):  # a part in one of ours
        instantiate({"_target_": "cloc.losses.objective.ClocLoss", "terms": {"mine": node}}, "loss")


@pytest.mark.parametrize("kind", OURS)
def test_a_value_that_a_users_class_refuses_is_a_line(kind: type[Exception]) -> None:
    with pytest.raises(ConfigError, match=r"^model\.image: Faulty: .*what it says"):
        instantiate({"_target_": f"{__name__}.Faulty", "error": kind.__name__}, "model.image")


def test_whatever_a_library_raises_below_a_part_of_ours_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("cloc.losses.objective.ClocLoss.__init__", fail)
    with pytest.raises(ConfigError, match=r"^loss: ClocLoss: KeyError: 'x'"):
        instantiate({"_target_": "cloc.losses.objective.ClocLoss"}, "loss")


@pytest.mark.parametrize("name", ["cpu", "ddp", "fsdp"])
def test_a_trainer_sets_no_other_key(name: str) -> None:
    """A task of one's own may take it, whose schema knows no other group; and what ``data=MINE`` says stays."""
    found = []
    for trainer in ("auto", name):
        composed = compose("train", ["name=x", "data.train=a", "samples=8", "batch_size=8", f"trainer={trainer}"])
        found.append(OmegaConf.to_container(composed))
    one, two = ({key: value for key, value in config.items() if key != "trainer"} for config in found)
    assert one == two and one["data"]["workers"] == "auto"
