"""Distillation from the base against ten naive lines, in float64: value, gradients, the cases without a row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cloc.config import ConfigError
from cloc.contracts import Batch, Features
from cloc.losses.distill import Distill
from cloc.losses.global_batch import gather_batch
from cloc.losses.objective import ClocLoss
from tests.kit.toy import gradients, make_batch, make_features, make_leaves, taught

M = 3
PHRASES = [[1, 2, None], [None, 1, 1], [None, None, None], [4, 5, 3], [1, None, 5]]
CAPTIONS = [6, 7, 8, 6, 10]
EMPTY = [[None] * M] * 5


def naive(features: Features, batch: Batch) -> Tensor:
    found = torch.zeros((), dtype=torch.float64)
    for own, teacher in ((features.image, batch.teacher_image), (features.text, batch.teacher_text)):
        found = found + sum(((a - b) ** 2).sum() for a, b in zip(own, teacher, strict=True)) / len(own)
    rows = batch.region_valid.nonzero().tolist()
    for picture, slot in rows:
        place = int(batch.region_phrase[picture, slot])
        gap = features.phrase[place] - batch.teacher_phrase[place]
        found = found + (gap**2).sum() / len(rows)
    return found


@pytest.mark.parametrize("phrases", [PHRASES, EMPTY])
def test_it_equals_the_naive_lines(phrases: list[list[int | None]]) -> None:
    leaves = make_leaves(5, M)
    batch = taught(make_batch(CAPTIONS, phrases, M))
    features = make_features(leaves, batch)
    value, stats = Distill()(features, batch, gather_batch(features, batch))
    expected = naive(features, batch)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for name, own in gradients(value, leaves).items():
        other = gradients(expected, leaves)[name]
        assert (own is None) == (other is None), name
        if own is not None:
            torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12, msg=name)
    cosine = (features.image * batch.teacher_image).sum(-1).mean()
    torch.testing.assert_close(stats["teacher_cosine_image"], cosine)


def test_a_model_that_is_its_teacher_is_not_pulled() -> None:
    leaves = make_leaves(5, M)
    batch = make_batch(CAPTIONS, PHRASES, M)
    features = make_features(leaves, batch)
    own = {"teacher_image": features.image, "teacher_text": features.text, "teacher_phrase": features.phrase}
    batch = replace(batch, **{name: value.detach() for name, value in own.items()})
    value, stats = Distill()(features, batch, gather_batch(features, batch))
    assert value == 0 and all(one == 1 for one in stats.values())
    assert all(one is None or not one.any() for one in gradients(value, leaves).values())


def test_a_clip_without_phrases_and_a_weight_in_the_objective() -> None:
    leaves = make_leaves(5, M)
    batch = taught(make_batch(CAPTIONS, PHRASES, M))
    features = replace(make_features(leaves, batch), phrase=None, region=None, grounded=None)
    terms = ClocLoss(region=0, grounding=0, distill=0.5)(features, batch)
    assert list(terms.terms) == ["global", "distill"] and "teacher_cosine_phrase" not in terms.stats
    torch.testing.assert_close(terms.total, terms.terms["global"] + 0.5 * terms.terms["distill"])


def test_a_batch_without_a_teacher_is_told() -> None:
    batch = make_batch(CAPTIONS, PHRASES, M)
    with pytest.raises(ValueError, match=r"loss\.distill: the batch holds no embeddings of a teacher"):
        ClocLoss(distill=1)(make_features(make_leaves(5, M), batch), batch)
    with pytest.raises(ConfigError, match=r"loss\.distill=-1: must be at least 0"):
        ClocLoss(distill=-1)
