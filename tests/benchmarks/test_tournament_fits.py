"""Power laws are found again, with what cannot be told left open; costs and frontiers come out of a toy tournament."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tournament import fits, frontier
from benchmarks.tournament.cost import Meter, boxes_per_second, cost_table, measure
from benchmarks.tournament.ledger import read_lines, write_line
from benchmarks.tournament.plan import make_job
from benchmarks.tournament.power_law import Point, fit
from benchmarks.tournament.results import Results
from benchmarks.tournament.runs import Place
from benchmarks.tournament.study import read_study
from benchmarks.tournament.table import table
from cloc.config import ConfigError
from tests.benchmarks.test_tournament_study import done
from tests.benchmarks.test_tournament_tables import filled
from tests.kit.tournament import ONE, STUDY, Arena

SAMPLES, SIZES = (10_000, 20_000, 40_000), (1e6, 2e6, 4e6)


def points(noise: float = 0.0, bend: float = 0.0) -> list[Point]:
    rng = np.random.default_rng(0)
    return [
        (n, p, 30 * n**-0.3 * p**-0.1 * math.exp(noise * rng.standard_normal() - bend * math.log(n / 20_000) ** 2))
        for n in SAMPLES
        for p in SIZES
    ]


def test_the_exponents_of_nine_points_are_found() -> None:
    law = fit(points())
    assert law is not None and law.samples is not None and law.parameters is not None and law.points == 9
    assert (law.samples.value, law.parameters.value) == (pytest.approx(0.3), pytest.approx(0.1))
    assert law.samples.half < 1e-6 and law.error(20_000, 2e6) == pytest.approx(points()[4][2])
    assert law.samples.doubled()[0] == pytest.approx(2**-0.3)


def test_the_intervals_cover_what_they_say() -> None:
    rng, inside = np.random.default_rng(1), 0
    for _ in range(300):
        noisy = [(n, p, error * math.exp(0.1 * rng.standard_normal())) for n, p, error in points()]
        law = fit(noisy)
        assert law is not None and law.samples is not None
        inside += abs(law.samples.value - 0.3) < law.samples.half
    assert 0.91 < inside / 300 < 0.99


def test_a_law_that_bends_is_told_and_noise_is_not() -> None:
    up, down, straight = fit(points(0.005, 0.2)), fit(points(0.005, -0.2)), fit(points(0.02))
    assert up is not None and up.bends is not None and up.bends > 0
    assert down is not None and down.bends is not None and down.bends < 0
    assert straight is not None and straight.bends is None


def test_what_does_not_vary_has_no_exponent_and_too_few_points_no_law() -> None:
    law = fit([one for one in points() if one[1] == 1e6])
    assert law is not None and law.parameters is None and law.samples is not None and law.bends is None
    assert fit(points()[:2]) is None and fit([]) is None and fit([points()[0]] * 5) is None


def test_samples_and_size_that_only_grow_together_have_no_exponents() -> None:
    diagonal = [points()[place] for place in (0, 4, 8)]
    assert fit(2 * diagonal) is None
    law = fit([*diagonal, *diagonal, points()[1]])
    assert law is not None and law.samples is not None and law.samples.value == pytest.approx(0.3)


def test_fits_of_a_ledger_are_printed_and_drawn(tmp_path: Path) -> None:
    path, ledger = tmp_path / "sizes.yaml", tmp_path / "ledger.jsonl"
    names = [f"{family}_{n}_{size}" for family in ("clip", "cloc") for n in range(3) for size in range(3)]
    methods = "".join(f"  {name}: {{family: {name.split('_')[0]}, reads: prompter}}\n" for name in names)
    path.write_text(f"{ONE.partition('methods')[0]}fits: {{names: own:top1}}\nmethods:\n{methods}")
    study = read_study(str(path))
    for name, (samples, size, error) in zip(names, 2 * points(0.02), strict=True):
        job = make_job(study, name, {}, 0, study.test)
        perfect = name == "cloc_2_2"
        write_line(ledger, done(study, job, 1.0 if perfect else 1 - error, samples=samples, parameters=size))
    results = Results.read(study, ledger)
    text, numbers = fits.fit_table(results)
    assert "| names | clip | 9 | " in text and "| names | cloc | 8 | " in text and "1 without an error left out" in text
    assert numbers["fits"][0]["samples"][0] == pytest.approx(0.3, abs=0.05)
    fits.draw(results, tmp_path / "deep" / "fits.png")
    assert (tmp_path / "deep" / "fits.png").read_bytes().startswith(b"\x89PNG")


def test_the_frontier_is_every_setting_and_what_none_beats(tmp_path: Path) -> None:
    study, path = filled(tmp_path, {})
    write_line(path, done(study, make_job(study, "cloc", {"optim.muon_lr": "2e-2"}, 0, ["val"]), 1.0))
    results = Results.read(study, path)
    found = frontier.spots(results, "image_text/R@1", "own:top1")
    assert {one.method for one in found} == {"cloc"} and len(found) == 5
    assert [one.settings for one in found if one.is_best] == ["lr 2e-2"]
    frontier.draw(results, found, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="no run of toy has both"):
        frontier.spots(results, "nothing")


# --- cost -------------------------------------------------------------------------------------------------------------


def test_a_picture_pays_the_tower_once_and_a_crop_by_itself() -> None:
    about = {"pictures": 16, "boxes": 64, "picture_ms": 5.0, "boxes_per_second": {"prompter": 800.0, "crop": 50.0}}
    assert boxes_per_second(about, "prompter") == pytest.approx(64 / (16 * 0.005 + 64 / 800))
    assert boxes_per_second(about, "crop") == pytest.approx(50) and boxes_per_second(about, "") is None


def test_costs_are_measured_in_turn_and_stand_in_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arena, asked = Arena(tmp_path, STUDY.replace("[data.regions=1]", "[optim.muon_lr=7]")), []
    study, original = read_study(str(arena.file)), Meter.ask
    monkeypatch.setattr(Meter, "ask", lambda meter, method: asked.append(method) or original(meter, method))
    found = measure(study, arena.ledger, Place(tmp_path, arena.tree), [], 2, 640)
    assert asked == ["clip", "cloc", "less", "clip", "cloc"], "what fails is not asked again"
    assert found["cloc"]["samples_per_second"] == pytest.approx(256) and found["cloc"]["samples_ratio"] == 1
    assert found["cloc"]["boxes_per_second"] == pytest.approx(400) and "too large a rate" in found["failed"]["less"]
    assert [line["kind"] for line in read_lines(arena.ledger)] == ["cost", "cost"]
    assert "| CLOC with less | failed: train.py: error" in capsys.readouterr().out
    results = Results.read(study, arena.ledger)
    assert "| CLOC | 256 | 1 | prompter | 400 | – | 0.00 | 0.00 |" in cost_table(results)
    assert "| CLIP | not run |" in table(results)[0]
