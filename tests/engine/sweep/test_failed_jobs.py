"""Jobs of a sweep that failed or are on their way: kept, told, and no reason to leave the others out."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf
from typer.testing import CliRunner

from cloc.__main__ import app
from cloc.config import ConfigError
from cloc.engine.sweep import jobs as sweep_jobs
from cloc.engine.sweep import report as sweep_report
from cloc.engine.sweep.hook import SweepFolder
from tests.engine.sweep.test_sweep import TOP1, job, write_metrics


def test_jobs_that_failed_or_are_on_their_way_are_told(tmp_path: Path, capsys: Any) -> None:
    job(tmp_path, "1", {TOP1: 0.5}, accumulate=1)
    for number, error in ((0, ConfigError("accumulate=5: mend\nit")), (2, RuntimeError("https://me:pw@host is full"))):
        (tmp_path / str(number)).mkdir()
        sweep_jobs.note_failure(tmp_path / str(number), error, [f"loss.accumulate={number}"])
    for name, row in (("3", {"samples": 16.0, "loss": 1.0}), ("4", {"samples": 32.0, TOP1: 0.9})):
        job(tmp_path, name, {TOP1: 0.0}, accumulate=1)
        write_metrics(tmp_path / name, row)
    job(tmp_path, "5", {}, accumulate=7)
    job(tmp_path, "6", {TOP1: 0.9}, accumulate=8)
    sweep_jobs.note_failure(tmp_path / "6", FloatingPointError("not finite"), [])
    sweep_report.report(tmp_path)
    said = capsys.readouterr().out
    for line in (
        "7 jobs, 3 failed: 0, 2, 6",
        "job 0 (loss.accumulate=0) failed: ConfigError: accumulate=5: mend it",
        "job 2 (loss.accumulate=2) failed: RuntimeError: https://host is full",
        "job 3 running or stopped at sample 16 of 64, not measured",
        "job 4 running or stopped at sample 32 of 64",
        "job 5 finished, not measured",
        "job 6 failed: FloatingPointError: not finite",
        "4 (at 32 of 64)",
    ):
        assert line in said, said
    with (tmp_path / "sweep.csv").open() as lines:
        rows = {row["job"]: row for row in csv.DictReader(lines)}
    assert rows["1"][TOP1] == "0.5" and rows["4"]["state"] == "at 32 of 64"
    assert rows["6"]["state"] == "failed: FloatingPointError: not finite" and rows["6"][TOP1] == ""
    assert rows["2"]["loss.accumulate"] == "2"
    assert "pw" not in (tmp_path / "2" / sweep_jobs.FAILURE).read_text()


def test_the_next_command_opens_what_was_written(tmp_path: Path) -> None:
    job(tmp_path, "0", {TOP1: float("nan")}, accumulate=1)
    job(tmp_path, "1", {TOP1: float("nan")}, accumulate=2)
    done = CliRunner().invoke(app, ["sweep", "report", str(tmp_path)])
    assert done.output.splitlines()[-1].endswith("/sweep.csv") and not (tmp_path / "sweep.png").exists()
    for number in range(2):
        job(tmp_path, str(number + 2), {TOP1: 0.5}, accumulate=number + 3)
    done = CliRunner().invoke(app, ["sweep", "report", str(tmp_path)])
    assert done.output.splitlines()[-1].endswith("/sweep.png") and (tmp_path / "sweep.png").exists()


def test_a_sweep_whose_jobs_all_failed_says_why(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    sweep_jobs.note_failure(tmp_path / "0", ConfigError("no"), ["a=1"])
    done = CliRunner().invoke(app, ["sweep", "report", str(tmp_path)])
    assert isinstance(done.exception, FileNotFoundError) and "that did not fail" in str(done.exception)
    assert "1 job, 1 failed: 0" in done.output and "job 0 (a=1) failed: ConfigError: no" in done.output
    (tmp_path / "0" / sweep_jobs.FAILURE).write_text("{half")
    assert "cannot be read" in str(sweep_jobs.read_failure(tmp_path / "0"))


def hooked(folder: Path, number: int, *overrides: str, sweeper: str = "BasicSweeper") -> Any:
    """What Hydra tells its callbacks of a job."""
    own = {"mode": RunMode.MULTIRUN, "sweep": {"dir": str(folder)}, "job": {"num": number}}
    own |= {"sweeper": {"_target_": f"x.{sweeper}"}, "overrides": {"task": list(overrides)}}
    return OmegaConf.create({"run_dir": str(folder), "hydra": own})


def failed(error: Exception) -> JobReturn:
    found = JobReturn()
    found.return_value, found.status = error, JobStatus.FAILED
    return found


def test_the_hook_keeps_failures_lets_the_sweep_go_on_and_ends_with_code_1(tmp_path: Path, capsys: Any) -> None:
    for _ in range(2):  # the same again
        hook = SweepFolder()
        hook.on_multirun_start(hooked(tmp_path, 0, "seed=1", "n={x: 1, y: [a,b]}", "a=1,2"))
        results = [failed(ConfigError("a=1: no")), JobReturn(status=JobStatus.COMPLETED)]
        for number, result in enumerate(results):
            told = hooked(tmp_path, number, "seed=1", "n={x:1,y:[a,b]}", f"a={number + 1}")
            hook.on_job_start(told)
            hook.on_job_end(told, result)
        assert results[0].return_value is None, "Hydra's sweeper would raise here, and leave out the report"
        with pytest.raises(SystemExit) as ended:
            hook.on_multirun_end(hooked(tmp_path, 0))
        said = capsys.readouterr()
        assert ended.value.code == 1 and said.out.count("job 0 (a=1) failed: ConfigError: a=1: no") == 1
        assert "job 0 (a=1) failed: ConfigError: a=1: no" in said.err
    hook = SweepFolder()  # mended
    hook.on_multirun_start(hooked(tmp_path, 0, "seed=1", "a=1,2"))
    hook.on_job_start(hooked(tmp_path, 0, "seed=1", "a=3"))  # nothing was trained there: the folder is free
    hook.on_multirun_end(hooked(tmp_path, 0))
    assert sweep_jobs.read_failure(tmp_path / "0") is None


def test_a_sweeper_that_looks_for_values_hears_of_failures(tmp_path: Path) -> None:
    hook, result = SweepFolder(), failed(ConfigError("no"))
    told = hooked(tmp_path, 0, sweeper="OptunaSweeper")
    hook.on_job_end(told, result)
    assert result.status == JobStatus.FAILED and sweep_jobs.read_failure(tmp_path / "0") is not None
    hook.on_multirun_end(told)


def test_failures_of_other_processes_and_of_stores_count(tmp_path: Path, capsys: Any) -> None:
    hook = SweepFolder()
    hook.on_multirun_start(hooked(tmp_path, 0))
    (tmp_path / "3").mkdir()
    sweep_jobs.note_failure(tmp_path / "3", ConfigError("elsewhere"), [])  # by a launcher's job
    remote = hooked(tmp_path, 4, "run_dir=s3://bucket/x")
    remote.run_dir = "s3://bucket/x"
    hook.on_job_end(remote, failed(ConfigError("in a store")))
    with pytest.raises(SystemExit):
        hook.on_multirun_end(hooked(tmp_path, 0))
    said = capsys.readouterr().out
    assert "job 3 failed: ConfigError: elsewhere" in said and "job 4" in said and "in a store" in said


def test_a_run_by_itself_is_none_of_the_hooks_business(tmp_path: Path) -> None:
    told = hooked(tmp_path, 0)
    told.hydra.mode = RunMode.RUN
    SweepFolder().on_job_start(told)
    SweepFolder().on_job_end(told, failed(ConfigError("no")))
    assert not list(tmp_path.iterdir())


def test_a_job_of_fewer_steps_than_a_log_line_has_finished(tmp_path: Path) -> None:
    folder = tmp_path / "0"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("samples: 64\nbatch_size: 32\n")
    (folder / "checkpoints" / "step-00000001.ckpt").write_bytes(b"x" * 100)
    assert "sample 32 of 64" in sweep_report.read_jobs(tmp_path)[0].state
    (folder / "checkpoints" / "step-00000002.ckpt").write_bytes(b"x" * 100)
    assert "stopped" not in sweep_report.read_jobs(tmp_path)[0].state
