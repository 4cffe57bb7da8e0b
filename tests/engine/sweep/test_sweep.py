"""Sweeps: folders of jobs, the number they return, the report, and the sweepers and launchers that are configured."""

from __future__ import annotations

import csv
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image
from typer.testing import CliRunner

from cloc.__main__ import app
from cloc.config import ConfigError
from cloc.contracts import Region, Sample
from cloc.data.shards.writer import write_shards
from cloc.engine.sweep import jobs as sweep_jobs
from cloc.engine.sweep import report as sweep_report
from tests.kit.paths import ROOT

TOP1, RECALL = "val/toy/region/prompter/top1", "val/toy/image_text/text_to_image_R@1"


def job(folder: Path, name: str, metrics: dict[str, float], **settings: Any) -> None:
    """A finished run with an early evaluation, rows without one, and a last evaluation."""
    (folder / name).mkdir(parents=True)
    tree = {"seed": settings.pop("seed", 0), "run_dir": str(folder / name), "loss": settings, "samples": 64}
    (folder / name / "config.yaml").write_text(yaml.safe_dump(tree))
    with (folder / name / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["samples", "loss", *metrics])
        writer.writeheader()
        writer.writerow({"samples": 32.0} | dict.fromkeys(metrics, 0.0))
        writer.writerow({"samples": 64.0} | metrics)
        writer.writerow({"samples": 64.0, "loss": 1.5})


def test_a_job_has_a_folder_of_its_own(tmp_path: Path) -> None:
    first = ["loss.region=1", "loss.grounding=2"]
    folder = sweep_jobs.job_folder(str(tmp_path), 0, first)
    assert folder == f"{tmp_path}/0"
    sweep_jobs.note_overrides(Path(folder), first)
    assert sweep_jobs.job_folder(str(tmp_path), 0, first[::-1]) == folder, "the same sweep again"
    other = sweep_jobs.job_folder(str(tmp_path), 0, ["loss.region=3"])
    assert other != folder and other.startswith(f"{tmp_path}/0-"), "a new trial must not continue an old one"


def test_the_objective_is_what_was_measured_last(tmp_path: Path) -> None:
    job(tmp_path, "0", {TOP1: 0.25, RECALL: 0.5}, region=1.0)
    assert sweep_jobs.objective(tmp_path / "0", TOP1) == 0.25
    with pytest.raises(ConfigError, match=r"objective='val/toy/other' was not measured.*top1"):
        sweep_jobs.objective(tmp_path / "0", "val/toy/other")


def test_jobs_are_compared_by_what_was_swept_and_averaged_over_seeds(tmp_path: Path) -> None:
    for number, (region, seed, top1) in enumerate([(2.0, 0, 0.6), (1.0, 0, 0.1), (1.0, 1, 0.3)]):
        job(tmp_path, str(number), {TOP1: top1, RECALL: 0.5}, region=region, grounding=1.0, seed=seed)
    job(tmp_path, "unfinished", {}, region=9.0, grounding=1.0)
    jobs = sweep_report.read_jobs(tmp_path)
    assert sweep_report.swept_keys(jobs) == ["loss.region"]
    low, high = sweep_report.gather_rows(jobs, ["loss.region"])
    assert low.values == (1.0,) and low.jobs == ("1", "2")
    assert low.metrics[TOP1] == pytest.approx((0.2, 0.1))
    assert high.metrics[TOP1][0] == 0.6


@pytest.mark.parametrize("keys", [0, 1, 2, 3])
def test_the_report_shows_every_shape_of_sweep(keys: int, tmp_path: Path) -> None:
    combinations = [(a, b, c) for a in (0.5, 1, 2) for b in (0.5, 1) for c in ("cosine", "exact")]
    seen = set()
    for region, grounding, conflicts in combinations:
        settings = dict(list({"region": region, "grounding": grounding, "conflicts": conflicts}.items())[:keys])
        if repr(settings) not in seen:
            job(tmp_path, str(len(seen)), {TOP1: region / 4, RECALL: grounding / 2, "val/toy/other": 0.0}, **settings)
        seen.add(repr(settings))
    done = CliRunner().invoke(app, ["sweep", "report", str(tmp_path)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.width > 600 and len(picture.convert("RGB").getcolors(1 << 24)) > 20
    with (tmp_path / "sweep.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == len(seen)
    assert {"job", TOP1, RECALL, "val/toy/other"} <= rows[0].keys()
    if keys >= 2:
        assert {(row["loss.region"], row["loss.grounding"]) for row in rows} >= {("0.5", "1"), ("2", "0.5")}
        assert all(float(row[TOP1]) == float(row["loss.region"]) / 4 for row in rows)


def test_a_report_on_nothing_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run in it has an evaluation.*evaluation\.every"):
        sweep_report.report(tmp_path)
    job(tmp_path, "0", {TOP1: 0.25}, region=1.0)
    with pytest.raises(ValueError, match="val/toy/nothing: not measured"):
        sweep_report.report(tmp_path, ["val/toy/nothing"])


def test_a_sweep_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    names |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in (names | {"TORCHELASTIC_RUN_ID": "test"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="under torchrun.*hydra/launcher=slurm"):
        sweep_jobs.refuse_torchrun()


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("jitter", [None, [0.4, 0.4, 0.4, 0.1]]),
        ("betas", [[0.9, 0.98], [0.9, 0.95]]),
        ("crop", [None, 0.5, "auto", True, float("inf"), {}]),
        ("prompter", [None, {"_target_": "mine.Prompter", "depth": 2}, {"_target_": "mine.Prompter", "depth": 3}]),
        ("terms", [{}, {"one": {"weight": 1.0, "names": [{"a": None}]}}]),
    ],
)
@pytest.mark.parametrize("grid", [False, True])
def test_a_sweep_over_values_of_every_kind_is_reported(
    key: str, values: list[Any], grid: bool, tmp_path: Path, capsys: Any
) -> None:
    count = 0
    for value in values:
        for other in [1.0, [2.0]] if grid else [1.0]:
            job(tmp_path, str(count), {TOP1: 0.1 * count}, **{key: value, "other": other})
            count += 1
    assert [path.name for path in sweep_report.report(tmp_path)] == ["sweep.csv", "sweep.png"]
    assert f"{count} jobs" in capsys.readouterr().out
    with (tmp_path / "sweep.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == count and len({tuple(row.values()) for row in rows}) == count
    if key == "prompter":
        assert {row["loss.prompter"] for row in rows} == {"null", "Prompter {depth: 2}", "Prompter {depth: 3}"}
    if key == "jitter":
        assert {row["loss.jitter"] for row in rows} == {"null", "[0.4, 0.4, 0.4, 0.1]"}


def test_values_stand_in_the_order_that_one_expects(tmp_path: Path) -> None:
    for number, value in enumerate(["b", [1], 10, None, 9.5, "a", True]):
        job(tmp_path, str(number), {TOP1: 0.5}, x=value)
    rows = sweep_report.gather_rows(sweep_report.read_jobs(tmp_path), ["loss.x"])
    assert [row.values[0] for row in rows] == [None, 9.5, 10, [1], "a", "b", True]


def write_metrics(folder: Path, *rows: dict[str, float]) -> None:
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


NAN = float("nan")


@pytest.mark.parametrize("keys", [1, 2])
def test_what_has_no_point_is_not_drawn(keys: int, tmp_path: Path, capsys: Any) -> None:
    """A metric without a finite value has no panel, a sweep without one no picture; an earlier one does not stay."""
    for number, (region, grounding) in enumerate([(1.0, 1.0), (2.0, 1.0), (1.0, 2.0), (2.0, 2.0)][: 2 * keys]):
        job(tmp_path, str(number), {TOP1: NAN, RECALL: 0.5 if number else NAN}, region=region, grounding=grounding)
    sweep_report.report(tmp_path)
    with Image.open(tmp_path / "sweep.png") as picture:
        both = picture.width
    for number in range(2 * keys):
        write_metrics(tmp_path / str(number), {"samples": 64.0, TOP1: 0.5, RECALL: 0.5 if number else NAN})
    sweep_report.report(tmp_path)
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.width > both
    for number in range(2 * keys):
        write_metrics(tmp_path / str(number), {"samples": 64.0, TOP1: NAN})
    assert [path.name for path in sweep_report.report(tmp_path)] == ["sweep.csv"]
    assert not (tmp_path / "sweep.png").exists() and "nan" not in capsys.readouterr().out


def test_where_less_is_better_the_least_is_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, value in enumerate((0.3, 0.1, 0.2)):
        job(tmp_path, str(number), {TOP1: value}, region=float(number))
    rows = sweep_report.gather_rows(sweep_report.read_jobs(tmp_path), ["loss.region"])
    assert [sweep_report._best(rows, TOP1, lower) for lower in (True, False)] == [0.1, 0.3]
    bold = [sweep_report._table(["loss.region"], rows, [TOP1], frozenset(own)) for own in ([], [TOP1])]
    assert [[str(cell).startswith("[bold]") for cell in table.columns[2]._cells].index(True) for table in bold] == [
        0,
        1,
    ]


def hydra_config(*overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def test_sweeps_and_launchers_compose() -> None:
    common = ["experiment=demo_cloc", "name=toy"]
    grid = hydra_config(*common, "sweep=loss_weights")
    assert set(grid.hydra.sweeper.params) == {"loss.region", "loss.grounding"}
    assert grid.hydra.sweep.dir == grid.run_dir == "runs/sweeps/toy"
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra 'slurm' is not installed")
    slurm = hydra_config(*common, "sweep=loss_weights", "hydra/launcher=slurm").hydra.launcher
    assert slurm["_target_"].endswith("SlurmLauncher") and slurm.tasks_per_node == slurm.gpus_per_node == 8
    assert slurm.max_num_timeout == 0 and slurm.additional_parameters.signal == "USR1@300"
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="the extra 'sweep' is not installed")
    search = hydra_config(*common, "sweep=optuna", f"objective={TOP1}").hydra.sweeper
    assert search.storage == "sqlite:///runs/sweeps/toy/optuna.db" and search.direction == "maximize"


def test_slurm_gets_one_task_a_gpu_and_one_requeue_mechanism(tmp_path: Path) -> None:
    """The batch file that submitit would hand to sbatch."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra 'slurm' is not installed")
    from submitit.slurm.slurm import _make_sbatch_string

    launcher = hydra_config("experiment=demo_cloc", "hydra/launcher=slurm").hydra.launcher
    text = _make_sbatch_string(
        command="true",
        folder=tmp_path,
        nodes=launcher.nodes,
        ntasks_per_node=launcher.tasks_per_node,
        gpus_per_node=launcher.gpus_per_node,
        additional_parameters=dict(launcher.additional_parameters),
    )
    assert "#SBATCH --signal=USR1@300" in text and "#SBATCH --ntasks-per-node=8" in text


SCENE = [
    "name=toy",
    "model.image.image_size=32",
    "model.image.options={patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2, class_token: false, global_pool: avg}",
    "model.text.options={width: 32, heads: 2, layers: 1}",
    "model.joint_dim=32",
    "trainer=cpu",
    "data.workers=0",
    "samples=8",
    "batch_size=8",
    "evaluation.every=8",
    "evaluation.data=[toy]",
]


def train(*options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, str(ROOT / "train.py"), *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("scenes")
    picture = folder / "picture.png"
    Image.new("RGB", (32, 32), "red").save(picture)
    region = Region((0.0, 0.0, 0.5, 0.5), ("a red square",), "square")
    samples = [Sample(f"{i}", picture.read_bytes(), "png", (f"picture {i}",), (region,), 32, 32) for i in range(8)]
    write_shards(samples, folder / "shards")
    return [*SCENE, f"data.train={folder / 'shards'}", f"+datasets.toy.shards={folder / 'shards'}"]


@pytest.mark.slow
def test_a_grid_trains_reports_and_goes_on(scenes: list[str], tmp_path: Path) -> None:
    options = ["-m", "sweep=loss_weights", *scenes, f"run_dir={tmp_path}", "loss.region=0.5,1", "loss.grounding=1,2"]
    done = train(*options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"0", "1", "2", "3"}
    assert (tmp_path / "sweep.png").is_file() and "4 jobs" in done.stdout
    again = train(*options)
    assert again.returncode == 0 and again.stdout.count("already trained on 8 samples") == 4


@pytest.mark.slow
def test_failed_jobs_do_not_stop_the_others_and_are_all_told(scenes: list[str], tmp_path: Path) -> None:
    """Also without ``sweep=…``; when their values are mended, the same command leaves no trace of the failures."""
    options = ["-m", *scenes, f"run_dir={tmp_path}", "model.joint_dim=16"]
    done = train(*options, "trainer.accumulate=5,1,3")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "3 jobs, 2 failed: 0, 2" in done.stdout
    for number, value in ((0, 5), (2, 3)):
        told = f"job {number} (trainer.accumulate={value}) failed: ConfigError: trainer.accumulate={value}"
        assert told in done.stdout and told in done.stderr
    assert (tmp_path / "1" / "checkpoints").is_dir()
    again = train(*options, "trainer.accumulate=2,1,4")
    assert again.returncode == 0 and " failed" not in again.stdout and "3 jobs" in again.stdout


@pytest.mark.slow
def test_optuna_keeps_its_trials_and_adds_to_them(scenes: list[str], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="the extra 'sweep' is not installed")
    metric = "val/toy/image_text/text_to_image_R@10"
    for trials, total in ((2, 2), (1, 3)):
        done = train(
            "-m",
            "sweep=optuna",
            *scenes,
            f"run_dir={tmp_path}",
            f"objective={metric}",
            f"hydra.sweeper.n_trials={trials}",
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        with sqlite3.connect(tmp_path / "optuna.db") as store:
            values = store.execute("select value from trial_values").fetchall()
            weights = {round(value, 9) for (value,) in store.execute(
                "select param_value from trial_params where param_name = 'loss.region'")}  # fmt: skip
        assert len(values) == total and all(0 <= value <= 1 for (value,) in values)
        assert len(weights) == total
    trained = {yaml.safe_load(file.read_text())["loss"]["region"] for file in tmp_path.glob("*/config.yaml")}
    assert {round(value, 9) for value in trained} == weights, "each trial trains a run of its own"
