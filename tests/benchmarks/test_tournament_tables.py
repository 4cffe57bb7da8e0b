"""Tables come from the ledger alone: intervals by hand, nothing missing in silence, documents as their ledgers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tournament import documents
from benchmarks.tournament.ledger import write_line
from benchmarks.tournament.plan import make_job, search
from benchmarks.tournament.results import Results
from benchmarks.tournament.spread import difference, estimate, holm
from benchmarks.tournament.study import Study, read_study
from benchmarks.tournament.table import search_table, table
from cloc.config import ConfigError
from tests.benchmarks.test_tournament_study import done, study_of
from tests.kit.paths import ROOT

RATE = {"optim.muon_lr": "2e-2"}
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]


def filled(folder: Path, values: dict[str, list[float]]) -> tuple[Study, Path]:
    """A study whose methods have values by seed, with a search that chose a rate of 2e-2."""
    study, path = study_of(folder), folder / "ledger.jsonl"
    for method in ("clip", "cloc"):
        for job in search(study, {}, method).pending:
            write_line(path, done(study, job, float(job.settings[0][1] == "2e-2")))
    for value in ("0.5", "2"):
        job = make_job(study, "cloc", {**RATE, "loss.region": value}, 0, ["val"])
        write_line(path, done(study, job, 0.0))
    for method, own in values.items():
        for seed, value in enumerate(own):
            job = make_job(study, method, RATE, seed, study.test)
            write_line(path, done(study, job, value, trained_seconds=100.0, samples=640, parameters=2_000_000))
    return study, path


# --- statistics -------------------------------------------------------------------------------------------------------


def test_an_interval_is_students() -> None:
    # 1, 2, 3: standard error 1/√3, t(0.975, 2) = 4.303; p of t = 2√3 with two degrees of freedom is .0742.
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3) and found.half == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
    assert found.p == pytest.approx(0.0742, abs=1e-4)
    assert estimate([0.5]).half == math.inf and estimate([0.5]).p == 1
    assert estimate([1.0, 1.0]).p == 0 and estimate([0.0, 0.0]).p == 1


def test_a_difference_is_paired_by_seed() -> None:
    found = difference({0: 0.3, 1: 0.6, 7: 9.0}, {1: 0.4, 0: 0.1, 3: 5.0})
    assert found is not None and found.n == 2 and found.mean == pytest.approx(0.2) and found.half == pytest.approx(0)
    assert difference({0: 1.0}, {1: 1.0}) is None


def test_holm_stops_at_the_first_that_fails() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([0.04]) == [True] and holm([]) == [] and holm([0.04, 0.04]) == [False, False]


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_has_means_intervals_and_differences(tmp_path: Path) -> None:
    study, path = filled(tmp_path, {"clip": [0.1, 0.2, 0.3], "cloc": [0.5, 0.6, 0.701]})
    text, numbers = table(Results.read(study, path))
    assert "| CLIP | 3 | – | 0.200 ± 0.248 | 0.200 ± 0.248 | 100 | – |" in text
    assert "| CLOC | 3 | 0.600 ± 0.250 | 0.600 ± 0.250 |" in text
    assert "| CLOC | **+0.400 ± 0.001** | **+0.400 ± 0.001** |" in text
    assert "| CLOC with less | not run | – | – |" in text
    assert "2 comparisons, 2 whose own interval leaves out zero, 2 bold" in text
    assert numbers["rows"]["cloc"]["top1"] == pytest.approx(0.60033)


@pytest.mark.parametrize(("spread", "mark"), [(0.02, "**"), (0.0369, "")])
def test_bold_is_what_survives_holm(tmp_path: Path, spread: float, mark: str) -> None:
    """Two comparisons with p = .0092 each, or .030 each: both below .05, and one of two has to be below .025."""
    study, path = filled(tmp_path, {"clip": [0.1] * 3, "cloc": [0.22 - spread, 0.22, 0.22 + spread]})
    text, _ = table(Results.read(study, path))
    assert f"| CLOC | {mark}+0.120 ± " in text and "2 whose own interval leaves out zero" in text


def test_missing_seeds_failures_and_columns_are_said(tmp_path: Path) -> None:
    study, path = filled(tmp_path, {"clip": [0.1, 0.2]})
    job = make_job(study, "clip", RATE, 2, study.test)
    write_line(path, done(study, job, 0, status="failed", reason="no | memory", metrics={}, evaluation={}))
    text, _ = table(Results.read(study, path))
    assert "| CLIP | 2 of 3; 1 failed: no \\| memory | – |" in text and "Failed runs: 1." in text
    assert "| CLOC | not run | – |" in text, "chosen, and no seed measured yet"
    empty = table(Results.read(study, tmp_path / "none.jsonl"))[0]
    assert "| CLOC with less | waits for the search of cloc |" in empty


def test_a_set_that_is_missing_is_told_and_hides_no_other(tmp_path: Path) -> None:
    study, path = filled(tmp_path, {"clip": [0.1, 0.2, 0.3]})
    seed = make_job(study, "clip", RATE, 3, ["test"])
    study.seeds.append(3)
    write_line(path, done(study, seed, 0.4))
    assert "| CLIP | 4 | – | 0.250 ± 0.205 | 0.200 ± 0.248 (n=3) |" in table(Results.read(study, path))[0]
    write_line(path, done(study, seed, 0, status="failed", reason="no such set", metrics={}, evaluation={}))
    assert "| CLIP | 4; 1 failed: no such set | – | 0.250 ± 0.205 |" in table(Results.read(study, path))[0]


def test_seconds_of_a_training_are_those_of_its_rate_and_not_of_a_busy_machine(tmp_path: Path) -> None:
    study, path = filled(tmp_path, {"clip": [0.1, 0.2]})
    study.columns = {"seconds": "seconds_alone"}
    assert "| CLIP | 2 of 3 | – |" in table(Results.read(study, path))[0], "its cost is not measured"
    for rate in (64.0, 32.0):
        write_line(path, {"kind": "cost", "method": "clip", "samples_per_second": rate})
    assert "| CLIP | 2 of 3 | 20 |" in table(Results.read(study, path))[0]


def test_another_set_and_a_table_of_its_own(tmp_path: Path) -> None:
    study, path = filled(tmp_path, {"clip": [0.1, 0.1], "cloc": [0.2, 0.2]})
    assert table(Results.read(study, path), dataset="things")[0].startswith("|  | n | top1 |")
    with pytest.raises(ConfigError, match="--set val: no test set of toy; known are test, things"):
        table(Results.read(study, path), dataset="val")
    with pytest.raises(ConfigError, match="table: 'ablations' is unknown"):
        table(Results.read(study, path), "ablations")
    own = "tables: {small: {methods: [cloc], columns: {x: image_text/R@1}}}\n"
    study = study_of(tmp_path, (tmp_path / "toy.yaml").read_text() + own)
    assert table(Results.read(study, path), "small")[0].startswith(
        "|  | n | x |\n| --- | --- | --- |\n| CLOC | 2 of 3 |"
    )


def test_the_search_says_what_was_chosen_and_what_lies_at_an_edge(tmp_path: Path) -> None:
    study, path = filled(tmp_path, {})
    text, numbers = search_table(Results.read(study, path))
    assert "| CLIP | `optim.muon_lr` | `optim.muon_lr=2e-2` | 1.000 | **chosen** |" in text
    assert "| CLOC | `loss.region` | `optim.muon_lr=2e-2; loss.region=1` | 1.000 | **chosen** |" in text
    assert "| CLOC with less | – | `optim.muon_lr=2e-2`; `loss.region=1` | – | inherits from cloc |" in text
    assert "edge" not in text and numbers["chosen"]["cloc"]["edges"] == []
    rate = make_job(study, "clip", {"optim.muon_lr": "3e-2"}, 0, ["val"])
    write_line(path, done(study, rate, 2.0))
    assert "3e-2` | 2.000 | **chosen**, at the edge of its grid |" in search_table(Results.read(study, path))[0]


# --- documents --------------------------------------------------------------------------------------------------------

OTHER = "<!-- end -->\n\n<!-- tournament: other search -->\n<!-- end -->\n"
PAGE = f"Before.\n\n<!-- tournament: STUDY table -->\nold\n{OTHER}"


def test_a_document_is_written_between_its_marks_and_checked(tmp_path: Path) -> None:
    study, path = filled(tmp_path, {"clip": [0.1, 0.2, 0.3]})
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace("STUDY", str(tmp_path / "toy.yaml")))
    with pytest.raises(ConfigError, match="page.md: not what the ledger gives.*--write"):
        documents.check(page, "toy", path)
    assert documents.write(page, "toy", path) == 1 == documents.check(page, "toy", path)
    text = page.read_text()
    assert text.startswith("Before.\n\n<!-- tournament: ") and "| CLIP | 3 |" in text and "old" not in text
    assert text.endswith(OTHER), "another study's is left"
    assert documents.write(page, "toy", path) == 1 and page.read_text() == text
    page.write_text(text.replace("0.200 ±", "0.201 ±", 1))
    with pytest.raises(ConfigError, match="not what the ledger gives"):
        documents.check(page, "toy", path)
    with pytest.raises(ConfigError, match="no <!-- tournament: scenes table -->"):
        documents.write(page, "scenes", path)


def test_a_mark_without_an_end_takes_no_text_with_it(tmp_path: Path) -> None:
    study_of(tmp_path)
    begin = f"<!-- tournament: {tmp_path}/toy.yaml table -->\n"
    for page in (f"{begin}kept\n", f"{begin}kept\n\n{begin}<!-- end -->\n"):
        with pytest.raises(ConfigError, match="page.md: a <!-- tournament: STUDY … --> without an <!-- end -->"):
            documents.made(page, "page.md")


@pytest.mark.parametrize("mark", ["toy.yaml drawing", "toy.yaml table a b c"])
def test_a_mark_that_asks_for_nothing_known_is_a_line(tmp_path: Path, mark: str) -> None:
    study_of(tmp_path)
    with pytest.raises(ConfigError, match="known are table, fit, cost, search"):
        documents.made(f"<!-- tournament: {tmp_path}/{mark} -->\n<!-- end -->", "page.md")


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_the_documents_are_what_the_ledgers_give(page: Path) -> None:
    assert documents.check(page) == page.read_text("utf-8").count("\n<!-- tournament: ")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "ledger").glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_ledger_is_one_of_a_study_and_names_no_machines_paths(path: Path) -> None:
    results: Any = Results.read(read_study(path.stem), path)
    assert results.lines and not any(start in path.read_text() for start in ('"/', "=/", " /"))
