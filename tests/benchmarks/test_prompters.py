"""The heads of ``benchmarks.prompters``: every reading is among them, and equal parameters are equal."""

from __future__ import annotations

import pytest
import torch

from benchmarks.prompters import cosine, heads, parameters


def test_heads_of_equal_parameters_are_equal_and_every_reading_is_measured() -> None:
    found, shape = heads(), (128, 128, (8, 8))
    counts = {name: parameters(head, shape) for name, head in found.items()}
    equal = [counts[name] for name in ("shared", "paper mlp_ratio=3", "roi_align hidden=768")]
    assert max(equal) / min(equal) < 1.02
    assert len([name for name in found if name.startswith("paper average")]) == 12


def test_the_same_box_twice_has_cosine_one() -> None:
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.7]]).expand(3, 2, -1)
    tokens = torch.randn(3, 16, 32)
    for head in heads().values():
        assert cosine(head, (32, 8, (4, 4)), tokens, boxes, 2) == pytest.approx(1, abs=1e-5)
