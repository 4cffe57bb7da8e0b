"""The whole-matrix references of ``benchmarks.loss`` compute what the streamed loss computes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.loss import conflicts, make_case, one_product, ours, two_products
from tests.kit.paths import ROOT


@pytest.mark.parametrize("rule", ["exact", "cosine"])
def test_the_three_contenders_agree_in_value_and_gradient(rule: str) -> None:
    case = make_case(150, 16, dtype=torch.float64)
    found = [way(case, rule) for way in (ours, two_products, one_product)]
    slopes = [torch.autograd.grad(loss, case.leaves) for loss in found]
    for loss, slope in zip(found[1:], slopes[1:], strict=True):
        torch.testing.assert_close(loss, found[0], rtol=1e-10, atol=0)
        for one, other in zip(slope, slopes[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_the_cosine_rule_has_something_to_do() -> None:
    case = make_case(150, 16)
    texts = case.table[case.own].detach()
    exact, cosine = (int(conflicts(texts, case.own, rule).sum()) for rule in ("exact", "cosine"))
    assert 0 < exact < cosine < 150 * 150 / 10


@pytest.mark.slow
def test_loss_benchmark_ends_in_its_ratios() -> None:
    command = [sys.executable, "-m", "benchmarks.loss", "--rows", "256", "512", "--rounds", "1", "--width", "32"]
    root = ROOT
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=300)
    ratios = json.loads(found.stdout.splitlines()[-1])
    assert ratios["rows"] == 512
    for rule in ("", "exact_"):
        assert ratios[f"{rule}time_over_full"] > 0 and ratios[f"{rule}memory_over_full"] >= 0
