"""Odd values of every key are refused in a line, or a run trains with them (``python -m tests.config.odd_values``)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import huggingface_hub.constants
import pytest

from cloc.config import TrainConfig
from tests.config.odd_values import FAULTS, ODD, Outcome, base, places, sweep
from tests.kit.resuming import make_squares


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def judge(found: list[Outcome], least: int) -> None:
    counts = Counter(one.outcome for one in found)
    faults = [f"{one.outcome} {one.key}={one.value!r:.40}: {one.detail}" for one in found if one.outcome in FAULTS]
    print(f"{len(found)} values: {dict(counts)}")
    assert faults == [], f"{len(found)} values, {dict(counts)}"
    assert len(found) >= least and counts["refused"] > counts["trained"]


def test_a_few_of_all_odd_values(tmp_path: Path) -> None:
    judge(list(sweep(tmp_path, every=211)), 12)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_odd_values_of_every_key(tmp_path: Path) -> None:
    """All of them as far as a dry run, which looks at what a run would; every eleventh that passes is trained."""
    judge(list(sweep(tmp_path, trained=11)), 2500)


def test_every_leaf_is_tried(tmp_path: Path) -> None:
    config = base(make_squares(tmp_path, 8), tmp_path / "run")
    keys = set(places(config, TrainConfig))
    for key in ("optim.betas", "data.train", "model.image.options.depth", "loss.threshold", "datasets.squares.lead"):
        assert key in keys
    assert {"trainer.precision", "model.prompter.heads", "logger.name", "evaluation.metrics[0]", "task"} <= keys
    assert len(keys) * len(ODD) > 2500
