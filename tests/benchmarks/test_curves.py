"""Curves are read from what runs log, and compared where all of them have been."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import curves

HEADER = "samples,seconds,loss,val/toy/region/prompter/top1,val/toy/grounding/any/acc@0.5\n"


def made(folder: Path, name: str, lines: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "metrics.csv").write_text(HEADER + lines)
    return folder / name


def test_values_at_equal_samples_and_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = made(tmp_path, "slow", "0,0,3,0.0,\n50,9,2,,\n100,20,2,0.4,\n200,40,1,0.8,\n")
    fast = made(tmp_path, "fast", "0,0,3,0.0,0.1\n100,5,2,0.2,0.3\n200,10,2,0.6,0.5\n")
    picture = tmp_path / "docs" / "curves.png"
    monkeypatch.setattr(sys, "argv", ["curves", str(slow), str(fast), "--out", str(picture)])
    curves.main()
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1]) == {
        "region/prompter/top1": {"samples": {"slow": 0.8, "fast": 0.6}, "seconds": {"slow": 0.2, "fast": 0.6}},
        "grounding/any/acc@0.5": {"samples": {"fast": 0.5}, "seconds": {"fast": 0.5}},
    }
    assert "| `grounding/any/acc@0.5` | 10 seconds | – | 0.500 |" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_metric_of_two_sets_and_runs_without_measurements_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = tmp_path / "both"
    both.mkdir()
    (both / "metrics.csv").write_text("samples,seconds,val/a/region/x,val/b/region/x\n0,0,1,2\n")
    with pytest.raises(ValueError, match="several sets: val/a/region/x, val/b/region/x"):
        curves.curve(both, "region/x")
    monkeypatch.setattr(sys, "argv", ["curves", str(both)])
    with pytest.raises(SystemExit):
        curves.main()
    assert "set evaluation.every" in capsys.readouterr().err
