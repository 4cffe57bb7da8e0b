"""A study is checked in a line; its search goes axis after axis; its ledger survives what a crash leaves."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from benchmarks.tournament import ledger as ledgers
from benchmarks.tournament.ledger import LedgerError, read_book, read_lines, write_line
from benchmarks.tournament.plan import Job, final, make_job, search, trains
from benchmarks.tournament.study import STUDIES, Study, key_of, read_study
from cloc.config import ConfigError, TrainConfig, check_keys, check_overrides
from tests.kit.paths import ROOT
from tests.kit.tournament import STUDY

NAMES = sorted(one.stem for one in STUDIES.glob("*.yaml"))


def study_of(folder: Path, text: str = STUDY) -> Study:
    path = folder / "toy.yaml"
    path.write_text(text)
    return read_study(str(path))


def done(study: Study, job: Job, value: float, **more: Any) -> dict[str, Any]:
    metrics = {name: {"region/prompter/top1": value, "image_text/R@1": value} for name in job.sets}
    evaluation = {name: study.sets[name] for name in job.sets}
    line = {"kind": "run", "id": job.id, "study": study.name, "method": job.method, "status": "done", "seed": job.seed}
    return {**line, "settings": dict(job.settings), "metrics": metrics, "evaluation": evaluation, **more}


# --- studies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: A toy", "titel: A toy", "'titel'"),
        ("baseline: clip", "baseline: clp", "baseline: 'clp' is unknown; did you mean 'clip'?"),
        ("inherits: cloc", "inherits: less", "leads back to itself: less → less"),
        ("search: [optim.muon_lr],", "search: [optim.muon_lt],", "did you mean 'optim.muon_lr'?"),
        (", default: 1}", "}", "axes.loss.region: needs a default"),
        ("[0.5, 1, 2]", "[0.5, 1, 1]", "each once"),
        ("seeds: [0, 1, 2]", "seeds: [0, 0]", "each once"),
        ("seeds: [0, 1, 2]", "seeds: [a]", "seeds"),
        ("[data.regions=1]", "[data.regions]", "must be KEY=VALUE"),
        ("[data.regions=1]", "[seed=3]", "the tournament itself sets seed"),
        ("validation: val", "validation: ''", "needs a validation set and a criterion"),
        ("test: [test, things]", "test: [tset]", "did you mean 'test'?"),
        ("  clip: {label", "  cloc: {label", "'cloc' stands twice"),
        ("title: A toy", "title: [", "no YAML"),
        ("  less:", "  ../less:", "letters, digits and _"),
        ("default: 1}", "default: 1, name: lr}", "two are called lr in the names of run folders"),
    ],
)
def test_what_is_wrong_with_a_study_is_a_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        study_of(tmp_path, STUDY.replace(old, new))
    assert message in str(error.value) and str(error.value).startswith("toy.yaml: ") and "\n" not in str(error.value)


def test_a_study_that_is_not_there_names_the_others() -> None:
    with pytest.raises(ConfigError, match="did you mean 'scenes'"):
        read_study("scene")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_what_train_takes_and_changes_its_experiment_where_it_says(name: str) -> None:
    study = read_study(name)
    jobs = [make_job(study, method, first_values(study, method), 0, study.test) for method in study.in_order()]
    assert len({frozenset(job.overrides) for job in jobs}) == len(jobs), "two methods are the same"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain = {one.experiment: composed(f"experiment={one.experiment}") for one in study.methods.values()}
        for job in jobs:
            own, changed = study.methods[job.method], composed(*job.overrides)
            keys = [(one, key_of(one).replace("/", ".")) for one in job.overrides[1:]]
            idle = [one for one, key in keys if select(plain[own.experiment], key) == select(changed, key)]
            assert all(key_of(one) in (*own.search, "samples") for one in idle), f"{job.method}: {idle} change nothing"
            start = composed(*make_job(study, job.method, {}, 0, study.test).overrides) if own.search else plain
            for axis in own.search:  # else a run fails once it is trained
                default = study.axes[axis].default
                assert not default or float(select(start, axis)) == float(default), f"{job.method}: {axis}"


def composed(*overrides: str) -> DictConfig:
    """As ``train.py`` composes it, and finds it right."""
    config = compose("train", check_overrides(overrides, TrainConfig))
    check_keys(config, TrainConfig)
    return config


def select(config: DictConfig, key: str) -> Any:
    """A value; what is null is told from what is not there."""
    return OmegaConf.select(config, key, default="absent")


def first_values(study: Study, method: str) -> dict[str, str]:
    return {axis: study.axes[axis].values[0] for axis in study.methods[method].search}


# --- search -----------------------------------------------------------------------------------------------------------


def test_a_search_goes_axis_after_axis_and_shares_runs(tmp_path: Path) -> None:
    study, path = study_of(tmp_path), tmp_path / "ledger.jsonl"
    first = search(study, {}, "cloc")
    assert [job.slug for job in first.pending] == ["lr1e-2_s0", "lr2e-2_s0", "lr3e-2_s0"] and not first.is_done
    for job, value in zip(first.pending, (0.1, 0.2, 0.3), strict=True):
        write_line(path, done(study, job, value))
    second = search(study, read_book(path), "cloc")
    assert [job.slug for job in second.pending] == ["lr3e-2_region0.5_s0", "lr3e-2_region2_s0"]
    assert second.edges == ["optim.muon_lr"]
    for job, value in zip(second.pending, (0.2, 0.1), strict=True):
        write_line(path, done(study, job, value))
    chosen = search(study, read_book(path), "cloc")
    assert chosen.is_done and chosen.settings == {"optim.muon_lr": "3e-2", "loss.region": "1"}
    assert len(chosen.trials) == 6, "the default of the second axis is the best run of the first"
    assert search(study, read_book(path), "less").settings == chosen.settings
    jobs = final(study, read_book(path), ["cloc", "less"], study.seeds)
    assert [(job.method, job.seed) for job in jobs][:3] == [("cloc", 0), ("less", 0), ("cloc", 1)]
    assert jobs[0].id == first.pending[2].id, "the search's own run is that of its seed"
    assert [trains(study, method) for method in ("clip", "cloc", "less")] == [3 + 2, 3 + 2 + 2, 3]


def test_an_id_is_what_defines_the_result(tmp_path: Path) -> None:
    study = study_of(tmp_path)

    def identity(settings: dict[str, str], seed: int = 0, method: str = "cloc") -> str:
        return make_job(study, method, settings, seed, study.test).id

    base = identity({"optim.muon_lr": "2e-2"})
    assert base == identity({"optim.muon_lr": "0.02"}) == identity({"optim.muon_lr": "2e-2", "loss.region": "1"})
    others = [
        identity({"optim.muon_lr": "2.1e-2"}),
        identity({"optim.muon_lr": "2e-2", "loss.region": "2"}),
        identity({"optim.muon_lr": "2e-2"}, 1),
        identity({"optim.muon_lr": "2e-2"}, 0, "less"),
    ]
    assert len({base, *others}) == 5


def test_a_value_with_a_slash_names_one_folder(tmp_path: Path) -> None:
    axis = "axes:\n  model/prompter: {values: [paper, shared], default: shared}"
    study = study_of(tmp_path, STUDY.replace("axes:", axis))
    assert make_job(study, "cloc", {"model/prompter": "paper"}, 0, []).slug == "model-prompterpaper_s0"


def test_a_search_without_a_survivor_fails_with_a_reason(tmp_path: Path) -> None:
    study, path = study_of(tmp_path), tmp_path / "ledger.jsonl"
    for job in search(study, {}, "clip").pending:
        write_line(path, done(study, job, 0, status="failed", reason="no memory", metrics={}, evaluation={}))
    found = search(study, read_book(path), "clip")
    assert found.failed == "no run over optim.muon_lr succeeded: no memory" and not found.is_done
    assert final(study, read_book(path), ["clip"], [0]) == []


# --- ledger -----------------------------------------------------------------------------------------------------------

LINE = {"kind": "run", "id": "a", "status": "done", "method": "m", "seed": 0}


def test_lines_of_a_job_are_taken_together(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.jsonl"
    write_line(path, {**LINE, "status": "failed", "reason": "disk", "train_seconds": 4})
    write_line(path, {**LINE, "metrics": {"val": {"x": 1 / 3}}, "evaluation": {"val": ["limit=1"]}})
    write_line(path, {**LINE, "metrics": {"test": {"x": 1}}, "train_seconds": None})
    record = read_book(path)["a"]
    assert record.metrics == {"val": {"x": 0.33333}, "test": {"x": 1}} and record.evaluation == {"val": ["limit=1"]}
    assert record.line["train_seconds"] == 4 and record.failures == 1 and not record.failed


def test_a_torn_last_line_is_ignored_and_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write_line(path, LINE)
    whole = path.read_bytes()
    for torn in (b'{"kind": "run", "id": "b"', b"{", b'"text"', b"\x00\x00"):
        path.write_bytes(whole + torn)
        assert len(read_lines(path)) == 1
        assert write_line(path, {**LINE, "id": "c"}) == len(torn)
        assert [line["id"] for line in read_lines(path)] == ["a", "c"]
    path.write_bytes(b'{"kind"')
    assert read_lines(path) == [] and write_line(path, LINE) == 7 and path.read_bytes() == whole


def test_a_last_line_that_only_lacks_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(LINE))
    assert len(read_lines(path)) == 1
    assert write_line(path, {**LINE, "id": "b"}) == 0 and [line["id"] for line in read_lines(path)] == ["a", "b"]


@pytest.mark.parametrize("bad", ["<<<<<<< HEAD", "[]", '{"kind": 3}', '{"kind": "run", "id": "a"}', "{"])
def test_a_line_in_the_middle_that_is_none_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{bad}\n{json.dumps(LINE)}\n")
    with pytest.raises(LedgerError, match=r"ledger.jsonl: line 2: .*mend it by hand"):
        read_lines(path)


def _write(path: Path, name: str) -> None:
    for number in range(20):
        ledgers.write_line(path, {**LINE, "id": f"{name}{number}", "reason": "x" * 5000})


def test_several_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(path, name)) for name in "abc"]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert len({line["id"] for line in read_lines(path)}) == 60
