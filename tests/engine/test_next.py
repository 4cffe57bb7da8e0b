"""A run says how long it will take and what comes after it; a sweep which of its jobs begins."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from cloc.config import EvalConfig, TrainConfig, check_overrides, validate
from cloc.config.multirun import Jobs, count_jobs, parsed
from cloc.engine import run, trainer
from tests.kit.paths import ROOT
from tests.kit.resuming import configure, make_squares


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="the extra 'transformers' is not installed")
    return make_squares(tmp_path_factory.mktemp("squares"))


def test_a_run_tells_what_is_left_and_names_the_next_command(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = trainer.ProgressLine
    monkeypatch.setattr(trainer, "ProgressLine", lambda title: line(title, every=0.0))
    folder = tmp_path / "a run"
    run.train(configure(squares, folder, "samples=32"))
    lines = capsys.readouterr().out.splitlines()
    steps = [one for one in lines if "  step " in one]
    assert all(re.search(r"  step \d/4  0:\d\d left  ", one) for one in steps[:-1]) and " left" not in steps[-1]
    assert re.fullmatch(r".*: process 0 of 1, weights \w+", lines[-4]) and lines[-3] == f"wrote {folder}"
    measure, export = (shlex.split(one.removeprefix("next: ")) for one in lines[-2:])
    assert measure[:2] == ["python", "eval.py"] and measure[2] == f'checkpoint="{folder}"'
    check_overrides(measure[2:], EvalConfig)
    assert export[:4] == ["python", "-m", "cloc", "export"] and export[5:] == [str(folder), f"{folder}-export"]
    run.train(configure(squares, folder, "samples=32"))
    assert capsys.readouterr().out.splitlines()[-2:] == lines[-2:]


def test_the_plan_fits_80_columns(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run.console, "_width", 80)
    folder = tmp_path / ("long" * 30)
    monkeypatch.setattr("sys.argv", ["train.py", "experiment=demo_cloc", "dry_run=true", "name=a b"])
    config = configure(squares, folder, "samples=32", "dry_run=true")
    run.train(config)
    *plan, last = capsys.readouterr().out.splitlines()
    assert max(map(len, plan)) <= 80 and "…" not in "".join(plan)
    assert str(folder) in "".join(one[12:].strip() for one in plan)
    assert last == "next: python train.py experiment=demo_cloc 'name=a b'"
    for asked in ("++dry_run=true", "+dry_run=true"):
        monkeypatch.setattr("sys.argv", ["train.py", "experiment=demo_cloc", asked])
        run._print_launch(validate(config, TrainConfig))
        assert capsys.readouterr().out == "next: python train.py experiment=demo_cloc\n"
    monkeypatch.setattr(run, "_is_job", lambda: True)
    run._print_launch(validate(config, TrainConfig))
    assert capsys.readouterr().out == "", "a sweep has planned several"


def sweep(*overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", ["experiment=demo_cloc", *overrides], return_hydra_config=True)


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["seed=0,1,2", "loss.region=0.5,1"], 6),
        (["sweep=loss_weights"], 9),
        (["optim.betas=[0.9,0.95],[0.9,0.98]"], 2),
        (["seed=range(0,4)", "loss.region=choice(1,2)"], 8),
        ([], 1),
    ],
)
def test_jobs_are_counted_before_they_begin(overrides: list[str], count: int) -> None:
    swept = [one for one in overrides if one.startswith("sweep=")]
    config = sweep(*swept)
    with open_dict(config):
        config.hydra.overrides.task = ["experiment=demo_cloc", *overrides]
    assert count_jobs(config, parsed(config)) == count


def test_a_sweep_says_which_job_begins_and_what_comes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("cloc.config.multirun.time.monotonic", lambda: now[0])
    monkeypatch.chdir(tmp_path)  # no evaluation set is here, whatever the demo has drawn
    config = sweep("hydra.mode=MULTIRUN", f"run_dir={tmp_path}")
    with open_dict(config):
        config.hydra.overrides.task = ["experiment=demo_cloc", "seed=0,1,2", "loss.region=1,2"]
    tells = Jobs()
    tells.on_multirun_start(config)
    for number in (0, 1):
        now[0] = 60.0 * number
        with open_dict(config):
            config.hydra.job.num = number
            config.hydra.overrides.task = ["experiment=demo_cloc", f"seed={number}", "loss.region=1"]
        tells.on_job_start(config)
        (tmp_path / str(number)).mkdir()
        OmegaConf.save({}, tmp_path / str(number) / "config.yaml")
    tells.on_multirun_end(config)
    (tmp_path / "1" / "metrics.csv").write_text("step,val/toy/top1\n")
    tells.on_multirun_end(config)  # of what was measured there is a report
    assert capsys.readouterr().out.splitlines() == [
        "job 0 (1 of 6): seed=0 loss.region=1",
        "job 1 (2 of 6): seed=1 loss.region=1  (5:00 left)",
        f"next: python eval.py checkpoint={tmp_path}/0 'baseline=[{tmp_path}/1]' 'data=[FOLDER]'",
    ]
