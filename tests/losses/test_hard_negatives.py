"""Hard negatives in a term of their own, against a naive version in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cloc.config import ConfigError
from cloc.contracts import Batch, Features
from cloc.losses.global_batch import gather_batch
from cloc.losses.hard_negatives import HardNegativeContrast
from cloc.losses.objective import ClocLoss
from tests.kit.toy import gradients, make_batch, make_features, make_leaves
from tests.losses.test_losses import CAPTIONS, PHRASES, M, assert_same, region_loss

# One region has two, one of them another region's phrase; one has its own phrase, which does not count, beside another;
# one has its own alone.
NEGATIVES = [[[7, 3], [], []], [[], [1, 8], []], [[], [], []], [[4], [], [9]], [[], [], [4]]]


def naive(features: Features, batch: Batch) -> Tensor:
    """One region after the other: which is its phrase, of that and its negatives?"""
    found = []
    for place in batch.region_valid.nonzero().tolist():
        own = int(batch.region_phrase[*place])
        hard = [i for i in batch.negatives[*place].tolist() if i >= 0 and batch.phrase_id[i] != batch.phrase_id[own]]
        if hard:
            logits = features.scales["region"] * (features.phrase[[own, *hard]] @ features.region[*place])
            found.append(-logits.log_softmax(0)[0])
    return torch.stack(found).mean()


def test_equals_the_naive_version() -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M, negatives=NEGATIVES)
    features = make_features(leaves, batch)
    loss, stats = HardNegativeContrast()(features, batch, gather_batch(features, batch))
    assert stats["hard_negatives"] == 4
    assert_same(loss, naive(features, batch), leaves, {"region", "table", "scale_region"})


def test_without_any_it_is_nothing() -> None:
    leaves, batch = make_leaves(5, M), make_batch(CAPTIONS, PHRASES, M, negatives=[[[], [], []]] * 5)
    features = make_features(leaves, batch)
    loss, _ = HardNegativeContrast()(features, batch, gather_batch(features, batch))
    assert loss == 0 and all(not value.any() for value in gradients(loss, leaves).values() if value is not None)


def test_they_stand_in_their_own_term_or_in_the_denominator_of_the_region_contrast() -> None:
    batch = make_batch(CAPTIONS, PHRASES, M, negatives=NEGATIVES)
    features = make_features(make_leaves(5, M), batch)
    plain = replace(batch, negatives=None)
    joined, alone = region_loss(features, batch)[0], region_loss(features, plain)[0]
    found = ClocLoss(grounding=0, region=0.1, hard_negatives=0.5)(features, batch)
    torch.testing.assert_close(found.terms["region"], alone.detach())
    assert joined > alone + 1e-3
    expected = found.terms["global"] + found.stats["lambda"] * (0.1 * alone + 0.5 * naive(features, batch))
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(ClocLoss(grounding=0)(features, batch).terms["region"], joined.detach())


def test_what_makes_no_sense_is_refused() -> None:
    plain = make_batch(CAPTIONS, PHRASES, M)
    with pytest.raises(ValueError, match=r"loss\.hard_negatives: the batch holds no hard negatives; set data\.neg"):
        ClocLoss(hard_negatives=1)(make_features(make_leaves(5, M), plain), plain)
    with pytest.raises(ConfigError, match=r"loss\.hard_negatives=-1: must be at least 0"):
        ClocLoss(hard_negatives=-1)
