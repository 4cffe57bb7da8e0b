"""A command line that is wrong is one line that says what was meant; one of a part's keys needs no plus."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from cloc import command
from cloc.command import in_a_line, is_users, line_of, needs
from cloc.config import ConfigError, EvalConfig, TrainConfig, check_overrides, validate
from cloc.config.command_line import CONF
from cloc.config.terms import idle_parts, terms_of
from tests.kit.paths import ROOT

RUN = ["name=x", "samples=8", "batch_size=8", "data.train=nowhere"]


def composed(*overrides: str) -> object:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", check_overrides([*RUN, *overrides], TrainConfig))


@pytest.mark.parametrize(
    "key",
    [
        *(
            "model.image.options={depth: 2}",
            "model.image.options.depth=2",
            "model.text.frozen=true",
            "loss.terms.mine.x=1",
        ),
        *("logger.project=x", "datasets.mine.shards=x", "datasets.openmoji.classes=x", "model.prompter.heads=2"),
    ],
)
def test_keys_that_no_file_need_have_are_let_in(key: str) -> None:
    assert check_overrides([key], TrainConfig) == [f"++{key}"]


def test_other_arguments_stay_as_they_are() -> None:
    given = ["experiment=demo_cloc", "model/prompter=paper", "model.prompter=null", "optim.lr=1,2", "-m", "~sweep"]
    given += ["+model.image.options.depth=2", "loss=clip", "data=shards", "data.train=a=b", "hydra.sweeper.x=1"]
    assert check_overrides(given, TrainConfig) == given
    assert check_overrides(["data=[a]", "evaluation=quick"], EvalConfig) == ["data=[a]", "evaluation=quick"]


def test_a_preset_takes_options_that_it_lacks() -> None:
    config = composed("model=vit_b16", "model.image.options={width: 64, layers: 2}", "model.text.options.layers=1")
    assert config.model.image.options == {"width": 64, "layers": 2} and config.model.text.options == {"layers": 1}
    both = composed("model.image.options={drop_path_rate: 0.1}")
    assert both.model.image.options.depth == 4 and both.model.image.options.drop_path_rate == 0.1


def test_groups_of_the_users_own_are_left_to_hydra() -> None:
    given = ["hydra.searchpath=[file:///theirs]", "mine/heads=large", "anything=small"]
    assert check_overrides(given, TrainConfig) == given
    with pytest.raises(ConfigError, match="there is no group 'mine/heads'"):
        check_overrides(given[1:2], TrainConfig)


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("sampels=3", "samples"),
        ("exprement=demo_cloc", "experiment"),
        ("optim.weight_decai=1", "weight_decay"),
        ("datasets.openmoji.shrads=x", "shards"),
        ("model.imagee.name=x", "image"),
        ("model/promter=paper", "model/prompter"),
        ("evaluation.metric=[x]", "metrics"),
    ],
)
def test_a_wrong_key_is_told_with_the_right_one(argument: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {meant!r}"):
        check_overrides([argument], TrainConfig)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.image.imagesize=3"], "TimmTower has no such argument; did you mean 'image_size'?"),
        (["evaluation.metrics=[groundin]"], r"metrics\[0\]='groundin': .*did you mean 'grounding'?"),
        (["evaluation.parts=[regoin]"], "did you mean 'region'?"),
        (["evaluation.sources=[promter]"], "did you mean 'prompter'?"),
        (["loss.conflicts=exakt"], "did you mean 'exact'?"),
        (["logger.name=tensorbord"], "did you mean 'tensorboard'?"),
        (["trainer.precision=bf16-true"], "did you mean 'bf16-mixed'?"),
        (["optim.betas=['0.9x',0.98]"], r"optim\.betas\[0\]"),
        (["model.image.image_size=true"], "model.image.image_size=true: must be at least 1"),
        (["model.image.conv_stem=1"], "conv_stem=1: must be true or false"),
        (["model.image.mean=[0.5]"], "give 3 numbers"),
        (["name=true"], "name=true: must be a text"),
        (["run_dir=''"], "run_dir='': give a path"),
        (["resume=3"], "resume=3: must be true or false"),
        (["samples=9223372036854775808"], "larger than any number"),
        (["data.train=[a,b]"], "give a folder, a pattern, a URL"),
        (["seed=???"], "no value for seed"),
        (["name=${run_dir}"], "leads back to itself|Recursive|recursion"),
    ],
)
def test_a_wrong_value_is_told_by_its_key(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        validate(composed(*overrides))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["name=lr=0.1,bs=64"], """quoted twice: 'name="lr=0.1,bs=64"'"""),
        (
            ["experiment=demo_cloq"],
            "experiment=demo_cloq: no such file; did you mean 'demo_cloc'? known are adapter_cloc, clip_b16",
        ),
        (["model=tinny"], "did you mean 'tiny'?"),
        (["optim.muon_lr=0.1"], "+optim.muon_lr=0.1. Key 'muon_lr' is not in struct"),
        (["~nothing"], "Could not delete"),
        (["just_a_word"], "give KEY=VALUE"),
    ],
)
def test_what_hydra_refuses_is_one_line(overrides: list[str], told: str) -> None:
    with pytest.raises(SystemExit) as caught, in_a_line():
        composed(*overrides)
    line = str(caught.value.code)
    assert line.startswith("ConfigError: ") and told in line and "\n" not in line


def test_a_name_with_equals_signs_is_quoted_twice() -> None:
    assert composed('name="lr=0.1,bs=64"').name == "lr=0.1,bs=64"


def test_faults_of_the_program_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError), in_a_line():
        raise KeyError("a fault")
    for error in (ValueError("x"), OSError("x"), MemoryError(), ImportError("x"), ConfigError("x")):
        assert is_users(error)
        with pytest.raises(SystemExit), in_a_line():
            raise error
    monkeypatch.setattr(command, "_full", True)  # HYDRA_FULL_ERROR=1
    with pytest.raises(ConfigError), in_a_line():
        raise ConfigError("x")


def test_a_long_message_is_cut() -> None:
    assert len(line_of(ValueError("word " * 1000))) < 700


@pytest.mark.parametrize(
    ("module", "extra"), [("wandb", "wandb"), ("tensorboard", "tensorboard"), ("transformers", "transformers")]
)
def test_a_missing_package_is_told_with_its_extra(module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_is_there", lambda name: name != module)
    assert needs(extra) == f"{module}: not installed; pip install 'cloc-pretrain[{extra}]'"
    missing = ModuleNotFoundError(f"No module named '{module}.x'", name=f"{module}.x")
    assert line_of(missing) == f"ModuleNotFoundError: {needs(extra)}"


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("train.py", ["experiment=demo_cloc", "name=lr=0.1,bs=64"]),
        ("train.py", ["experiment=demo_cloc", "trainer.precision=fp16"]),
        ("eval.py", ["checkpoint=runs/none", "data=[openmoji]", "evaluation.bootstrap=-1"]),
    ],
)
def test_a_script_ends_with_one_line(script: str, arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("ConfigError: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_in_a_sweep_the_other_jobs_go_on(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "-m", *RUN, f"data.train={tmp_path}/none", "seed=-1,0"]
    done = subprocess.run([*command, f"run_dir={tmp_path}/run"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("job ")]
    assert lines[0].startswith("job 0 (seed=-1) failed: ConfigError: seed=-1")
    assert lines[1].startswith("job 1 (seed=0) failed: FileNotFoundError: ")


def test_keys_of_every_file_keep_their_names() -> None:
    """The sweep of conf/sweep/loss_weights.yaml is over the same keys as a command line that gives other values."""
    given = ["loss.region=0.5,1", "model.image.options={depth: 2}", "model.image.name=x", "loss.threshold=0.9"]
    assert check_overrides(given, TrainConfig)[0] == given[0]
    assert check_overrides(given, TrainConfig)[1] == f"++{given[1]}"


def test_a_list_without_brackets_is_told_how_to_write() -> None:
    config = {"checkpoint": "x", "data": "openmoji_val"}
    with pytest.raises(ConfigError, match=r"^data: must be a list; give 'data=\[VALUE\]'"):
        validate(config, EvalConfig)


def test_parts_that_no_term_trains_are_told() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        made = compose("train", ["experiment=demo_cloc", "loss.region=0", "loss.grounding=0", "data.train=x"])
    config = validate(made, TrainConfig)
    said = idle_parts(config, terms_of(config.loss))
    assert [one.split(":")[0] for one in said] == ["model.prompter", "model.grounding"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        made = compose("train", ["experiment=demo_cloc", "data.train=x"])
    config = validate(made, TrainConfig)
    assert idle_parts(config, terms_of(config.loss)) == []
