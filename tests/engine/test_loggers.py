"""TensorBoard and W&B: the whole configuration, one log over all lives of a run, a run for each trial of an agent."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import pytest

from cloc.config import ConfigError
from cloc.engine import board, run
from cloc.engine.sweep.main_metrics import main_metrics
from tests.engine.test_task import configure


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "neptune"}, "logger.*'neptune'.*must be csv, tensorboard or wandb"),
        ({"name": 7}, "logger.*7.*must be csv, tensorboard or wandb"),
        ({"name": "csv", "project": "x"}, "logger.project: no option of logger.name=csv; it takes no other key"),
        ({"name": "tensorboard", "folder": "x"}, r"logger.folder: no option .* it takes comment, .*flush_secs, "),
        ({"name": "tensorboard", "save_dir": "x"}, "logger.save_dir: no option"),
    ],
)
def test_a_logger_that_cannot_be_made_is_refused_before_the_run(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    for dry in (True, False):
        with pytest.raises(ConfigError, match=message):
            run.train(configure(tmp_path / "run", logger=options, dry_run=dry))
    assert not (tmp_path / "run").exists()


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def read_events(folder: Path) -> tuple[dict[str, Any], list[str], bool, Any]:
    """Hyperparameters of a folder, the metrics beside them, whether the run has ended, and all of its events."""
    reading: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = reading.EventAccumulator(str(folder))
    events.Reload()
    told = {tag: HParamsPluginData.FromString(data) for tag, data in events.PluginTagToContent("hparams").items()}
    values = told["_hparams_/session_start_info"].session_start_info.hparams
    plain = {key: getattr(values[key], values[key].WhichOneof("kind")) for key in values}
    names = [one.name.tag for one in told["_hparams_/experiment"].experiment.metric_infos]
    return plain, names, "_hparams_/session_end_info" in told, events


def test_tensorboard_has_the_configuration_as_it_is_now_and_every_measurement(tmp_path: Path) -> None:
    """Over three lives: the same, then with another rate."""
    folder = tmp_path / "run" / "tensorboard"
    for samples, rate in ((32, 0.1), (64, 0.1), (96, 0.02)):
        run.train(configure(tmp_path / "run", samples=samples, optim={"lr": rate}, logger={"name": "tensorboard"}))
        values, names, ended, events = read_events(folder)
        assert values["optim.lr"] == rate and values["samples"] == samples and values["optim.betas"] == "[0.9, 0.98]"
        assert values["objective"] == "null" and values["resume"] == "true"
        assert names == ["loss", "val/line/closeness"] and ended
    assert [event.step for event in events.Scalars("val/line/closeness")] == [3, 7, 11]
    assert [event.step for event in events.Scalars("loss")] == list(range(12))
    pages = events.Tensors("configuration/text_summary")
    assert [page.step for page in pages] == [0, 4, 8]
    assert b"lr: 0.02" in pages[-1].tensor_proto.string_val[0]
    assert len(list(folder.glob(f"*{board.HYPERPARAMETERS}"))) == 1


def test_an_unchanged_run_that_goes_on_says_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: Any) -> None:
        raise FloatingPointError("stopped")

    with monkeypatch.context() as patch, pytest.raises(FloatingPointError):
        patch.setattr("cloc.engine.callbacks.Evaluate._measure", stop)
        run.train(configure(tmp_path / "run", logger={"name": "tensorboard"}))
    assert not read_events(tmp_path / "run" / "tensorboard")[2], "the run has not come to its end"
    run.train(configure(tmp_path / "run", logger={"name": "tensorboard"}))
    *_, ended, events = read_events(tmp_path / "run" / "tensorboard")
    assert ended and [page.step for page in events.Tensors("configuration/text_summary")] == [0]


def test_hyperparameters_of_sets_that_are_not_measured_are_left_out() -> None:
    tree = {
        "evaluation": {"data": ["one"]},
        "datasets": {"one": {"shards": "x"}, "two": {"shards": "y"}},
        "flags": {"on": True, "none": None, "many": [1, {"a": None}], "text": "null"},
    }
    found = board.flat_values(tree)
    assert {key for key in found if key.startswith("datasets")} == {"datasets.one.shards"}
    assert found["flags.on"] == "true" and found["flags.none"] == "null" and found["flags.many"] == "[1, {a: null}]"


def test_main_metrics_are_those_that_the_report_tells_first() -> None:
    measured = ["region/prompter/top1", "region/roi_align/top1", "region/prompter/mAcc", "grounding/any/acc@0.5"]
    measured += ["image_text/text_to_image_R@1", "image_text/text_to_image_R@10", "grounding/mIoU", "own/thing"]
    found = main_metrics([*(f"val/toy/{name}" for name in measured), "loss", "samples"])
    assert found == [f"val/toy/{measured[place]}" for place in (0, 3, 4)]
    assert main_metrics(["loss", "val/line/closeness"]) == ["val/line/closeness"]
    assert main_metrics(["val/short"]) == ["val/short"]


# --- Weights & Biases -------------------------------------------------------------------------------------------------


class Error(Exception):
    """W&B's own."""


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in that notes what it is asked: ``inits``, the ``rows`` of the run that is open, exit ``codes``."""
    fake: Any = ModuleType("wandb")
    fake.__spec__, fake.run, fake.inits, fake.rows, fake.codes = ModuleSpec("wandb", None), None, [], [], []

    def init(
        project: Any = None, name: Any = None, dir: Any = None, id: Any = None, resume: Any = None,
        config: Any = None, tags: Any = None, anonymous: Any = None, mode: Literal["online", "disabled"] | None = None,
    ) -> Any:  # fmt: skip
        if tags == "refuse":
            raise Error("No API key configured.\nUse `wandb login`.")
        fake.inits.append(
            {"project": project, "name": name, "id": id, "resume": resume, "config": config} | {"mode": mode}
        )
        fake.run = SimpleNamespace(log=fake.rows.append, id=id, name=name)
        return fake.run

    def finish(exit_code: int) -> None:
        fake.codes.append(exit_code)
        fake.run = None

    fake.init, fake.finish, fake.Error = init, finish, Error
    parts = {"wandb": fake, "wandb.sdk": ModuleType("wandb.sdk"), "wandb.sdk.lib": ModuleType("wandb.sdk.lib")}
    parts["wandb.wandb_run"] = ModuleType("wandb.wandb_run")
    parts["wandb.sdk.lib"].RunDisabled = parts["wandb.wandb_run"].Run = int  # type: ignore[attr-defined]
    for name, module in parts.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")  # which Lightning sets for good
    return fake


WANDB = {"name": "wandb", "project": "cloc", "offline": True}


def test_wandb_has_the_configuration_and_one_run_over_all_lives(wandb: Any, tmp_path: Path) -> None:
    for samples, rate in ((32, 0.1), (64, 0.02)):
        run.train(configure(tmp_path / "run", samples=samples, optim={"lr": rate}, logger=WANDB))
    first, second = wandb.inits
    assert first["id"] and first["id"] == second["id"] == (tmp_path / "run" / "wandb-id").read_text()
    assert first["resume"] == second["resume"] == "allow" and first["name"] == "line" and first["project"] == "cloc"
    assert (first["config"]["optim"]["lr"], second["config"]["optim"]["lr"]) == (0.1, 0.02)
    assert first["config"].keys() >= {"optim", "trainer", "evaluation", "seed", "width"}
    assert wandb.codes == [0, 0] and wandb.run is None, "the next run of this process opens its own"
    assert [row["trainer/global_step"] for row in wandb.rows if "val/line/closeness" in row] == [4, 8]


def test_wandb_is_told_how_to_resume_and_whether_to_run(wandb: Any, tmp_path: Path) -> None:
    run.train(configure(tmp_path / "run", logger=WANDB | {"mode": "disabled", "resume": "must"}))
    assert (wandb.inits[0]["mode"], wandb.inits[0]["resume"]) == ("disabled", "must")


def test_secrets_reach_no_logger(wandb: Any, tmp_path: Path) -> None:
    run.train(configure(tmp_path / "run", name="https://me:S3cret@host/x", logger=WANDB))
    assert "S3cret" not in str(wandb.inits[0]["config"]) and "host/x" in str(wandb.inits[0]["config"])


def test_wandb_hears_how_a_run_ended(wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise FloatingPointError("nothing is finite")

    monkeypatch.setattr("cloc.engine.callbacks.Evaluate._measure", fail)
    with pytest.raises(FloatingPointError):
        run.train(configure(tmp_path / "run", logger=WANDB))
    assert wandb.codes == [1]


def test_wandb_that_lets_nobody_in_is_one_line_before_the_first_step(wandb: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        run.train(configure(tmp_path / "run", logger=WANDB | {"tags": "refuse"}))
    assert str(told.value).startswith("logger.name=wandb: No API key configured. Use `wandb login`; log in with")
    assert "\n" not in str(told.value) and not (tmp_path / "run" / "metrics.csv").exists()
    with pytest.raises(ConfigError, match="logger.nothing: no option of logger.name=wandb; it takes .*project"):
        run.train(configure(tmp_path / "run", logger=WANDB | {"nothing": 1}, dry_run=True))


Train = Callable[..., Path]


def test_every_trial_of_an_agent_trains_in_a_folder_of_its_own(
    wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The same command with other values, as ``wandb agent`` calls it; a trial that comes again goes on."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    for trial, rate, samples in (("b2", 0.1, 32), ("zz9-x", 0.3, 32), ("b2", 0.1, 64)):
        monkeypatch.setenv("WANDB_RUN_ID", trial)
        folder = run.train(configure(tmp_path / "run", samples=samples, optim={"lr": rate}, logger=WANDB))
        assert folder == tmp_path / "run" / trial and (folder / "checkpoints" / "last.ckpt").exists()
    assert [one["id"] for one in wandb.inits] == ["b2", "zz9-x", "b2"] and wandb.codes == [0, 0, 0]
    assert all(one["name"] is None for one in wandb.inits), "a trial has the name that W&B gives it"
    assert "give logger.offline=false in the sweep's command" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setenv("WANDB_RUN_ID", "../outside")
    with pytest.raises(ConfigError, match=r"WANDB_RUN_ID='\.\./outside': letters, digits"):
        run.train(configure(tmp_path / "run", logger=WANDB))


def test_a_second_command_with_other_values_is_refused_outside_of_an_agent(tmp_path: Path) -> None:
    run.train(configure(tmp_path / "run", samples=32))
    run.train(configure(tmp_path / "run", samples=32, trainer={"log_every": 3}))
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.1 → 0\.3\); set name or run_dir for each trial"):
        run.train(configure(tmp_path / "run", samples=32, optim={"lr": 0.3}))


@pytest.mark.slow
def test_wandb_itself_takes_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra 'wandb' is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for samples in (32, 64):
        run.train(configure(tmp_path / "run", samples=samples, logger=WANDB))
    name = (tmp_path / "run" / "wandb-id").read_text()
    lives = list((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{name}.wandb"))
    assert len(lives) == 2 and all(b"weight_decay" in life.read_bytes() for life in lives)
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) > 8
