"""Runs of a tournament: in which order, what a kill leaves, what a failure says, and that nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tournament import __main__ as command
from benchmarks.tournament.ledger import read_lines
from cloc.config import ConfigError
from tests.kit.paths import ROOT
from tests.kit.resuming import TINY, make_squares
from tests.kit.tournament import ONE, Arena, wait_for

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process; its JSON line, with what it told as ``told``."""

    def run(arena: Arena, name: str, *more: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["tournament", *arena.words(name, *more)])
        command.main()
        printed = capsys.readouterr()
        return {**json.loads(printed.out.splitlines()[-1]), "told": printed.err, "text": printed.out}

    return run


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_a_tournament_searches_then_runs_seeds_and_does_nothing_twice(tmp_path: Path, call: Call) -> None:
    arena = Arena(tmp_path)
    assert call(arena, "run", "--stage", "search", "--jobs", "2")["done"] == 3 + 3 + 2
    searched = arena.folders()
    assert searched == [
        *(f"clip/lr{rate}_s0" for rate in ("1e-2", "2e-2", "3e-2")),
        *(f"cloc/lr{slug}_s0" for slug in ("1e-2", "2e-2_region0.5", "2e-2_region2", "2e-2", "3e-2")),
    ]
    result = call(arena, "run")
    assert (result["done"], result["failed"], result["left"]) == (9, 0, 0)
    new = [one for one in arena.folders() if one not in searched]
    assert new == [
        *(f"clip/lr2e-2_s{seed}" for seed in (1, 2)),
        *(f"cloc/lr2e-2_region2_s{seed}" for seed in (1, 2)),
        *(f"less/lr2e-2_region2_s{seed}" for seed in (0, 1, 2)),
    ]
    before = arena.ledger.read_bytes()
    assert call(arena, "run")["done"] == 0 and arena.ledger.read_bytes() == before
    trained = [line for line in read_lines(arena.ledger) if "train_seconds" in line]
    assert len(trained) == len({line["id"] for line in trained}) == len(arena.folders())
    # Seed by seed over the methods, so that a stopped tournament has whole rows of few seeds.
    assert [line["seed"] for line in read_lines(arena.ledger) if "test" in line["metrics"]] == [
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        2,
    ]


def test_a_line_says_what_made_it_and_no_path(tmp_path: Path, call: Call) -> None:
    arena = Arena(tmp_path, ONE)
    assert call(arena, "run")["done"] == 1
    (line,) = read_lines(arena.ledger)
    assert line["overrides"] == ["optim.muon_lr=2e-2"] and line["seed"] == 0 and line["samples"] == 640
    assert (line["commit"], line["dirty"], line["versions"]["torch"]) == ("abc123", True, "2.0")
    assert line["machine"]["cores"] >= 1 and line["trained_seconds"] == 2.5 and line["parameters"] == 1200
    assert line["train_processor_seconds"] > 0 and line["eval_processor_seconds"] > 0
    assert len(line["weights"]) == 16 and line["metrics"]["test"]["region/prompter/top1"] == 0.8
    assert str(tmp_path) not in arena.ledger.read_text()


def test_a_trained_folder_is_measured_and_not_trained(tmp_path: Path, call: Call) -> None:
    arena = Arena(tmp_path, ONE)
    call(arena, "run")
    (line,) = read_lines(arena.ledger)
    arena.ledger.unlink()
    assert call(arena, "run")["done"] == 1
    (again,) = read_lines(arena.ledger)
    assert again["metrics"] == line["metrics"] and again["weights"] == line["weights"] and "train_seconds" not in again


def test_a_folder_of_other_overrides_is_refused(tmp_path: Path, call: Call) -> None:
    arena = Arena(tmp_path, ONE)
    call(arena, "run")
    arena.file.write_text(ONE.replace("2e-2", "3e-2"))
    assert "its folder cloc/s0 holds" in call(arena, "run")["told"]
    (arena.runs / "toy" / "cloc" / "s0").rename(tmp_path / "away")
    assert call(arena, "run", "--retry")["done"] == 1


def test_an_evaluation_without_what_was_asked_is_a_failure(tmp_path: Path, call: Call) -> None:
    arena = Arena(tmp_path, ONE)
    (arena.tree / "eval.py").write_text("print('nothing')")
    assert "cloc/s0 FAILED: eval: metrics.json is not what was asked for" in call(arena, "run")["told"]


def test_a_set_that_the_study_measures_otherwise_now_is_measured_again(tmp_path: Path, call: Call) -> None:
    arena = Arena(tmp_path, ONE)
    call(arena, "run")
    arena.file.write_text(ONE.replace("sets: {test: []}", "sets: {test: [evaluation.limit=3]}"))
    assert "measured with other overrides" in call(arena, "table")["text"]
    assert call(arena, "run")["done"] == 1 and call(arena, "run")["done"] == 0


def test_a_failure_is_a_line_with_its_reason_in_every_table_and_run_again_when_asked(
    tmp_path: Path, call: Call
) -> None:
    arena = Arena(tmp_path, ONE.replace("2e-2", "7"))
    result = call(arena, "run")
    assert (result["done"], result["failed"]) == (0, 1)
    assert "cloc/s0 FAILED: train: error: optim.muon_lr: too large a rate" in result["told"]
    (line,) = read_lines(arena.ledger)
    assert (
        line["status"] == "failed" and line["reason"].endswith("(exit code 1)") and str(tmp_path) not in line["reason"]
    )
    assert "failed: train: error: optim.muon_lr: too large" in call(arena, "table")["text"]
    assert call(arena, "run")["failed"] == 0, "not by itself"
    (arena.tree / "train.py").write_text((arena.tree / "train.py").read_text().replace("rate > 1", "rate > 9"))
    assert call(arena, "run", "--retry")["done"] == 1
    assert "failed" not in call(arena, "table")["text"] and len(read_lines(arena.ledger)) == 2


def test_a_search_goes_on_without_what_failed_and_says_so(tmp_path: Path, call: Call) -> None:
    arena = Arena(tmp_path)
    arena.file.write_text(arena.file.read_text().replace("3e-2", "3e+2"))
    result = call(arena, "run", "--only", "clip")
    assert (result["done"], result["failed"]) == (5, 1)
    text = call(arena, "search")["text"]
    assert (
        "| CLIP | `optim.muon_lr` | `optim.muon_lr=3e+2` | failed: train: error" in text and "2e-2` | 0.400 |" in text
    )
    assert "1 runs of the search failed and were no candidates: `search` has" in call(arena, "table")["text"]


def test_what_waits_for_a_search_is_told(tmp_path: Path, call: Call) -> None:
    arena = Arena(tmp_path)
    told = call(arena, "run", "--stage", "final")["told"]
    assert "clip has no settings: its search is not done; run it without --stage final" in told
    assert "less waits for the search of cloc, which is not done" in call(arena, "run", "--only", "less")["told"]
    arena.file.write_text(arena.file.read_text().replace("[1e-2, 2e-2, 3e-2]", "[7, 8]"))
    assert "clip has no settings: no run over optim.muon_lr succeeded" in call(arena, "run", "--only", "clip")["told"]


def test_seeds_that_no_table_has_are_not_run(tmp_path: Path, call: Call) -> None:
    with pytest.raises(ConfigError, match="--seeds 9: toy has 0, 1, 2, of which its tables are"):
        call(Arena(tmp_path), "run", "--seeds", "0", "9")


def test_a_killed_program_goes_on_where_it_was(tmp_path: Path, call: Call) -> None:
    arena = Arena(tmp_path, ONE.replace("[optim", f"[kill={tmp_path / 'flag'}, optim"))
    assert call(arena, "run")["done"] == 1
    (log,) = arena.runs.rglob("tournament.log")
    assert "begin at step 0" in log.read_text() and "begin at step 2" in log.read_text()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere programs outlive a killed tournament")
def test_a_killed_tournament_leaves_no_program_and_goes_on(tmp_path: Path, call: Call) -> None:
    arena = Arena(tmp_path, ONE.replace("[optim", "[pause=0.3, optim"))
    process = arena.start()
    run = arena.runs / "toy" / "cloc" / "s0"
    wait_for(run / "checkpoints" / "last.json", holding=["2"])
    process.kill()
    process.communicate()
    pid = int((run / "pid").read_text())
    until = time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(pid) and not arena.ledger.is_file()
    assert call(arena, "run")["done"] == 1
    assert (run / "tournament.log").read_text().count("begin at step") == 2
    assert "train_seconds" not in read_lines(arena.ledger)[0], "the share of the first life is not known"


def test_a_signal_stops_the_programs_and_leaves_no_line(tmp_path: Path) -> None:
    arena = Arena(tmp_path, ONE.replace("[optim", "[pause=0.3, optim"))
    process = arena.start()
    wait_for(arena.runs / "toy" / "cloc" / "s0" / "checkpoints" / "last.json")
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 75 and "the same command goes on" in told and not arena.ledger.is_file()


@pytest.mark.slow
def test_two_tournaments_share_a_ledger_and_no_run(tmp_path: Path) -> None:
    arena = Arena(tmp_path, ONE.replace("[0]", "[0, 1, 2, 3]").replace("[optim", "[pause=0.1, optim"))
    both = [arena.start(), arena.start()]
    for process in both:
        process.communicate(timeout=120)
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(line["seed"] for line in read_lines(arena.ledger)) == [0, 1, 2, 3]


def test_no_run_is_begun_after_the_limit(tmp_path: Path, call: Call) -> None:
    arena = Arena(tmp_path, ONE.replace("[0]", "[0, 1, 2]").replace("[optim", "[pause=0.2, optim"))
    result = call(arena, "run", "--limit-minutes", "0.005")
    assert result["done"] == 1 and result["left"] == 2


def test_a_default_that_is_not_the_experiments_is_told(tmp_path: Path, call: Call) -> None:
    arena = Arena(tmp_path)
    arena.file.write_text(arena.file.read_text().replace("default: 1}", "default: 0.5}"))
    assert (
        "axes.loss.region: the experiment has 1.0, the study calls 0.5" in call(arena, "run", "--only", "cloc")["told"]
    )


@pytest.mark.slow
def test_with_the_real_programs_a_kill_changes_no_weight(tmp_path: Path, call: Call) -> None:
    squares, arena = make_squares(tmp_path / "squares"), Arena(tmp_path, "")
    arena.tree = ROOT
    overrides = [one for one in TINY if not one.startswith("experiment")]
    overrides += ["samples=800", "trainer.checkpoint_every=16", "trainer.keep_last=100"]
    study = {
        "title": "Squares",
        "seeds": [0],
        "overrides": overrides,
        "test": ["squares"],
        "sets": {"squares": ["evaluation.parts=[image,region]", "evaluation.sources=[prompter]"]},
        "columns": {"R@1": "image_text/text_to_image_R@1", "parameters": "parameters"},
        "methods": {name: {"experiment": "demo_cloc", "reads": "prompter"} for name in ("killed", "quiet")},
    }
    arena.file.write_text(json.dumps(study))  # which is YAML
    places = [f"data.train={squares / 'train'}", f"model.text.tokenizer={squares / 'tokenizer'}"]
    more = ["--local", *places, f"datasets.squares.shards={squares / 'train'}"]
    process = arena.start("--only", "killed", *more)
    checkpoints = arena.runs / "toy" / "killed" / "s0" / "checkpoints"
    until = time.monotonic() + 240
    while not list(checkpoints.glob("step-*")) and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not arena.ledger.is_file()
    assert call(arena, "run", *more)["done"] == 2
    lines = {line["method"]: line for line in read_lines(arena.ledger)}
    assert lines["killed"]["weights"] == lines["quiet"]["weights"] and len(lines["quiet"]["weights"]) == 16
    assert lines["killed"]["metrics"] == lines["quiet"]["metrics"] and "train_seconds" not in lines["killed"]
    assert (
        "image_text/text_to_image_R@1" in lines["quiet"]["metrics"]["squares"]
        and str(tmp_path) not in arena.ledger.read_text()
    )
    assert "| quiet | 1 |" in call(arena, "table")["text"]
